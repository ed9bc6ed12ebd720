"""What a decode step reads of rows that are stored in two ways: those in groups in few bits, the youngest as they are."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from kvledger.cache.spans import decode_spans
from kvledger.hf import loading
from kvledger.hf.cache import arenas
from kvledger.hf.session import Session, open_session

KIVI = "kivi(bits=4, group=16, residual=16)"
PLAIN = 2 * 16 * 4  # bytes of a row's key and value in float32
SEALED = 2 * 16 // 2 + 4 * 16 // 16 + 4  # 4 bits, a scale and a zero in float16 a channel and group, and a row


def read(recipe: str, count: int = 60) -> Session:
    session = open_session(tiny.model(), tiny.tokenizer(), recipe)
    session.read(tiny.text(count))
    return session


def test_every_row_is_every_tensor() -> None:
    session = read(KIVI)
    session.forward([7], "decode")
    step = session.ledger.steps[-1]
    for layer in arenas(session.cache):
        assert layer.arena.sealed_length == [32, 32]
        assert layer.arena.tail.length == [30, 30]
    assert step.read_bytes == 3 * 2 * (32 * SEALED + 30 * PLAIN)
    assert sum(x.nbytes for x in arenas(session.cache)[0].arena.sealed.values()) == 2 * 32 * SEALED


@pytest.mark.parametrize("drops", ["", "snapkv(keep=0.7, window=4) + "])
@pytest.mark.parametrize(
    "reader",
    [
        "quest(size=4, pages=5, dense=0)",
        "retrieval_attention(k=9, sinks=2, window=8, dense=0)",
        "twilight(size=4, dense=0)",
    ],
)
def test_a_reader_pays_for_plain_rows_what_they_take(reader: str, drops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session, seen = read(f"{drops}{KIVI} + {reader}"), []

    def spy(q: Any, arena: Any, spans: Any, *more: Any) -> Any:
        seen.append((arena, spans.view(-1, 3).tolist()))
        return decode_spans(q, arena, spans, *more)

    monkeypatch.setattr(loading, "decode_spans", spy)
    choices, choose = [], type(session.recipe.reader).choose
    monkeypatch.setattr(type(session.recipe.reader), "choose", lambda *a: choices.append(choose(*a)) or choices[-1])
    session.forward([7], "decode")
    position = 2 if drops else 0  # bytes of a position, which is stored once rows were dropped
    expected = sum(choice.nbytes for choice in choices)
    rows = [0, 0]
    for arena, spans in seen:
        for s, first, n in spans:
            for row in range(first - arena.start[s], first - arena.start[s] + n):
                plain = row >= arena.sealed_length[s]
                rows[plain] += 1
                expected += (PLAIN if plain else SEALED) + position
    assert min(rows) > 0
    assert session.ledger.steps[-1].read_bytes == expected


def test_an_attention_of_its_own_pays_likewise() -> None:
    session = read(f"moba(block=8, top=2) + {KIVI}")
    session.forward([7], "decode")
    least = 3 * 2 * (5 * PLAIN + 6 * 16 * 4)  # the block of the new token is plain, and the index is read
    read_bytes = session.ledger.steps[-1].read_bytes
    assert least < read_bytes <= least + 3 * 2 * 4 * 8 * PLAIN
    assert torch.tensor(arenas(session.cache)[0].arena.tail.length).min() >= 16
