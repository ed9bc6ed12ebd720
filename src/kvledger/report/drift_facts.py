"""Measures of drift, as lines of JSON -> curves by turn and step, the shift after turn 1, how they go with scores.  (no torch)

SCBench's claim (arXiv 2412.10319 §4.4) is that rows kept with the first question in sight fit that question and serve later
ones worse.  The shift is the mean of the later turns less the first, within each sample.  A later question may simply look
elsewhere, whatever was kept; so the same shift where no question was in sight stands beside it, and what is left is the
claim's own part.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kvledger.records import Record

from .interval import Estimate, by_place

FORMAT = "kvledger.drift/1"
PHASES = {"answer": "tokens of the answer", "question": "tokens of the question"}
MEASURES = {
    "held": "attention on rows that are held",
    "context": "of the attention on the context, the share on kept rows",
    "evidence": "of the attention on the evidence, the share on kept rows",
}
LEAST = 3  # pairs of a correlation


class Setting(NamedTuple):
    model: str
    task: str
    visibility: str
    context: int
    chunk: int
    seed: int


@dataclass(frozen=True)
class Fact:
    """One turn under one recipe; `shares` by (phase, measure), without those that are not defined; `steps` of the answer's
    tokens are "held"."""

    cell: str
    setting: Setting
    recipe: str
    sample: int
    turn: int
    shares: Mapping[tuple[str, str], float]
    steps: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """A measure by turn (turn from 1, samples, mean), and how far it moves after turn 1, 0..1 each."""

    setting: Setting
    recipe: str
    phase: str
    measure: str
    turns: tuple[tuple[int, int, Estimate], ...]
    shift: Estimate | None


@dataclass(frozen=True)
class Excess:
    """The shift with the first question in sight less that without, on the same samples."""

    task: str
    recipe: str
    phase: str
    measure: str
    visible: Estimate
    hidden: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Agreement:
    """Correlation (Pearson) of a measure with the score of its turn, over all recipes of a task."""

    task: str
    phase: str
    measure: str
    turns: int
    r: float


# ---- reading ---------------------------------------------------------------------------------------------------------


def facts_of(directory: Path) -> tuple[list[Fact], list[str]]:
    """The measures of a folder, each turn once, and a line about each damaged one. ValueError if there are none, or if a
    recipe was measured twice under one setting (by two versions, or on other weights), which no mean should mix."""
    path = directory / "drift" / "turns.jsonl"
    found: dict[tuple[str, int, int], Fact] = {}
    damaged = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            fact = _fact(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            damaged += [f"{path}:{number}: damaged measure skipped ({str(error)[:80]})"] if line.strip() else []
            continue
        found.setdefault((fact.cell, fact.sample, fact.turn), fact)
    if not found:
        raise ValueError(f"no measures in {path}: `kvledger drift --out {directory}` writes them")
    cells: dict[tuple[Setting, str], str] = {}
    for fact in found.values():
        if cells.setdefault((fact.setting, fact.recipe), fact.cell) != fact.cell:
            raise ValueError(
                f"{path} holds measures of {fact.recipe} on {fact.setting.task} by two versions or models: give another --out"
            )
    return list(found.values()), damaged


def _fact(line: Any) -> Fact:
    if line["format"] != FORMAT:
        raise ValueError(f"format {line['format']!r}, not {FORMAT!r}")
    shares = {(phase, m): float(line[phase][m]) for phase in PHASES for m in MEASURES if line[phase][m] is not None}
    setting = Setting(*(line[name] for name in Setting._fields))
    return Fact(
        line["cell"],
        setting,
        line["recipe"],
        int(line["sample"]),
        int(line["turn"]),
        shares,
        tuple(map(float, line["steps"])),
    )


# ---- counting --------------------------------------------------------------------------------------------------------

Samples = dict[int, dict[int, float]]  # sample -> turn from 1 -> share
Shares = dict[tuple[Setting, str, str, str], Samples]


def _shares(facts: Iterable[Fact]) -> Shares:
    found: Shares = defaultdict(lambda: defaultdict(dict))
    for fact in facts:
        for (phase, measure), share in fact.shares.items():
            found[fact.setting, fact.recipe, phase, measure][fact.sample][fact.turn + 1] = share
    return found


def _shifts(samples: Samples) -> dict[int, float]:
    """sample -> mean of its later turns less its first; samples without both are left out."""
    whole = {number: turns for number, turns in samples.items() if 1 in turns and len(turns) > 1}
    return {n: statistics.fmean(v for turn, v in turns.items() if turn > 1) - turns[1] for n, turns in whole.items()}


def _estimate(values: Iterable[float]) -> Estimate:
    return by_place([{0: value} for value in values])[0][1]


def curves(facts: Iterable[Fact]) -> list[Curve]:
    """By setting, phase and measure, recipes in the order of their names."""
    made = []
    for (setting, recipe, phase, measure), samples in sorted(_shares(facts).items()):
        means = tuple((turn, count, mean) for turn, (count, mean) in by_place(list(samples.values())).items())
        shifts = _shifts(samples)
        made.append(Curve(setting, recipe, phase, measure, means, _estimate(shifts.values()) if shifts else None))
    return made


def by_step(facts: Iterable[Fact]) -> dict[tuple[Setting, str], dict[int, tuple[int, Estimate]]]:
    """(setting, recipe) -> step of the answer from 1 -> samples that have one, and the mean of "held" over their turns."""
    found: dict[tuple[Setting, str], dict[int, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for fact in facts:
        for step, held in enumerate(fact.steps, start=1):
            found[fact.setting, fact.recipe][fact.sample].setdefault(step, []).append(held)
    means = {
        key: [{step: statistics.fmean(held) for step, held in one.items()} for one in samples.values()]
        for key, samples in sorted(found.items())
    }
    return {key: by_place(samples) for key, samples in means.items()}


def excesses(facts: Iterable[Fact]) -> list[Excess]:
    """For each recipe that was measured with and without the first question in sight, on the samples of both."""
    shares, made = _shares(facts), []
    for (setting, recipe, phase, measure), samples in sorted(shares.items()):
        blind = shares.get((setting._replace(visibility="hidden"), recipe, phase, measure))
        if setting.visibility != "visible" or blind is None:
            continue
        seen, unseen = _shifts(samples), _shifts(blind)
        both = sorted(seen.keys() & unseen.keys())
        if both:
            columns = ([seen[n] for n in both], [unseen[n] for n in both], [seen[n] - unseen[n] for n in both])
            made.append(Excess(setting.task, recipe, phase, measure, *map(_estimate, columns)))
    return made


def agreements(facts: Sequence[Fact], records: Iterable[Record]) -> list[Agreement]:
    """For the turns that `records` have a score of. A measure or a score that never varies has no correlation."""
    scores = {(record.cell, record.sample, record.turn): record.score for record in records}
    pairs: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for fact in facts:
        score = scores.get((fact.cell, fact.sample, fact.turn))
        for (phase, measure), share in fact.shares.items() if score is not None else ():
            assert score is not None
            pairs[fact.setting.task, phase, measure].append((share, score))
    made = []
    for (task, phase, measure), both in sorted(pairs.items()):
        columns = list(zip(*both, strict=True))
        if len(both) >= LEAST and all(len(set(column)) > 1 for column in columns):
            made.append(Agreement(task, phase, measure, len(both), statistics.correlation(*columns)))
    return made
