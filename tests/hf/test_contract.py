"""What holds for every registered method, in every schedule, however heads share keys. A new row is tested by existing."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from small import small
from torch import Tensor

from kvledger.hf.cache import arenas
from kvledger.hf.session import Session
from kvledger.methods.base import Method
from kvledger.recipe import Recipe, registry

TOKENS, HEADS, LAYERS = 45, 4, 2
NAMES = sorted(name for name, part in registry().items() if part.role == "compression")
EVICTING = [name for name in NAMES if name != "full"]


def model(groups: int, dtype: torch.dtype = torch.float64) -> Any:
    changes = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS // groups, "num_hidden_layers": LAYERS}
    return tiny.model("llama", dtype, **changes)


def method(name: str, **options: Any) -> Method:
    return registry()[name](**{**small(name), **options})


def opened(made: Any, chosen: Method, chunk: int) -> Session:
    return Session(made, tiny.tokenizer(), Recipe((chosen,)), chunk)


def life(session: Session) -> tuple[Tensor, Tensor]:
    """Read, ask twice, and hand back what each forward said and what a masked dense forward says."""
    with tiny.Witness(session.model) as witness:
        session.read(tiny.text(TOKENS - 1))
        session.ask(tiny.text(3, seed=1), max_new_tokens=4)
        session.ask(tiny.text(2, seed=2), max_new_tokens=3)
    return witness.logits(), witness.dense()


@pytest.mark.parametrize("name", EVICTING)
@pytest.mark.parametrize("when", ["prompt", "chunk"])
@pytest.mark.parametrize("chunk", [0, 13])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("heads", ["kv", "query"])
def test_evicting_is_dense_attention_with_the_entries_masked(
    name: str, when: str, chunk: int, groups: int, heads: str
) -> None:
    session = opened(model(groups), method(name, keep=0.4, when=when, heads=heads), chunk)
    ours, dense = life(session)
    torch.testing.assert_close(ours, dense, rtol=1e-6, atol=1e-6)
    assert session.ledger.dropped > 0
    check_books(session, groups if heads == "query" else 1)


def check_books(session: Session, copies: int) -> None:
    """Bytes are the tensors', rows are the ledger's, budgets are kept."""
    layers, ledger = arenas(session.cache), session.ledger
    tensors = [t for layer in layers for t in (layer.arena.k, layer.arena.v, layer.arena.position) if t is not None]
    assert ledger.stored_bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert [layer.arena.rows for layer in layers] == [book.alive for book in ledger.layers.values()]
    assert all(layer.last_queries == [] and not layer.pending for layer in layers)
    assert all(layer.arena.seen == [layer.columns] == [session.tokens] for layer in layers)
    seen_rows = sum(layer.arena.seen[0] * len(layer.arena.length) for layer in layers)
    assert ledger.dropped == seen_rows - sum(layer.arena.rows for layer in layers)
    row = layers[0].arena.k.shape[1] * 8 * 2
    assert ledger.full_bytes * copies == seen_rows * row
    probed = session.recipe.method.tally == "probe"  # that the context was read again is on the books
    assert copies < ledger.footprint if probed else 0 < ledger.footprint < copies


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("when", ["prompt", "chunk"])
@pytest.mark.parametrize("chunk", [0, 13])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("heads", ["kv", "query"])
def test_keeping_all_is_the_full_cache(name: str, when: str, chunk: int, groups: int, heads: str) -> None:
    session = opened(model(groups), method(name, keep=1.0, when=when, heads=heads), chunk)
    with tiny.Witness(session.model) as witness:
        session.read(tiny.text(TOKENS - 1))
        session.ask(tiny.text(3, seed=1), max_new_tokens=4)
    tokens = torch.tensor([[token for ids, _, _ in witness.steps for token in ids]])
    last = torch.tensor([len(ids) for ids, _, _ in witness.steps]).cumsum(0) - 1
    with tiny.implementation(session.model, "eager"), torch.inference_mode():
        dense = session.model(input_ids=tokens, use_cache=False).logits[0, last]
    torch.testing.assert_close(witness.logits(), dense, rtol=1e-5, atol=1e-5)
    assert session.ledger.dropped == 0
    assert session.ledger.footprint == (groups if heads == "query" else 1)


def contents(session: Session) -> list[Tensor]:
    """A copy of all rows of all segments."""
    rows = []
    for layer in arenas(session.cache):
        for s in range(len(layer.arena.start)):
            rows += [layer.arena.k[layer.arena.segment(s)].clone(), layer.arena.v[layer.arena.segment(s)].clone()]
            rows += [layer.arena.positions(s).clone()]
    return rows


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("heads", ["kv", "query"])
def test_branches_and_ways_back_leave_the_rest_alone(name: str, heads: str) -> None:
    keep = {} if name == "full" else {"keep": 0.4}
    trunk = opened(model(2), method(name, when="chunk", heads=heads, **keep), 13)
    trunk.read(tiny.text(TOKENS - 1))
    before, books = contents(trunk), (trunk.ledger.footprint, trunk.ledger.stored_bytes, trunk.ledger.full_bytes)
    twin = trunk.fork()
    first = twin.ask(tiny.text(3, seed=1), max_new_tokens=5, gold=tiny.text(2, seed=3))
    assert [len(rows) for rows in contents(twin)] == [len(rows) + 3 for rows in before]  # the answer is rolled back
    after_gold = contents(twin)
    other = trunk.fork().ask(tiny.text(3, seed=1), max_new_tokens=5)
    assert other == first
    for old, new in zip(before, contents(trunk)):
        assert torch.equal(old, new)
    for old, new in zip(after_gold, contents(twin)):
        assert torch.equal(old, new)
    assert (trunk.ledger.footprint, trunk.ledger.stored_bytes, trunk.ledger.full_bytes) == books


@pytest.mark.parametrize("name", NAMES)
def test_the_same_rows_survive_twice(name: str) -> None:
    keep = {} if name == "full" else {"keep": 0.3}
    kept = []
    for _ in range(2):
        session = opened(model(2), method(name, when="chunk", **keep), 13)
        session.read(tiny.text(TOKENS - 1))
        kept.append(tiny.alive(session.cache))
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", EVICTING)
@pytest.mark.parametrize("when, chunk", [("prompt", 0), ("prompt", 13), ("chunk", 13)])
def test_budgets_sum_to_the_total_and_the_recent_survive(name: str, when: str, chunk: int) -> None:
    chosen = method(name, keep=0.4, when=when)
    session = opened(model(2), chosen, chunk)
    session.read(tiny.text(TOKENS - 1))
    kept = tiny.alive(session.cache)
    parts = [13, 13, 13, 6] if when == "chunk" and chosen.among == "new" else [TOKENS]
    wanted = sum(chosen.allowance(part, 1) for part in parts) * LAYERS * (HEADS // 2)
    total = sum(len(rows) for layer in kept for rows in layer)
    if name == "pyramidkv":
        assert 0 <= total - wanted <= LAYERS * (HEADS // 2) * len(parts)
    else:
        assert total == wanted if chosen.exact else 0 < total <= wanted
    recent = set(range(TOKENS - min(chosen.window, chosen.allowance(parts[-1], 1)), TOKENS))
    assert all(rows >= recent for layer in kept for rows in layer)


@pytest.mark.parametrize("groups", [1, 4])
def test_one_chunk_is_many_chunks_for_the_full_cache(groups: int) -> None:
    made, logits = model(groups, torch.float32), []
    for chunk in (0, 1, 7, 16, 44):
        session = opened(made, method("full"), chunk)
        with tiny.Witness(made) as witness:
            session.read(tiny.text(TOKENS - 1), question=tiny.text(3, seed=1))
        logits.append(witness.logits()[-1])
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-5, atol=2e-5)
