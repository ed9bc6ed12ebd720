"""Several tasks as one, and ranks outside the noise: by examples computed by hand, and by simulation."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from kvledger.records import Record
from kvledger.report.pool import ALL, groups
from kvledger.report.ranks import LEAST
from kvledger.report.study import collect
from kvledger.report.tables import Row

Make = Callable[..., Record]


def pooled(records: list[Record], recipe: str, task: str = ALL, kinds: dict[str, str] | None = None) -> Row:
    (row,) = [row for row in collect(records, kinds or {}).pooled if row.recipe == recipe and row.setting.task == task]
    return row


def test_groups_are_all_tasks_and_kinds_of_at_least_two() -> None:
    assert groups(["a"], {}) == {}
    assert groups(["a", "b"], {}) == {ALL: ("a", "b")}
    assert groups(["a", "b", "c"], {"a": "x", "c": "x", "b": "y"}) == {ALL: ("a", "b", "c"), "x": ("a", "c")}
    assert groups(["a", "b"], {"a": "x", "b": "x"}) == {ALL: ("a", "b")}  # the same tasks once


def test_tasks_weigh_alike_whatever_their_number_of_answers(make: Make) -> None:
    records = [make(task="a", score=1.0, sample=n, turn=t) for n in range(3) for t in (1, 2)]
    records += [make(task="b", score=0.0, sample=n, footprint=0.2) for n in range(2)]
    row = pooled(records, "snapkv(keep=0.5)")
    assert row.score.mean == 0.5
    assert (row.samples, row.turns) == (5, 8)
    assert row.memory.footprint == pytest.approx((0.6 + 0.2) / 2)
    assert [(point.turn, point.score) for point in row.by_turn] == [(1, 0.5)]  # turn 2 is of one task alone


def test_turns_that_some_samples_lack_are_pooled_over_those_that_have_them(make: Make) -> None:
    records = [make(task=t, sample=n, turn=1, score=0.5) for t in "ab" for n in range(3)]
    records += [make(task=t, sample=0, turn=2, score=s) for t, s in (("a", 1.0), ("b", 0.0))]
    points = pooled(records, "snapkv(keep=0.5)").by_turn
    assert [(point.turn, point.count, point.score) for point in points] == [(1, 6, 0.5), (2, 2, 0.5)]
    assert points[0].low == 0.5
    assert points[1].low is None  # one sample of each task


def test_the_pooled_difference_is_paired_task_by_task(make: Make) -> None:
    scores = {"a": (0.9, 0.5, 0.7), "b": (0.3, 0.2, 0.4)}
    records = []
    for task, values in scores.items():
        for n, value in enumerate(values):
            records += [
                make(recipe="full", task=task, sample=n, score=value),
                make(task=task, sample=n, score=value - 0.1),
            ]
    row = pooled(records, "snapkv(keep=0.5)")
    assert row.against is not None
    gap = row.against.difference
    assert (gap.mean, gap.low, gap.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert row.against.full == pytest.approx(0.5)
    assert row.score.low is not None
    assert row.score.low < row.score.mean  # the scores themselves are uncertain


def test_the_interval_of_a_mean_over_tasks_is_narrower_than_theirs(make: Make) -> None:
    """Although sample n is as hard in every task: the tasks' samples are other contexts, so they are drawn apart."""
    records = [make(task=t, sample=n, score=n / 30) for t in "abcd" for n in range(30)]
    study = collect(records)
    widths = [row.score.high - row.score.low for row in study.rows]  # type: ignore[operator]
    (row,) = study.pooled
    assert row.score.high is not None
    assert row.score.low is not None
    together = row.score.high - row.score.low
    assert together == pytest.approx(sum(widths) / 4 / 2, rel=0.15)  # a mean of four independent ones


def test_a_recipe_that_lacks_a_task_is_left_out_and_named(make: Make) -> None:
    from kvledger.report.summary import notes

    records = [make(task=task) for task in "ab"] + [make(recipe="tova(keep=0.5)", method="tova", task="a")]
    study = collect(records)
    assert {row.recipe for row in study.pooled} == {"snapkv(keep=0.5)"}
    assert any("tova(keep=0.5) lack a task" in note for note in notes(study))


def test_kinds_are_pooled_too(make: Make) -> None:
    records = [make(task=t, score=s) for t, s in (("a", 1.0), ("b", 0.0), ("c", 0.5))]
    assert pooled(records, "snapkv(keep=0.5)", "x", {"a": "x", "c": "x"}).score.mean == 0.75


# ---- places ----


def rivals(make: Make, means: dict[str, float], samples: int, noise: float = 0.0, seed: int = 0) -> list[Record]:
    """Recipes that share the luck of each context, and have a little of their own."""
    rng = random.Random(seed)
    luck = [rng.gauss(0, 0.2) for _ in range(samples)]
    return [
        make(recipe=name, method=name, sample=n, score=mean + luck[n] + rng.gauss(0, noise))
        for name, mean in means.items()
        for n in range(samples)
    ]


def test_places_leave_out_as_many_as_stand_before(make: Make) -> None:
    study = collect(rivals(make, {"a": 0.9, "b": 0.9, "c": 0.5, "d": 0.2}, LEAST))
    assert {recipe: place for (_, recipe), place in study.places.items()} == {"a": 1, "b": 1, "c": 3, "d": 4}


def test_shared_luck_does_not_hide_a_difference(make: Make) -> None:
    """Contexts differ by 0.2, the recipes by 0.05 on each of them: unpaired intervals would overlap."""
    study = collect(rivals(make, {"a": 0.55, "b": 0.5}, 10))
    assert {recipe: place for (_, recipe), place in study.places.items()} == {"a": 1, "b": 2}


def test_equal_recipes_seldom_get_different_places(make: Make) -> None:
    parted = 0
    for seed in range(60):
        study = collect(rivals(make, {"a": 0.5, "b": 0.5}, 20, noise=0.1, seed=seed))
        parted += len(set(study.places.values())) > 1
    assert parted <= 8  # 5 % of 60 are 3, and the interval of 20 contexts is a little narrow


def test_too_few_contexts_give_no_places(make: Make) -> None:
    assert not collect(rivals(make, {"a": 0.9, "b": 0.1}, LEAST - 1)).places
    assert collect(rivals(make, {"a": 0.9, "b": 0.1}, LEAST)).places


def test_rivals_are_compared_on_what_all_have_met(make: Make) -> None:
    """b was spared the hard contexts; on the common ones it is no better."""
    records = [make(recipe="a", method="a", sample=n, score=float(n < 6)) for n in range(12)]
    records += [make(recipe="b", method="b", sample=n, score=1.0) for n in range(6)]
    assert set(collect(records).places.values()) == {1}


def test_pooled_recipes_have_places_too(make: Make) -> None:
    records = [
        make(recipe=name, method=name, task=task, sample=n, score=score)
        for name, score in (("a", 0.9), ("b", 0.4))
        for task in "xy"
        for n in range(3)
    ]
    places = collect(records).places
    assert {(setting.task, recipe): place for (setting, recipe), place in places.items()} == {
        (ALL, "a"): 1,
        (ALL, "b"): 2,
    }
