"""KVzip: what it asks, what it makes of the answer, and that nothing of the asking is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from views import D, E, G, H, N, view

from kvledger.hf.cache import arenas
from kvledger.hf.load import attach
from kvledger.hf.session import Session, open_session
from kvledger.methods.base import Glance, Probe
from kvledger.methods.kvzip import KVzip
from kvledger.recipe import parse

TOKENS = 50


def reference(glance: Glance, h: int, sinks: int, plus: bool) -> Tensor:
    """§3.2 by loops: max over queries and group of the softmax over sinks, span and the repetition up to the query."""
    T, positions = glance.queries.shape[2], glance.positions.tolist()
    own = positions[-T:]
    span = [i for i, p in enumerate(positions) if glance.probe.start <= p < glance.probe.stop]
    best = torch.zeros(len(span))
    for g in range(glance.queries.shape[1]):
        for t in range(T):
            first = [i for i, p in enumerate(positions) if p < min(sinks, glance.probe.start)]
            rows = first + span + [i for i, p in enumerate(positions) if own[0] <= p <= own[t]]
            weights = (glance.keys[h, rows] @ glance.queries[h, g, t] * glance.scale).softmax(0)
            weights = weights[len(first) : len(first) + len(span)]
            if plus:
                weights = (
                    weights * (glance.values[h, span] @ glance.output[h, g]).norm(dim=-1) / glance.hidden[t].norm()
                )
            best = torch.maximum(best, weights)
    return best


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("start, stop", [(0, 20), (2, 9), (20, 29)])
def test_rows_are_worth_the_most_that_a_repetition_looks_at_them(seed: int, plus: bool, start: int, stop: int) -> None:
    seen, T = view(seed=seed), 11  # the last 11 rows are the probe's own
    draw = torch.Generator().manual_seed(seed + 9)
    method = KVzip(plus=plus)
    glance = Glance(
        probe=Probe((0,) * T, start, stop),
        queries=torch.randn(H, G, T, D, generator=draw) * 3,
        keys=seen.keys,
        values=seen.values,
        positions=torch.arange(N),
        scale=seen.scale,
        hidden=torch.randn(T, E, generator=draw) if plus else None,
        output=seen.output if plus else None,
    )
    given = method.watch(glance)
    for h in range(H):
        torch.testing.assert_close(given[h], reference(glance, h, 4, plus), rtol=1e-4, atol=1e-6)


def test_queries_are_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvledger.methods import kvzip

    seen, draw = view(), torch.Generator().manual_seed(3)
    q = torch.randn(H, G, 11, D, generator=draw)
    glance = Glance(Probe((0,) * 11, 3, 20), q, seen.keys, seen.values, torch.arange(N), seen.scale)
    whole = KVzip().watch(glance)
    monkeypatch.setattr(kvzip, "QUERIES", 4)
    torch.testing.assert_close(KVzip().watch(glance), whole)


def encode(text: str) -> list[int]:
    return [1000 + len(text)]


def test_the_context_is_asked_for_piece_by_piece() -> None:
    asked = list(KVzip(chunk=20, echo=8).probes(range(100, 150), 7, encode, [7, 8]))
    assert [(probe.start, probe.stop) for probe in asked] == [(7, 27), (27, 47), (47, 57)]
    first, second, last = (list(probe.ids) for probe in asked)
    assert first == [*encode("\n\nRepeat the previous context exactly."), 7, 8, *range(100, 120)]
    request = encode("\n\nRepeat the part of the previous context exactly, starting with")
    assert second == [*request, *range(112, 120), 7, 8, *range(120, 140)]
    assert last == [*request, *range(132, 140), 7, 8, *range(140, 150)]


# ---- in a session ----------------------------------------------------------------------------------------------------


def opened(recipe: str, chunk: int = 0, kind: str = "llama", **changes: Any) -> Session:
    made = tiny.model(kind, torch.float64, **changes)
    return open_session(made, tiny.tokenizer(True), recipe, chunk)


@pytest.fixture
def tallies(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What each layer's rows had been given when the method was asked."""
    noted: list[Tensor] = []
    score = KVzip.score

    def spy(self: KVzip, seen: Any) -> Tensor:
        noted.append(score(self, seen).clone())
        return noted[-1]

    monkeypatch.setattr(KVzip, "score", spy)
    return noted


