"""Whole sweeps by several workers: the records are those of one process, whoever died and whichever engine went on."""

import multiprocessing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from players import Pretender

from kvledger.records import Record, claim, read
from kvledger.run.engine import Crew
from kvledger.run.jobs import jobs_of
from kvledger.run.staff import Staff
from kvledger.run.sweep import Grid, Progress, sweep

TIMES = ("ttft_seconds", "seconds", "versions")
OPTIONS: dict[str, Any] = dict(
    tasks=("scbench/kv", "scbench/many_shot"), modes=("multi-turn", "multi-request"), context=(400,), chunk=128, samples=2,
    turns=2,
)  # fmt: skip


def grid_of(model: Path, **change: Any) -> Grid:
    return Grid(str(model), ("full", "snapkv(keep=0.3)", "streaming(keep=0.3, when='chunk')"), **{**OPTIONS, **change})


def facts(out: Path) -> list[dict[str, Any]]:
    """All that a record says but for times, each turn once."""
    records, damaged = read(out)
    assert not damaged
    rows = [{name: x for name, x in asdict(r).items() if name not in TIMES} for r in records]
    assert len({(r["cell"], r["sample"], r["turn"]) for r in rows}) == len(lines(out)) == len(rows)
    return sorted(rows, key=lambda r: (r["cell"], r["sample"], r["turn"]))


def lines(out: Path) -> list[str]:
    return [line for path in (out / "records").glob("*.jsonl") for line in path.read_text().splitlines()]


def run(grid: Grid, out: Path, staff: Staff, watch: Any = lambda now: None) -> int:
    return sweep(grid, out, watch, lambda line: None, staff)


def test_two_processes_one_killed_then_one_goes_on_alone(tiny: Path, tmp_path: Path) -> None:
    """A run by two workers, one of which is killed in the middle, and the rest of it, a sample more, in this process."""
    killed: list[int] = []

    def kill(now: Progress) -> None:
        if now.done == 10 and not killed:
            worker = multiprocessing.active_children()[0]
            killed.append(worker.pid or 0)
            worker.kill()

    one, two = tmp_path / "one", tmp_path / "two"
    whole = 2 * 2 * 3 * 2 * 2
    assert run(grid_of(tiny), two, Staff(workers=2), kill) == whole
    assert killed
    files = {path.name for path in (two / "records").glob("*.jsonl")}
    assert files <= {"turns-local0.jsonl", "turns-local1.jsonl"}
    assert files
    assert run(grid_of(tiny, samples=3), two, Staff()) == whole // 2, "another engine plays only what is new"
    assert run(grid_of(tiny, samples=3), one, Staff()) == whole * 3 // 2
    assert facts(two) == facts(one)


def test_shards_together_are_the_whole_run(tiny: Path, tmp_path: Path) -> None:
    grid = grid_of(tiny, modes=("multi-turn",), samples=2)
    played = [run(grid, tmp_path / "parts", Staff(shard=f"{i}/3")) for i in (1, 2, 3)]
    assert all(played)
    assert run(grid, tmp_path / "parts", Staff(shard="2/3")) == 0
    assert run(grid, tmp_path / "whole", Staff()) == sum(played) == 2 * 3 * 2 * 2
    assert facts(tmp_path / "parts") == facts(tmp_path / "whole")
    assert {p.name for p in (tmp_path / "parts" / "records").glob("*.jsonl")} == {
        f"turns-{i}of3.jsonl" for i in (1, 2, 3)
    }


def test_other_versions_or_weights_may_not_write_into_a_run(tiny: Path, tmp_path: Path) -> None:
    grid = grid_of(tiny, tasks=("scbench/kv",), modes=("multi-turn",), samples=1)
    assert run(grid, tmp_path, Staff()) == 6
    made_with = tmp_path / "records" / "made_with.txt"
    said = made_with.read_text()
    assert run(grid, tmp_path, Staff()) == 0, "what is played needs nobody"
    made_with.write_text(said.replace("torch ", "torch 1."))
    more = grid_of(tiny, tasks=("scbench/kv",), modes=("multi-turn",), samples=2)
    with pytest.raises(ValueError, match=r"made with .*torch 1\..*another --out"):
        run(more, tmp_path, Staff())
    made_with.unlink()
    assert run(more, tmp_path, Staff()) == 6
    assert made_with.read_text() == said


