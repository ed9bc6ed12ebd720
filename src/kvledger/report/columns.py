"""The columns of the full table, once for the page, for CSV and for LaTeX: heading, explanation, kind, value.  (no torch)"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from . import units
from .facets import varying
from .interval import Estimate
from .ranks import Places
from .tables import Memory, Row

Kind = Literal["text", "number", "points", "signed", "percent", "bytes", "seconds"]


class Value(NamedTuple):
    """`value` None: there is none. Scores and fractions are 0..1, bytes bytes, times seconds."""

    value: float | str | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Column:
    head: str
    title: str
    kind: Kind
    of: Callable[[Row], Value]
    interval: bool = False


WRITE: dict[Kind, Callable[[float], str]] = {
    "number": lambda value: f"{value:g}",
    "points": units.points,
    "signed": lambda value: units.points(value, True),
    "percent": units.percent,
    "bytes": units.size,
    "seconds": units.seconds,
}


def write(column: Column, value: Value) -> str:
    """As a reader sees it, without the interval."""
    if value.value is None:
        return units.NONE
    return units.clean(value.value) if isinstance(value.value, str) else WRITE[column.kind](value.value)


def write_range(column: Column, value: Value) -> str:
    if value.low is None or value.high is None:
        return ""
    return f"{WRITE[column.kind](value.low)} to {WRITE[column.kind](value.high)}"


def columns(rows: Sequence[Row], places: Places) -> list[Column]:
    """The recipe, what tells settings apart, then scores, memory and time."""
    return [
        Column("recipe", "what is done to the cache", "text", lambda row: Value(row.recipe)),
        *(_fact(name) for name in varying(row.setting for row in rows)),
        Column("keep", "the kept fraction that was asked for", "number", lambda r: Value(None if r.full else r.keep)),
        Column("place", _PLACE, "number", lambda row: Value(places.get((row.setting, row.recipe)))),
        *_SCORES,
        *_MEMORY,
    ]


def _fact(name: str) -> Column:
    def of(row: Row) -> Value:
        value = getattr(row.setting, name)
        return Value(value if isinstance(value, str) else float(value))

    titles = {"context": "tokens", "chunk": "tokens read at a time; 0: in one shot"}
    return Column(name, titles.get(name, ""), "number" if name in titles else "text", of)


def _estimate(value: Estimate | None) -> Value:
    return Value(None) if value is None else Value(value.mean, value.low, value.high)


def _difference(row: Row) -> Value:
    return Value(None) if row.against is None or row.full else _estimate(row.against.difference)


def _ratio(row: Row) -> Value:
    return Value(None) if row.against is None or row.full else _estimate(row.against.ratio)


def _memory(pick: Callable[[Memory], float | None]) -> Callable[[Row], Value]:
    return lambda row: Value(finite(pick(row.memory)))


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


_PLACE = "rank among the recipes of a setting and keep; those that cannot be told apart from the best of them share it"
_AGAINST = "difference to the full cache on the same turns, and its 95 % interval"
_ENTRIES = "entries held, summed over the request, against the full cache"
_BYTES = "bytes held, summed over the request, against a full cache in the model's own precision"
_FLOOR = "what the schedule alone costs, above all the size of the chunks"
_FIRST = "time to a request's first token, reading the context included"
_SCORES = (
    Column("samples", "contexts", "number", lambda row: Value(row.samples)),
    Column("answers", "answered turns in all", "number", lambda row: Value(row.turns)),
    Column("score", "mean, 0–100, and its 95 % interval", "points", lambda row: _estimate(row.score), True),
    Column("against full", _AGAINST, "signed", _difference, True),
    Column("of full", "score as a share of the full cache's, and its 95 % interval", "percent", _ratio, True),
    Column("turn 1", "score of the first turn", "points", lambda row: Value(row.first)),
    Column("turns 2+", "score of all later turns", "points", lambda row: Value(row.later)),
)
_MEMORY = (
    Column("entry footprint", _ENTRIES, "percent", _memory(lambda m: m.footprint)),
    Column("byte footprint", _BYTES, "percent", _memory(lambda m: m.byte_footprint)),
    Column("floor", _FLOOR, "percent", _memory(lambda m: m.floor)),
    Column("peak", "most entries at once, against the full cache", "percent", _memory(lambda m: m.peak)),
    Column("peak bytes", "most bytes at once", "bytes", _memory(lambda m: m.peak_bytes)),
    Column("stored", "bytes held when the last question comes", "bytes", _memory(lambda m: m.stored_bytes)),
    Column("stored, full", "bytes a full cache holds then", "bytes", _memory(lambda m: m.full_bytes)),
    Column("read a step", "bytes read for one decoded token", "bytes", _memory(lambda m: m.read_per_step)),
    Column("first token", _FIRST, "seconds", _memory(lambda m: m.ttft_first)),
    Column("later turns", "time to the first token in later turns", "seconds", _memory(lambda m: m.ttft_later)),
    Column("a turn", "time of a whole turn, mean", "seconds", _memory(lambda m: m.seconds)),
)
