"""Patterns in a model's whole life: everything chosen changes nothing, and what is chosen is all that is seen."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from patterns import EVERYTHING, NAMES, SPARSE
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from kvledger.cache.masks import allowed
from kvledger.hf.cache import arenas, new_cache, run_of
from kvledger.hf.load import attach
from kvledger.hf.session import Session
from kvledger.methods import minference
from kvledger.methods.pattern import Look
from kvledger.recipe import parse

TOKENS = 45
ALWAYS = ["moba", "nsa"]


@pytest.fixture(autouse=True)
def few_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """MInference forces 30 columns and 100 diagonals, which is all of these prompts."""
    monkeypatch.setattr(minference, "FIRST", 2)
    monkeypatch.setattr(minference, "NEAREST", 2)


def model(groups: int = 2, kind: str = "llama", dtype: torch.dtype = torch.float64, layers: int = 2) -> Any:
    return tiny.model(kind, dtype, num_attention_heads=4, num_key_value_heads=4 // groups, num_hidden_layers=layers)


def opened(made: Any, recipe: str, chunk: int = 0) -> Session:
    return Session(made, tiny.tokenizer(), parse(recipe), chunk)


def life(session: Session) -> Tensor:
    """Logits of each forward of reading, two questions and their answers."""
    with tiny.Witness(session.model) as witness:
        session.read(tiny.text(TOKENS - 1))
        session.ask(tiny.text(3, seed=1), max_new_tokens=4)
        session.ask(tiny.text(2, seed=2), max_new_tokens=3, gold=tiny.text(2, seed=3))
    return witness.logits()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [0, 13])
@pytest.mark.parametrize("groups", [1, 4])
def test_everything_chosen_is_the_model_itself(name: str, chunk: int, groups: int) -> None:
    session = opened(model(groups), EVERYTHING[name], chunk)
    torch.testing.assert_close(life(session), life(opened(model(groups), "full", chunk)), rtol=1e-6, atol=1e-6)
    assert session.ledger.footprint == 1


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
@pytest.mark.parametrize("name", NAMES)
def test_soft_caps_and_sink_logits_take_part(name: str, kind: str) -> None:
    made = model(2, kind, torch.float32, layers=3)
    ours, dense = life(opened(made, EVERYTHING[name], 13)), life(opened(made, "full", 13))
    torch.testing.assert_close(ours, dense, rtol=1e-3, atol=1e-3)


def dense_forward(made: Any, pattern: Any, tokens: Tensor) -> Tensor:
    """Logits [N, V] of one forward in which the pattern's choices are masks over dense attention."""

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float = 1.0, **more: Any):
        G = q.shape[1] // k.shape[1]
        masks = []
        for h in range(k.shape[1]):
            look = Look(module.layer_idx, range(h * G, h * G + G), q[0, h * G : h * G + G], k[0, h], scaling)
            masks.append(allowed(pattern.choose(look), *look.shape))
        logits = (q @ k.repeat_interleave(G, 1).transpose(-1, -2) * scaling).masked_fill(~torch.cat(masks), -torch.inf)
        return (logits.softmax(-1) @ v.repeat_interleave(G, 1)).transpose(1, 2), None

    AttentionInterface.register("dense_by_pattern", attention)
    AttentionMaskInterface.register("dense_by_pattern", lambda **arguments: None)
    with tiny.implementation(made, "dense_by_pattern"), torch.inference_mode():
        return made(input_ids=tokens, use_cache=False).logits[0]


def ours(made: Any, recipe: str, tokens: Tensor, parts: list[int]) -> tuple[Tensor, Any]:
    """Logits of a prompt that is read in parts of these lengths, and the cache."""
    cache = new_cache(made, recipe)
    run_of(cache).auto, run_of(cache).ledger.kind = False, "read"
    with torch.inference_mode():
        pieces = tokens.split(parts, 1)
        logits = [made(input_ids=one, past_key_values=cache, use_cache=True).logits[0] for one in pieces]
    return torch.cat(logits), cache


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_prompt_sees_what_is_chosen(name: str, groups: int) -> None:
    made, tokens = model(groups), tiny.ids(TOKENS)
    with tiny.implementation(made, "kvledger"):
        got, cache = ours(made, SPARSE[name], tokens, [TOKENS])
        dense, _ = ours(made, "full", tokens, [TOKENS])
    want = dense_forward(made, parse(SPARSE[name]).pattern, tokens)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(got, dense, atol=1e-3)
    assert 0.1 < run_of(cache).ledger.prefill_work < 1
    assert all(layer.arena.length == [TOKENS] * len(layer.arena.length) for layer in arenas(cache))


