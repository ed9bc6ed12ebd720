"""Everything the page shows as one JSON document.  (no torch)"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from kvledger.records import Record

from . import summary
from .answers import sheets
from .study import NO_KINDS, Study, collect
from .tables import Row, Setting

FORMAT = "kvledger.report/1"


def to_json(records: Sequence[Record], kinds: Mapping[str, str] = NO_KINDS) -> dict[str, Any]:
    """`format`, `notes`, and unless there are no records: `run`, `rows` (with intervals, turns, memory, the place and the
    curve of one request), `pooled` (rows of several tasks as one) and `answers`. Scores are 0..1, fractions of the full
    cache 0..1, bytes bytes, times seconds."""
    return document(collect(records, kinds))


def document(study: Study) -> dict[str, Any]:
    if not study.rows:
        return {"format": FORMAT, "notes": [summary.EMPTY], "run": None, "rows": [], "pooled": [], "answers": []}
    return {
        "format": FORMAT,
        "notes": summary.notes(study),
        "run": _plain(summary.describe(study)),
        "rows": [_row(row, study.places.get((row.setting, row.recipe))) for row in study.rows],
        "pooled": [_row(row, study.places.get((row.setting, row.recipe))) for row in study.pooled],
        "answers": [_plain(sheet) for sheet in sheets(study.facts)],
    }


def _row(row: Row, place: int | None) -> dict[str, Any]:
    facts = _plain(row) | {"place": place}
    facts["whiskers"] = _plain(row.whiskers)
    facts["memory"] |= {"stored": row.memory.stored, "read": row.memory.read}
    return {str(name): value for name, value in facts.items()}


def _plain(value: Any) -> Any:
    """Dataclasses and settings as objects, tuples as lists; JSON has no NaN, so what is not finite becomes null."""
    if isinstance(value, Setting):
        return value._asdict()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
