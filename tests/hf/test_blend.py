"""CacheBlend's chunks, choice and rows against a dense forward, and what comes after them."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from sourced import QUESTION, TEXT, opened, store, told
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import AttentionMaskInterface

from kvledger.hf.blend import deviation

ALL_FULL = {"layer_types": ["full_attention"] * 3}
EXACT = "cacheblend(recompute=1, chunk=16)"


@pytest.mark.parametrize(
    "kind, changes",
    [("llama", {}), ("qwen3", {}), ("gemma2", ALL_FULL), ("gpt_oss", ALL_FULL), ("llama", {"num_key_value_heads": 8})],
    ids=str,
)
@pytest.mark.parametrize("chunk", [0, 7])
def test_all_recomputed_is_the_full_cache(kind: str, changes: dict[str, Any], chunk: int) -> None:
    made = tiny.model.__wrapped__(kind, **changes)  # a list is no key of its memory
    for template, known in ((False, False), (True, True)):
        blended, full = opened(EXACT, chunk, made, template), opened("full", chunk, made, template)
        assert told(blended, known) == told(full, known)
        assert blended.tokens == full.tokens
        for mine, theirs in zip(store(blended, full.tokens), store(full, full.tokens)):
            torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-4)


def reference(made: Any, ids: list[int], edges: list[int], recompute: float) -> tuple[set[int], list[Any]]:
    """Dense: the tokens whose rows in layer 1 are furthest from those of their chunk alone, and all layers' rows when in the
    layers above it only those tokens' rows are made from what the layer below gives."""
    stop, old, new = edges[-1], DynamicCache(config=made.config), DynamicCache(config=made.config)
    with tiny.implementation(made, "eager"), torch.inference_mode():
        chunks = [DynamicCache(config=made.config) for _ in edges[1:]]
        for a, b, cache in zip(edges, edges[1:], chunks):
            made(torch.tensor([ids[a:b]]), position_ids=torch.arange(a, b)[None], past_key_values=cache)
        made(torch.tensor([ids[:stop]]), past_key_values=new)
    stale = [
        tuple(torch.cat([getattr(c.layers[i], x) for c in chunks], 2) for x in ("keys", "values")) for i in range(3)
    ]
    far = sum(((a - b) ** 2).sum((0, 1, 3)) for a, b in zip((new.layers[1].keys, new.layers[1].values), stale[1]))
    chosen = set(sorted(range(stop), key=lambda i: -far[i].item())[: int(recompute * stop)])
    left, rows = [i for i in range(stop) if i not in chosen], []

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float = 1.0, **more: Any) -> Any:
        if module.layer_idx > 1:
            k, v = k.clone(), v.clone()
            k[:, :, left], v[:, :, left] = (x[:, :, left] for x in stale[module.layer_idx])
        rows.append((k[0], v[0]))
        groups = q.shape[1] // k.shape[1]
        logits = q @ k.repeat_interleave(groups, 1).mT * scaling
        logits = logits.masked_fill(torch.ones(stop, stop, dtype=torch.bool).triu(1), -torch.inf)
        return (logits.softmax(-1) @ v.repeat_interleave(groups, 1)).transpose(1, 2), None

    AttentionInterface.register("blended", attention)
    AttentionMaskInterface.register("blended", lambda **arguments: None)
    with tiny.implementation(made, "blended"), torch.inference_mode():
        made(torch.tensor([ids[:stop]]), past_key_values=old)
    return chosen, rows


