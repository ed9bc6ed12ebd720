"""Records, cleaned once and aggregated once: what the terminal, the document and the page are made of.  (no torch)"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kvledger.records import Record

from . import pool
from .ranks import Places, places
from .tables import Row, baselines_of, rows_of, score_table, setting_of

NO_KINDS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Study:
    """`facts` are the records that count, turns from 1; `rows` their aggregate, `pooled` the rows of several tasks as one;
    `places` the ranks among recipes of one setting and keep; the rest is what was left out."""

    facts: tuple[Record, ...]
    rows: tuple[Row, ...]
    pooled: tuple[Row, ...] = ()
    places: Places = field(default_factory=dict)
    repeats: int = 0
    odd: int = 0
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def everything(self) -> tuple[Row, ...]:
        """Pooled rows first, as a reader wants them."""
        return self.pooled + self.rows


def collect(records: Iterable[Record], kinds: Mapping[str, str] = NO_KINDS) -> Study:
    """Keeps records whose score and fractions are numbers, and the first of each (setting, recipe, seed, sample, turn):
    records are appended facts, and the oldest one stands. `kinds` (task -> kind) names tasks to be pooled together."""
    given = list(records)
    finite = [record for record in given if _is_finite(record)]
    kept: dict[tuple[object, ...], Record] = {}
    for record in finite:
        kept.setdefault((setting_of(record), record.recipe, record.seed, record.sample, record.turn), record)
    facts = _from_one(list(kept.values()))
    scores = score_table(facts)
    rows = rows_of(facts, scores)
    pooled = pool.pool(rows, scores, baselines_of(facts, scores), kinds)
    tasks = pool.groups(list(dict.fromkeys(row.setting.task for row in rows)), kinds)
    ranked = places([*pooled, *rows], scores, tasks)
    repeats, odd = len(finite) - len(facts), len(given) - len(finite)
    return Study(tuple(facts), tuple(rows), tuple(pooled), ranked, repeats, odd, kinds)


def _is_finite(record: Record) -> bool:
    return all(math.isfinite(value) for value in (record.score, record.footprint, record.byte_footprint, record.peak))


def _from_one(facts: Sequence[Record]) -> Sequence[Record]:
    """Runs count turns from 0, readers from 1."""
    if not any(record.turn == 0 for record in facts):
        return facts
    return [replace(record, turn=record.turn + 1) for record in facts]
