"""Choosing what a token reads: from scores of pages or rows to a mask, from a mask to spans of rows.

Masks are [S, P] bool over the P pages of each of S segments, the last of them perhaps not yet full; segments that have fewer
are padded at the end. Nothing here is a loop over tokens or pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvledger.cache.arena import Arena


def padded(flat: Tensor, counts: Sequence[int], width: int) -> Tensor:
    """[..., n] of segments with `counts` entries, one after the other -> [S, ..., width], -inf where a segment has none."""
    out = flat.new_full((len(counts), *flat.shape[:-1], width), -torch.inf)
    if len(set(counts)) == 1:
        out[..., : counts[0]] = flat.unflatten(-1, (len(counts), counts[0])).movedim(-2, 0)
        return out
    for i, x in enumerate(flat.split(list(counts), -1)):
        out[i, ..., : counts[i]] = x
    return out


def top_k(scores: Tensor, k: int) -> Tensor:
    """The k largest of `scores` [..., P], fewer where fewer are above -inf: bool [..., P]."""
    best = scores.topk(min(k, scores.shape[-1]), sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True) & (scores > -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest of `logits` [..., N] whose softmax adds up to at least `p`: bool [..., N]; with p = 1, all above -inf."""
    if p == 1:
        return logits > -torch.inf
    weights, order = logits.softmax(-1).sort(-1, descending=True)
    enough = weights.cumsum(-1) - weights < p  # what comes before it does not suffice
    return torch.zeros_like(enough).scatter_(-1, order, enough) & (logits > -torch.inf)


def spans_of(mask: Tensor, arena: Arena, segments: Sequence[int], size: int = 1) -> Tensor:
    """The rows of the pages of `size` rows that `mask` [S, P] names in `segments`, as spans [n, 3]: segment, first row as the
    arena counts, rows. Neighbouring pages are one span; a page ends with its segment."""
    side = torch.nn.functional.pad(mask, (1, 1))
    first = (mask & ~side[:, :-2]).nonzero()
    stop = (mask & ~side[:, 2:]).nonzero()[:, 1] + 1
    of, start, length = (
        torch.tensor([x[s] for s in segments], device=mask.device)[first[:, 0]]
        for x in (range(len(arena.start)), arena.start, arena.length)
    )
    begin = first[:, 1] * size
    return torch.stack([of, start + begin, torch.minimum(stop * size, length) - begin], -1)