@pytest.mark.parametrize("name", ["ashape", "xattention", "moba", "nsa"])
def test_in_chunks_as_at_once(name: str) -> None:
    made, tokens = model(), tiny.ids(TOKENS)
    with tiny.implementation(made, "kvledger"):
        whole, _ = ours(made, SPARSE[name], tokens, [TOKENS])
        parts, _ = ours(made, SPARSE[name], tokens, [16, 8, 20, 1] if name in ALWAYS else [16, 8, 21])
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALWAYS)
def test_attentions_of_their_own_decode_as_they_read(name: str) -> None:
    """Token by token, with an index that grows, and again after a part was taken back."""
    made, tokens = model(), tiny.ids(TOKENS)
    with tiny.implementation(made, "kvledger"), torch.inference_mode():
        whole, _ = ours(made, SPARSE[name], tokens, [TOKENS])
        parts, cache = ours(made, SPARSE[name], tokens, [20] + [1] * 25)
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
        for layer in arenas(cache):
            layer.take_back(9)
        again = made(input_ids=tokens[:, -9:], past_key_values=cache, use_cache=True).logits[0]
    torch.testing.assert_close(again, whole[-9:], rtol=1e-6, atol=1e-6)
    book = run_of(cache).ledger
    rows = sum(x.nbytes for layer in arenas(cache) for x in (layer.arena.k, layer.arena.v))
    kept = sum(one.table.nbytes for layer in arenas(cache) for one in layer.kept.values())
    assert book.stored_bytes == rows + kept > rows


@pytest.mark.parametrize("name", ALWAYS)
@pytest.mark.parametrize("more", ["snapkv(keep=0.4, window=4, when='chunk')", "streaming(rows=20, sinks=2, every=2)"])
def test_the_index_is_that_of_the_rows(name: str, more: str) -> None:
    """After rows were dropped, read as questions and answers, and taken back."""
    session = opened(model(), f"{SPARSE[name]} + {more}", 13)
    session.read(tiny.text(TOKENS - 1))
    for i in range(3):
        session.ask(tiny.text(3, seed=i), max_new_tokens=5, gold=tiny.text(2, seed=9) if i == 1 else None)
        for layer in arenas(session.cache):
            for s, kept in layer.kept.items():
                keys = layer.arena.plain(s)[0][: kept.rows]
                look = Look(layer.slot, range(1), keys[None], keys, layer.scale)
                torch.testing.assert_close(kept.table, session.recipe.pattern.index(look, None))


@pytest.mark.parametrize("name", ALWAYS)
def test_a_decode_step_reads_the_chosen_blocks_and_the_index(name: str) -> None:
    made, tokens = model(4), tiny.ids(TOKENS)  # one KV head
    with tiny.implementation(made, "kvledger"):
        _, cache = ours(made, SPARSE[name], tokens[:, :-1], [TOKENS - 1])
        run_of(cache).ledger.kind = "decode"
        with torch.inference_mode():
            made(input_ids=tokens[:, -1:], past_key_values=cache, use_cache=True)
    read, full = run_of(cache).ledger.bytes_read_per_step
    index = sum(one.table.nbytes for layer in arenas(cache) for one in layer.kept.values())
    row = arenas(cache)[0].arena.row_nbytes
    most = (
        4 * 2 * 4 + 1 if name == "moba" else 4 * 4 + 1
    )  # rows: of 4 query heads the 2 chosen blocks each, or 4 for all
    assert full == 2 * TOKENS * row
    assert index < read <= index + 2 * most * row < full


def test_a_question_sees_everything() -> None:
    made, tokens = model(), tiny.ids(TOKENS + 5)
    i, j = torch.arange(TOKENS + 5)[:, None], torch.arange(TOKENS + 5)
    mask = (j <= i) & ((j < 2) | (i - j < 6) | (i >= TOKENS))
    session = opened(made, "ashape(sinks=2, window=6)")
    session.forward(tokens[0, :TOKENS].tolist(), "read")
    session.forward(tokens[0, TOKENS:].tolist(), "ask")
    want = tiny.masked_forward(made, tokens, mask.expand(2, 4, -1, -1))[0, -1]
    torch.testing.assert_close(session.logits, want, rtol=1e-6, atol=1e-6)


