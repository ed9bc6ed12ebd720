"""Rows of several tasks together: the mean of their means.  (no torch)

A pooled row stands in a setting of its own, whose task is the name of the group. Tasks weigh alike, whatever their number
of turns. Only recipes that were run on all tasks of the group are pooled: a mean over fewer tasks is another quantity.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from statistics import fmean

from .interval import estimate, pooled, pooled_draws
from .tables import Baselines, Memory, Row, Scores, ScoreTable, Setting, TurnScore, baseline_setting, pairs

ALL = "all tasks"


def groups(tasks: Sequence[str], kinds: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """name -> tasks, of at least two: all of them, and those of one kind (`kinds`: task -> kind)."""
    found = {ALL: tuple(tasks)}
    for kind in dict.fromkeys(kinds[task] for task in tasks if kinds.get(task)):
        found[kind] = tuple(task for task in tasks if kinds.get(task) == kind)
    distinct = {members: name for name, members in reversed(found.items()) if len(members) > 1}
    return {name: members for members, name in reversed(distinct.items())}


def pool(rows: Sequence[Row], scores: ScoreTable, baselines: Baselines, kinds: Mapping[str, str]) -> list[Row]:
    """Pooled rows, in the order of `rows`, for each group of tasks."""
    apart: dict[tuple[Setting, str], list[Row]] = defaultdict(list)
    for row in rows:
        apart[row.setting._replace(task=""), row.recipe].append(row)
    made = []
    for name, members in groups(list(dict.fromkeys(row.setting.task for row in rows)), kinds).items():
        for among in apart.values():
            inside = [row for row in among if row.setting.task in members]
            if len(inside) == len(members):
                made.append(_pooled(name, inside, scores, baselines))
    return made


def incomplete(rows: Sequence[Row]) -> list[str]:
    """Recipes that lack a task in some setting, and so are missing from the pooled figures."""
    tasks = {row.setting.task for row in rows}
    found: dict[tuple[Setting, str], set[str]] = defaultdict(set)
    for row in rows:
        found[row.setting._replace(task=""), row.recipe].add(row.setting.task)
    return list(dict.fromkeys(recipe for (_, recipe), have in found.items() if have != tasks))


def _pooled(name: str, rows: Sequence[Row], scores: ScoreTable, baselines: Baselines) -> Row:
    head = rows[0]
    strata = [_alone(scores[row.setting, row.recipe]) for row in rows]
    means, draws = pooled_draws(strata)
    return Row(
        setting=head.setting._replace(task=name),
        recipe=head.recipe,
        method=head.method,
        line=head.line,
        keep=head.keep,
        full=head.full,
        turns=sum(row.turns for row in rows),
        samples=sum(row.samples for row in rows),
        score=estimate(means[0], None if draws is None else draws[:, 0], strata),
        against=None if any(row.against is None for row in rows) else pooled(_against(rows, scores, baselines)),
        by_turn=_turns(rows, scores),
        first=_mean([row.first for row in rows]),
        later=_mean([row.later for row in rows]),
        memory=_memory([row.memory for row in rows]),
        life=None,
    )


def _alone(scores: Scores) -> dict[tuple[int, int], list[tuple[float, ...]]]:
    return {sample: [(value,) for value in turns.values()] for sample, turns in scores.items()}


def _against(
    rows: Sequence[Row], scores: ScoreTable, baselines: Baselines
) -> list[dict[tuple[int, int], list[tuple[float, float]]]]:
    found = []
    for row in rows:
        full = baseline_setting(row.setting, baselines)
        assert full is not None  # the row has a contrast
        found.append(pairs(scores[row.setting, row.recipe], baselines[full]))
    return found


def _turns(rows: Sequence[Row], scores: ScoreTable) -> tuple[TurnScore, ...]:
    """The turns that all tasks have."""
    answered = [scores[row.setting, row.recipe] for row in rows]
    turns = [
        t for t in range(1, min(row.by_turn[-1].turn for row in rows) + 1) if all(_has(t, task) for task in answered)
    ]
    if turns and all(turn in own for task in answered for own in task.values() for turn in turns):
        return _turn_scores(turns, answered)
    return tuple(score for turn in turns for score in _turn_scores([turn], answered))


def _has(turn: int, scores: Scores) -> bool:
    return any(turn in turns for turns in scores.values())


def _turn_scores(turns: Sequence[int], answered: Sequence[Scores]) -> tuple[TurnScore, ...]:
    """Several turns at once, where every sample counted has them all."""
    strata = [
        {
            sample: [tuple(own[turn] for turn in turns)]
            for sample, own in task.items()
            if all(turn in own for turn in turns)
        }
        for task in answered
    ]
    means, draws = pooled_draws(strata)
    count = sum(map(len, strata))
    found = [estimate(means[n], None if draws is None else draws[:, n], strata) for n in range(len(turns))]
    return tuple(TurnScore(turn, count, e.mean, e.low, e.high) for turn, e in zip(turns, found, strict=True))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _memory(parts: Sequence[Memory]) -> Memory:
    """Means over tasks; None where a task has none."""
    means = {field.name: _mean([getattr(part, field.name) for part in parts]) for field in fields(Memory)}
    return Memory(**means)  # type: ignore[arg-type]
