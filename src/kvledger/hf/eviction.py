"""The frame in which a method is asked: which rows are candidates, what they are worth, and which of them go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvledger.hf.run import Run, Waiting
from kvledger.methods.allocate import across_layers
from kvledger.methods.base import View

if TYPE_CHECKING:
    from kvledger.hf.layer import ArenaLayer


def evict(layer: ArenaLayer, added: Sequence[int], asked: bool) -> None:
    """Drop what goes after a forward of `added[b]` tokens: of heads with a window what lies outside it and, if the method is
    `asked`, what it gives up. A probe's tokens vote, are counted in while the method looks, and go."""
    arena, run = layer.arena, layer.run
    assert arena is not None
    plans: list[list[Tensor] | None] = []
    for b, new in enumerate(added):
        masks = [torch.ones(run.probe, dtype=torch.bool) for _ in range(arena.heads)]
        if asked:
            chosen = _choose(layer, b, new - run.probe)
            if chosen is None:
                plans.append(None)
                continue
            for h, mask in zip(layer.full_heads, chosen):
                masks[h] = mask
        plans.append(masks)
    if run.waiting and layer.slot == run.layers - 1:
        _share_out(run)
    if all(plan is not None for plan in plans):
        drop(layer, [plan for plan in plans if plan is not None])


def drop(layer: ArenaLayer, masks: list[list[Tensor]]) -> None:
    """Keep what `masks[b][h]` say of the last rows, less a probe's and what heads with a window have left behind."""
    arena, run = layer.arena, layer.run
    assert arena is not None
    for b, heads in enumerate(masks):
        for h, window in enumerate(layer.windows or ()):
            if window is not None:
                positions = arena.positions(b * arena.heads + h)
                seen = arena.seen[b] - run.probe
                heads[h] = (positions < window[0]) | (positions >= seen - window[1])
        if run.probe:
            for mask in heads:
                mask[-run.probe :] = False
    if run.method.when == "prompt" and not run.method.every:
        arena.tally = None  # nobody will ask again
    dropped = arena.keep(masks) - run.probe * len(arena.length)
    arena.seen = [n - run.probe for n in arena.seen]
    layer.columns -= run.probe
    if not run.method.every:
        layer.last_queries = []
    layer.hold()
    run.ledger.evict(layer.slot, arena.length, dropped)


def _choose(layer: ArenaLayer, b: int, new: int) -> list[Tensor] | None:
    """Masks over the last rows of each of the layer's full heads; None while other layers' scores are awaited."""
    arena, run, method = layer.arena, layer.run, layer.run.method
    assert arena is not None
    heads, probe = layer.full_heads, layer.run.probe
    if not heads:
        return []
    absolute = method.rows > 0 or method.bytes > 0
    whole = method.when != "chunk" or method.among == "all" or absolute or not run.reading
    lengths = [arena.length[b * arena.heads + h] for h in heads]
    counts = lengths if whole else [new + probe] * len(heads)
    row_bytes = arena.row_nbytes * len(arena.length) * run.layers
    budget = method.allowance(arena.seen[b] - probe if whole else new, row_bytes)
    if method.exact and not method.deferred and sum(counts) <= len(heads) * (budget + probe):
        return [torch.ones(n, dtype=torch.bool) for n in counts]
    view = see(layer, b, counts, budget + probe)
    if method.deferred:
        run.waiting.append(Waiting(layer, b, method.guarded(view), counts, heads, budget + probe))
        return None
    mask = method.select(view)
    return [mask[i, mask.shape[1] - n :] for i, n in enumerate(counts)]


def _share_out(run: Run) -> None:
    """All layers have their scores: share the rows out, sequence by sequence, and drop."""
    waiting, run.waiting = run.waiting, []
    plans: dict[int, list[list[Tensor]]] = {}
    for b in sorted({one.sequence for one in waiting}):
        group = [one for one in waiting if one.sequence == b]
        for one, mask in zip(group, across_layers([one.scores for one in group], group[0].budget)):
            masks = [torch.ones(run.probe, dtype=torch.bool) for _ in range(one.layer.arena.heads)]
            for i, (h, n) in enumerate(zip(one.heads, one.counts)):
                masks[h] = mask[i, mask.shape[1] - n :].clone()
            plans.setdefault(one.layer.slot, []).append(masks)
    layers = {one.layer.slot: one.layer for one in waiting}
    for slot, plan in plans.items():
        drop(layers[slot], plan)


def see(layer: ArenaLayer, b: int, counts: list[int], budget: int) -> View:
    """The last `counts[i]` rows of the layer's i-th full head in sequence `b`, as a method sees them."""
    arena, run = layer.arena, layer.run
    assert arena is not None
    method, heads, seen = run.method, layer.full_heads, arena.seen[b]
    segments = [b * arena.heads + h for h in heads]
    most = max(counts)

    def padded(rows: Sequence[Tensor], value: float = 0) -> Tensor:
        if min(counts) == most:
            return torch.stack(list(rows))
        out = rows[0].new_full((len(rows), most, *rows[0].shape[1:]), value)
        for i, x in enumerate(rows):
            out[i, most - len(x) :] = x
        return out

    spans = [arena.segment(s, n) for s, n in zip(segments, counts)]
    positions = padded([arena.positions(s, n) for s, n in zip(segments, counts)], -1)
    keys, values = zip(*[arena.plain(s, n) for s, n in zip(segments, counts)])
    queries = keys[0].new_zeros(arena.heads, 1, 0, keys[0].shape[-1])
    if layer.last_queries:
        queries = layer.last_queries[b].unflatten(0, (arena.heads, -1))
    W = queries.shape[2]
    stay = max(min(W, method.window), method.recent, run.recent)
    return View(
        layer=layer.slot,
        layers=run.layers,
        keys=padded(keys),
        values=padded(values),
        positions=positions,
        stored=positions >= 0,
        queries=queries[heads],
        query_positions=torch.arange(seen - W, seen, device=positions.device),
        scale=layer.scale,
        recent=positions >= seen - stay,
        pinned=_pinned(run.pinned, positions) | ((positions >= 0) & (positions < run.sinks)),
        budget=budget,
        seen=seen,
        tally=None if arena.tally is None else padded([arena.tally[span] for span in spans]),
        state=layer.states[b] if layer.states else None,
        output=None if layer.output is None else layer.output[heads],
        rope=run.rope,
    )


def _pinned(tokens: frozenset[int], positions: Tensor) -> Tensor:
    if not tokens:
        return torch.zeros_like(positions, dtype=torch.bool)
    return torch.isin(positions, torch.tensor(sorted(tokens), device=positions.device))
