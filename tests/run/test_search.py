"""The search as it is played: on the embedded model, in the records of any grid, killed and continued."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvledger.cli import main
from kvledger.critical.search import UNDEFINED, Aim
from kvledger.recipe import parse
from kvledger.records import Cell, Record, claim, read
from kvledger.run.cell import Unplayed
from kvledger.run.plan import conversation, plan, price
from kvledger.run.search import FULL, Quest, Search, ladder, open_field, pursue, quests
from kvledger.run.sweep import Grid, sweep

KV, SHOTS = "scbench/kv", "scbench/many_shot"
RECIPES = ("random(when='chunk')", "kvzap(when='chunk')")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model: an answer is right if a number drawn for sample and turn is below the budget and a half."""

    def play(wanted: dict[tuple[Cell, int], set[int]], host: Any, most: int) -> Iterator[Record | Unplayed]:
        for (cell, index), done in wanted.items():
            if parse(cell.recipe).keep < 0.3 and "protect" in cell.recipe:
                yield Unplayed(cell, index, ValueError("protected rows do not fit"))
            else:
                yield from answers(cell, index, done)

    def answers(cell: Cell, index: int, done: set[int]) -> Iterator[Record]:
        for turn in range(cell.turns):
            keep = parse(cell.recipe).keep
            right = random.Random(f"{cell.task} {index} {turn}").random() < keep + 0.5
            if turn not in done:
                blank = (f for f in fields(Record) if f.default is MISSING)
                facts = {f.name: "" if f.type == "str" else 0 for f in blank} | {"curve": ()}
                shared = {f.name: getattr(cell, f.name) for f in fields(Record) if hasattr(cell, f.name)}
                own = {"cell": cell.key, "sample": index, "turn": turn, "score": float(right), "footprint": keep}
                facts |= shared | own | {"prompt_tokens": 280}
                yield Record(**facts)  # type: ignore[arg-type]

    def host_of(grid: Grid, device: str = "") -> Any:
        return SimpleNamespace(readings=SimpleNamespace(), identity="pretended")

    for module in ("kvledger.run.search", "kvledger.run.host"):
        monkeypatch.setattr(f"{module}.play", play)
    monkeypatch.setattr("kvledger.run.host.host_of", host_of)
    monkeypatch.setattr("kvledger.run.host.resolve", lambda grid, cells, host: list(cells))


def search_for(model: str = "zoo", recipes: tuple[str, ...] = RECIPES, samples: int = 8, **more: Any) -> Search:
    grid = Grid(model, recipes, (KV, SHOTS), context=(256,), chunk=64, samples=samples, turns=2)
    columns = more.pop("columns", {KV: (KV,), SHOTS: (SHOTS,)})
    return Search(grid, columns, Aim(first=min(2, samples), samples=samples, width=0.01, **more), step=0.1)


def played(search: Search, out: Path, stop_after: int = 10**9) -> tuple[int, list[Quest]]:
    """Turns played and the quests; broken off after so many turns."""
    goals, turns = quests(search), 0

    def watch(record: Record) -> None:
        nonlocal turns
        turns += 1
        if turns == stop_after:
            raise KeyboardInterrupt

    known = open_field(search, goals, out, lambda line: None)
    try:
        return pursue(search, goals, known, watch), goals
    finally:
        known.log.close()


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("after", [1, 17, 60])
def test_a_search_broken_off_ends_where_it_would_have_ended_and_plays_nothing_twice(after: int, tmp_path: Path) -> None:
    whole, goals = played(search_for(), tmp_path / "whole")
    assert whole > 100
    with pytest.raises(KeyboardInterrupt):
        played(search_for(), tmp_path / "broken", stop_after=after)
    rest, again = played(search_for(), tmp_path / "broken")
    assert rest == whole - after
    assert [(g.line, g.asked, g.points, g.end) for g in again] == [(g.line, g.asked, g.points, g.end) for g in goals]
    assert played(search_for(), tmp_path / "broken")[0] == 0, "all is on record"


