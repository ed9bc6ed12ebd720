"""A grid of cells, minus what the records hold already, one after the other in this process."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers

import kvledger
from kvledger.hf.cache import check_supported, new_cache
from kvledger.hf.load import fingerprint, load
from kvledger.recipe import nearest, parse
from kvledger.records import HISTORIES, MODES, VISIBILITIES, Cell, Log, read
from kvledger.run.cell import Host, check, play, room, sample_of
from kvledger.tasks import TIERS, Task, Unfit, get, suite
from kvledger.tasks.hub import Data


@dataclass(frozen=True)
class Grid:
    """What `kvledger run` asks for: every combination of the lists is a cell."""

    model: str
    recipes: tuple[str, ...]
    tasks: tuple[str, ...]
    modes: tuple[str, ...] = ("multi-turn",)
    visibility: tuple[str, ...] = ("hidden",)
    context: tuple[int, ...] = (2048,)
    chunk: int = 512
    samples: int | None = None  # None: the tier's
    turns: int | None = None  # None: the task's own
    seed: int = 0
    history: str = "gold"
    form: str = "auto"
    tier: str = "quick"
    data: str = ""  # "hub" or a folder: published data instead of generated samples

    def cells(self) -> list[Cell]:
        """All cells, recipes in canonical form, each checked. ValueError for the first that is impossible."""
        _check_names("mode", self.modes, MODES)
        _check_names("visibility", self.visibility, VISIBILITIES)
        _check_names("history", (self.history,), HISTORIES)
        _check_names("form", (self.form,), ("auto", "small", "full"))
        _check_names("tier", (self.tier,), tuple(TIERS))
        _check_counts(self)
        Data(self.data or "hub").check()
        tasks = {task.name: task for name in self.tasks for task in suite(name, bool(self.data))}
        recipes = list(dict.fromkeys(str(parse(recipe)) for recipe in self.recipes))
        cells = []
        for task, context, mode, visibility, recipe in product(
            tasks.values(), self.context, self.modes, self.visibility, recipes
        ):
            samples, rule = self._samples(task)
            cell = Cell(
                self.model, recipe, task.name, mode, visibility, context, self.chunk, self.turns or task.turns, samples,
                self.seed, self.history, "real" if self._real(task) else self.form, version=kvledger.__version__, rule=rule,
            )  # fmt: skip
            check(cell)
            cells.append(cell)
        return cells

    def _real(self, task: Task) -> bool:
        return bool(self.data) or task.make is None

    def _samples(self, task: Task) -> tuple[int, str]:
        """How many samples of a task, and by which rule."""
        rows, tier = task.rows if self._real(task) else 0, TIERS[self.tier]
        if self.samples is None:
            return tier.count(rows), tier.rule
        return min(self.samples, rows or self.samples), f"the first {self.samples}"


def _check_names(what: str, given: Sequence[str], choices: Sequence[str]) -> None:
    for name in given:
        if name not in choices:
            raise ValueError(f"unknown {what} {name!r}{nearest(name, choices)}")


def _check_counts(grid: Grid) -> None:
    for name, value in (("samples", grid.samples), ("turns", grid.turns), *(("context", c) for c in grid.context)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if grid.seed < 0:
        raise ValueError(f"seed={grid.seed} is negative")


@dataclass(frozen=True)
class Progress:
    """Told to whoever watches: turns done of all, and what is being played."""

    done: int
    total: int
    reused: int
    cell: Cell


def sweep(grid: Grid, out: Path, watch: Callable[[Progress], None], warn: Callable[[str], None]) -> int:
    """Play all cells of `grid` that `out` does not hold yet; returns the number of turns played. Everything that can be
    refused is refused before the first forward."""
    cells = grid.cells()
    host, cells = prepare(grid, cells)
    have, damaged = read(out)
    for line in damaged:
        warn(line)
    done: dict[tuple[str, int], set[int]] = defaultdict(set)
    for record in have:
        done[record.cell, record.sample].add(record.turn)
    total = sum(cell.samples * cell.turns for cell in cells)
    reused = count = sum(min(cell.turns, len(done[cell.key, i])) for cell in cells for i in range(cell.samples))
    left_out: dict[str, None] = {}
    log = Log(out)
    try:
        # samples outside, cells inside: a run that is stopped early has compared all recipes on what it has seen
        for index in range(max(cell.samples for cell in cells)):
            wanted: dict[tuple[str, int], dict[str, None]] = defaultdict(dict)
            for cell in cells:
                if len(done[cell.key, index]) < cell.turns:
                    wanted[cell.task, cell.context][cell.recipe] = None
            for cell in cells:
                if index >= cell.samples:
                    continue
                host.readings.recipes = tuple(wanted[cell.task, cell.context])
                try:
                    for record in play(cell, host, index, done[cell.key, index]):
                        log.append(record)
                        count += 1
                        watch(Progress(count, total, reused, cell))
                except ValueError as error:  # of this sample alone: a row that is too long, or is none
                    left_out.setdefault(f"{cell.task}, sample {index}: {error}")
    finally:
        log.close()
    for line in left_out:
        warn(line)
    if left_out and not count:
        raise ValueError(f"no sample could be played: {next(iter(left_out))}")
    return count - reused


def prepare(grid: Grid, cells: list[Cell]) -> tuple[Host, list[Cell]]:
    model, tokenizer = load(grid.model)
    check_supported(model)
    host = Host(model, tokenizer, _versions(model), data=grid.data)
    form = grid.form if grid.form != "auto" else ("small" if len(tokenizer) < 8192 else "full")
    weights = fingerprint(model)
    files = {recipe: _files(model, recipe) for recipe in {cell.recipe for cell in cells}}
    cells = [
        replace(cell, form=cell.form if cell.form == "real" else form, weights=weights, files=files[cell.recipe])
        for cell in cells
    ]
    data = {cell.task: _data_of(cell, host) for cell in {cell.task: cell for cell in cells}.values()}
    cells = [replace(cell, data=data[cell.task]) for cell in cells]
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for cell in {(cell.task, cell.context): cell for cell in cells}.values():
        if limit is not None and cell.context > limit:
            raise ValueError(f"a context of {cell.context} tokens does not fit into the model's {limit} positions")
        if cell.form == "real":  # rows differ: one that does not fit is left out when its turn comes
            continue
        sample = sample_of(cell, host, 0)
        if limit is not None and room(host, sample) > limit:
            raise ValueError(
                f"{cell.task}: a context of {cell.context} tokens and {cell.turns} turns ({room(host, sample)} tokens in all) "
                f"do not fit into the model's {limit} positions"
            )
    return host, cells


def _data_of(cell: Cell, host: Host) -> str:
    """Fingerprint of the files that a cell's samples come from. ValueError where they are not there, or not what they
    should be."""
    if cell.form != "real":
        return ""
    data = Data(host.data)
    with suppress(Unfit):
        get(cell.task).sample(cell.seed, 0, cell.context, host.count, cell.turns, "real", data)
    return data.fingerprint


def _files(model: Any, recipe: str) -> str:
    """Fingerprints of the files that a recipe reads. ValueError for one that this model cannot follow."""
    new_cache(model, recipe)
    return parse(recipe).fingerprint


def _versions(model: Any) -> str:
    return (
        f"kvledger {kvledger.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}, {model.device.type}, {str(model.dtype).removeprefix('torch.')}"
    )
