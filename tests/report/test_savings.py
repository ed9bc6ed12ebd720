"""What each part of a composed recipe saved: against numbers worked out by hand, and of a real run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

import kvledger as kv
from kvledger.records import Record
from kvledger.report import write_page
from kvledger.report.savings import savings

Make = Callable[..., Record]
RECIPE = "selfinfo(keep=0.8) + ashape + snapkv(keep=0.25) + kivi(bits=4) + quest"


def test_shares_of_a_request_worked_out_by_hand(make: Make) -> None:
    """1,000 tokens, of which 200 are left out; of the 800 a quarter stay, at an eighth of their bytes, and half is read."""
    curve = (
        (400, 400.0, "read"),
        (800, 800.0, "read"),
        (800, 200.0, "evict"),
        (810, 210.0, "ask"),
        (811, 211.0, "decode"),
    )
    record = make(
        recipe=RECIPE, curve=curve, left_out=200, prompt_tokens=800, prefill_work=0.4, stored_bytes=25_000,
        full_bytes=1_000_000, bytes_read_per_step=12_500, full_read_per_step=1_000_000,
    )  # fmt: skip
    (found,) = savings([record, make(recipe="snapkv(keep=0.5)", curve=curve), make(recipe=RECIPE, turn=2, curve=curve)])
    values = (found.prompt, found.pairs, found.rows, found.row, found.read, found.stored)
    assert values == pytest.approx((0.2, 0.6, 0.75, 0.125, 0.5, 0.025))
    assert (1 - found.prompt) * (1 - found.rows) * found.row == pytest.approx(found.stored)
    assert found.cells() == ["20.0\u202f%", "60.0\u202f%", "75.0\u202f%", "12.5\u202f%", "50.0\u202f%", "2.5\u202f%"]


def test_what_saved_nothing_is_a_dash_and_no_curve_is_no_row(make: Make) -> None:
    curve = ((1000, 1000.0, "read"), (1010, 1010.0, "ask"))
    (found,) = savings([make(recipe="int8 + offload", curve=curve), make(recipe="int8 + quest", curve=())])
    assert found.cells()[:3] == ["–", "–", "–"]
    assert found.recipe == "int8 + offload"


@pytest.mark.parametrize(
    "part, cell", [("snapkv(keep=0.5, window=4)", 2), ("ashape(sinks=2, window=8)", 1), ("int8", 3)]
)
def test_each_part_saves_in_its_own_column(part: str, cell: int, make: Make, tmp_path: Path) -> None:
    """A session under one part beside one that does nothing: only that part's figure says so."""
    order = [part, "offload"] if part != "int8" else ["int8", "offload"]
    session = kv.open(tiny.model(), tiny.tokenizer(), " + ".join(order))
    session.read(tiny.text(60))
    turn = session.turn("w9", 3)
    book = session.ledger
    read, full = book.bytes_read_per_step
    record = make(
        recipe=" + ".join(order), curve=book.curve(), prompt_tokens=turn.prompt_tokens, prefill_work=book.prefill_work,
        stored_bytes=turn.stored_bytes, full_bytes=turn.full_bytes, bytes_read_per_step=read, full_read_per_step=full,
    )  # fmt: skip
    (found,) = savings([record])
    shares = [found.prompt, found.pairs, found.rows, 1 - found.row, 1 - found.read]
    assert [i for i, share in enumerate(shares) if share > 0.05] == [cell]
    text = write_page([record], tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<section id="parts">' in text
    assert found.cells()[min(cell, 3)] in text
