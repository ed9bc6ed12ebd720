"""The memory that is claimed is the memory that is held, read from the tensors."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import tiny
import torch

import kvledger as kv
from kvledger.hf.cache import arenas
from kvledger.hf.session import Session

TOKENS, CHUNK, KEEP = 1024, 128, 0.25
ROW = 2 * 32 * 4  # key and value of one row, head dim 32, float32
SEGMENTS = 3 * 2
VOTING = [
    f"snapkv(keep={KEEP}, window=8, when='chunk')",
    f"adakv(keep={KEEP}, window=8, when='chunk')",
    f"random(keep={KEEP}, when='chunk')",
    f"streaming(keep={KEEP}, when='chunk')",
]


def model() -> Any:
    return tiny.model("llama", head_dim=32, max_position_embeddings=4096)


def read(recipe: str, chunk: int) -> Session:
    session = kv.open(model(), tiny.tokenizer(), recipe, chunk)
    session.read(tiny.text(TOKENS - 1))
    return session


def held(session: Session) -> int:
    """Bytes of the storages behind a cache's rows."""
    layers = arenas(session.cache)
    return sum(
        t.untyped_storage().nbytes() for x in layers for t in (x.arena.k, x.arena.v, x.arena.position) if t is not None
    )


@pytest.mark.parametrize("recipe", VOTING)
def test_reading_in_chunks_never_holds_much_more_than_what_is_kept(recipe: str) -> None:
    session = read(recipe, CHUNK)
    most = (KEEP * TOKENS + CHUNK) * 1.05
    assert session.ledger.peak * TOKENS <= most
    assert session.ledger.peak_bytes <= most * SEGMENTS * ROW
    assert session.ledger.peak < 0.4


@pytest.mark.parametrize("chunk", [0, CHUNK])
@pytest.mark.parametrize("name", ["snapkv", "adakv", "pyramidkv", "random", "streaming"])
def test_a_quarter_kept_is_a_quarter_of_the_bytes(name: str, chunk: int) -> None:
    session = read(f"{name}(keep={KEEP})", chunk)
    ledger = session.ledger
    assert ledger.full_bytes == TOKENS * SEGMENTS * ROW
    assert ledger.stored_bytes == held(session)
    assert ledger.stored_bytes / ledger.full_bytes == pytest.approx(0.25, rel=0.01)
    assert ledger.peak == 1  # all was there before it was dropped


def test_adakv_frees_what_its_heads_lose() -> None:
    session = read(f"adakv(keep={KEEP})", 0)
    lengths = [n for layer in arenas(session.cache) for n in layer.arena.length]
    assert len(set(lengths)) > 2
    assert held(session) == sum(lengths) * (ROW + 2)


def test_full_holds_the_full_cache_and_nothing_else() -> None:
    session = read("full", CHUNK)
    assert session.ledger.stored_bytes == session.ledger.full_bytes == held(session)


def test_rows_per_query_head_are_paid_for() -> None:
    session = read(f"snapkv(keep={KEEP}, heads='query')", 0)
    assert session.ledger.stored_bytes / session.ledger.full_bytes == pytest.approx(4 * 0.25, rel=0.01)
    assert session.ledger.footprint == pytest.approx(4, rel=0.01)


def test_window_queries_are_on_the_books_while_they_are_kept() -> None:
    quiet, voting = read(f"random(keep={KEEP})", CHUNK), read(f"snapkv(keep={KEEP}, window=64)", CHUNK)
    queries = 3 * 8 * 64 * 32 * 4  # layers, query heads, window, head dim, bytes
    assert voting.ledger.stored_bytes == quiet.ledger.stored_bytes
    assert voting.ledger.peak_bytes > quiet.ledger.peak_bytes + queries / 3
    assert voting.ledger.byte_footprint > quiet.ledger.byte_footprint


def test_forks_share_their_rows() -> None:
    trunk = read("full", 0)
    before = live_bytes()
    twins = [trunk.fork() for _ in range(4)]
    assert live_bytes() == before
    twins[0].ask(tiny.text(2), 2)
    assert live_bytes() - before < 1.2 * trunk.ledger.stored_bytes


def live_bytes() -> int:
    """Bytes of all tensors alive in this process, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_dropped_rows_are_really_gone() -> None:
    before = live_bytes()
    session = read(f"snapkv(keep={KEEP})", CHUNK)
    assert live_bytes() - before < 1.05 * session.ledger.stored_bytes


@pytest.mark.parametrize(
    "recipe",
    [
        "snapkv(keep=0.5, window=4)",
        "kvzap(keep=0.5, path='random:0', when='chunk')",
        "h2o(keep=0.5) + kivi(bits=4, group=8, residual=4)",
        "int8 + quest(pages=2, size=4, dense=0)",
        "offload",
    ],
)
def test_what_a_session_held_is_free_as_soon_as_it_is_let_go(recipe: str) -> None:
    """Without Python's collector, which comes when it likes."""
    session = kv.open(tiny.model(), tiny.tokenizer(), recipe, chunk=16)
    session.read(tiny.text(40))
    session.ask(tiny.text(3, seed=1), 4)
    fork = session.fork()
    fork.ask(tiny.text(3, seed=2), 4)
    held = [weakref.ref(x) for one in (session, fork) for layer in arenas(one.cache) for x in layer.arena.tensors]
    assert held
    gc.disable()
    try:
        del session, fork
        assert not [x for x in held if x() is not None]
    finally:
        gc.enable()
