"""H2O, observed attention and FastGen: methods that know how much attention each row has received."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from views import G, H, N, view

from kvledger.hf.cache import arenas, new_cache
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.session import Session
from kvledger.methods.base import View
from kvledger.recipe import parse

RAGGED = [(0, 0), (5, 0), (0, 11)]
NOBODY = torch.zeros(H, N, dtype=torch.bool)


def best(scores: list[float], allowed: set[int], count: int) -> set[int]:
    return set(sorted(allowed, key=lambda i: (-scores[i], i))[:count])


def chosen(mask: Tensor) -> list[set[int]]:
    return [set(row.nonzero().squeeze(-1).tolist()) for row in mask]


@pytest.mark.parametrize("absent", RAGGED)
@pytest.mark.parametrize("share, seed", [(0.5, 0), (0.3, 1), (0.0, 2), (1.0, 3)])
def test_h2o_keeps_the_recent_and_the_heavy_hitters(absent: tuple[int, ...], share: float, seed: int) -> None:
    seen = view(15, seed=seed, start=7, absent=absent, recent=NOBODY)
    recent = int(share * 15)
    expected = []
    for h in range(H):
        young = set(range(N - recent, N))
        older = set(range(absent[h], N)) - young
        expected.append(young | best(seen.tally[h].tolist(), older, 15 - recent))
    assert chosen(parse(f"h2o(recent_share={share})").method.select(seen)) == expected


@pytest.mark.parametrize("absent", RAGGED)
@pytest.mark.parametrize("start", [0, 30])
def test_observed_attention_is_a_mean_over_the_queries_that_saw_the_row(absent: tuple[int, ...], start: int) -> None:
    seen = view(start=start, absent=absent)
    scores = parse("observed_attention").method.score(seen)
    for h in range(H):
        for i in range(absent[h], N):
            assert float(scores[h, i]) == pytest.approx(float(seen.tally[h, i]) / (N - i), rel=1e-5)


# ---- the sums themselves, in a model ---------------------------------------------------------------------------------


def first_layer(made: Any, tokens: Tensor) -> tuple[Tensor, Tensor, float]:
    """Queries [Hq, N, D] and keys [H, N, D] of the first layer, rotated; they do not depend on what is dropped."""
    kept: list[Any] = []

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float = 1.0, **more: Any):
        kept.append((q[0], k[0], scaling))
        return q.transpose(1, 2), None

    AttentionInterface.register("note", attention)
    AttentionMaskInterface.register("note", lambda **arguments: None)
    with tiny.implementation(made, "note"), torch.inference_mode():
        made(input_ids=tokens, use_cache=False)
    return kept[0]


def simulate(q: Tensor, k: Tensor, scale: float, prompt: int, rows: int, share: float) -> tuple[list[int], list[float]]:
    """H2O of one KV head by loops: `q` [G, N, D], `k` [N, D]. After the prompt and after each later token `rows` stay."""
    alive, mass = [], {}
    for t in range(k.shape[0]):
        alive.append(t)
        mass[t] = 0.0
        for query in q[:, t]:
            for row, weight in zip(alive, (k[alive] @ query * scale).softmax(0).tolist()):
                mass[row] += weight / len(q)
        if t >= prompt - 1 and len(alive) > rows:
            young = int(share * rows)
            old = alive[: len(alive) - young]
            heavy = sorted(old, key=lambda row: (-mass[row], row))[: rows - young]
            alive = sorted(heavy) + alive[len(alive) - young :]
    return alive, [mass[row] for row in alive]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("chunk", [0, 7])
def test_h2o_while_decoding_is_the_loop_of_the_paper(groups: int, chunk: int) -> None:
    made = tiny.model(
        "llama", torch.float64, num_attention_heads=4, num_key_value_heads=4 // groups, num_hidden_layers=2
    )
    session = Session(made, tiny.tokenizer(), parse("h2o(rows=12, every=1)"), chunk)
    with tiny.Witness(made) as witness:
        session.read(tiny.text(29))
        session.ask(tiny.text(1, seed=1), max_new_tokens=9)
    tokens = torch.tensor([[token for ids, _, _ in witness.steps for token in ids]])
    assert [len(ids) for ids, _, _ in witness.steps[-9:]] == [1] * 9
    assert all(len(rows) <= 12 for _, stored, _ in witness.steps[-9:] for layer in stored for rows in layer)
    q, k, scale = first_layer(made, tokens)
    arena = arenas(session.cache)[0].arena
    for h in range(4 // groups):
        alive, mass = simulate(q[h * groups : (h + 1) * groups], k[h], scale, prompt=30, rows=12, share=0.5)
        assert arena.positions(h).tolist() == alive
        torch.testing.assert_close(arena.tally[arena.segment(h)], torch.tensor(mass), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind, chunk", [("llama", 0), ("llama", 1), ("llama", 11), ("gemma2", 11), ("gpt_oss", 11)])
def test_attention_sums_are_those_of_the_whole_matrix(kind: str, chunk: int) -> None:
    """Read in chunks or at once, then asked: the column sums of dense attention, the mean over a group."""
    made = tiny.model(kind, torch.float32 if kind == "gpt_oss" else torch.float64)  # experts know no float64
    session = Session(made, tiny.tokenizer(), parse("observed_attention(when='decode', every=1000)"), chunk)
    with tiny.Witness(made) as witness:
        session.read(tiny.text(30))
        session.ask(tiny.text(3, seed=1), max_new_tokens=5)
    tokens = torch.tensor([[token for ids, _, _ in witness.steps for token in ids]])
    with tiny.implementation(made, "eager"), torch.inference_mode():
        weights = made(input_ids=tokens, use_cache=False, output_attentions=True).attentions
    full = [i for i, layer in enumerate(session.cache.layers) if isinstance(layer, ArenaLayer)]
    for layer, dense in zip(arenas(session.cache), [weights[i] for i in full]):
        columns = dense[0].sum(1).unflatten(0, (2, 4)).mean(1)
        for h in range(2):
            rows = layer.arena.segment(h)
            torch.testing.assert_close(layer.arena.tally[rows], columns[h].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["h2o", "observed_attention", "fastgen"])
def test_sums_are_let_go_when_nothing_more_will_be_dropped(name: str) -> None:
    made = tiny.model("llama", torch.float64)
    for when in ("prompt", "chunk"):
        session = Session(made, tiny.tokenizer(), parse(f"{name}(keep=0.5, when={when!r})"), 40)
        session.read(tiny.text(60))
        for layer in arenas(session.cache):
            assert layer.arena.tally is None
        assert session.ledger.stored_bytes == sum(layer.arena.nbytes for layer in arenas(session.cache))


@pytest.mark.parametrize("name", ["h2o", "observed_attention"])
def test_a_padded_batch_adds_up_like_each_prompt_alone(name: str) -> None:
    made = tiny.model("llama", torch.float64)
    prompts = [tiny.ids(n, seed=n)[0] for n in (25, 17, 9, 21)]
    mask = torch.stack([torch.cat([torch.zeros(25 - len(p)), torch.ones(len(p))]) for p in prompts]).long()
    batch = torch.stack([torch.cat([torch.zeros(25 - len(p), dtype=torch.long), p]) for p in prompts])
    recipe = parse(f"{name}(rows=6, every=1)")

    def kept(ids: Tensor, valid: Tensor) -> list[set[int]]:
        cache = new_cache(made, recipe)
        with torch.inference_mode():
            made(
                input_ids=ids,
                attention_mask=valid,
                position_ids=(valid.cumsum(-1) - 1).clamp(min=0),
                past_key_values=cache,
            )
        return [rows for layer in tiny.alive(cache) for rows in layer]

    together = kept(batch, mask)
    alone = [kept(p[None], torch.ones(1, len(p), dtype=torch.long)) for p in prompts]
    layers, heads = len(alone[0]) // 2, 2
    for b in range(4):
        mine = [together[(layer * 4 + b) * heads + h] for layer in range(layers) for h in range(heads)]
        assert mine == alone[b]


# ---- FastGen ---------------------------------------------------------------------------------------------------------


def recovered(seen: View, h: int, rows: set[int]) -> float:
    """Share of the window's attention (mean over the group) that `rows` hold."""
    total = 0.0
    for g in range(G):
        for i, query in enumerate(seen.queries[h, g]):
            reach = [r for r in range(N) if seen.stored[h, r] and seen.positions[h, r] <= seen.query_positions[i]]
            weights = (seen.keys[h, reach] @ query * seen.scale).softmax(0).tolist()
            total += sum(w for r, w in zip(reach, weights) if r in rows)
    return total / (G * seen.queries.shape[2])


