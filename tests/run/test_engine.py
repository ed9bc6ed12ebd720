"""Crews: each turn is played once whoever dies, what differs is refused, errors arrive. Players without a model."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from players import Pretender

from kvledger.records import Cell, Record
from kvledger.run.engine import TRIES, Crew, Engine, Here, Left
from kvledger.run.engine_local import Local
from kvledger.run.jobs import Job, bundled, jobs_of, longest_first, share, undone
from kvledger.run.staff import Staff

TURNS, SAMPLES = 3, 5
RECIPES = ("full", "snapkv(keep=0.3)", "adakv(keep=0.3)", "streaming(keep=0.3, when='chunk')")
CELLS = [Cell("m", recipe, task, "multi-turn", "hidden", context, 64, TURNS, SAMPLES, 0)
         for task, context in (("a", 400), ("b", 8000)) for recipe in RECIPES]  # fmt: skip
EVERY = {(cell.key, sample, turn) for cell in CELLS for sample in range(SAMPLES) for turn in range(TURNS)}


def play(engine: Engine, jobs: list[Job], warnings: list[str] | None = None) -> list[tuple[int, Record | Left]]:
    with Crew(engine, (warnings if warnings is not None else []).append) as crew:
        return list(crew.play(jobs))


def turns(told: list[tuple[int, Record | Left]]) -> Counter[tuple[str, int, int]]:
    return Counter((r.cell, r.sample, r.turn) for _, r in told if isinstance(r, Record))


def deaths(folder: Path, count: int) -> Path:
    for number in range(count):
        (folder / str(number)).touch()
    return folder


def test_in_this_process_all_is_played_in_order() -> None:
    told = play(Here(Pretender), jobs_of(CELLS))
    assert turns(told) == Counter(EVERY)
    assert [r.sample for _, r in told if isinstance(r, Record)] == sorted(r.sample for _, r in told)  # type: ignore[union-attr]


@pytest.mark.parametrize("killed", [0, 3])
def test_two_processes_play_each_turn_once_though_some_are_killed(tmp_path: Path, killed: int) -> None:
    warnings: list[str] = []
    (tmp_path / "met").mkdir()
    (tmp_path / "deaths").mkdir()
    make = partial(Pretender, deaths=deaths(tmp_path / "deaths", killed), meet=tmp_path / "met")
    told = play(Local(make, 2), longest_first(jobs_of(CELLS), 2), warnings)
    assert turns(told) == Counter(EVERY)
    assert {number for number, _ in told} == {0, 1}
    assert len(warnings) == killed
    assert all("SIGKILL" in line for line in warnings)
    assert not list((tmp_path / "deaths").iterdir())


def test_a_job_that_kills_every_worker_is_given_up_after_the_others(tmp_path: Path) -> None:
    stubborn = Job(
        tuple(CELLS[:4]), 0
    )  # dies after two records each time: progress, so it is given up only at the very end
    told = play(Local(partial(Pretender, deaths=deaths(tmp_path, 5)), 1), [stubborn])
    assert turns(told) == Counter({(c.key, 0, t) for c in CELLS[:4] for t in range(TURNS)}), "what was told counts"
    silent = Job(tuple(CELLS[:1]), 1)
    with pytest.raises(RuntimeError, match=rf"1 jobs took {TRIES} workers down.*a, sample 1.*exit status"):
        play(Local(partial(Pretender, errors=((1, "bye"),)), 1), [silent, Job(tuple(CELLS[:1]), 2)])


def test_who_cannot_start_ends_the_run_with_the_reason() -> None:
    with pytest.raises(RuntimeError, match=rf"{TRIES} workers in a row.*SIGKILL: out of memory"):
        play(Local(partial(Pretender, begins=False), 1), jobs_of(CELLS))


def test_two_workers_of_different_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"worker \d has \d+; the others have \d+.*same versions"):
        play(Local(partial(Pretender, identity="own", meet=tmp_path), 2), jobs_of(CELLS))


@pytest.mark.parametrize("said, error", [("mend this", ValueError), ("defect", RuntimeError)])
def test_an_error_of_a_worker_is_raised_here(said: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=said):
        play(Local(partial(Pretender, errors=((1, said),)), 1), jobs_of(CELLS))


def test_a_sample_that_cannot_be_played_costs_itself_only() -> None:
    told = play(Local(partial(Pretender, errors=((1, "bad row 1"),)), 1), jobs_of(CELLS))
    assert turns(told) == Counter({turn for turn in EVERY if turn[1] != 1})
    assert {m.text for _, m in told if isinstance(m, Left)} == {"bad row 1"}


def test_cells_are_resolved_by_a_worker() -> None:
    with Crew(Local(Pretender, 1), lambda line: None) as crew:
        assert [cell.weights for cell in crew.resolve(CELLS)] == ["w"] * len(CELLS)
        assert crew.identity == "v1"


# ---- who gets what ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 200])
def test_shards_together_are_all_and_each_once(parts: int) -> None:
    shares = [share(jobs_of(CELLS), part, parts) for part in range(1, parts + 1)]
    got = Counter((cell.key, job.index) for mine in shares for job in mine for cell in job.cells)
    assert got == Counter((cell.key, sample) for cell in CELLS for sample in range(SAMPLES))
    costs = [sum(job.cost for job in mine) for mine in shares]
    if 1 < parts < 10:
        assert max(costs) < 1.5 * sum(costs) / parts


def test_few_jobs_are_divided_by_recipe_and_the_longest_come_first() -> None:
    one = jobs_of(CELLS)[:2]
    assert len(one) == 2
    pieces = longest_first(one, 2)
    assert len(pieces) == len(one) * len(RECIPES)
    assert [job.cost for job in pieces] == sorted((job.cost for job in pieces), reverse=True)
    assert pieces[0].cells[0].context == 8000
    assert len(longest_first(jobs_of(CELLS), 2)) == len(jobs_of(CELLS)), "many jobs stay whole: they share readings"


def test_what_is_on_record_is_not_played_again() -> None:
    first, *rest = CELLS
    done = {(first.key, 0): {0, 1}, **{(cell.key, 0): {0, 1, 2} for cell in rest}}
    left = undone(jobs_of(CELLS), done)
    assert sum(job.turns - job.reused for job in left) == len(EVERY) - 2 - 3 * len(rest)
    assert left[0].cells == (first,)
    assert left[0].done == {first.key: frozenset({0, 1})}


@pytest.mark.parametrize("given, hint", [
    (dict(engine="lokal"), "did you mean 'local'"), (dict(workers=0), "workers=0"), (dict(devices=0), "devices=0"),
    (dict(shard="3/2"), "shard '3/2': i/n with i from 1 to n"), (dict(shard="0/2"), "i from 1"), (dict(shard="a"), "like 1/4"),
])  # fmt: skip
def test_a_staff_that_cannot_be_is_refused(given: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        Staff(**given)


def test_more_devices_than_there_are_and_a_ray_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="devices=99: this machine has"):
        Staff(devices=99).hire(Pretender)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'kvledger\[ray\]'"):
        Staff(engine="ray")


def test_devices_go_round_and_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    pairs = Local(Pretender, 3, ("4", "5", "6", "7"), 2)
    assert [pairs._environment(n)["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["4,5", "6,7", "4,5"]
    assert Local(Pretender, 3)._environment(0) == {"OMP_NUM_THREADS": "2"}


def test_neighbours_are_bundled_as_far_as_they_have_room() -> None:
    jobs = jobs_of(CELLS)
    bundles = bundled(jobs, 2 * jobs[0].answers, len(jobs))
    assert [job for bundle in bundles for job in bundle.jobs] == jobs
    assert {len(bundle.jobs) for bundle in bundles} == {2}
    assert [len(bundle.jobs) for bundle in bundled(jobs, 1, len(jobs))] == [1] * len(jobs), "a large job stands alone"
    assert max(len(bundle.jobs) for bundle in bundled(jobs, 1000, 2)) == 2
    assert bundled([], 8, 1) == []


def test_a_bundle_goes_on_where_its_worker_was_lost(tmp_path: Path) -> None:
    (tmp_path / "1").touch()
    jobs, warnings = jobs_of(CELLS), list[str]()
    with Crew(Local(partial(Pretender, deaths=tmp_path), 1), warnings.append) as crew:
        told = [record for _, record in crew.play(jobs, 1000)]
    assert len(warnings) == 1
    turns = [(r.cell, r.sample, r.turn) for r in told if isinstance(r, Record)]
    assert len(turns) == len(set(turns)) == sum(job.turns for job in jobs)
