"""Rows that live in the host's memory and visit the device for the time of their layer's forward.

While a layer computes, the next one's rows are copied ahead on a stream of their own.  A decode step writes back the rows it
has added; after what else may change rows they are written back whole.  Where the model computes on the CPU, nothing moves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvledger.cache.arena import Arena
from kvledger.cache.grouped import GroupedArena


def moves(device: torch.device) -> bool:
    """Whether rows have another home than `device`."""
    return device.type != "cpu"


class Home:
    """Of one layer's rows."""

    def __init__(self) -> None:
        self.host: dict[str, Tensor] = {}  # where they were fetched from, unless a branch shares it
        self.visiting: dict[str, Tensor] = {}  # what they are on the device
        self.ahead: dict[str, tuple[Tensor, Tensor]] = {}  # copies that were made ahead, with what they are copies of
        self.arrival: Any = None  # of these copies
        self.before: tuple[list[int], list[int]] = ([], [])  # rows, and rows gone, when they were fetched

    def fetch(self, arena: Arena, device: torch.device) -> None:
        """Bring the rows to `device`. ValueError for rows that are stored in groups (kivi)."""
        if not moves(device) or not arena.rows:
            return
        if isinstance(arena, GroupedArena):
            raise ValueError(
                "offload moves rows, and kivi stores them in groups: name another format, or leave one out"
            )
        if self.arrival is not None:
            torch.cuda.current_stream(device).wait_event(self.arrival)
        self.host = {} if arena.shared else arena.buffers
        for name, x in arena.buffers.items():
            source, copy = self.ahead.get(name, (None, x))
            setattr(arena, name, copy if source is x else x.to(device, copy=True))
        self.visiting, self.ahead, self.arrival = arena.buffers, {}, None
        self.before = list(arena.length), _gone(arena)

    def stage(self, arena: Arena | None, device: torch.device) -> None:
        """Start to copy the rows to `device`, to be fetched soon."""
        if arena is None or not moves(device) or arena.k.device == device != torch.device("cpu"):
            return
        if device.type != "cuda":
            self.ahead = {name: (x, x.to(device, copy=True)) for name, x in arena.buffers.items()}
            return
        side = torch.cuda.Stream(device)
        with torch.cuda.stream(side):
            self.ahead = {name: (x, x.to(device, non_blocking=True)) for name, x in arena.buffers.items()}
        for _, copy in self.ahead.values():
            copy.record_stream(torch.cuda.current_stream(device))
        self.arrival = side.record_event()

    def release(self, arena: Arena, device: torch.device) -> None:
        """Send the rows home."""
        if not moves(device):
            return
        length, gone = self.before
        grown = self.host and gone == _gone(arena) and all(n == old + 1 for n, old in zip(arena.length, length))
        rows = torch.tensor([a + n - 1 for a, n in zip(arena.start, arena.length)])
        for name, x in arena.buffers.items():
            if grown and name != "tally" and self.visiting.get(name) is x:
                self.host[name][rows] = x[rows.to(x.device)].to("cpu")
                setattr(arena, name, self.host[name])
            else:
                setattr(arena, name, _at_home(x))
        self.host, self.visiting = {}, {}


def _gone(arena: Arena) -> list[int]:
    return [arena.seen[s // arena.heads] - n for s, n in enumerate(arena.length)]


def _at_home(x: Tensor) -> Tensor:
    home = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
    return home.copy_(x)
