"""Recipes with a source go through a whole run: records say what was left out, and that it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvledger.methods.selfinfo import SelfInfo
from kvledger.recipe import parse
from kvledger.records import Record, read
from kvledger.run.inspect import at_keeps
from kvledger.run.sweep import Grid, sweep

RECIPES = (
    "full",
    "selfinfo(keep=0.5)",
    "cacheblend(recompute=1.0, chunk=64)",
    "selfinfo(keep=0.5) + protect(instruction=True)",
)


def run(model: Path, out: Path, *recipes: str) -> dict[tuple[str, str, str], list[Record]]:
    modes = ("multi-turn", "multi-request")
    grid = Grid(
        str(model), recipes, ("scbench/kv",), modes, ("hidden", "visible"), (512,), chunk=100, samples=1, turns=2
    )
    sweep(grid, out, lambda now: None, pytest.fail)
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in sorted(read(out)[0], key=lambda record: record.turn):
        found.setdefault((record.recipe, record.mode, record.visibility), []).append(record)
    return found


def test_records_say_what_a_source_saved(tiny: Path, tmp_path: Path) -> None:
    found = run(tiny, tmp_path, *RECIPES)
    assert len(found) == 4 * len(RECIPES)
    for (recipe, mode, visibility), records in found.items():
        full = found["full", mode, visibility]
        for record, whole in zip(records, full, strict=True):
            assert record.prompt_tokens + record.left_out == whole.prompt_tokens
            assert record.full_bytes == whole.full_bytes
            assert (record.left_out > 0) == ("selfinfo" in recipe)
            if record.left_out:
                assert record.footprint < 0.7
                assert record.ttft_seconds > 0
            if "cacheblend" in recipe:
                assert record.prediction == whole.prediction
                assert record.footprint > 1


def test_a_source_that_leaves_out_nothing_is_not_scored(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SelfInfo, "shorten", lambda self, text, protected, judge: (text, list(protected)))
    with pytest.raises(RuntimeError, match="left out nothing of scbench/kv"):
        run(tiny, tmp_path, "selfinfo(keep=0.5)")


def test_an_inspection_shows_the_tasks_own_text() -> None:
    with pytest.raises(ValueError, match="reads another text than the task's"):
        at_keeps(parse("selfinfo + snapkv(keep=0.3)"), [0.5])
