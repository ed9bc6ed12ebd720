"""What a layer reads in a decode step, where a recipe names a reader: its index, its choice, and what that costs.

A decode step is a forward of one token while an answer is written. Prompts and questions are read densely, even where only
one token of them is left, so that the size of a chunk changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvledger.cache.arena import Arena
from kvledger.cache.attend import visible, weigh_sinks
from kvledger.cache.spans import decode_spans
from kvledger.hf.host import Home
from kvledger.methods.reader import Look, Reader

if TYPE_CHECKING:
    from kvledger.hf.layer import ArenaLayer


class Loader:
    """A layer's reader, if the recipe has one. `nbytes`: what the last forward has read; None if that was everything."""

    def __init__(self, reader: Reader | None, slot: int):
        self.reader, self.slot = reader or Reader(), slot
        self.chooses = type(self.reader).choose is not Reader.choose and slot >= self.reader.dense
        self.index = self.reader.open() if self.chooses else None
        self.nbytes: int | None = None
        self.home = Home() if self.reader.host else None

    def read(
        self, layer: ArenaLayer, q: Tensor, valid: Tensor | None, softcap: float | None, sinks: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Attention of `q` [B, Hq, 1, Dk] over the rows that the reader chooses, as `attend` returns it; None where everything
        is read."""
        self.nbytes = None
        arena, run = layer.arena, layer.run
        assert arena is not None
        writing = run.ledger.kind in ("decode", "auto") and run.watching is None
        if not writing or q.shape[2] > 1 or valid is not None or not self.chooses or not layer.full_heads:
            return None
        self.catch_up(layer)
        segments = _segments(layer)
        grouped = q.reshape(len(arena.length), -1, q.shape[-1])[segments]
        choice = self.reader.choose(Look(grouped, segments, arena, layer.scale, self.index))
        if choice is None:
            return None
        spans = torch.cat([choice.spans, _narrow(layer).to(choice.spans)]) if layer.windows else choice.spans
        self.nbytes = choice.nbytes + arena.read_nbytes(spans)
        return weigh_sinks(*decode_spans(q, arena, spans.flatten(), layer.scale, softcap), sinks)

    def arrive(self, layer: ArenaLayer, device: torch.device) -> None:
        """Fetch rows that live on the host, and have the next layer's follow."""
        if self.home is None or layer.arena is None:
            return
        layer.run.order[self.slot] = layer
        self.home.fetch(layer.arena, device)
        following = layer.run.order.get(self.slot + 1)
        if following is not None:
            following.loader.home.stage(following.arena, device)

    def leave(self, layer: ArenaLayer, device: torch.device) -> None:
        """The forward is over: account, and send home what lives there."""
        if self.home is not None and layer.arena is not None:
            self.home.release(layer.arena, device)
        self.reader.allow(layer.run.ledger.stored_bytes)

    def catch_up(self, layer: ArenaLayer) -> None:
        """Bring the index up to date."""
        if self.index is not None and layer.arena is not None:
            before = self.index.nbytes
            self.index.update(layer.arena, _segments(layer))
            if self.index.nbytes != before:
                layer.hold()

    @property
    def held(self) -> int:
        """Bytes of the index."""
        return 0 if self.index is None else self.index.nbytes

    def cut(self, arena: Arena) -> None:
        """The arena's last rows were taken back."""
        if self.index is not None:
            self.index.cut(arena)

    def select(self, arena: Arena, sequences: list[int]) -> None:
        """Sequence `i` of the arena has become the old `sequences[i]`."""
        if self.index is not None:
            self.index.select([b * arena.heads + h for b in sequences for h in range(arena.heads)])

    def fork(self) -> Loader:
        twin = Loader(self.reader, self.slot)
        twin.index = None if self.index is None else self.index.fork()
        return twin


def _segments(layer: ArenaLayer) -> list[int]:
    """Those that see everything."""
    assert layer.arena is not None
    return [b * layer.arena.heads + h for b in range(layer.arena.batch) for h in layer.full_heads]


def _narrow(layer: ArenaLayer) -> Tensor:
    """What heads with a window see, as spans [n, 3]."""
    assert layer.arena is not None
    spans = torch.tensor(visible(layer.arena, layer.windows)).view(-1, 3)
    return spans[~torch.isin(spans[:, 0], torch.tensor(_segments(layer)))]
