"""Score by depth and keep, and the differences: tiles and marks are where the numbers say."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest

from kvledger.records import Record
from kvledger.report.depth import BINS, charts, heat_maps
from kvledger.report.differences import differences
from kvledger.report.figures import numbers
from kvledger.report.palette import styles
from kvledger.report.pool import ALL
from kvledger.report.study import collect

Make = Callable[..., Record]


def test_tiles_are_means_of_the_answers_of_a_fifth(make: Make) -> None:
    depths = {0.05: 1.0, 0.15: 0.0, 0.39: 0.25, 1.0: 0.5}
    (chart,) = charts([make(depth=depth, score=score, sample=n) for n, (depth, score) in enumerate(depths.items())])
    assert chart.keeps == (0.5,)
    found = [(tile.score, tile.answers) if tile else None for tile in chart.tiles[0]]
    assert found == [(0.5, 2), (0.25, 1), None, None, (0.5, 1)]
    assert len(found) == BINS


def test_keeps_are_rows_from_the_largest_and_the_full_cache_is_a_chart_of_its_own(make: Make) -> None:
    records = [make(recipe=f"snapkv(keep={k})", keep=k) for k in (0.1, 0.7, 0.3)] + [make(recipe="full")]
    assert [(chart.line, chart.keeps) for chart in charts(records)] == [
        ("full cache", (1.0,)),
        ("snapkv", (0.7, 0.3, 0.1)),
    ]


def test_tasks_without_a_place_are_left_out_and_several_are_also_one(make: Make) -> None:
    records = [make(task=task, depth=depth) for task, depth in (("a", 0.5), ("b", 0.2), ("nowhere", 0.0))]
    assert [chart.setting.task for chart in charts(records)] == [ALL, "a", "b"]
    assert charts([make(depth=0.0)]) == []
    assert heat_maps([make(depth=0.0)]) == []


def test_the_picture_writes_out_every_tile(make: Make) -> None:
    records = [make(depth=0.1 + 0.2 * n, score=n / 4, sample=n) for n in range(4)]
    (panel,) = heat_maps(records)
    root = ET.fromstring(panel.svg)
    (cells,) = [group for group in root.iter("g") if group.get("class") == "cells"]
    assert [text.text for text in cells.findall("text")] == ["0", "25", "50", "75"]
    shades = [float(rect.get("fill-opacity", "nan")) for rect in cells.findall("rect")[:4]]
    assert shades == pytest.approx([0.03 + 0.97 * n / 4 for n in range(4)], abs=0.006)
    assert cells.findall("rect")[4].get("class") == "none"
    assert root.findtext("desc") == "keep 0.5: 0.0, 25.0, 50.0, 75.0, –."


def test_differences_stand_in_the_order_of_their_places(make: Make) -> None:
    scores = {"a": 0.3, "b": 0.8, "full": 0.9}
    records = [make(recipe=r, method=r, score=s, sample=n) for r, s in scores.items() for n in range(6)]
    study = collect(records)
    look = styles(["a", "b"])
    (panel,) = differences(study.rows, study.places, look, numbers(study.rows))
    root = ET.fromstring(panel.svg)
    names = [text.text for text in root.iter("text") if text.get("class") == "label"]
    assert names == ["b", "a"]
    assert [t.text for t in root.iter("text") if t.get("class") == "tick" and t.get("x") == "420"] == ["1", "2"]
    assert root.findtext("desc") == "b: −10.0; a: −60.0."
    places = {study.rows[int(mark.get("data-r", ""))].recipe: mark for mark in root.iter() if mark.get("data-r")}
    zero = next(float(line.get("x1", "")) for line in root.iter("line") if line.get("class") == "axis")
    ticks = {
        t.text: float(t.get("x", ""))
        for t in root.iter("text")
        if t.get("class") == "tick" and t.get("text-anchor") == "middle"
    }
    assert ticks["0"] == zero
    assert set(places) == {"a", "b"}


def test_without_a_full_cache_there_is_nothing_to_subtract(make: Make) -> None:
    study = collect([make()])
    assert differences(study.rows, study.places, styles(["snapkv"]), numbers(study.rows)) == []


def test_within_a_place_the_smaller_loss_comes_first(make: Make) -> None:
    scores = {"full": (1.0,) * 6, "a": (0.9, 0.1) * 3, "z": (0.2, 0.9) * 3}
    records = [
        make(recipe=r, method=r, score=s, sample=n) for r, values in scores.items() for n, s in enumerate(values)
    ]
    study = collect(records)
    assert set(study.places.values()) == {1}
    (panel,) = differences(study.rows, study.places, styles(["a", "z"]), numbers(study.rows))
    assert ET.fromstring(panel.svg).findtext("desc") == "z: −45.0; a: −50.0."
