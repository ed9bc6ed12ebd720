"""NSA: native sparse attention (Yuan et al., 2025, arXiv 2502.11089 §3).

Three branches: keys and values compressed over runs of `compress` rows every `stride`; the `select` blocks of `block` rows that
the compressed attention points to, the first and the two nearest among them, one choice for all query heads of a KV head; and a
window. It is the model's attention, so questions and decode steps follow it too.

With `path`, what `kvledger train nsa` has learned of a frozen model: each branch has its own softmax, and gates of the layer's
input, one linear layer with a sigmoid (§3.2), say how much of each a head takes. The compressor (§3.3.1) has two layers over
rows with an encoding of their place in the run. Deviations: they see one row at a time, and say what to add to it and how
much it counts in the run's mean, where the paper speaks of an MLP over the run; rows are first turned to where their run
begins, and what becomes of them is turned back, so that runs are alike wherever they stand; all heads of a layer share it;
the branches read the same keys, since the model has no others.

Without, a model has no compressor and no gates. So here keys are compressed to their mean, which serves to select (equations
8-10 of the paper), the compressed branch has no output, and one softmax runs over selected blocks and window together, instead
of a gated sum: with all blocks selected it is the model's own attention. The window is rounded up to blocks then. In both,
after an eviction blocks are of the rows that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.cache.masks import Choice, Gated, Queries
from kvledger.methods import nsafile
from kvledger.methods.base import Shape
from kvledger.methods.pattern import Look, Pattern
from kvledger.methods.rope import Rope
from kvledger.recipe import Row, register

LOGITS_AT_ONCE = 1 << 21  # later runs than a slab's own are left out
NEAR = 2  # blocks, a query's own among them, that are always selected, besides the first


@register(
    Row(
        "nsa",
        "generation",
        "KV head",
        "all queries",
        "arXiv 2502.11089",
        "compressed rows, selected blocks and a window",
    )
)
@dataclass(frozen=True, kw_only=True)
class NSA(Pattern):
    """compress, stride: rows that are compressed to one, and how far apart they begin. block: rows of a block. select: blocks
    that a query sees. window: rows up to itself that it sees besides. path: a file of `kvledger train nsa`, or "":
    selection and window only, untrained."""

    compress: int = 32
    stride: int = 16
    block: int = 64
    select: int = 16
    window: int = 512
    path: str = ""

    always: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.at_least(stride=1, select=1 + NEAR, window=1 if self.path else 0)
        for name in ("compress", "block"):
            if getattr(self, name) < 1 or getattr(self, name) % self.stride:
                raise ValueError(f"{name}={getattr(self, name)} is no multiple of stride={self.stride}")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("hidden", "rope") if self.path else ()

    @property
    def fingerprint(self) -> str:
        return nsafile.digest(self.path) if self.path else ""

    def fit(self, shape: Shape) -> None:
        if not self.path:
            return
        found, wanted = nsafile.read_trained(self.path), (shape.layers, shape.heads, shape.width, shape.dim)
        if (found.compress, found.stride) != (self.compress, self.stride):
            raise ValueError(
                f"{self.path!r} was trained with compress={found.compress}, stride={found.stride}, and here they are "
                f"{self.compress} and {self.stride}: give the recipe the former"
            )
        if found.shape != wanted:
            raise ValueError(
                f"{self.path!r} is for layers, query heads, width and head dimensions {found.shape}, and this model has "
                f"{wanted}: train one with `kvledger train nsa --model … --out FILE.safetensors`"
            )

    def index(self, look: Look, old: Tensor | None) -> Tensor:
        """Of the runs that are complete, (N - compress) // stride + 1 of them: their keys [C, Dk] or, trained, keys and values
        side by side [C, Dk + Dv]; float32."""
        done = 0 if old is None else len(old)
        first = done * self.stride
        if len(look.keys) - first < self.compress:
            none = look.keys.new_zeros(0, self._width(look), dtype=torch.float32)
            return none if old is None else old
        new = self._compressed(look, first)
        return new if old is None else torch.cat([old, new])

    def _width(self, look: Look) -> int:
        return look.keys.shape[1] + (look.values.shape[1] if self.path and look.values is not None else 0)

    def _compressed(self, look: Look, first: int) -> Tensor:
        if not self.path:
            return self._runs(look.keys[first:].float()).mean(1)
        assert look.values is not None
        assert look.positions is not None
        assert look.rope is not None
        net = nsafile.trained(self.path, look.keys.device).layers[look.layer]
        keys, values = (self._runs(x[first:].float()) for x in (look.keys, look.values))
        return torch.cat(compressed(net, keys, values, self._runs(look.positions[first:]), look.rope), -1)

    def _runs(self, x: Tensor) -> Tensor:
        """[n, …] -> [runs, compress, …]."""
        return x.unfold(0, self.compress, self.stride).movedim(-1, 1)

    def choose(self, look: Look) -> Choice:
        G, T, N = look.shape
        runs = self.index(look, None) if look.index is None else look.index
        step = max(1, LOGITS_AT_ONCE // (G * max(1, len(runs))))
        parts, scored = [], 0
        near = 0 if self.path else -(-self.window // self.block)  # the window is a branch of its own, or selected too
        for t in range(0, T, step):
            queries = look.queries[:, t : t + step]
            at = torch.arange(N - T + t, N - T + t + queries.shape[1], device=queries.device)
            known = runs[: max(0, int(at[-1]) + 1 - self.compress) // self.stride + 1, : look.keys.shape[1]]
            weights = self.weights(queries, known, at, look.scale)
            parts.append(self.select_blocks(weights, at, -(-N // self.block), near))
            scored += G * queries.shape[1] * len(known)
        selected = Queries(self.block, torch.cat(parts)[None], scored=float(scored))
        return self._gated(look, selected, runs) if self.path else selected

    def _gated(self, look: Look, selected: Queries, runs: Tensor) -> Gated:
        """The products that chose are those of the compressed branch, and count there."""
        assert look.hidden is not None
        net = nsafile.trained(self.path, look.keys.device).layers[look.layer]
        gates = net.gates(look.hidden, slice(look.heads.start, look.heads.stop))
        chosen = Queries(selected.size, selected.seen)
        return Gated(chosen, self.window, runs, self.compress, self.stride, gates)

    def weights(self, queries: Tensor, runs: Tensor, at: Tensor, scale: float) -> Tensor:
        """Attention of the queries [..., t, D] of the rows `at` [t] to the keys `runs` [..., C, D] of those that are complete
        by then: [..., t, C] float32, zero where none is (equation 8)."""
        complete = torch.arange(runs.shape[-2], device=runs.device) * self.stride + self.compress - 1 <= at[:, None]
        logits = (queries.float() @ runs.mT) * scale
        return logits.masked_fill(~complete, -torch.inf).softmax(-1).masked_fill(~complete, 0.0)

    def importance(self, weights: Tensor, blocks: int) -> Tensor:
        """The same by blocks of rows, summed over the query heads of a KV head (equations 9 and 10): [t, blocks]."""
        return importance(weights, blocks, self.compress // self.stride, self.block // self.stride).sum(0)

    def select_blocks(self, weights: Tensor, at: Tensor, blocks: int, near: int = 0) -> Tensor:
        """Blocks that the queries of the rows `at` [t] see, by their attention to runs [G, t, C], and the last `near` before
        their own: [t, blocks] bool."""
        worth, at = self.importance(weights, blocks), at[:, None]
        number, own = torch.arange(blocks, device=at.device), at // self.block
        forced = (number == 0) | ((own - number >= 0) & (own - number < NEAR))
        ranked = worth.masked_fill(forced, torch.inf).masked_fill(number > own, -torch.inf)
        best = ranked.topk(min(self.select, blocks), -1).indices
        chosen = torch.zeros_like(ranked, dtype=torch.bool).scatter_(-1, best, True)
        return (chosen | (own - number <= near)) & (number <= own)


def compressed(
    net: nsafile.Branches, keys: Tensor, values: Tensor, positions: Tensor, rope: Rope
) -> tuple[Tensor, Tensor]:
    """The key [n, Dk] and the value [n, Dv] of runs of rows: `keys` [n, l, Dk] after RoPE at `positions` [n, l], `values`
    [n, l, Dv]."""
    begin = positions[:, :1]
    made = net.keys(rope.shift(keys, -begin.expand_as(positions)))
    return rope.shift(made, begin[:, 0]), net.values(values)


def importance(weights: Tensor, blocks: int, units: int, per: int) -> Tensor:
    """Attention to compressed runs [G, t, C], each of `units` strides and beginning one after the other, as attention to
    `blocks` of `per` strides: each run counts in a block as often as it has strides there (equation 9). [G, t, blocks]."""
    C = weights.shape[-1]
    strides = weights.new_zeros(*weights.shape[:-1], max(blocks * per, C + units))
    for unit in range(units):
        strides[..., unit : unit + C] += weights
    return strides[..., : blocks * per].unflatten(-1, (blocks, per)).sum(-1)