def test_the_first_to_come_says_what_a_run_is_made_with(tmp_path: Path) -> None:
    claim(tmp_path, "kvledger 1, torch 2, Python 3.11.7, cpu")
    claim(tmp_path, "kvledger 1, torch 2, Python 3.12.1, cpu")
    with pytest.raises(ValueError, match="torch 3"):
        claim(tmp_path, "kvledger 1, torch 3, Python 3.11.7, cpu")
    assert [p.name for p in (tmp_path / "records").iterdir()] == ["made_with.txt"], "no draft is left"


def test_a_plan_counts_what_is_left_and_plays_one_conversation_of_each_kind(tiny: Path, tmp_path: Path) -> None:
    from kvledger.run.forecast import forecast

    grid = grid_of(tiny)
    plan = forecast(grid, tmp_path, Staff(workers=3), lambda line: None)
    assert (plan.turns, plan.reused) == (48 - 4, 4)
    assert len(read(tmp_path)[0]) == 4
    assert set(plan.seconds) == {1, 2, 3, 4, 8}
    assert 0.49 * plan.seconds[1] < plan.seconds[2] < 0.7 * plan.seconds[1]
    assert plan.weights > 10_000
    assert plan.cache > 0
    assert "44 turns to play, 4 on record" in str(plan)
    sweep(grid, tmp_path, lambda now: None, lambda line: None)
    assert forecast(grid, tmp_path, Staff(), lambda line: None).seconds[1] == 0.0


# ---- Ray -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tests_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@pytest.mark.usefixtures("tests_on_path")
def test_actors_play_each_turn_once_though_some_are_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from kvledger.records import Cell
    from kvledger.run.engine_ray import Ray

    cells = [
        Cell("m", recipe, "a", "multi-turn", "hidden", 400, 64, 3, 5, 0) for recipe in ("full", "snapkv(keep=0.3)")
    ]
    for name in ("met", "deaths"):
        (tmp_path / name).mkdir()
    for number in range(3):
        (tmp_path / "deaths" / str(number)).touch()
    warnings: list[str] = []
    make = partial(Pretender, deaths=tmp_path / "deaths", meet=tmp_path / "met")
    with Crew(Ray(make, 2), warnings.append) as crew:
        told = list(crew.play(jobs_of(cells)))
    turns = [(r.cell, r.sample, r.turn) for _, r in told if isinstance(r, Record)]
    assert sorted(turns) == sorted((cell.key, i, t) for cell in cells for i in range(5) for t in range(3))
    assert {number for number, _ in told} == {0, 1}
    assert len(warnings) == 3
    with (
        pytest.raises(ValueError, match="mend this"),
        Crew(Ray(partial(Pretender, errors=((1, "mend this"),)), 1), print) as crew,
    ):
        list(crew.play(jobs_of(cells)))


@pytest.mark.usefixtures("tests_on_path")
def test_two_actors_one_killed_give_the_records_of_one_process(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    import psutil

    killed: list[int] = []

    def kill(now: Progress) -> None:
        if now.done >= 10 and not killed:
            actors = [p for p in psutil.Process().children(recursive=True) if "ray::Service" in " ".join(p.cmdline())]
            killed.append(actors[0].pid)
            actors[0].kill()

    whole = 2 * 2 * 3 * 2 * 2
    assert run(grid_of(tiny), tmp_path / "ray", Staff("ray", 2), kill) == whole
    assert killed
    assert run(grid_of(tiny), tmp_path / "one", Staff()) == whole
    assert facts(tmp_path / "ray") == facts(tmp_path / "one")
    assert run(grid_of(tiny, samples=3), tmp_path / "ray", Staff()) == whole // 2, "resumed by another engine"
