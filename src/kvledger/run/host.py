"""A worker's model, and what the cells of a grid are with it: the form of their samples, and all fingerprints of their keys."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import transformers

import kvledger
from kvledger.hf.cache import check_supported
from kvledger.hf.load import fingerprint, load
from kvledger.records import Cell, Record
from kvledger.run.cell import Host, play, room, sample_of
from kvledger.run.engine import Left
from kvledger.run.fitting import fitting
from kvledger.run.jobs import Bundle
from kvledger.tasks import Unfit, get
from kvledger.tasks.hub import Data

if TYPE_CHECKING:
    from kvledger.run.sweep import Grid


class Player:
    """A model that plays jobs of `grid`. `spread`: over all devices that there are."""

    def __init__(self, grid: Grid, spread: bool = False):
        self.grid, self.host = grid, host_of(grid, "auto" if spread else "")
        self.identity = self.host.identity

    def resolve(self, cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
        return tuple(resolve(self.grid, cells, self.host))

    def play(self, bundle: Bundle) -> Iterator[Record | Left]:
        """Records of the turns that are not done, and why a sample cannot be played."""
        wanted = {(cell, job.index): job.done.get(cell.key, ()) for job in bundle.jobs for cell in job.cells}
        for told in play(wanted, self.host, self.grid.together):
            if isinstance(told, Record):
                yield told
            else:  # of this sample alone: a row that is too long, or is none
                yield Left(f"{told.cell.task}, sample {told.index}: {told.error}")


def prepare(grid: Grid, cells: Sequence[Cell]) -> tuple[Host, list[Cell]]:
    """The model, and the cells with it. ValueError for what cannot be."""
    host = host_of(grid)
    return host, resolve(grid, cells, host)


def host_of(grid: Grid, device: str = "") -> Host:
    """The model of a grid. ValueError if it cannot be loaded, or has no cache that could be compressed."""
    model, tokenizer = load(grid.model, device=device)
    check_supported(model)
    return Host(model, tokenizer, _versions(model), data=grid.data, weights=fingerprint(model))


def resolve(grid: Grid, cells: Sequence[Cell], host: Host) -> list[Cell]:
    """Each cell that changes something on this model (`fitting`), with the form of its samples and the fingerprints of what
    decides its answers. ValueError for one that the model cannot play."""
    form = grid.form if grid.form != "auto" else ("small" if len(host.tokenizer) < 8192 else "full")
    cells = fitting(
        host.model,
        [replace(cell, form=cell.form if cell.form == "real" else form, weights=host.weights) for cell in cells],
    )
    data = {cell.task: _data_of(cell, host) for cell in {cell.task: cell for cell in cells}.values()}
    cells = [replace(cell, data=data[cell.task]) for cell in cells]
    for cell in {(cell.task, cell.context): cell for cell in cells}.values():
        _check_room(cell, host)
    return cells


def _check_room(cell: Cell, host: Host) -> None:
    limit = getattr(host.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and cell.context > limit:
        raise ValueError(f"a context of {cell.context} tokens does not fit into the model's {limit} positions")
    if cell.form == "real":  # rows differ: one that does not fit is left out when its turn comes
        return
    sample = sample_of(cell, host, 0)
    if limit is not None and room(host, sample) > limit:
        raise ValueError(
            f"{cell.task}: a context of {cell.context} tokens and {cell.turns} turns ({room(host, sample)} tokens in all) "
            f"do not fit into the model's {limit} positions"
        )


def _data_of(cell: Cell, host: Host) -> str:
    """Fingerprint of the files that a cell's samples come from. ValueError where they are not there, or not what they
    should be."""
    if cell.form != "real":
        return ""
    data = Data(host.data)
    with suppress(Unfit):
        get(cell.task).sample(cell.seed, 0, cell.context, host.count, cell.turns, "real", data)
    return data.fingerprint


def _versions(model: Any) -> str:
    return (
        f"kvledger {kvledger.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}, {model.device.type}, {str(model.dtype).removeprefix('torch.')}"
    )
