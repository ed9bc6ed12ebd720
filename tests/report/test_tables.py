"""Aggregation, by examples computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvledger.records import Record
from kvledger.report.study import collect
from kvledger.report.summary import Column, describe, glances, notes
from kvledger.report.tables import Row, family

Make = Callable[..., Record]


def aggregate(records: list[Record]) -> tuple[Row, ...]:
    return collect(records).rows


def two_samples(make: Make) -> list[Record]:
    """Two samples of two turns: full 1 1 / 1 0, snapkv 1 0 / 0 0."""
    scores = {"full": (1.0, 1.0, 1.0, 0.0), "snapkv(keep=0.5)": (1.0, 0.0, 0.0, 0.0)}
    return [
        make(recipe=recipe, sample=sample, turn=turn, score=values[2 * sample + turn - 1])
        for recipe, values in scores.items()
        for sample in (0, 1)
        for turn in (1, 2)
    ]


def test_scores_and_turns(make: Make) -> None:
    full, snap = aggregate(two_samples(make))
    assert full.full
    assert full.score.mean == 0.75
    assert (snap.turns, snap.samples, snap.score.mean) == (4, 2, 0.25)
    assert (snap.first, snap.later) == (0.5, 0.0)
    assert [(point.turn, point.count, point.score) for point in snap.by_turn] == [(1, 2, 0.5), (2, 2, 0.0)]


def test_contrast_pairs_the_same_turns(make: Make) -> None:
    snap = aggregate(two_samples(make))[1]
    assert snap.against is not None
    assert snap.against.pairs == 4
    assert snap.against.difference.mean == -0.5
    assert snap.against.ratio is not None
    assert snap.against.ratio.mean == pytest.approx(1 / 3)
    assert snap.whiskers == (0.25, 0.25)  # both samples lose one half: the paired difference does not vary


def test_only_turns_that_both_answered_are_paired(make: Make) -> None:
    records = [make(recipe="full", sample=0, score=1.0), *(make(sample=sample, score=0.0) for sample in range(3))]
    snap = aggregate(records)[1]
    assert snap.against is not None
    assert snap.against.pairs == 1


def test_first_of_repeated_records_is_taken(make: Make) -> None:
    records = [make(score=1.0), make(score=0.0), make(score=0.0, turn=2)]
    assert [record.score for record in collect(records).facts] == [1.0, 0.0]
    assert aggregate(records)[0].score.mean == 0.5
    assert "1 record repeated" in notes(collect(records))[0]


def test_multi_turn_memory_is_that_of_the_last_turn(make: Make) -> None:
    records = [make(turn=turn, footprint=turn / 10, seconds=turn) for turn in (1, 2, 3)]
    memory = aggregate(records)[0].memory
    assert memory.footprint == pytest.approx(0.3)
    assert memory.seconds == 2  # time is spent in every turn


def test_multi_request_memory_is_the_mean_of_requests(make: Make) -> None:
    records = [make(turn=turn, footprint=turn / 10, mode="multi-request") for turn in (1, 2, 3)]
    assert aggregate(records)[0].memory.footprint == pytest.approx(0.2)


def test_a_full_cache_serves_other_visibilities_and_chunks_but_no_other_context(make: Make) -> None:
    records = [
        make(recipe="full", score=1.0),
        make(visibility="visible", score=0.5),
        make(chunk=0, score=0.5),
        make(context=2048, score=0.5),
    ]
    paired = {row.setting[3:4] + row.setting[5:]: row.against for row in aggregate(records)}
    assert paired["visible", 1024, 256] is not None
    assert paired["hidden", 1024, 0] is not None
    assert paired["hidden", 2048, 256] is None


def test_settings_are_not_mixed_and_seeds_are_more_samples(make: Make) -> None:
    records = [make(seed=seed, context=context) for seed in (0, 1) for context in (1024, 2048)]
    rows = aggregate(records)
    assert [(row.setting.context, row.samples) for row in rows] == [(1024, 2), (2048, 2)]


def test_full_with_a_second_part_is_no_baseline(make: Make) -> None:
    records = [make(recipe="full + kivi(bits=4)", method="full", keep=1.0), make()]
    assert not any(row.full or row.against for row in aggregate(records))


def test_turns_are_counted_from_one(make: Make) -> None:
    row = aggregate([make(turn=0, score=1.0), make(turn=1, score=0.0)])[0]
    assert (row.first, row.later) == (1.0, 0.0)


def test_lines_join_keeps_and_split_variants(make: Make) -> None:
    plain = [make(recipe=f"snapkv(keep={keep})", keep=keep) for keep in (0.3, 0.5)]
    assert {row.line for row in aggregate(plain)} == {"snapkv"}
    variants = [make(recipe=f"snapkv(keep=0.5, window={window})", keep=0.5) for window in (16, 64)]
    assert {row.line for row in aggregate(variants)} == {"snapkv(window=16)", "snapkv(window=64)"}
    assert family("snapkv(window=16, keep=0.5) + kivi(bits=4)") == "snapkv(window=16) + kivi(bits=4)"


def test_glance_puts_full_on_top_and_marks_the_first_place_of_each_keep(make: Make) -> None:
    facts = {"a(keep=0.5)": ("a", 0.5, 0.2), "b(keep=0.5)": ("b", 0.5, 0.4), "b(keep=0.3)": ("b", 0.3, 0.9)}
    records = [make(recipe=r, method=m, keep=k, score=s, sample=n) for r, (m, k, s) in facts.items() for n in range(6)]
    study = collect([*records, *(make(recipe="full", score=1.0, sample=n) for n in range(6))])
    (glance,) = glances(study.rows, study.places)
    assert [row.recipe for row in glance.rows] == ["full", "a(keep=0.5)", "b(keep=0.5)", "b(keep=0.3)"]
    column = Column("kv", "multi-turn")
    assert [column in row.best for row in glance.rows] == [False, False, True, False]  # alone at its keep: no contest
    assert glance.rows[1].stored == 0.5


def test_nothing_is_marked_where_nothing_can_be_told_apart(make: Make) -> None:
    records = [
        make(recipe=r, method=r, score=float(n % 2 == c), sample=n) for c, r in enumerate("ab") for n in range(8)
    ]
    study = collect(records)
    assert set(study.places.values()) == {1}
    (glance,) = glances(study.rows, study.places)
    assert not any(row.best for row in glance.rows)


def test_glance_lends_the_full_cache_to_every_scope(make: Make) -> None:
    rows = aggregate([make(recipe="full"), make(), make(visibility="visible")])
    assert [glance.rows[0].full for glance in glances(rows, {})] == [True, True]


def test_notes_name_what_is_missing(make: Make) -> None:
    records = [make(sample=0)]
    found = " ".join(notes(collect(records)))
    assert "No full cache to compare with on kv" in found
    assert "one sample" in found


def test_run_lists_what_was_run(make: Make) -> None:
    records = two_samples(make)
    run = describe(collect(records))
    assert (run.records, run.recipes, run.keeps) == (8, ("full", "snapkv(keep=0.5)"), (0.5,))
    assert (run.samples, run.turns, run.contexts) == ((2, 2), 2, (1024,))


def test_time_to_the_first_token_is_kept_apart_by_whether_it_holds_the_reading(make: Make) -> None:
    times = {0: 1.0, 1: 0.2, 2: 0.4}
    talk = aggregate([make(turn=turn, ttft_seconds=time) for turn, time in times.items()])[0].memory
    assert (talk.ttft_first, talk.ttft_later) == (1.0, pytest.approx(0.3))
    requests = aggregate([make(turn=turn, ttft_seconds=1.0, mode="multi-request") for turn in times])[0].memory
    assert (requests.ttft_first, requests.ttft_later) == (1.0, None)


def test_the_curve_shown_is_the_first_samples(make: Make) -> None:
    records = [make(sample=s, turn=t, curve=((10 * s + t, 1.0, "read"),)) for s in (1, 0) for t in (1, 2, 3)]
    life = aggregate(records)[0].life
    assert life is not None
    assert (life.sample, life.turn) == (0, 3)