def test_only_the_prompts_last_queries_see_everything() -> None:
    made = model()
    i, j = torch.arange(TOKENS)[:, None], torch.arange(TOKENS)
    mask = (j <= i) & ((j < 2) | (i - j < 6) | (i >= TOKENS - 5))
    session = opened(made, "trishape(sinks=2, window=6, last=5)", chunk=13)
    with tiny.Witness(made) as witness:
        session.read(tiny.text(TOKENS - 1))
    tokens = torch.tensor([[token for ids, _, _ in witness.steps for token in ids]])
    want = tiny.masked_forward(made, tokens, mask.expand(2, 4, -1, -1))[0, -1]
    torch.testing.assert_close(witness.logits()[-1], want, rtol=1e-6, atol=1e-6)
    per_head = int(mask.sum())
    assert session.ledger.prefill_work == pytest.approx(per_head / (TOKENS * (TOKENS + 1) / 2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "more",
    [
        "snapkv(keep=0.4, window=4)",
        "snapkv(keep=0.4, window=4, when='chunk')",
        "streaming(keep=0.4, sinks=2, heads='query')",
        "headgate(path='random:0', sink=2, window=5)",
    ],
)
def test_beside_what_drops_rows(name: str, more: str) -> None:
    made = model()
    full, alone = opened(made, f"{EVERYTHING[name]} + {more}", 13), opened(made, more, 13)
    torch.testing.assert_close(life(full), life(alone), rtol=1e-6, atol=1e-6)
    assert full.ledger.dropped == alone.ledger.dropped > 0
    sparse = opened(made, f"{SPARSE[name]} + {more}", 13)
    assert bool(life(sparse).isfinite().all())
    assert sparse.ledger.dropped > 0
    assert sparse.ledger.prefill_work < 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_reads_as_each_alone(name: str, side: str) -> None:
    made = model()
    lengths, width = (TOKENS, 30), TOKENS
    prompts = [tiny.ids(n, seed=n)[0] for n in lengths]
    batch, mask = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.long)
    for b, prompt in enumerate(prompts):
        span = slice(width - len(prompt), None) if side == "left" else slice(0, len(prompt))
        batch[b, span], mask[b, span] = prompt, 1
    with attach(made, SPARSE[name]), torch.inference_mode():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        together = made(input_ids=batch, attention_mask=mask, position_ids=positions, use_cache=True).logits
    for b, prompt in enumerate(prompts):
        with attach(made, SPARSE[name]) as attached, torch.inference_mode():
            alone = made(input_ids=prompt[None], use_cache=True).logits[0]
        torch.testing.assert_close(together[b][mask[b].bool()], alone, rtol=1e-6, atol=1e-6)
        assert attached.ledger.prefill_work != 1


@pytest.mark.parametrize("name", NAMES)
def test_branches_leave_the_trunk_alone(name: str) -> None:
    trunk = opened(model(), SPARSE[name], 13)
    trunk.read(tiny.text(TOKENS - 1))
    first = trunk.fork().ask(tiny.text(3, seed=1), max_new_tokens=5)
    trunk.fork().ask(tiny.text(9, seed=4), max_new_tokens=5, gold=tiny.text(2, seed=3))
    assert trunk.fork().ask(tiny.text(3, seed=1), max_new_tokens=5) == first


def test_generating_under_attach_reads_the_prompt_by_its_pattern() -> None:
    made, prompt = model(), tiny.ids(TOKENS)
    with attach(made, "ashape(sinks=2, window=6)") as attached:
        tiny.generated(made, prompt, 4)
    pairs = sum(min(i, 8) for i in range(1, TOKENS + 1))
    assert attached.ledger.prefill_work == pytest.approx(pairs / (TOKENS * (TOKENS + 1) / 2))


@pytest.mark.parametrize("recipe, work", [("full", 1.0), ("snapkv(keep=0.4, window=4)", 1.0)])
def test_the_work_of_a_dense_prompt(recipe: str, work: float) -> None:
    session = opened(model(), recipe, 13)
    session.read(tiny.text(TOKENS - 1))
    assert session.ledger.prefill_work == work


def test_dropping_in_chunks_saves_work_and_votes_cost() -> None:
    session = opened(model(), "streaming(keep=0.25, sinks=0, when='chunk')", 20)
    session.read(tiny.text(39))
    assert session.ledger.prefill_work == (210 + 210 + 20 * 5) / 820
    session = opened(model(), "headgate(path='random:0', sink=2, window=5, keep=0.5)", 20)
    session.read(tiny.text(39))
    assert session.ledger.prefill_work == pytest.approx((sum(min(i, 7) for i in range(1, 41)) / 820 + 1) / 2)
