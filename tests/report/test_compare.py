"""Two runs: what changed is told, what did not is not, and nothing in common is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from kvledger.cli import main
from kvledger.records import Log, Record
from kvledger.report.compare import changes, print_changes
from kvledger.report.study import collect

Make = Callable[..., Record]
LUCK = (0.9, 0.5, 0.7, 0.3, 0.8, 0.4, 0.6)


def run(make: Make, lost: float = 0.0, count: int = 7, **more: object) -> list[Record]:
    """Two recipes on contexts of different difficulty; the second loses `lost` on each."""
    return [
        make(recipe=recipe, method=recipe, sample=n, score=LUCK[n] - less, **more)
        for recipe, less in (("steady", 0.0), ("other", lost))
        for n in range(count)
    ]


def said(before: list[Record], after: list[Record]) -> str:
    console = Console(width=140, no_color=True, color_system=None)
    with console.capture() as capture:
        print_changes(changes(collect(before), collect(after)), console)
    return capture.get()


def test_a_run_beside_itself_differs_by_nothing(make: Make) -> None:
    found = changes(collect(run(make)), collect(run(make)))
    assert len(found) == 2
    assert not any(change.changed or change.score.difference.mean for change in found)
    assert "2 scores in common, 0 changed beyond the noise." in said(run(make), run(make))


def test_a_small_loss_on_every_context_is_found_and_named(make: Make) -> None:
    found = {c.recipe: c for c in changes(collect(run(make)), collect(run(make, lost=0.05)))}
    assert not found["steady"].changed
    assert found["other"].changed
    assert found["other"].score.difference.mean == pytest.approx(-0.05)
    assert found["other"].after == pytest.approx(found["other"].before - 0.05)
    text = said(run(make), run(make, lost=0.05))
    assert "1 changed beyond the noise" in text
    assert "−5.0 [−5.0, −5.0]" in text
    assert "steady" not in text


def test_only_answers_that_both_have_count(make: Make) -> None:
    after = [record for record in run(make) if record.sample < 6]
    found = changes(collect(run(make)), collect(after))
    assert [change.samples for change in found] == [6, 6]
    assert not any(change.score.difference.mean for change in found)


def test_few_contexts_are_not_judged(make: Make) -> None:
    assert not any(c.changed for c in changes(collect(run(make, count=5)), collect(run(make, lost=0.3, count=5))))
    assert "2 rest on fewer than 6 contexts" in said(run(make, count=5), run(make, lost=0.3, count=5))


def test_several_tasks_are_also_judged_together(make: Make) -> None:
    def two(lost: float) -> list[Record]:
        return [record for task in ("a", "b") for record in run(make, lost, count=3, task=task)]

    found = changes(collect(two(0.0)), collect(two(0.1)))
    assert [(c.setting.task, c.recipe) for c in found if c.changed] == [("all tasks", "other")]


def test_memory_before_and_after_stands_beside(make: Make) -> None:
    found = changes(collect(run(make, footprint=0.4)), collect(run(make, footprint=0.6)))
    assert found[0].footprint == pytest.approx((0.4, 0.6))


def test_nothing_in_common_is_refused_with_what_it_takes(make: Make) -> None:
    with pytest.raises(ValueError, match="no answer in common"):
        changes(collect(run(make)), collect(run(make, model="another")))


def test_the_command_compares_two_folders(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, lost in (("a", 0.0), ("b", 0.2)):
        log = Log(tmp_path / name)
        for number, record in enumerate(run(make, lost, turn=0)):
            log.append(make(**{**vars(record), "cell": f"{record.recipe} {number}"}))
        log.close()
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["report", *folders]) == 0
    assert "1 changed beyond the noise" in capsys.readouterr().out
    assert main(["report", *folders, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(c["recipe"], c["changed"]) for c in document["changes"]] == [("other", True), ("steady", False)]
    assert main(["report", *folders, folders[0]]) == 2
    assert "3 folders: give one to report on, or two to compare" in capsys.readouterr().err
