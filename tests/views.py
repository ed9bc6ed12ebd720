"""Random Views, built by hand, for tests of methods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from kvledger.methods.base import Fresh, Method, View
from kvledger.methods.rope import Rope

H, G, N, D, E, W = 2, 3, 40, 8, 10, 6


def view(
    budget: int = 16,
    layer: int = 0,
    layers: int = 4,
    n: int = N,
    w: int = W,
    start: int = 0,
    seed: int = 0,
    absent: tuple[int, ...] = (0,) * H,
    **changes: Any,
) -> View:
    """Random rows `start … start + n`, of which the last `w` are those of the queries. Head h lacks its first `absent[h]`."""
    draw = torch.Generator().manual_seed(seed)
    positions = torch.arange(start, start + n).expand(H, n)
    stored = torch.arange(n) >= torch.tensor(absent)[:, None]
    made: dict[str, Any] = dict(
        layer=layer,
        layers=layers,
        keys=torch.randn(H, n, D, generator=draw) * stored[..., None],
        values=torch.randn(H, n, D, generator=draw) * stored[..., None],
        positions=positions.where(stored, torch.tensor(-1)),
        stored=stored,
        queries=torch.randn(H, G, w, D, generator=draw),
        query_positions=torch.arange(start + n - w, start + n),
        scale=0.35,
        recent=positions >= start + n - w,
        pinned=torch.zeros(H, n, dtype=torch.bool),
        budget=budget,
        seen=start + n,
        tally=torch.rand(H, n, generator=draw),
        output=torch.randn(H, G, D, E, generator=draw),
        rope=Rope(10.0 ** -torch.arange(0, 2, 2 / (D // 2))),
    )
    return View(**{**made, **changes})


def taught(method: Method, seen: View) -> View:
    """`seen` with what `method` has learned from random queries, if it learns."""
    if not method.learns:
        return seen
    queries = torch.randn(H, G, seen.seen, D, generator=torch.Generator().manual_seed(11))
    nothing = torch.zeros(H, seen.seen, D)
    fresh = Fresh(
        seen.layer, seen.layers, queries, nothing, nothing, torch.arange(seen.seen), seen.scale, rope=seen.rope
    )
    return replace(seen, state=method.learn(fresh, None))
