"""Prefill patterns in the runner: the work they saved is in the record, their files are part of the key."""

import json
from pathlib import Path

import pytest

from kvledger.methods.headpatterns import HeadPattern, HeadPatterns
from kvledger.records import Record, parse, read
from kvledger.run.sweep import Grid, sweep


def play(model: Path, out: Path, *recipes: str, visibility: str = "hidden") -> list[Record]:
    grid = Grid(
        str(model), recipes, ("scbench/kv",), visibility=(visibility,), context=(300,), chunk=128, samples=1, turns=1
    )
    sweep(grid, out, lambda progress: None, lambda line: None)
    return read(out)[0]


def test_the_work_saved_is_recorded_and_older_records_load(tiny: Path, tmp_path: Path) -> None:
    recipes = (
        "full",
        "ashape(sinks=4, window=32)",
        "trishape(sinks=4, window=32, last=16) + snapkv(keep=0.3)",
        "moba(block=16)",
    )
    made = {record.recipe.split("(")[0]: record for record in play(tiny, tmp_path, *recipes, visibility="visible")}
    work = {name: record.prefill_work for name, record in made.items()}
    assert work["full"] == 1
    assert work["ashape"] < work["trishape"] < 0.5
    assert 0 < work["moba"] < 1
    assert made["ashape"].stored_bytes == made["full"].stored_bytes > made["trishape"].stored_bytes
    assert made["moba"].bytes_read_per_step < made["full"].bytes_read_per_step == made["ashape"].bytes_read_per_step
    facts = json.loads(made["ashape"].line())
    del facts["prefill_work"]
    assert parse(json.dumps(facts)).prefill_work == 1


def test_other_patterns_in_the_same_file_are_another_cell(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "patterns.json"
    for count, columns in enumerate((20, 20, 30), start=1):
        HeadPatterns(((HeadPattern("vertical_slash", columns, 40),) * 4,) * 2).save(path)
        keys = [record.cell for record in play(tiny, tmp_path / "out", f"minference(path='{path}')")]
        assert len(set(keys)) == len(keys) == max(1, count - 1)
    HeadPatterns(((HeadPattern("a_shape", 1, 40),),)).save(path)
    with pytest.raises(ValueError, match="are for 1 layers of 1 query heads"):
        play(tiny, tmp_path / "none", f"minference(path='{path}')")
