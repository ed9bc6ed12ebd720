"""A session that holds everything and tells, forward by forward, how much attention each stored row receives.

The mass of a row is the softmax weight that a query gives it, causal, mean over the forward's queries and over the query heads
of a KV head. It is made of the queries, the stored keys and the log-sum-exp that the attention has just returned, a block of
queries at a time (`cache.mass`); the whole matrix never exists. Layers that keep no arena (sliding windows) are left out, and
where a model has sink logits (gpt-oss) their share falls on no row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvledger.cache.mass import column_mass
from kvledger.hf import cache as caches
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.note import News
from kvledger.hf.session import Session


class _Watched(ArenaLayer):
    """A layer that drops nothing and leaves its last forward's `mass` [H, N]."""

    mass: Tensor

    def _settle(self, news: News) -> None:
        arena = self.arena
        assert arena is not None
        G, T = news.q.shape[1] // arena.heads, news.q.shape[2]
        of_head = [
            column_mass(news.q[0, group], arena.plain(h)[0], news.lse[0, group], self.scale, news.softcap)
            for h, group in ((h, slice(h * G, (h + 1) * G)) for h in range(arena.heads))
        ]
        self.mass = torch.stack(of_head) / T
        super()._settle(news)


class Watcher:
    """Goes on from `session`, which drops nothing and has read its context. ValueError for a recipe that drops."""

    def __init__(self, session: Session):
        if session.recipe.drops:
            raise ValueError(
                f"{session.recipe} drops rows; what the full cache attends to is watched on the full cache"
            )
        self.session = session.fork()
        cache = self.session.cache
        cache.layers = [_watched(layer) if isinstance(layer, ArenaLayer) else layer for layer in cache.layers]

    @property
    def tokens(self) -> int:
        """Rows that each head holds."""
        return self.session.tokens

    def feed(self, ids: list[int]) -> Tensor:
        """Read `ids` behind what is there. The mass of each row of each KV head, mean over the queries of `ids`: [S, N] float32
        with S the heads of all layers, layer by layer. Rows sum to 1."""
        self.session.forward(ids, "ask" if len(ids) > 1 else "decode")
        layers = caches.arenas(self.session.cache)
        return torch.cat([layer.mass for layer in layers if isinstance(layer, _Watched)])


def _watched(layer: ArenaLayer) -> _Watched:
    twin = _Watched(layer.slot, layer.run)
    vars(twin).update(vars(layer))
    return twin


def held_rows(session: Session) -> Tensor:
    """Which of the tokens read so far each KV head still holds: [S, N] bool, in the order of `Watcher.feed`."""
    held = []
    for layer in caches.arenas(session.cache):
        assert layer.arena is not None
        for h in range(layer.arena.heads):
            row = torch.zeros(session.tokens, dtype=torch.bool, device=layer.arena.k.device)
            row[layer.arena.positions(h)] = True
            held.append(row)
    return torch.stack(held)
