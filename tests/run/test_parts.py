"""Recipes of several parts in the runner: files that decide an answer are part of the key, protected roles reach the cache."""

from pathlib import Path

import pytest

from kvledger.methods.gatefile import Gates
from kvledger.recipe import parse
from kvledger.records import read
from kvledger.run import cell as cells
from kvledger.run.sweep import Grid, sweep
from kvledger.tasks.base import Sample, Segment, Turn


def play(model: Path, out: Path, recipe: str) -> list[str]:
    grid = Grid(str(model), (recipe,), ("scbench/kv",), context=(300,), chunk=128, samples=1, turns=1)
    sweep(grid, out, lambda progress: None, lambda line: None)
    return [record.cell for record in read(out)[0]]


def test_other_gates_in_the_same_file_are_another_cell(tiny: Path, tmp_path: Path) -> None:
    path, out, recipe = tmp_path / "gates.json", tmp_path / "out", f"headgate(path='{tmp_path}/gates.json', keep=0.5)"
    for count, score in enumerate((0.2, 0.2, 0.8), start=1):
        table = ((0.5, score), (0.5, score))
        Gates(table, sink=4, window=32).save(path)
        keys = play(tiny, out, recipe)
        assert len(set(keys)) == len(keys) == max(1, count - 1)  # the same gates again: nothing new is played


def test_gates_of_another_shape_are_refused_before_any_work(tiny: Path, tmp_path: Path) -> None:
    Gates(((0.5,),), sink=4, window=32).save(tmp_path / "gates.json")
    with pytest.raises(ValueError, match="are for 1 layers of 1 KV heads"):
        play(tiny, tmp_path / "out", f"headgate(path='{tmp_path}/gates.json', keep=0.9) + snapkv()")
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_spans_are_found_by_role_and_as_evidence() -> None:
    segments = (
        Segment("instruction", "Read this. "),
        Segment("context", "a long story "),
        Segment("instruction", "Now:"),
    )
    sample = Sample("t", 0, segments, (Turn("?", "g", ("g",), 4, evidence=((13, 17),)),))
    recipe = parse("snapkv() + protect(instruction=True)")
    assert [sample.text[a:b] for a, b in cells._spans(recipe, sample)] == ["Read this. ", "Now:"]
    recipe = parse("snapkv() + protect(evidence=True)")
    (span,) = cells._spans(recipe, sample)
    assert span == (13 - cells.BESIDE, 17 + cells.BESIDE)
    assert cells._spans(parse("snapkv()"), sample) == []


def test_a_budget_that_is_not_reached_is_no_failure(tiny: Path, tmp_path: Path) -> None:
    for number, recipe in enumerate(("snapkv(rows=4000)", "rkv()", "headgate(path='random:0', keep=0.5)")):
        assert len(play(tiny, tmp_path / str(number), recipe)) == 1
