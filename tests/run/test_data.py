"""Runs on published data and on users' own: what a cell is then, and what one bad row costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvledger.cli import main
from kvledger.records import read
from kvledger.run.sweep import Grid, sweep
from kvledger.tasks.scbench_real import REPO, SETS

LINE = {"context": "Ann lives in Oslo. Bob lives in Rome.", "turns": [{"question": "Where is Ann?", "answer": "Oslo"}]}


def own(folder: Path, *lines: object) -> str:
    path = folder / "my.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def play(model: Path, out: Path, task: str, **options: object) -> list[str]:
    """Runs it; what was warned of."""
    warned: list[str] = []
    ordinary = dict(context=(400,), chunk=128, samples=2, turns=2)
    grid = Grid(str(model), ("full", "streaming(keep=0.5)"), (task,), **{**ordinary, **options})  # type: ignore[arg-type]
    sweep(grid, out, lambda progress: None, warned.append)
    return warned


def test_own_data_runs_by_its_path_and_a_changed_file_is_another_cell(tiny: Path, tmp_path: Path) -> None:
    name = own(tmp_path, LINE, LINE)
    assert play(tiny, tmp_path / "a", name) == []
    first, _ = read(tmp_path / "a")
    assert {(r.task, r.sample, r.turn) for r in first} == {(name, 0, 0), (name, 1, 0)}
    assert play(tiny, tmp_path / "a", name) == []
    assert len(read(tmp_path / "a")[0]) == len(first) == 4
    own(tmp_path, LINE, {**LINE, "context": "Ann lives in Bonn, and has done so for long."})
    play(tiny, tmp_path / "a", name)
    records, _ = read(tmp_path / "a")
    assert len({r.cell for r in records}) == 4
    assert len(records) == 8


def test_one_row_that_is_too_long_is_left_out_and_the_others_are_played(tiny: Path, tmp_path: Path) -> None:
    name = own(tmp_path, LINE, {**LINE, "context": "long " * 200}, LINE)
    (warned,) = play(tiny, tmp_path / "a", name, samples=3)
    assert "sample 1 has 1002 tokens, more than the 400 of --context: left out, not cut" in warned
    assert {r.sample for r in read(tmp_path / "a")[0]} == {0, 2}


def test_where_nothing_can_be_played_the_run_fails(tiny: Path, tmp_path: Path) -> None:
    name = own(tmp_path, {**LINE, "context": "long " * 200})
    with pytest.raises(ValueError, match=r"no sample could be played: .*more than the 400 of --context"):
        play(tiny, tmp_path / "a", name)


def folder_of(root: Path, *values: str) -> str:
    path = root / REPO / SETS["kv"].file
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"context": f'JSON data:\n{{"k": "{value}"}}', "multi_turns": [{"input": '\nKey: "k"\n', "answer": value}]}
        for value in values
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(root)


def test_published_data_and_generated_samples_never_mix(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    play(tiny, out, "scbench/kv", samples=1, turns=1)
    for values in (("one", "two"), ("one", "three")):
        data = folder_of(tmp_path / "data", *values)
        assert play(tiny, out, "scbench/kv", samples=2, turns=1, data=data) == []
    records, _ = read(out)
    assert len({r.cell for r in records}) == 3 * 2
    assert {r.gold for r in records} >= {"one", "two", "three"}


def test_a_suite_with_data_needs_all_its_files(tiny: Path, tmp_path: Path) -> None:
    data = folder_of(tmp_path, "one")
    with pytest.raises(ValueError, match=r"has no microsoft/SCBench/data/scbench_prefix_suffix\.jsonl"):
        play(tiny, tmp_path / "out", "scbench", data=data)
    assert not (tmp_path / "out").exists()


def test_tiers_decide_how_many_samples_and_the_rule_is_in_the_cell() -> None:
    def cells(**options: object) -> list[tuple[int, str]]:
        grid = Grid("zoo", ("full",), ("scbench/kv",), **options)  # type: ignore[arg-type]
        return [(cell.samples, cell.rule) for cell in grid.cells()]

    assert [cells(tier=tier)[0][0] for tier in ("quick", "standard", "full")] == [10, 50, 100]
    assert cells(tier="full", samples=3) == [(3, "the first 3")]
    assert cells()[0][1].startswith("quick: the first 10")
    (quick,), (full,) = (Grid("zoo", ("full",), ("scbench/kv",), tier=tier).cells() for tier in ("quick", "full"))
    assert quick.key == full.key, "a larger tier goes on where the smaller one ended"
    with pytest.raises(ValueError, match="unknown tier 'quik'; did you mean 'quick'"):
        cells(tier="quik")


def test_turns_are_the_tasks_own_unless_asked_for() -> None:
    names = ("scbench/kv", "scbench/mf", "scbench/repoqa_and_kv_alike")
    assert [cell.turns for cell in Grid("zoo", ("full",), names).cells()] == [5, 6, 8]
    assert [cell.turns for cell in Grid("zoo", ("full",), names, turns=2).cells()] == [2, 2, 2]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--tasks", "no.jsonl"], "no file 'no.jsonl'"),
        (
            ["--tasks", "scbench/qa_eng"],
            "cannot be generated: give --data hub or --data DIR, or take scbench/qa_eng_alike",
        ),
        (["--tasks", "scbench/mix", "--data", "hub"], "generated and has no published data"),
        (["--tasks", "scbench/kv", "--tier", "all"], "unknown tier 'all'"),
        (["--tasks", "scbench/kv", "--turns", "0"], "turns=0 must be at least 1"),
        (["--tasks", "scbench/kv", "--data", "/nowhere"], "the data folder '/nowhere' is not there"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--model", str(tiny), "--recipes", "full", "--out", str(tmp_path), *arguments]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1
