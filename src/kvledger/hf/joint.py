"""One layer of several caches, for the time of one forward: row b of the batch belongs to the b-th of them, and its last tokens
are real, the others fill it up (`together.py`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from kvledger.hf.attention import TAG, attend_densely
from kvledger.hf.layer import ArenaLayer


class Joint(CacheLayerMixin):
    """Of `ArenaLayer`s. `tokens` of each row are real; `seconds` each row has taken so far."""

    is_sliding = False
    masks = True  # the model's mask says which tokens are real, and that attention is causal

    def __init__(self, layers: Sequence[Any], tokens: Sequence[int]):
        super().__init__()
        self.layers, self.tokens = layers, tokens
        self.seconds = [0.0] * len(layers)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to make."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        for b, layer in enumerate(self.layers):
            layer.update(self._row(key_states, b), self._row(value_states, b))
        key_states = key_states[:]  # a fresh object: the tag must not outlive this call
        setattr(key_states, TAG, self)
        return key_states, value_states

    def get_seq_length(self) -> int:
        return max(layer.get_seq_length() for layer in self.layers)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # the name in transformers < 5.14

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, valid: Tensor | None, **how: Any) -> Tensor:
        """Each row by the layer it belongs to, otherwise as `ArenaLayer.attend`. [B, Hq, T, Dk] -> [B, Hq, T, Dv], zeros where
        a row is filled up."""
        out = q.new_zeros(*q.shape[:3], v.shape[-1])
        for b, layer in enumerate(self.layers):
            started = time.perf_counter()
            row_q, row_k, row_v = (self._row(x, b) for x in (q, k, v))
            self._row(out, b).copy_(layer.attend(row_q, row_k, row_v, scale, None, **how))
            self.seconds[b] += time.perf_counter() - started
        return out

    def _row(self, x: Tensor, b: int) -> Tensor:
        """The real tokens of row b, of x [B, H, T, D]: [1, H, T_b, D]."""
        return x[b : b + 1, :, x.shape[2] - self.tokens[b] :]

    @property
    def wants_hidden(self) -> bool:
        return any(layer.wants_hidden for layer in self.layers)

    @property
    def hidden(self) -> Tensor | None:
        """The layer's input [B, T, E], of which each layer gets its own tokens (`inside.show_hidden`)."""
        return None

    @hidden.setter
    def hidden(self, x: Tensor) -> None:
        for b, layer in enumerate(self.layers):
            if layer.wants_hidden:
                layer.hidden = x[b : b + 1, x.shape[1] - self.tokens[b] :]


class JointSliding(Joint):
    """Of transformers' sliding-window layers."""

    is_sliding = True
    masks = False  # rows have seen different numbers of tokens: each makes its own

    def __init__(self, layers: Sequence[Any], tokens: Sequence[int]):
        super().__init__([Sliding(layer) for layer in layers], tokens)


class Sliding:
    """A sliding-window layer that attends by itself, as `ArenaLayer`s do."""

    wants_hidden = False

    def __init__(self, layer: DynamicSlidingWindowLayer):
        self.layer, self.get_seq_length = layer, layer.get_seq_length

    def update(self, k: Tensor, v: Tensor) -> None:
        self.held = self.layer.update(k, v)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, valid: None, *, softcap: Any, sinks: Any, module: Any
    ) -> Tensor:
        k, v = self.held
        new, rows = q.shape[2], k.shape[2]
        back = torch.arange(rows - new, rows, device=q.device)[:, None] - torch.arange(rows, device=q.device)
        seen = (back >= 0) & (back < self.layer.sliding_window)
        return attend_densely(module, q, k, v, seen[None, None], scale, softcap, sinks).transpose(1, 2)


JOINTS: dict[type, type[Joint]] = {ArenaLayer: Joint, DynamicSlidingWindowLayer: JointSliding}


def joint(layers: Sequence[Any], tokens: Sequence[int]) -> Joint:
    """Of layers that are all of one kind, among `JOINTS`."""
    return JOINTS[type(layers[0])](layers, tokens)
