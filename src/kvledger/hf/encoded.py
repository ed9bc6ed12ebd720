"""Chunks that were read apart, kept for later requests: what CacheBlend (arXiv 2405.16444 §5) stores.

A chunk's rows depend on its own tokens only, and on where it stood by the rotation of its keys, so they are the rows of the
same tokens anywhere once the keys are turned to their new place.  Where a model's keys cannot be turned (`rope_of`), a chunk
is found again at the same place only.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvledger.hf.inside import rope_of
from kvledger.methods.rope import Rope

Rows = tuple[Tensor, Tensor]  # keys and values [1, H, n, D]


@dataclass
class Encoded:
    """A chunk's rows of all layers, as they were stored at `start`."""

    start: int
    layers: list[Rows]


class Chunks:
    """Chunks of one model, in `held`, a table with the least recently used first, which its owner keeps within bounds.
    `reused`: tokens that were not read again."""

    def __init__(self, model: Any, held: dict[str, Any]):
        self.held, self.reused, self.rope = held, 0, _turns(model)

    def find(self, ids: Sequence[int], start: int) -> list[Rows] | None:
        """Rows of all layers of the chunk `ids` as if read alone at `start`; None if it is not there."""
        key = self._key(ids, start)
        found = self.held.get(key)
        if found is None:
            return None
        self.held[key] = self.held.pop(key)  # used just now
        self.reused += len(ids)
        return [(self._moved(k, start - found.start), v) for k, v in found.layers]

    def add(self, ids: Sequence[int], start: int, layers: Sequence[Rows]) -> None:
        """Keep the rows of all `layers` of a chunk that was read alone at `start`."""
        self.held[self._key(ids, start)] = Encoded(start, list(layers))

    def _key(self, ids: Sequence[int], start: int) -> str:
        place = "" if self.rope is not None else f"{start} "
        return f"chunk {place}{hashlib.sha256(array('q', ids)).hexdigest()}"

    def _moved(self, keys: Tensor, steps: int) -> Tensor:
        if not steps or self.rope is None:
            return keys
        return self.rope.shift(keys, torch.full((keys.shape[-2],), steps, device=keys.device)).to(keys.dtype)


def _turns(model: Any) -> Rope | None:
    """The rotation of all layers' keys; None where it is not known or some layers have none (SmolLM 3)."""
    config = model.config.get_text_config(decoder=True)
    try:
        return rope_of(model) if all(getattr(config, "no_rope_layers", None) or [1]) else None
    except ValueError:
        return None
