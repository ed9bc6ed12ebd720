"""Layers with attention and a recurrent part side by side (Falcon-H1, Zamba, Zaya): the rows are ours, the state is kept as
transformers keeps it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from kvledger.hf.layer import ArenaLayer
from kvledger.hf.run import Run

STATE = ("conv_states", "recurrent_states")


class HybridLayer(ArenaLayer, LinearAttentionLayer):
    """An `ArenaLayer` that also keeps conv and recurrent states, which no method compresses."""

    def __init__(self, slot: int, run: Run, number_of_states: int = 1):
        LinearAttentionLayer.__init__(self, number_of_states)
        ArenaLayer.__init__(self, slot, run)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """transformers names the arguments when it means the recurrent part."""
        kind: Any = LinearAttentionLayer if kwargs else ArenaLayer
        kind.lazy_initialization(self, *args, **kwargs)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        ArenaLayer.reorder_cache(self, beam_idx)
        LinearAttentionLayer.reorder_cache(self, beam_idx)  # type: ignore[arg-type]

    def blank(self, run: Run) -> ArenaLayer:
        twin = HybridLayer(self.slot, run, self.number_of_states)
        twin.take_states(self)
        return twin

    def take_states(self, other: Any) -> None:
        """Go on from a copy of the recurrent part of `other`."""
        names = vars(LinearAttentionLayer(self.number_of_states))
        vars(self).update({name: copy.deepcopy(getattr(other, name)) for name in names})


def states(layer: Any, names: tuple[str, ...] = STATE) -> list[Tensor]:
    """The conv and recurrent states of a layer, which transformers keeps in dictionaries by number, and once kept bare."""
    held = [getattr(layer, name, None) for name in names]
    flat = [x for one in held for x in (one.values() if isinstance(one, dict) else [one])]
    return [x for x in flat if isinstance(x, torch.Tensor)]