@pytest.mark.parametrize("absent", RAGGED)
@pytest.mark.parametrize("recover", [0.2, 0.35, 0.5, 0.7])
def test_fastgen_takes_the_cheapest_policy_that_recovers(absent: tuple[int, ...], recover: float) -> None:
    seen = view(16, absent=absent, w=4)
    seen.queries[1] *= 4
    mask = parse(f"fastgen(sinks=3, window=4, recover={recover})").method.select(seen)
    wanted, everything = [], []
    for h in range(H):
        stored = set(range(absent[h], N))
        sinks = {i for i in stored if i < 3}
        special = sinks | set(range(N - 4, N))
        half = int(0.5 * (16 - len(special)))
        frequent = special | best(seen.tally[h].tolist(), stored - special, half)
        local = frequent | set(sorted(stored - frequent)[-half:])
        policy = next((p for p in (special, frequent, local) if recovered(seen, h, p) >= recover), stored)
        wanted.append(policy)
        everything.append(policy is stored)
    for h, rows in enumerate(chosen(mask)):
        if not everything[h]:
            assert rows == wanted[h]
        else:
            rest = 2 * 16 - sum(len(wanted[i]) for i in range(H) if not everything[i])
            assert len(rows) == min(len(wanted[h]), rest if sum(everything) == 1 else 16)


def test_fastgen_spends_less_where_less_will_do() -> None:
    seen = view(20, w=4)
    sharp = parse("fastgen(window=4, recover=0.05)").method.select(seen)
    assert int(sharp.sum()) == H * 8  # sinks and the window
    assert int(parse("fastgen(window=4, recover=1.0)").method.select(seen).sum()) == H * 20


def test_bad_options_are_named() -> None:
    for text, message in (
        ("h2o(recent_share=1.5)", r"recent_share=1.5 is outside \[0, 1\]"),
        ("fastgen(recover=0.0)", r"recover=0.0 is outside \(0, 1\]"),
        ("fastgen(frequent=0.7)", "at most 1 together"),
        ("fastgen(window=0)", "window=0: at least one query"),
        ("fastgen(sinks=-1)", "sinks=-1 is negative"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(text)
