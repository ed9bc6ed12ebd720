"""Reading by a pattern: one layer's queries look at what the recipe's pattern chooses, head by head, and the pairs are counted.

Heads with a window (head gates) keep to it; the pattern chooses for the others.  Padding is left out, so that each sequence of
a batch is read as it would be alone.  Patterns that are attentions of their own (`always`) are asked for questions and decode
steps too, and keep an index of the rows with the layer; it is made anew where rows were dropped or taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from kvledger.cache.attend import Windows
from kvledger.cache.ledger import triangle
from kvledger.cache.masks import Band, Choice, allowed, band_pairs
from kvledger.cache.sparse import read
from kvledger.methods.pattern import Look

if TYPE_CHECKING:
    from kvledger.hf.layer import ArenaLayer


class Kept(NamedTuple):
    """What a pattern keeps of a segment: about how many rows, how many had been dropped before, and what is kept."""

    rows: int
    gone: int
    table: Tensor


def trim(layer: ArenaLayer) -> None:
    """Let go of what is kept of segments of which rows were dropped or taken back since."""
    arena = layer.arena
    assert arena is not None
    true = {
        s: kept
        for s, kept in layer.kept.items()
        if kept.rows <= arena.length[s] and kept.gone == arena.seen[s // arena.heads] - arena.length[s]
    }
    if len(true) < len(layer.kept):
        layer.kept = true
        layer.hold()


def due(layer: ArenaLayer, added: Sequence[int]) -> bool:
    """Whether the recipe's pattern is to say what these tokens look at: all tokens if it is an attention of its own, else those
    of a prompt, of which there are several."""
    run, arena, pattern = layer.run, layer.arena, layer.run.pattern
    assert arena is not None
    if pattern is None or pattern.always:
        return pattern is not None
    if max(added) < 2 or run.watching is not None:
        return False
    if run.auto:  # nobody says what is prompt: its first forward of several tokens is
        return list(arena.seen) == list(added) or run.method.when == "chunk"
    return run.ledger.kind == "read"


class Looked(NamedTuple):
    """Output [B, Hq, T, Dv] and log-sum-exp [B, Hq, T]; the query-key pairs that it took in each segment, mean over the G query
    heads, a pair of which only the product was computed, to choose, counting half; and the bytes that one token has read."""

    out: Tensor
    lse: Tensor
    pairs: list[float]
    nbytes: int | None


def read_chosen(
    layer: ArenaLayer, q: Tensor, valid: Tensor | None, softcap: float | None, windows: Windows | None
) -> Looked:
    """Attention of the tokens just stored, whose queries are `q` [B, Hq, T, Dk], to what is chosen."""
    arena, nbytes, pairs = layer.arena, 0, []
    assert arena is not None
    B, Hq, T, _ = q.shape
    G, Dv = Hq // arena.heads, arena.plain(0, 0)[1].shape[-1]
    out = q.new_zeros(B, Hq, T, Dv)
    lse = q.new_zeros(B, Hq, T, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
    for s in range(B * arena.heads):
        b, heads = s // arena.heads, range(s % arena.heads * G, (s % arena.heads + 1) * G)
        real = slice(None) if valid is None else valid[b].nonzero().squeeze(-1)
        queries = q[b, heads.start : heads.stop][:, real]
        if not queries.shape[1]:
            pairs.append(0.0)
            continue
        k, v = arena.plain(s)
        window = windows[s % arena.heads] if windows else None
        look = Look(layer.slot, heads, queries, k, layer.scale, softcap, layer.run.ends, values=v)
        choice = Band(*window) if window else _choice(layer, s, real, look)
        one, total, count = read(queries, k, v, choice, layer.scale, softcap)
        out[b, heads.start : heads.stop, real], lse[b, heads.start : heads.stop, real] = one, total.to(lse.dtype)
        pairs.append((count + getattr(choice, "scored", 0.0) / 2) / G)
        if T == 1:
            index = layer.kept[s].table.nbytes if s in layer.kept else 0
            rows = allowed(choice, G, 1, len(k), q.device)[:, 0].any(0).nonzero() + arena.start[s]
            nbytes += index + arena.read_nbytes(nn.functional.pad(torch.cat([rows, rows * 0 + 1], -1), (1, 0), value=s))
    return Looked(out, lse, pairs, nbytes if T == 1 else None)


def _choice(layer: ArenaLayer, s: int, real: slice | Tensor, look: Look) -> Choice:
    """What the pattern says of segment `s`, whose new tokens are the `real` ones of the forward."""
    pattern, arena = layer.run.pattern, layer.arena
    assert arena is not None
    b = s // arena.heads
    if pattern.needs:
        if layer.hidden is None:
            raise ValueError(f"the layers of this model do not show their input, which {type(pattern).row.name} reads")
        look = replace(look, hidden=layer.hidden[b][real], rope=layer.run.rope, positions=arena.positions(s))
    if pattern.always:
        index = pattern.index(look, layer.kept[s].table if s in layer.kept else None)
        if index is not None:
            layer.kept[s] = Kept(len(look.keys), arena.seen[b] - len(look.keys), index)
            layer.hold()
        look = replace(look, index=index)
    choice: Choice = pattern.choose(look)
    return choice


def dense_pairs(layer: ArenaLayer, added: Sequence[int], windows: Windows | None) -> list[float]:
    """The same count for tokens that were read without a pattern."""
    arena = layer.arena
    assert arena is not None
    pairs = []
    for s, n in enumerate(arena.length):
        b, window = s // arena.heads, windows[s % arena.heads] if windows else None
        T = added[b]
        pairs.append(triangle(T, n - T) if window is None else band_pairs(T, arena.seen[b], Band(*window)))
    return pairs