def watched(made: Any, tokens: list[int]) -> list[dict[str, Tensor]]:
    """Queries, keys, values and inputs of every layer in one dense forward of the stock model."""
    seen: list[dict[str, Tensor]] = []

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float = 1.0, **more: Any) -> Any:
        seen[-1].update(q=q[0], k=k[0], v=v[0], scale=torch.tensor(scaling))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        return out.transpose(1, 2), None

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append({"hidden": (args[0] if args else kwargs["hidden_states"])[0]})

    tiny.AttentionInterface.register("dense_probe", attention)
    tiny.AttentionMaskInterface.register("dense_probe", lambda **arguments: None)
    handles = [x.self_attn.register_forward_pre_hook(before, with_kwargs=True) for x in made.model.layers]
    with tiny.implementation(made, "dense_probe"), torch.inference_mode():
        made(input_ids=torch.tensor([tokens]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def dense_scores(session: Session, ids: list[int], piece: int, plus: bool) -> list[Tensor]:
    """Each probe as one dense forward over context and probe: [H, tokens] per layer."""
    layers, lead = session.model.model.layers, session.chat.opening("", "")[1]
    scores = [torch.zeros(2, len(ids)) for _ in layers]
    for probe in KVzip(chunk=piece).probes(ids, 0, session.chat.ids, lead):
        tokens, T = [*ids, *probe.ids], len(probe.ids)
        for layer, seen, noted in zip(layers, watched(session.model, tokens), scores):
            q, k, v, hidden = (seen[name].float() for name in ("q", "k", "v", "hidden"))
            weight = layer.self_attn.o_proj.weight.float().T.unflatten(0, (2, 4, -1))
            queries, at = q[:, -T:].unflatten(0, (2, -1)), torch.arange(len(tokens))
            glance = Glance(probe, queries, k, v, at, float(seen["scale"]), hidden[-T:], weight)
            for h in range(2):
                noted[h, probe.start : probe.stop] = reference(glance, h, 4, plus)
    return scores


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("chunk", [0, 17])
def test_tallies_are_those_of_a_dense_repetition(tallies: list[Tensor], plus: bool, chunk: int) -> None:
    session = opened(f"kvzip(keep=0.5, chunk=20, plus={plus})", chunk, num_hidden_layers=2)
    session.read(tiny.text(TOKENS))
    ids = session.chat.opening(tiny.text(TOKENS), "")[0]
    assert len(tallies) == 2
    expected = dense_scores(session, ids, 20, plus)
    assert any(x.max() > 2 * x.median() for x in expected)  # there is something to find
    for got, want in zip(tallies, expected):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
    kept = sum(len(rows) for layer in tiny.alive(session.cache) for rows in layer)
    assert kept == len(ids) // 2 * 4


@pytest.mark.parametrize("when, chunk", [("prompt", 0), ("prompt", 17), ("chunk", 17)])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_nothing_of_the_asking_stays_but_what_it_cost(when: str, chunk: int, kind: str) -> None:
    """Tokens, positions, other layers and logits are as if nobody had asked."""
    made = tiny.model(kind, torch.float64)
    plain = open_session(made, tiny.tokenizer(True), "full", chunk)
    plain.read(tiny.text(TOKENS))
    session = open_session(made, tiny.tokenizer(True), f"kvzip(keep=0.999, chunk=9, when={when!r})", chunk)
    session.read(tiny.text(TOKENS))
    assert session.tokens == plain.tokens
    for layer, other in zip(session.cache.layers, plain.cache.layers):
        if layer in arenas(session.cache):
            assert layer.arena.seen == [session.tokens]
            assert layer.columns == session.tokens
            assert layer.arena.tally is None
            assert layer.hidden is None
        else:
            torch.testing.assert_close(layer.keys, other.keys)
            assert layer.get_seq_length() == other.get_seq_length()
    assert session.ledger.full_bytes == plain.ledger.full_bytes
    assert session.ledger.footprint > plain.ledger.footprint  # the asking costs


def test_what_is_dropped_is_gone_and_the_peak_is_one_piece_above_the_context() -> None:
    session = opened("kvzip(keep=0.25, chunk=10)")
    session.read(tiny.text(TOKENS))
    context = len(session.chat.opening(tiny.text(TOKENS), "")[0])
    steps = session.ledger.steps
    assert len(steps) == 1 + -(-context // 10)
    lengths = [len(rows) for layer in tiny.alive(session.cache) for rows in layer]
    assert sum(lengths) == context // 4 * 6
    assert len(set(lengths)) > 1  # heads and layers really differ
    row, piece = 16 * 8 * 2, max(step.tokens for step in steps[1:])
    assert session.ledger.stored_bytes <= sum(lengths) * (row + 2)
    slots, slack = 6, 64 * row  # and while a layer is moved, two of its buffers live
    assert session.ledger.peak_bytes <= (context + piece) * (slots + 2) * (row + 4) + slack


def test_a_context_that_leaves_no_room_for_the_probe_is_refused_before_it_is_read() -> None:
    session = opened("kvzip(keep=0.5)", max_position_embeddings=80)
    with pytest.raises(ValueError, match="do not fit into the 80 positions"):
        session.read(tiny.text(TOKENS))
    assert session.tokens == 0


def test_without_a_session_nobody_can_ask() -> None:
    made = tiny.model()
    with attach(made, "kvzip(keep=0.5)"), pytest.raises(ValueError, match="kvzip reads the context a second time"):
        tiny.generated(made, tiny.ids(20), 3)
    with attach(made, "kvzip(keep=1.0)"):
        tiny.generated(made, tiny.ids(20), 3)


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("kvzip(chunk=0)", "chunk=0: at least one token must be repeated"),
        ("kvzip(echo=-1)", "echo=-1 is negative"),
        ("kvzip(sinks=-1)", "sinks=-1 is negative"),
        ("kvzip(every=5)", "every=5: nothing is repeated while decoding"),
        ("kvzip(when='decode', every=5)", "nothing is repeated while decoding"),
    ],
)
def test_bad_options_are_named(recipe: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(recipe)
