"""Out of memory: what is said, what is let go, what stays."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from kvledger.hf import memory
from kvledger.hf.cache import arenas
from kvledger.hf.memory import Load, advice, load_of
from kvledger.hf.session import Session
from kvledger.recipe import parse
from kvledger.records import read
from kvledger.run.sweep import Grid, sweep

LOAD = Load(row=1000, layer=100, work=10_000)
FAILURES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


def starved(monkeypatch: pytest.MonkeyPatch, model: Any, after: int, error: Exception) -> None:
    """The model runs out of memory after so many forwards."""
    plain, count = model.forward, 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count > after:
            raise error
        return plain(*args, **kwargs)

    monkeypatch.setattr(model, "forward", forward)


def test_a_smaller_chunk_is_named_where_one_fits_and_it_does() -> None:
    room = 20_000_000
    text = advice(LOAD, parse("snapkv(keep=0.25, when='chunk')"), 20_000, 8192, room)
    assert text == "read in chunks of 1024 or fewer (--chunk 1024)"
    assert LOAD.peak(20_000, 1024, 0.25) <= memory.SAFE * room < LOAD.peak(20_000, 2048, 0.25)


@pytest.mark.parametrize("recipe", ["full", "snapkv(keep=0.25)", "snapkv(rows=64, when='chunk')"])
def test_what_keeps_its_rows_while_it_reads_is_told_to_keep_less(recipe: str) -> None:
    """After the prompt is too late: all its rows were there."""
    text = advice(LOAD, parse(recipe), 20_000, 512, 16_000_000)
    assert text.startswith("keep=0.3 with when='chunk'")
    assert LOAD.peak(20_000, 512, 0.3) <= memory.SAFE * 16_000_000 < LOAD.peak(20_000, 512, 0.5)


def test_where_nothing_fits_the_length_that_would_is_named() -> None:
    text = advice(LOAD, parse("full"), 100_000, 64, 2_000_000)
    assert "no chunk size" in text
    assert "about 1024 tokens" in text
    assert LOAD.peak(1024, 64, 1.0) <= memory.SAFE * 2_000_000 < LOAD.peak(1280, 64, 1.0)


def test_rows_are_counted_as_the_store_holds_them() -> None:
    model = tiny.model("llama")
    session = Session(model, tiny.tokenizer(), parse("full"), 0)
    session.read(tiny.text(40))
    assert load_of(model).row * session.tokens == session.ledger.stored_bytes


@pytest.mark.parametrize("error", FAILURES, ids=["cuda", "cpu"])
def test_a_session_says_what_would_fit_and_lets_go_of_its_rows(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model = tiny.model("llama")
    session = Session(model, tiny.tokenizer(), parse("snapkv(keep=0.5, when='chunk', window=4)"), 16)
    starved(monkeypatch, model, 2, error)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 20)
    keys: list[weakref.ref[torch.Tensor]] = []
    plain = session.forward

    def forward(ids: list[int], kind: str) -> None:
        keys[:] = [weakref.ref(layer.arena.k) for layer in arenas(session.cache) if layer.arena is not None]
        plain(ids, kind)

    monkeypatch.setattr(session, "forward", forward)
    with pytest.raises(RuntimeError, match=r"out of memory on cpu at \d+ tokens under snapkv.*would") as caught:
        session.read(tiny.text(80))
    del caught
    gc.collect()
    assert keys
    assert all(key() is None for key in keys)
    with pytest.raises(RuntimeError, match="has let go of its rows"):
        session.ask("and now?")


@pytest.mark.parametrize("text", ["shapes do not match", ""])
def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    model = tiny.model("llama")
    session = Session(model, tiny.tokenizer(), parse("full"), 16)
    starved(monkeypatch, model, 1, RuntimeError(text))
    with pytest.raises(RuntimeError, match=f"^{text}$"):
        session.read(tiny.text(80))


def test_a_run_keeps_what_was_finished_and_goes_on_with_the_same_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grid = Grid("zoo", ("full",), ("scbench/kv",), context=(256,), chunk=128, samples=2, turns=2, together=1)
    plain, count = Session.forward, 0

    def forward(self: Session, ids: list[int], kind: str) -> None:
        nonlocal count
        count += kind == "read"
        with memory.explained(self, len(ids)):
            if count == 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            plain(self, ids, kind)

    monkeypatch.setattr(Session, "forward", forward)
    with pytest.raises(RuntimeError, match="out of memory"):
        sweep(grid, tmp_path, lambda now: None, print)
    finished = [r.line() for r in read(tmp_path)[0]]
    assert len(finished) == 2
    monkeypatch.undo()
    sweep(grid, tmp_path, lambda now: None, print)
    records = read(tmp_path)[0]
    assert len(records) == 4
    assert [r.line() for r in records[:2]] == finished


def test_memory_that_files_are_cached_in_counts_as_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  4000 kB\nMemFree:  100 kB\nMemAvailable:  2500 kB\nBuffers:  3 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    assert memory.free_bytes(torch.device("cpu")) == 2500 * 1024
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert memory.free_bytes(torch.device("cpu")) is None
