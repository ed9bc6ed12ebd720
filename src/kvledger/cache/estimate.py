"""Estimating logits from a small copy of the keys: 4 bits a number, a step and an offset a row (KIVI's formula, by token).

Tables of an `Index` hold, for each page, the bounds of its keys beside their codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvledger.cache.index import Index, bounds, logits
from kvledger.cache.kernels.codes import pack

LEVELS = 15


def coded(keys: Tensor) -> tuple[Tensor, ...]:
    """Of pages' keys [n, size, D], D even: bounds [n, 2·D], codes [n, size, D / 2] uint8, steps and offsets [n, size, 2] in the
    keys' dtype. A number is code · step + offset, up to half a step."""
    low = keys.amin(-1, keepdim=True)
    step = ((keys.amax(-1, keepdim=True) - low) / LEVELS).clamp(min=torch.finfo(keys.dtype).tiny)
    codes = ((keys - low) / step).round().clamp(0, LEVELS)
    return *bounds(keys), pack(codes, 4), torch.cat([step, low], -1)


def estimated(q: Tensor, index: Index, segments: Sequence[int], pages: Sequence[Tensor], scale: float) -> list[Tensor]:
    """q·k·scale of `q` [S, G, D] with the rows of chosen `pages` (numbers inside a segment, ascending, one tensor for each) by
    their codes: [G, pages · size] float for each segment."""
    if not index.tables:  # no page is complete
        return [q.new_empty(q.shape[1], 0) for _ in segments]
    _, codes, affine = index.tables
    entries = torch.cat([index.start[s] + some for s, some in zip(segments, pages)])
    of = torch.repeat_interleave(torch.arange(len(pages)), torch.tensor([len(some) for some in pages]))
    spans = _runs(of, entries) * torch.tensor([1, index.size, index.size])
    dots = logits(q, codes.flatten(0, 1), spans.flatten(), scale)
    step, low = affine[entries].to(dots.dtype).flatten(0, 1).T
    sums = (q.to(dots.dtype).sum(-1) * scale)[of.repeat_interleave(index.size)].T  # [G, n]
    return list((dots * step + sums * low).split([len(some) * index.size for some in pages], -1))


def _runs(of: Tensor, entries: Tensor) -> Tensor:
    """Runs of neighbouring `entries` of one segment, as spans [n, 3]."""
    new = torch.ones_like(entries, dtype=torch.bool)
    new[1:] = (entries[1:] != entries[:-1] + 1) | (of[1:] != of[:-1])
    first = new.nonzero()[:, 0]
    count = torch.diff(first, append=torch.tensor([len(entries)]))
    return torch.stack([of[first], entries[first], count], -1)
