"""Formats through the whole life of a cache: chunks, eviction, turns, forks, ways back, files, batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import kvledger as kv
from kvledger.cache import chunks
from kvledger.cache.arena import Arena
from kvledger.hf.cache import arenas
from kvledger.hf.session import Session
from kvledger.methods.format import Format
from kvledger.recipe import Recipe, parse

TEXT, QUESTION, NEXT = tiny.text(60), tiny.text(7, seed=1), tiny.text(9, seed=2)
ROWS = ["int8", "fp8", "int4", "turboquant", "turboquant(bits=3)"]
GROUPS = ["kivi(group=8, residual=4)", "kivi(bits=4, group=16, residual=0)"]
METHODS = [
    "full",
    "snapkv(keep=0.4, window=4)",
    "snapkv(keep=0.4, window=4, when='chunk', heads='query')",
    "adakv(keep=0.4, window=4, allocator='layers')",
    "h2o(keep=0.5, every=3)",
    "kvzip(keep=0.5, chunk=20)",
    "headgate(path='random:0', keep=0.5, sink=2, window=8) + knorm(keep=0.5)",
]


def opened(recipe: str | Recipe, chunk: int = 20) -> Session:
    return kv.open(tiny.model(), tiny.tokenizer(), recipe, chunk=chunk)


def told(session: Session) -> list[Any]:
    """Everything that a life says: answers, also of a branch and after a way back, and the rows that are left."""
    session.read(TEXT)
    said = [
        session.ask(QUESTION, 8),
        session.fork().ask(NEXT, 5),
        session.ask(NEXT, 5, gold="w1 w2"),
        session.ask("w9", 5),
    ]
    return [*said, tiny.alive(session.cache), session.ledger.footprint, session.ledger.dropped]


@dataclass(frozen=True, kw_only=True)
class Rounded(Format):
    """Plain rows of the numbers that another format leaves: what it must be equal to."""

    of: str = "int8"

    def arena(self, batch: int, heads: int, watch: Any) -> Arena:
        form = parse(self.of).format.rows()

        class Store(Arena):
            def _form(self, k: Tensor, v: Tensor) -> dict[str, Tensor]:
                flat = {
                    name: {n: y.flatten(0, -2) for n, y in form.pack(x).items()} for name, x in (("k", k), ("v", v))
                }
                return {n: form.stored(flat[n], x.dtype).plain().view(x.shape) for n, x in (("k", k), ("v", v))}

        return Store(batch, heads, watch)

    def fit(self, shape: Any) -> None:
        pass


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ["int8", "turboquant(bits=3)"])
def test_a_life_is_that_of_plain_rows_rounded_as_they_came(
    form: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyTorch reads codes block by block: let it read numbers too
    monkeypatch.setattr(chunks, "usable", lambda *_: False)
    plain = Recipe((*parse(method).parts, Rounded(of=form)))
    assert told(opened(f"{method} + {form}")) == told(Session(tiny.model(), tiny.tokenizer(), plain, 20))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk", [0, 20])
def test_sixteen_bits_change_nothing(method: str, chunk: int) -> None:
    assert told(opened(f"{method} + kivi(bits=16, group=8, residual=4)", chunk)) == told(opened(method, chunk))


def check_books(session: Session) -> None:
    layers = arenas(session.cache)
    held = [x for layer in layers if layer.arena is not None for x in layer.arena.tensors]
    assert session.ledger.stored_bytes == sum(x.untyped_storage().nbytes() for x in held)
    assert [layer.arena.rows for layer in layers] == [book.alive for book in session.ledger.layers.values()]


@pytest.mark.parametrize("form", [*ROWS, *GROUPS])
@pytest.mark.parametrize("method", ["full", METHODS[1], METHODS[3]])
def test_rows_and_bytes_are_on_the_books_and_branches_leave_the_rest_alone(form: str, method: str) -> None:
    session = opened(f"{method} + {form}")
    session.read(TEXT)
    check_books(session)
    full = opened(method)
    full.read(TEXT)
    assert session.ledger.stored_bytes < 0.62 * full.ledger.stored_bytes
    assert sum(x.arena.rows for x in arenas(session.cache)) == sum(x.arena.rows for x in arenas(full.cache))
    before = rows(session)
    twin = session.fork()
    answer = twin.ask(QUESTION, 12, gold="w1")
    assert all(torch.equal(a, b) for a, b in zip(before, rows(session), strict=True))
    assert session.fork().ask(QUESTION, 12) == answer
    after = rows(twin)  # the answer was taken back, and with it all that it had sealed
    third = session.fork()
    third.ask(QUESTION, 1, gold="w1")
    assert all(torch.equal(a, b) for a, b in zip(after, rows(third), strict=True))
    session.ask(QUESTION, 12)
    check_books(session)


def rows(session: Session) -> list[Tensor]:
    return [
        x.clone()
        for layer in arenas(session.cache)
        for s in range(len(layer.arena.start))
        for x in (*layer.arena.plain(s), layer.arena.positions(s))
    ]


def test_the_residual_is_flushed_while_an_answer_is_written() -> None:
    session = opened("full + kivi(group=8, residual=4)")
    session.read(TEXT)
    sealed = arenas(session.cache)[0].arena.sealed_length
    session.ask(QUESTION, 30)
    arena = arenas(session.cache)[0].arena
    assert arena.sealed_length[0] >= sealed[0] + 32
    assert max(arena.tail.length) < 4 + 8


@pytest.mark.parametrize("form", ["int4", GROUPS[0]])
@pytest.mark.parametrize("method", METHODS[:2])
def test_a_reopened_session_goes_on_as_the_live_one(form: str, method: str, tmp_path: Path) -> None:
    live = opened(f"{method} + {form}")
    live.read(TEXT)
    live.ask(QUESTION, 6)
    live.save(tmp_path / "context.kv")
    again = kv.reopen(tiny.model(), tiny.tokenizer(), tmp_path / "context.kv")
    assert all(torch.equal(a, b) for a, b in zip(rows(live), rows(again), strict=True))
    assert again.ledger.stored_bytes <= live.ledger.stored_bytes
    assert [again.ask(NEXT, 20), again.ask("w9", 5)] == [live.ask(NEXT, 20), live.ask("w9", 5)]


@pytest.mark.parametrize("form", ["int8", GROUPS[0]])
def test_shared_contexts_answer_as_read_afresh(form: str) -> None:
    store = kv.Prefixes(tiny.model(), tiny.tokenizer(), f"full + {form}", chunk=20)
    for text in (TEXT, TEXT, f"{tiny.text(40)} w7 w8"):
        fresh = opened(f"full + {form}")
        fresh.read(text)
        shared = store.session(text)
        assert shared.ask(QUESTION, 8) == fresh.ask(QUESTION, 8)
    viewed = form == "int8"  # rows that are sealed anew are no view of earlier ones
    assert (store.hits, store.continued) == (1, int(viewed))
    assert store.bytes > 0


@pytest.mark.parametrize("form", ["int8", "turboquant", GROUPS[1]])
def test_a_padded_batch_says_what_each_prompt_says_alone(form: str) -> None:
    made, prompts = tiny.model(), [tiny.ids(n, seed=n)[0] for n in (37, 22)]
    batch = torch.stack([torch.cat([torch.zeros(37 - len(p), dtype=torch.long), p]) for p in prompts])
    with kv.attach(made, f"snapkv(keep=0.5, window=4) + {form}"):
        together = tiny.generated(made, batch, 10, (batch > 0).long())
        alone = [tiny.generated(made, p[None], 10)[0] for p in prompts]
    assert together == alone


def test_beams_are_reordered() -> None:
    made, prompt = tiny.model(), tiny.ids(30)
    outs = []
    for recipe in ("full", "full + kivi(bits=16, group=8, residual=4)"):
        with kv.attach(made, recipe):
            outs.append(tiny.generated(made, prompt, 12, num_beams=3))
    assert outs[0] == outs[1]


@pytest.mark.parametrize(
    "recipe, what",
    [
        ("kivi(bits=3)", "bits=3: kivi stores rows in 2 or 4 or 16 bits"),
        ("turboquant(bits=8)", "bits=8: turboquant stores rows in 2 or 3 or 4 bits"),
        ("kivi(group=24)", "group=24 must be a power of two"),
        ("kivi(residual=-1)", "residual=-1 is negative"),
        ("int8 + int4", "two storage formats"),
        ("kivi", "group=32 does not divide the values' head dimension 16: give group=16"),
    ],
)
def test_what_cannot_be_is_refused(recipe: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        opened(recipe)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_every_type_have_their_rows_packed(dtype: torch.dtype) -> None:
    for form in ("int4", GROUPS[0]):
        session = kv.open(
            tiny.model("llama", dtype), tiny.tokenizer(), f"snapkv(keep=0.4, window=4) + {form}", chunk=20
        )
        session.read(TEXT)
        assert session.ask(QUESTION, 4)
        assert rows(session)[0].dtype == dtype
