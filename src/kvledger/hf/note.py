"""What is noted of new tokens for the method's sake: the last queries, a number for each row, what it has learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kvledger.cache import chunks
from kvledger.cache.attend import Windows, attend
from kvledger.cache.mass import add_mass
from kvledger.methods.base import Fresh, Glance, Probe

if TYPE_CHECKING:
    from kvledger.hf.layer import ArenaLayer


class News(NamedTuple):
    """A forward's tokens in one layer, stored and attended: queries [B, Hq, T, Dk], keys and values [B, H, T, D], log-sum-exp
    [B, Hq, T], which tokens are real [B, T] (None: all), the cap of the logits, the tokens added to each sequence,
    by a pattern the query-key pairs of each segment, and what each row received, [rows], where the reader has said it."""

    q: Tensor
    k: Tensor
    v: Tensor
    lse: Tensor
    valid: Tensor | None
    softcap: float | None
    added: list[int]
    pairs: list[float] | None = None
    mass: Tensor | None = None


def notes(layer: ArenaLayer) -> bool:
    """Whether the method is told of the present tokens."""
    run = layer.run
    return run.watching is None and run.method.drops and bool(run.reading or run.method.every)


def read_all(
    layer: ArenaLayer,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor | None,
    sinks: Tensor | None,
    softcap: float | None,
    windows: Windows | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Attention of the tokens just stored to all that their heads may see and, if a method wants it and the reader can tell,
    what each row received."""
    arena = layer.arena
    assert arena is not None
    asked = any(notes(one) and one.run.method.tally == "mass" for one in (layer, *layer.followers))
    if asked and valid is None and sinks is None and chunks.usable(q, arena, softcap):
        return chunks.read(q, arena, layer.scale, windows, weigh=True)
    return (*attend(q, k, v, arena, layer.scale, valid, sinks, softcap, windows), None)


def note(layer: ArenaLayer, news: News) -> None:
    """What the method wants to know of these tokens: the last queries, and a number for each row."""
    method, arena = layer.run.method, layer.arena
    assert arena is not None
    if method.window:
        _remember(layer, news)
    if method.tally:
        arena.open_tally()
    if method.tally == "mass" and news.mass is not None:
        assert arena.tally is not None
        arena.tally += news.mass
    elif method.tally == "mass":
        add_mass(news.q, arena, news.lse, layer.scale, layer.full_heads, news.valid, news.softcap)
    if method.tally == "rate" or method.learns:
        states = layer.states or [None] * arena.batch
        layer.states = [_learn(layer, b, news, states[b]) for b in range(arena.batch)]


def _learn(layer: ArenaLayer, b: int, news: News, state: Any) -> Any:
    run, method, arena = layer.run, layer.run.method, layer.arena
    assert arena is not None
    q, k, v = news.q[b], news.k[b], news.v[b]
    real = slice(None) if news.valid is None else news.valid[b]
    queries, copies = q[:, real].unflatten(0, (arena.heads, -1)), layer.copies
    fresh = Fresh(
        layer=layer.slot,
        layers=run.layers,
        queries=queries[layer.full_heads],
        keys=k[layer.full_heads][:, real],
        values=v[layer.full_heads][:, real],
        positions=torch.arange(arena.seen[b] - queries.shape[2], arena.seen[b], device=q.device),
        scale=layer.scale,
        hidden=None if layer.hidden is None else layer.hidden[b][real],
        rope=run.rope,
        whole=(q[:, real], k[::copies][:, real], v[::copies][:, real]) if "whole" in method.needs else None,
        heads=tuple(h // copies for h in layer.full_heads),
        kv_heads=arena.heads // copies,
    )
    if method.tally == "rate" and queries.shape[2]:
        assert arena.tally is not None
        for h, rates in zip(layer.full_heads, method.rate(fresh).float()):
            arena.tally[arena.segment(b * arena.heads + h, len(rates))] = rates
    return method.learn(fresh, state) if method.learns else None


def _remember(layer: ArenaLayer, news: News) -> None:
    """Keep the last `window` queries of each sequence, across chunks: [Hq, W, Dk] each."""
    method, q, valid = layer.run.method, news.q, news.valid
    fresh = [q[b] if valid is None else q[b][:, valid[b]] for b in range(q.shape[0])]
    if layer.last_queries and (method.when == "prompt" or not layer.run.reading):
        fresh = [torch.cat([old, new], dim=1) for old, new in zip(layer.last_queries, fresh)]
    layer.last_queries = [x[:, -method.window :].clone() for x in fresh]
    layer.hold()


def watch(layer: ArenaLayer, news: News, probes: Sequence[Probe | None]) -> None:
    """The queries of each sequence's probe judge the rows of its span; each row keeps the most it was ever given."""
    arena = layer.arena
    assert arena is not None
    arena.open_tally()
    assert arena.tally is not None
    for b, probe in enumerate(probes):
        real = slice(None) if news.valid is None else news.valid[b]
        queries = news.q[b][:, real].unflatten(0, (arena.heads, -1))
        hidden = None if layer.hidden is None else layer.hidden[b][real]
        for h in layer.full_heads if probe is not None else ():  # one at a time: lengths differ, and so little is held
            assert probe is not None
            rows, positions = arena.segment(b * arena.heads + h), arena.positions(b * arena.heads + h)
            output = None if layer.output is None else layer.output[h : h + 1]
            k, v = arena.plain(b * arena.heads + h)
            glance = Glance(probe, queries[h : h + 1], k[None], v[None], positions, layer.scale, hidden, output)
            chosen = ((positions >= probe.start) & (positions < probe.stop)).nonzero().squeeze(-1) + rows.start
            arena.tally[chosen] = torch.maximum(arena.tally[chosen], layer.run.method.watch(glance)[0])
