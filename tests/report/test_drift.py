"""Tables, figures and the page of drift, from measures whose means are known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from kvledger.cli import main
from kvledger.report import drift, drift_facts
from kvledger.report.drift_facts import Fact, agreements, by_step, curves, excesses, facts_of
from kvledger.report.drift_figures import Line, panel
from kvledger.run import drift as measures
from kvledger.run.drift import Drift, Share

FALL = {"visible": (0.9, 0.5, 0.4), "hidden": (0.7, 0.6, 0.6)}  # means of snapkv by turn
OFF = (-0.05, 0.0, 0.05)  # of three samples, alike at all turns


def line(recipe: str, visibility: str, sample: int, turn: int, share: float, **changes: Any) -> str:
    told = Share(share, share / 2, None if changes.pop("bare", False) else share / 4)
    made = Drift(
        measures.FORMAT, f"{recipe} {visibility}", "a/model", recipe, "scbench/kv", visibility, 1024, 512, 0, sample, turn,
        1000, 0.3, replace(told, held=1.0), told, (share, share / 2),
    )  # fmt: skip
    return replace(made, **changes).line()


def whole() -> list[str]:
    made = []
    for visibility, means in FALL.items():
        for sample, off in enumerate(OFF):
            for turn, mean in enumerate(means):
                made.append(line("snapkv(keep=0.3)", visibility, sample, turn, mean + off))
                made.append(line("streaming(keep=0.3)", visibility, sample, turn, 0.5))
    return made


def write(folder: Path, *more: str) -> Path:
    path = measures.path_of(folder)
    path.parent.mkdir(parents=True)
    path.write_text("\n".join([*whole(), *more]) + "\n")
    return folder


@pytest.fixture
def facts(tmp_path: Path) -> list[Fact]:
    found, damaged = facts_of(write(tmp_path))
    assert damaged == []
    assert len(found) == len(whole())
    return found


def test_the_writer_and_the_reader_have_one_format() -> None:
    assert measures.FORMAT == drift_facts.FORMAT


def test_curves_are_means_over_samples_and_shifts_within_them(facts: list[Fact]) -> None:
    (curve,) = [
        one
        for one in curves(facts)
        if (one.recipe, one.setting.visibility, one.phase, one.measure)
        == ("snapkv(keep=0.3)", "visible", "answer", "held")
    ]
    assert [(turn, count) for turn, count, _ in curve.turns] == [(1, 3), (2, 3), (3, 3)]
    assert [mean.mean for _, _, mean in curve.turns] == pytest.approx([0.9, 0.5, 0.4])
    assert curve.shift is not None
    assert curve.shift.mean == pytest.approx(-0.45)
    assert curve.shift.low == pytest.approx(-0.45)  # samples differ in their level and not in their shift
    first = curve.turns[0][2]
    assert (first.low, first.high) == pytest.approx((0.85, 0.95))


def test_what_is_left_is_the_shift_beyond_that_of_a_hidden_question(facts: list[Fact]) -> None:
    found = {(one.recipe, one.phase, one.measure): one for one in excesses(facts)}
    assert len(found) == 2 * 2 * 3
    mine = found["snapkv(keep=0.3)", "answer", "context"]
    assert [mine.visible.mean, mine.hidden.mean, mine.difference.mean] == pytest.approx([-0.225, -0.05, -0.175])
    assert found["streaming(keep=0.3)", "answer", "held"].difference.mean == 0


def test_steps_are_averaged_over_turns_then_samples(facts: list[Fact]) -> None:
    found = by_step(facts)
    (steps,) = [s for (setting, recipe), s in found.items() if setting.visibility == "visible" and "snapkv" in recipe]
    assert {step: (count, round(mean.mean, 9)) for step, (count, mean) in steps.items()} == {1: (3, 0.6), 2: (3, 0.3)}


def test_a_measure_goes_with_scores_or_against_them(facts: list[Fact], make: Any) -> None:
    mine = [fact for fact in facts if "snapkv" in fact.recipe]
    alike = [make(cell=f.cell, sample=f.sample, turn=f.turn, score=f.shares["answer", "held"]) for f in mine]
    found = {(one.phase, one.measure): one for one in agreements(facts, alike)}
    assert ("question", "held") not in found  # it never varies
    assert (found["answer", "held"].r, found["answer", "held"].turns) == (pytest.approx(1.0), 18)
    against = [replace(one, score=1 - one.score) for one in alike]
    assert {round(one.r, 6) for one in agreements(facts, against)} == {-1.0}
    assert agreements(facts, [replace(one, cell="another") for one in alike]) == []


def test_tables_hold_the_numbers(facts: list[Fact]) -> None:
    tables = {table.title: table for table in drift.tables(facts)}
    by_turn = tables["Tokens of the answer: attention on rows that are held, %"]
    assert by_turn.head == ("recipe", "task", "question", "turn 1", "turn 2", "turn 3", "later − first")
    assert ("snapkv(keep=0.3)", "scbench/kv", "visible", "90.0", "50.0", "40.0") in {row[:6] for row in by_turn.rows}
    shift = tables[
        "Shift after turn 1. Tokens of the answer: of the attention on the context, the share on kept rows, %"
    ]
    assert shift.rows[0][:2] == ("snapkv(keep=0.3)", "scbench/kv")
    assert [cell.split(" ")[0] for cell in shift.rows[0][2:]] == ["−22.5", "−5.0", "−17.5"]
    assert all(len(row) == len(table.head) for table in tables.values() for row in table.rows)


def test_a_task_without_evidence_has_no_such_table(tmp_path: Path) -> None:
    path = measures.path_of(tmp_path)
    path.parent.mkdir()
    path.write_text(line("snapkv(keep=0.3)", "hidden", 0, 0, 0.5, bare=True))
    facts, _ = facts_of(tmp_path)
    assert not [table for table in drift.tables(facts) if "evidence" in table.title]
    assert [one.shift for one in curves(facts)] == [None] * 4  # one turn moves nowhere
    assert "<svg" in drift.page(facts)


def test_damaged_lines_are_told_and_doubles_count_once(tmp_path: Path) -> None:
    folder = write(tmp_path, "{", '{"format": "another/1"}', '["x"]', whole()[0])
    facts, damaged = facts_of(folder)
    assert len(facts) == len(whole())
    assert len(damaged) == 3
    assert all(str(measures.path_of(folder)) in words for words in damaged)


def test_two_versions_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"snapkv\(keep=0.3\) on scbench/kv by two versions or models: give another --out"
    ):
        facts_of(write(tmp_path, line("snapkv(keep=0.3)", "hidden", 7, 0, 0.5, cell="newer")))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no measures in"):
        drift.show(tmp_path)


def test_the_page_is_complete_and_loads_nothing(tmp_path: Path) -> None:
    nasty = "snapkv(keep=0.3, window=9) + <script>alert(1)</script>"
    page = drift.page(facts_of(write(tmp_path, line(nasty, "hidden", 0, 0, 0.5)))[0])
    assert "<script>alert" not in page
    assert not re.search(r"https?://|url\(|@import|<link|<img|<iframe| src=", page)
    pictures = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]
    assert len(pictures) == 2 * 3 * 2  # phases, measures, visibilities
    names = [part.get("id") for picture in pictures for part in picture.iter() if part.get("id")]
    assert len(names) == len(set(names))


def test_a_picture_puts_each_share_at_its_height() -> None:
    root = ET.fromstring(panel("p", "title", [Line("tova", [(1, 1.0), (2, 0.5), (3, 0.0)])], ["tova"]))
    marks = [part for part in root.iter() if part.get("data-tip")]
    assert [mark.get("data-tip") for mark in marks] == [f"tova\nturn {n}: {share} %" for n, share in
                                                        ((1, "100.0"), (2, "50.0"), (3, "0.0"))]  # fmt: skip
    drawn = next(part for part in root.iter() if part.get("class") == "line").get("d", "")
    spots = [tuple(map(float, spot.split(","))) for spot in drawn[1:].split("L")]
    assert spots[0][1] - spots[1][1] == pytest.approx(spots[1][1] - spots[2][1])
    assert spots[0][1] < spots[2][1]  # y runs downwards


def test_recipes_of_one_method_are_told_apart() -> None:
    lines = [Line(f"snapkv(keep={keep})", [(1, keep)]) for keep in (0.1, 0.3)]
    root = ET.fromstring(panel("p", "title", lines, [line.recipe for line in lines]))
    looks = {part.get("style") for part in root.iter() if part.get("class") == "series"}
    assert len(looks) == 2


def test_the_document_is_json_and_says_the_same(facts: list[Fact]) -> None:
    made = json.loads(json.dumps(drift.document(facts), allow_nan=False))
    assert made["format"] == drift.FORMAT
    assert len(made["curves"]) == 2 * 2 * 2 * 3
    shift = next(
        s for s in made["shifts"] if (s["recipe"], s["phase"], s["measure"]) == ("snapkv(keep=0.3)", "answer", "held")
    )
    assert shift["difference"] == [-0.35] * 3


def test_showing_leaves_page_and_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drift.show(write(tmp_path))
    said = capsys.readouterr().out
    assert "Shift after turn 1. Tokens of the answer" in said
    assert json.loads((tmp_path / "drift.json").read_text())["curves"]
    written = {path.name for path in (tmp_path / "figures").glob("*.svg")}
    assert len(written) == 2 * 3 * 2
    assert {"answer-held-0-scbench-kv-hidden.svg", "question-context-1-scbench-kv-visible.svg"} < written
    assert "</html>" in (tmp_path / "drift.html").read_text()


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["drift", "--help"])
    assert "--scores" in capsys.readouterr().out