@pytest.mark.usefixtures("pretended")
def test_what_a_grid_has_left_is_not_played_again(tmp_path: Path) -> None:
    search = search_for()
    recipes = tuple(recipe for goal in quests(search) for recipe in goal.ladder)
    grid = Grid(**{**vars(search.grid), "recipes": (FULL, *recipes)})
    assert sweep(grid, tmp_path, lambda now: None, lambda line: None) == 2 * 19 * 8 * 2
    assert played(search, tmp_path)[0] == 0
    assert played(search_for(columns={"both": (KV, SHOTS)}), tmp_path)[0] == 0, "nor for another question"


@pytest.mark.usefixtures("pretended")
def test_records_of_other_versions_are_not_mixed(tmp_path: Path) -> None:
    claim(tmp_path, "kvledger 0.0, torch 1.0")
    with pytest.raises(ValueError, match=r"made with kvledger 0.0, torch 1.0; here is pretended"):
        played(search_for(), tmp_path)
    assert not list((tmp_path / "records").glob("*.jsonl"))


@pytest.mark.usefixtures("pretended")
def test_tasks_of_a_category_are_judged_as_one(tmp_path: Path) -> None:
    search = search_for(recipes=RECIPES[1:], columns={"both": (KV, SHOTS)})
    _, (goal,) = played(search, tmp_path)
    for place, samples in goal.asked.items():
        found = {(r.task, r.sample) for r in read(tmp_path)[0] if r.recipe == goal.ladder[place]}
        assert found == {(task, i) for task in (KV, SHOTS) for i in range(samples)}
    assert all(p.ratio is not None for p in goal.points.values())


@pytest.mark.usefixtures("pretended")
def test_a_budget_that_cannot_be_played_ends_its_own_search_alone(tmp_path: Path) -> None:
    recipes = ("kvzap(when='chunk')", "kvzap(when='chunk') + protect(instruction=True)")
    _, (free, bound) = played(search_for(recipes=recipes, columns={KV: (KV,)}, target=0.6), tmp_path)
    assert (
        bound.end
        == "no sample could be played and scored with kvzap(keep=0.2, when='chunk') + protect(instruction=True)"
    )
    assert "played" not in free.end
    assert min(free.asked) < min(bound.points), "the other goes on"


def test_a_full_cache_that_scores_nothing_ends_the_search_with_words(tiny: Path, tmp_path: Path) -> None:
    columns = {KV: (KV,)}
    _, (goal,) = played(search_for(str(tiny), ("streaming",), 3, columns=columns), tmp_path)
    assert goal.end == UNDEFINED
    assert set(goal.asked.values()) == {3}, "all samples are tried before it is said"


@pytest.mark.usefixtures("pretended")
def test_the_plan_counts_what_the_first_reading_shows(tmp_path: Path) -> None:
    search = search_for(recipes=RECIPES[:1], samples=3, budget=5)
    goals = quests(search)
    known = open_field(search, goals, tmp_path, lambda line: None)
    found = plan(search, goals, known, lambda record: None)
    known.log.close()
    assert len(read(tmp_path)[0]) == 2 * 2, "the full cache on the first sample of each task"
    assert found.most.prompt == 2 * 280 * (3 + 5), "three samples of the full cache, five in the search"
    assert found.grids[9].prompt == 2 * 280 * (3 + 9 * 3)
    assert "at most 4,480 prompt tokens" in str(found)
    assert "a grid of 19 budgets: 33,600 prompt tokens" in str(found)


@pytest.mark.usefixtures("pretended")
def test_the_plan_alone_plays_one_sample_of_the_full_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["critical", str(tmp_path), "--recipes", *RECIPES, "--tasks", KV, SHOTS, "--turns", "2", "--plan"]
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "a grid of 9 budgets" in printed.err
    assert {(r.recipe, r.sample) for r in read(tmp_path)[0]} == {(FULL, 0)}


