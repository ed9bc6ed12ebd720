"""Chunks of earlier contexts under CacheBlend: in any order as if read, not read, on the books, and within the bytes."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from sourced import QUESTION, store

import kvledger as kv
from kvledger.hf.encoded import Encoded

A, B, C, END = (tiny.text(n, seed=n) for n in (19, 23, 17, 9))
PIECES = {"A": A, "B": B, "C": C}
RECIPE = "cacheblend(recompute=0.3, separator='w5 ')"


def context(order: str) -> str:
    return " ".join(["w5 " + PIECES[name] for name in order] + ["w5 " + END])


def prefixes(recipe: str = RECIPE, made: Any = None, **more: Any) -> Any:
    return kv.Prefixes(made or tiny.model("llama", torch.float64), tiny.tokenizer(), recipe, **more)


def afresh(text: str, recipe: str = RECIPE, made: Any = None) -> Any:
    session = kv.open(made or tiny.model("llama", torch.float64), tiny.tokenizer(), recipe)
    session.read(text)
    return session


@pytest.mark.parametrize("rest", ["", " + snapkv(keep=0.5, window=4)", " + kivi(bits=4, group=8, residual=8)"])
def test_chunks_in_another_order_are_as_if_read(rest: str) -> None:
    held = prefixes(RECIPE + rest)
    for order in ("ABC", "CAB", "B", "ABC"):
        ours, theirs = held.session(context(order)), afresh(context(order), RECIPE + rest)
        assert ours.chunks == theirs.chunks
        assert tiny.alive(ours.cache) == tiny.alive(theirs.cache)
        if not rest:
            for mine, other in zip(store(ours, ours.tokens), store(theirs, theirs.tokens)):
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)  # angles are float32
        assert ours.ask(QUESTION, 5) == theirs.ask(QUESTION, 5)
    cut = len(A.split()) + len(B.split()) + len(C.split()) + 3  # pieces with the separator that follows them
    opening, last = 2, len(END.split()) - (4 if "snapkv" in rest else 1)
    assert held.chunks.reused == cut + opening + last + len(B.split()) + 1 + opening + last
    assert (held.hits, held.misses) == (1, 3)


def test_what_was_taken_is_on_the_books() -> None:
    held, text = prefixes(), context("CAB")
    held.session(context("ABC"))
    ours, theirs = held.session(text).ledger, afresh(text).ledger
    n = theirs.steps[-1].processed
    assert ours.taken == n - 1  # the last token is read as ever
    assert theirs.taken == 0
    assert ours.full_bytes == theirs.full_bytes
    assert ours.stored_bytes == theirs.stored_bytes
    alone = [
        a * (a + 1) / 2 for a in (2, len(C.split()) + 1, len(A.split()) + 1, len(B.split()) + 1, len(END.split()) - 1)
    ]
    full = n * (n + 1) / 2
    assert theirs.prefill_work - ours.prefill_work == pytest.approx(sum(alone) / full)
    reading = sum(theirs.layers[0].area) - sum(ours.layers[0].area)
    assert reading == pytest.approx(2 * (n - 1) * n / 2)  # of two heads, as chunks were read over those before them
    assert ours.curve()[-1] == theirs.curve()[-1]


def test_one_place_only_where_keys_cannot_be_turned() -> None:
    made = tiny.model("glm4", torch.float64)
    held = prefixes(made=made)
    assert held.chunks.rope is None
    held.session(context("ABC"))
    session = held.session(context("ACB"))
    assert held.chunks.reused == 2 + len(A.split()) + 1 + len(END.split()) - 1
    assert session.ask(QUESTION, 5) == afresh(context("ACB"), made=made).ask(QUESTION, 5)


def test_chunks_go_like_contexts_least_recently_used_first() -> None:
    wide = prefixes()
    wide.session(context("ABC"))
    chunks = [x for x in wide._states.values() if isinstance(x, Encoded)]
    held = sum(x.nbytes for one in chunks for rows in one.layers for x in rows)
    assert len(chunks) == 5
    assert held == 3 * 2 * 2 * 16 * 8 * (wide.session(context("ABC")).tokens - 1)
    whole = wide.bytes - held
    tight = prefixes(bytes=whole + held // 2)
    tight.session(context("ABC"))
    assert tight.bytes <= tight.budget
    assert any(isinstance(x, Encoded) for x in tight._states.values())
    assert tight.session(context("CAB")).ask(QUESTION, 5) == afresh(context("CAB")).ask(QUESTION, 5)
    assert 0 < tight.chunks.reused < wide.bytes
    assert tight.bytes <= tight.budget


def test_chunks_are_those_of_cacheblend_only() -> None:
    assert prefixes("snapkv(keep=0.5, window=4)").chunks is None
