"""Records, cleaned once and aggregated once: what the terminal, the document and the page are made of.  (no torch)"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kvledger.records import Record

from .tables import Row, aggregate, setting_of


@dataclass(frozen=True)
class Study:
    """`facts` are the records that count, turns from 1; `rows` their aggregate; the rest is what was left out."""

    facts: tuple[Record, ...]
    rows: tuple[Row, ...]
    repeats: int = 0
    odd: int = 0


def collect(records: Iterable[Record]) -> Study:
    """Keeps records whose score and fractions are numbers, and the first of each (setting, recipe, seed, sample, turn):
    records are appended facts, and the oldest one stands."""
    given = list(records)
    finite = [record for record in given if _is_finite(record)]
    kept: dict[tuple[object, ...], Record] = {}
    for record in finite:
        kept.setdefault((setting_of(record), record.recipe, record.seed, record.sample, record.turn), record)
    facts = _from_one(list(kept.values()))
    return Study(tuple(facts), tuple(aggregate(facts)), len(finite) - len(facts), len(given) - len(finite))


def _is_finite(record: Record) -> bool:
    return all(math.isfinite(value) for value in (record.score, record.footprint, record.byte_footprint, record.peak))


def _from_one(facts: Sequence[Record]) -> Sequence[Record]:
    """Runs count turns from 0, readers from 1."""
    if not any(record.turn == 0 for record in facts):
        return facts
    return [replace(record, turn=record.turn + 1) for record in facts]