def test_a_request_that_branches_reads_its_context_once(tmp_path: Path) -> None:
    grid = Grid("zoo", (FULL,), (KV,), ("multi-turn", "multi-request"), context=(256,), chunk=64, samples=1, turns=2)
    sweep(grid, tmp_path, lambda now: None, lambda line: None)
    by_mode = {mode: [r for r in read(tmp_path)[0] if r.mode == mode] for mode in grid.modes}
    turns, requests = by_mode.values()
    assert conversation(turns)[0] == turns[-1].prompt_tokens
    prompt, new, shared = conversation(requests)
    assert prompt == requests[0].prompt_tokens + requests[1].prompt_tokens - shared
    assert price(requests).passes == -(-shared // 64) + 2 + new


def test_the_ladder_is_of_the_part_that_leaves_its_keep_open() -> None:
    assert ladder("snapkv(window=16)", (0.25, 0.5)) == ("snapkv(keep=0.25, window=16)", "snapkv(keep=0.5, window=16)")
    assert ladder("headgate(keep=0.5) + snapkv", (0.25,)) == ("headgate(keep=0.5) + snapkv(keep=0.25)",)
    assert ladder("headgate + protect(instruction=True) + snapkv(keep=0.3)", (0.25,)) == (
        "headgate(keep=0.25) + protect(instruction=True) + snapkv(keep=0.3)",
    )


@pytest.mark.parametrize(
    "recipe", ["snapkv(keep=0.3)", "full()", "snapkv(rows=64)", "h2o(bytes=4096)", "headgate + snapkv"]
)
def test_a_recipe_without_one_keep_to_search_is_refused_by_name(recipe: str) -> None:
    with pytest.raises(ValueError, match="keep is what is searched") as error:
        ladder(recipe, (0.5,))
    assert repr(recipe) in str(error.value)


@pytest.mark.parametrize(
    "argv, hint",
    [
        (["nowhere"], "no records in nowhere"),
        (["x", "--recipes", "snapkv"], "--tasks"),
        (["x", "--tasks", KV], "--recipes"),
        (["x", "--recipes", "full", "--tasks", KV], "nothing to search"),
        (["x", "--recipes", "snapvk", "--tasks", KV], "snapkv"),
        (["x", "--recipes", "snapkv", "--tasks", "scbench/kw"], KV),
        (["x", "--recipes", "snapkv", "--tasks", KV, "--target", "90"], "target=90"),
        (["x", "--recipes", "snapkv", "--tasks", KV, "--step", "0.7"], "step=0.7"),
        (["x", "--recipes", "snapkv", "--tasks", KV, "--first", "8", "--samples", "4"], "first=8"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], hint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["critical", *argv]) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is made before the input is known to be good"


def arguments(out: Path) -> list[str]:
    options = {"context": 200, "chunk": 100, "turns": 1, "samples": 3, "first": 1, "step": 0.25, "width": 0.01}
    where = ["critical", str(out), "--json", "--recipes", RECIPES[1], "--tasks", KV]
    return [*where, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def answer(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the command says, but for how many turns it played."""
    assert main(arguments(out)) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["notes"].pop().endswith("were on record")
    return document


def test_a_search_that_was_killed_comes_to_the_same_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    path = broken / "records" / "turns.jsonl"
    command = [sys.executable, "-m", "kvledger.cli", *arguments(broken)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= 4:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL, "the search ended before it could be killed"
    kept = path.read_text()
    found = answer(broken, capsys)
    assert path.read_text().startswith(kept.rpartition("\n")[0]), "what was recorded is never rewritten"
    assert found == answer(tmp_path / "whole", capsys)
    records = read(broken)[0]
    assert len(records) == len({(r.cell, r.sample, r.turn) for r in records})
