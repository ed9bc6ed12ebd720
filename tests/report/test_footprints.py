"""The critical footprints as the page shows them: the very numbers of report/critical.py, kinds of tasks before tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvledger.critical import Question
from kvledger.records import Record
from kvledger.report import critical
from kvledger.report.footprints import grids
from kvledger.report.page import write_study
from kvledger.report.study import Study, collect

Make = Callable[..., Record]
SCORES = {0.1: 0.2, 0.3: 0.8, 0.5: 1.0, 1.0: 1.0}


def steps(make: Make, tasks: str = "abc") -> list[Record]:
    """A line that reaches 90 % half-way between the keeps of 0.3 and 0.5, where it holds 30 and 50 %."""
    found = []
    for task in tasks:
        for n in range(8):
            for keep, score in SCORES.items():
                facts = {"task": task, "sample": n, "score": score, "keep": keep, "footprint": keep, "full_bytes": 1000}
                recipe = "full" if keep == 1 else f"snapkv(keep={keep})"
                found.append(make(recipe=recipe, stored_bytes=int(keep * 1000), **facts))
    return found


def test_cells_are_those_of_the_table_itself(make: Make) -> None:
    study = collect(steps(make))
    found, problem = grids(study)
    assert problem == ""
    assert [grid.keys["measure"] for grid in found] == ["entry footprint", "stored bytes"]
    (table,) = critical.tables(study.facts, Question(lines={row.recipe: row.line for row in study.rows}))
    assert found[0].columns == ("all tasks", "a", "b", "c")
    assert [[line, *cells[1:]] for line, cells in found[0].lines] == table.rows()
    ((line, cells),) = found[0].lines
    assert line == "snapkv"
    assert all(cell.startswith("40 [") for cell in cells)


def test_kinds_of_several_tasks_come_first(make: Make) -> None:
    found, _ = grids(collect(steps(make), {"a": "first kind", "c": "first kind", "b": "alone"}))
    assert found[0].columns == ("all tasks", "first kind", "a", "b", "c")
    assert found[0].lines[0][1][0].startswith("40 [")


def test_without_a_full_cache_or_anything_beside_it_there_is_no_table(make: Make) -> None:
    assert grids(collect([make()])) == ([], "")
    assert grids(collect([make(recipe="full")])) == ([], "")


def test_two_versions_of_a_task_are_said_and_the_page_is_made(make: Make, tmp_path: Path) -> None:
    records = [make(recipe="full", gold="1"), make(gold="2")]
    found, problem = grids(collect(records))
    assert found == []
    assert "two versions of kv" in problem
    text = write_study(collect(records), tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Not told: two versions of kv" in text


@pytest.mark.parametrize("visibility", ["hidden", "visible"])
def test_each_setting_has_its_own(studied: Study, visibility: str) -> None:
    mine = [grid for grid in grids(studied)[0] if grid.keys["visibility"] == visibility]
    assert {(grid.keys["mode"], grid.keys["measure"]) for grid in mine} == {
        (mode, measure) for mode in ("multi-turn", "multi-request") for measure in ("entry footprint", "stored bytes")
    }
    assert all(len(cells) == len(grid.columns) for grid in mine for _, cells in grid.lines)


def test_few_samples_are_said_once(make: Make) -> None:
    found, _ = grids(collect([record for record in steps(make) if record.sample < 3]))
    assert found[0].notes == ("3 numbers rest on fewer than 4 samples: they say little",)