@pytest.mark.parametrize("chunk", [0, 11])
@pytest.mark.parametrize("recompute", [0.0, 0.15, 0.5])
def test_chosen_tokens_and_rows_are_those_of_a_dense_reference(
    chunk: int, recompute: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvledger.methods.cacheblend import CacheBlend

    picked: list[Tensor] = []
    true = CacheBlend.choose
    monkeypatch.setattr(CacheBlend, "choose", lambda self, far: picked.append(true(self, far)) or picked[-1])
    made = tiny.model("llama", torch.float64)
    session = opened(f"cacheblend(recompute={recompute}, chunk=16)", chunk, made)
    session.read(TEXT)
    ids = session.prompt(TEXT)
    assert session.chunks == [0, 16, 32, 48, 60]
    chosen, rows = reference(made, ids, session.chunks, recompute)
    assert set(picked[0].tolist()) == chosen
    k, v = store(session, 60)
    for i, (keys, values) in enumerate(rows):
        torch.testing.assert_close(k[i], keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(v[i], values, rtol=1e-4, atol=1e-4)


def test_the_first_chunk_deviates_by_nothing_and_the_others_do() -> None:
    a, b = (torch.randn(2, 5, 4), torch.randn(2, 5, 4)), (torch.randn(2, 5, 4), torch.randn(2, 5, 4))
    far = deviation(a, b)
    for n in range(5):
        assert far[n] == pytest.approx(sum(float(((x[:, n] - y[:, n]) ** 2).sum()) for x, y in zip(a, b)), rel=1e-5)


@pytest.mark.parametrize(
    "rest",
    ["snapkv(keep=0.5, window=4)", "adakv(keep=0.5, window=4, heads='query')", "kvzip(keep=0.5, chunk=20)"],
)
def test_what_comes_after_sees_the_rows_as_if_they_had_been_read(rest: str) -> None:
    made = tiny.model("llama", torch.float64)
    for chunk in (0, 16):
        blended, plain = opened(f"{EXACT} + {rest}", chunk, made), opened(rest, chunk, made)
        assert told(blended) == told(plain)
        assert tiny.alive(blended.cache) == tiny.alive(plain.cache)


def test_a_recipe_of_all_kinds_of_parts_runs() -> None:
    for source in ("selfinfo(keep=0.7)", "cacheblend(chunk=16)"):
        recipe = f"{source} + snapkv(keep=0.5, window=4) + kivi(group=16, residual=16) + quest(size=4, pages=3)"
        session = opened(recipe, 16)
        assert told(session) == told(opened(recipe, 16))
        assert session.ledger.footprint > 0


def test_the_books_of_three_passes() -> None:
    session = opened("cacheblend(recompute=0.5, chunk=20)")
    session.read(TEXT)
    n = 61
    encoded = n * (n + 1) / 2
    again = 60 * 61 / 2 + 60 * 60  # the fresh rows of the first two of three layers live beside the old ones
    second = 30 * 31 / 2 + 30 * 30
    assert session.ledger.footprint == pytest.approx((encoded + 2 / 3 * again + second) / encoded)
    assert session.ledger.dropped == 0
    pairs = 3 * 20 * 21 / 2 + n + 2 / 3 * 60 * 61 / 2
    assert session.ledger.prefill_work > pairs / encoded
    assert [point[0] for point in session.ledger.curve()][-1] == n
    assert session.ledger.peak_bytes >= session.ledger.stored_bytes


def test_separated_chunks() -> None:
    text = " ".join(["w5 " + part for part in (tiny.text(9, 4), tiny.text(20, 5), tiny.text(7, 6))])
    session = opened("cacheblend(recompute=1, separator='w5 ')")
    session.read(text)
    ids = session.prompt(text)
    assert session.chunks[0] == 0
    assert [ids[i - 1] for i in session.chunks[1:-1]] == [i for i in ids if i == 5]
    full = opened("full")
    full.read(text)
    assert session.ask(QUESTION, 6) == full.ask(QUESTION, 6)
    with pytest.raises(ValueError, match="separator='#' of cacheblend is nowhere in the context"):
        opened("cacheblend(separator='#')").read(TEXT)


def test_a_context_of_one_chunk_is_read_as_ever() -> None:
    session = opened("cacheblend")
    session.read(TEXT)
    assert session.chunks == []
    assert session.ledger.footprint == 1.0
