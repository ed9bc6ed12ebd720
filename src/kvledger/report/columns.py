"""The columns of the full table: heading, explanation, and each row's text and sort value.  (no torch)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from . import units
from .facets import varying, wording
from .interval import Estimate
from .tables import Memory, Row


class Cell(NamedTuple):
    text: str
    sort: float | str
    note: str = ""


@dataclass(frozen=True)
class Column:
    head: str
    title: str
    cell: Callable[[Row], Cell]
    text: bool = False


def columns(rows: Sequence[Row]) -> list[Column]:
    """The recipe, what tells settings apart, then scores, memory and time."""
    names = varying(row.setting for row in rows)
    named = [Column("recipe", "what is done to the cache", lambda row: Cell(units.clean(row.recipe), row.recipe), True)]
    named += [_fact(name) for name in names]
    return [*named, *_SCORES, *_MEMORY]


def _fact(name: str) -> Column:
    def cell(row: Row) -> Cell:
        value = getattr(row.setting, name)
        text = wording(name, value).removeprefix("question ").removeprefix("history ").removesuffix(" tokens")
        return Cell(text.removeprefix("chunks of "), value)

    return Column(name, "", cell, True)


def _range(estimate: Estimate | None, signed: bool = False) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{units.points(estimate.low, signed)} to {units.points(estimate.high, signed)}"


def _difference(row: Row) -> Cell:
    if row.against is None or row.full:
        return Cell(units.NONE, float("-inf"))
    estimate = row.against.difference
    return Cell(units.points(estimate.mean, True), estimate.mean, _range(estimate, True))


def _ratio(row: Row) -> Cell:
    if row.against is None or row.full or row.against.ratio is None:
        return Cell(units.NONE, float("-inf"))
    return Cell(units.percent(row.against.ratio.mean), row.against.ratio.mean)


def _points(pick: Callable[[Row], float | None]) -> Callable[[Row], Cell]:
    return lambda row: Cell(units.points(pick(row)), _sortable(pick(row)))


def _sortable(value: float | None) -> float:
    return float("-inf") if value is None else value


def _fraction(pick: Callable[[Memory], float]) -> Callable[[Row], Cell]:
    return lambda row: Cell(units.percent(pick(row.memory)), pick(row.memory))


def _bytes(pick: Callable[[Memory], float]) -> Callable[[Row], Cell]:
    return lambda row: Cell(units.size(pick(row.memory)), pick(row.memory))


def _time(pick: Callable[[Memory], float | None]) -> Callable[[Row], Cell]:
    return lambda row: Cell(units.seconds(pick(row.memory)), _sortable(pick(row.memory)))


def _samples(row: Row) -> Cell:
    return Cell(str(row.samples), row.samples, units.plural(row.turns, "turn"))


def _score(row: Row) -> Cell:
    return Cell(units.points(row.score.mean), row.score.mean, _range(row.score))


_AGAINST = "difference to the full cache on the same turns, and its 95 % interval"
_ENTRIES = "entries held, summed over the request, against the full cache"
_BYTES = "bytes held, summed over the request, against a full cache in the model's own precision"
_SCORES = (
    Column("samples", "contexts, and answered turns in all", _samples),
    Column("score", "mean, 0–100, and its 95 % interval", _score),
    Column("against full", _AGAINST, _difference),
    Column("of full", "score as a share of the full cache's", _ratio),
    Column("turn 1", "score of the first turn", _points(lambda r: r.first)),
    Column("turns 2+", "score of all later turns", _points(lambda r: r.later)),
)
_MEMORY = (
    Column("entry footprint", _ENTRIES, _fraction(lambda m: m.footprint)),
    Column("byte footprint", _BYTES, _fraction(lambda m: m.byte_footprint)),
    Column("floor", "what the schedule alone costs, above all the size of the chunks", _fraction(lambda m: m.floor)),
    Column("peak", "most entries at once, against the full cache", _fraction(lambda m: m.peak)),
    Column("peak bytes", "most bytes at once", _bytes(lambda m: m.peak_bytes)),
    Column("stored", "bytes held when the last question comes", _bytes(lambda m: m.stored_bytes)),
    Column("stored, full", "bytes a full cache holds then", _bytes(lambda m: m.full_bytes)),
    Column("read a step", "bytes read for one decoded token", _bytes(lambda m: m.read_per_step)),
    Column(
        "first token", "time to a request's first token, reading the context included", _time(lambda m: m.ttft_first)
    ),
    Column("later turns", "time to the first token in later turns of a conversation", _time(lambda m: m.ttft_later)),
    Column("a turn", "time of a whole turn, mean", _time(lambda m: m.seconds)),
)
