"""Synthetic records: one by one for hand-computed examples, or a whole sweep that looks like a real one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import product

import pytest
from report.browser import NAMES, Browser, find

from kvledger.records import Cell, Record
from kvledger.report.study import Study, collect

MakeRecord = Callable[..., Record]
PER_ENTRY = 4096  # bytes of one entry over all layers and heads


def make_record(**changes: object) -> Record:
    facts: dict[str, object] = {
        "cell": "c",
        "model": "zoo",
        "recipe": "snapkv(keep=0.5)",
        "method": "snapkv",
        "keep": 0.5,
        "task": "kv",
        "mode": "multi-turn",
        "visibility": "hidden",
        "history": "gold",
        "context": 1024,
        "chunk": 256,
        "seed": 0,
        "sample": 0,
        "turn": 1,
        "depth": 0.5,
        "prompt_tokens": 1000,
        "new_tokens": 10,
        "prediction": "4711",
        "gold": "4711",
        "score": 1.0,
        "legacy_score": 1.0,
        "footprint": 0.6,
        "byte_footprint": 0.6,
        "floor": 0.25,
        "peak": 0.65,
        "peak_bytes": 650 * PER_ENTRY,
        "stored_bytes": 500 * PER_ENTRY,
        "full_bytes": 1000 * PER_ENTRY,
        "full_peak_bytes": 1000 * PER_ENTRY,
        "bytes_read_per_step": 500 * PER_ENTRY,
        "full_read_per_step": 1000 * PER_ENTRY,
        "ttft_seconds": 0.2,
        "seconds": 0.5,
        "curve": (),
        "versions": "kvledger 0.1.0, torch 2.11.0",
    }
    if changes.get("recipe") == "full":
        facts |= {"method": "full", "keep": 1.0}
    return Record(**(facts | changes))  # type: ignore[arg-type]


# method -> (score lost at keep 0 in hidden mode, bytes per entry against bf16, share of the loss that seeing undoes)
_METHODS = {
    "streaming": (0.95, 1.0, 0.0),
    "snapkv": (0.75, 1.0, 0.9),
    "pyramidkv": (0.8, 1.0, 0.85),
    "adakv": (0.65, 1.0, 0.9),
    "kvzip": (0.25, 1.0, 0.0),
    "snapkv + kivi(bits=4)": (0.78, 0.31, 0.9),
}


def curve_of(keep: float, context: int, chunk: int, turns: int, multi_turn: bool) -> tuple[tuple[int, float, str], ...]:
    seen, alive, points = 0, 0.0, []
    while seen < context:
        step = min(chunk or context, context - seen)
        seen, alive = seen + step, alive + step
        points.append((seen, alive, "read"))
        if keep < 1:
            alive += keep * step - step
            points.append((seen, alive, "evict"))
    for _ in range(turns if multi_turn else 1):
        seen, alive = seen + 28, alive + 28
        points.append((seen, alive, "ask"))
        for step in (1, 11):  # as the ledger does: the first and the last of a run of decode steps
            seen, alive = seen + step, alive + step
            points.append((seen, alive, "decode"))
    return tuple(points)


def _entry_footprint(points: tuple[tuple[int, float, str], ...]) -> tuple[float, float]:
    """Footprint and peak of a curve, near enough for pictures."""
    ours, full, before, top = 0.0, 0.0, 0, 0.0
    for seen, alive, _ in points:
        step = seen - before
        ours, full = ours + step * (alive - step / 2), full + step * (seen - step / 2)
        before, top = seen, max(top, alive)
    return ours / full, top / before


def _answer(
    rng: random.Random, method: str, keep: float, task: str, visibility: str, mode: str, turn: int
) -> tuple[float, str]:
    hard = {"scbench/kv": 0.95, "scbench/prefix_suffix": 0.42}.get(task, 0.8)
    lost, _, seen = _METHODS.get(method, (0.0, 1.0, 0.0))
    if visibility == "visible" and (turn == 0 or mode == "multi-request"):
        lost *= 1 - seen
    value = hard * (1 - lost * (1 - keep) ** 1.6) - (0.02 * turn if mode == "multi-turn" else 0)
    if task == "scbench/kv":
        return (1.0, "4711") if rng.random() < value else (0.0, f"<b>{rng.randrange(9999)}</b> & more")
    own = random.Random(f"{method} {keep} {turn} {rng.random()}").gauss(0, 0.05)
    return min(1.0, max(0.0, rng.gauss(value, 0.12) + own)), "The council met and decided to postpone the vote."


def sweep(
    keeps: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7),
    tasks: tuple[str, ...] = ("scbench/kv", "scbench/prefix_suffix"),
    modes: tuple[str, ...] = ("multi-turn", "multi-request"),
    visibilities: tuple[str, ...] = ("hidden", "visible"),
    samples: int = 12,
    turns: int = 5,
    context: int = 4096,
    chunk: int = 512,
    methods: Mapping[str, tuple[float, float, float]] = _METHODS,
) -> list[Record]:
    """A plausible sweep; the full cache is run for the first visibility only, as a real one would."""
    recipes = [("full", "full", 1.0)] + [
        (" + ".join([f"{method.split(' + ')[0]}(keep={keep})", *method.split(" + ")[1:]]), method, keep)
        for method, keep in product(methods, keeps)
    ]
    records: list[Record] = []
    for (recipe, method, keep), task, mode, visibility in product(recipes, tasks, modes, visibilities):
        if method == "full" and visibility != visibilities[0]:
            continue
        cell = Cell("zoo-12m", recipe, task, mode, visibility, context, chunk, turns, samples, 0)
        records.extend(_cell(cell, method, keep))
    return records


def _cell(cell: Cell, method: str, keep: float) -> Iterator[Record]:
    size = _METHODS.get(method, (0, 1.0, 0))[1]
    for sample, turn in product(range(cell.samples), range(cell.turns)):
        rng = random.Random(f"{cell.task} {cell.mode} {sample} {turn}")  # common luck: recipes meet the same samples
        curve = curve_of(keep, cell.context, cell.chunk, turn + 1, cell.mode == "multi-turn")
        footprint, peak = _entry_footprint(curve)
        score, prediction = _answer(rng, method, keep, cell.task, cell.visibility, cell.mode, turn)
        seen, alive = curve[-1][0], curve[-1][1]
        stored, full = int(alive * PER_ENTRY * size), seen * PER_ENTRY
        yield make_record(
            cell=cell.key,
            model=cell.model,
            recipe=cell.recipe,
            method=method.split(" + ")[0],
            keep=keep,
            task=cell.task,
            mode=cell.mode,
            visibility=cell.visibility,
            context=cell.context,
            chunk=cell.chunk,
            sample=sample,
            turn=turn,
            depth=rng.random(),
            prediction=prediction,
            score=score,
            legacy_score=score,
            footprint=footprint,
            byte_footprint=footprint * size,
            floor=0.5 * cell.chunk / cell.context,
            peak=peak,
            peak_bytes=int(peak * seen * PER_ENTRY * size),
            stored_bytes=stored,
            full_bytes=full,
            full_peak_bytes=full,
            bytes_read_per_step=stored,
            full_read_per_step=full,
            seconds=0.4 + 0.3 * rng.random(),
            curve=curve,
        )


@pytest.fixture
def make() -> MakeRecord:
    return make_record


@pytest.fixture(scope="session")
def realistic() -> list[Record]:
    return sweep(samples=6)


@pytest.fixture(scope="session")
def studied(realistic: list[Record]) -> Study:
    return collect(realistic)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find()
    if path is None:
        pytest.skip(f"no browser on the path: looked for {', '.join(NAMES)}")
    opened = Browser(path)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def big() -> list[Record]:
    """25 methods at 5 keeps on 5 tasks with 2 visibilities: as many rows as a run over the whole family has."""
    methods = {f"method_{number}": (0.02 * number, 1.0, 0.5) for number in range(25)}
    tasks = tuple(f"scbench/{name}" for name in ("kv", "vt", "mf", "prefix_suffix", "many_shot"))
    return sweep(tasks=tasks, modes=("multi-turn",), samples=2, context=1024, methods=methods)
