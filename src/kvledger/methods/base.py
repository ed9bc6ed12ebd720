"""What a method sees, and what it is made of: a scorer, an allocator, a schedule.

A method is a frozen dataclass.  It says what each candidate row of one layer of one sequence is worth (`score`); who gets
how much of the budget is the allocator's business, when it is asked the schedule's.  What a scorer needs beyond keys,
values and positions it declares in class variables, and the frame (`kvledger.hf`) supplies just that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvledger.cache import chunks
from kvledger.methods import allocate
from kvledger.methods.rope import Rope
from kvledger.recipe import Row, nearest

WHEN = ("prompt", "chunk", "decode")


@dataclass(frozen=True)
class View:
    """The candidate rows of one layer of one sequence, at the moment when some of them must go.

    `keys` [H, N, Dk] (after RoPE), `values` [H, N, Dv], `positions` [H, N] token indices, ascending. Heads may hold
    different numbers of rows: the shorter ones are padded in front, and there `stored` [H, N] is False and the position -1.
    `queries` [H, G, W, Dk] are the last W queries (after RoPE) at `query_positions` [W]. Where heads="query", H counts query
    heads and G is 1. `recent` and `pinned` [H, N] mark rows that stay: the youngest, and the user's spans. `budget` is the
    mean number of rows a head may keep, `seen` the tokens seen so far.

    On request (see Method): `tally` [H, N] float32, what was noted of each row; `state`, what `learn` made of the tokens so
    far; `output` [H, G, Dv, E], each query head's part of the output projection; `rope`, to turn keys and queries back.
    """

    layer: int
    layers: int
    keys: Tensor
    values: Tensor
    positions: Tensor
    stored: Tensor
    queries: Tensor
    query_positions: Tensor
    scale: float
    recent: Tensor
    pinned: Tensor
    budget: int
    seen: int
    tally: Tensor | None = None
    state: Any = None
    output: Tensor | None = None
    rope: Rope | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.keys.shape[0], self.keys.shape[1]


@dataclass(frozen=True)
class Fresh:
    """The T new tokens of one sequence in one layer, just stored: `queries` [H, G, T, Dk] and `keys` [H, T, Dk] (after
    RoPE), `values` [H, T, Dv], `positions` [T], and on request the layer's input `hidden` [T, E], `rope`, and `whole`:
    queries, keys and values of all heads of the model, [Hq, T, Dk], [Hkv, T, Dk] and [Hkv, T, Dv]. `heads` [H] says which
    of the model's `kv_heads` each H is."""

    layer: int
    layers: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    positions: Tensor
    scale: float
    hidden: Tensor | None = None
    rope: Rope | None = None
    whole: tuple[Tensor, Tensor, Tensor] | None = None
    heads: tuple[int, ...] = ()
    kv_heads: int = 0


@dataclass(frozen=True)
class Shape:
    """Of a model: compressible layers, query heads, KV heads, width of the layers' input, dimensions of a head."""

    layers: int
    heads: int
    kv_heads: int
    width: int
    dim: int


@dataclass(frozen=True)
class Probe:
    """Tokens that are read once and forgotten, so that their queries can judge the rows of tokens `start … stop`."""

    ids: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Glance:
    """A probe's T tokens in one layer, and the N rows stored there, the probe's own T the last: `queries` [H, G, T, Dk] and
    `keys` [H, N, Dk] (after RoPE), `values` [H, N, Dv], `positions` [N], and on request `hidden` [T, E], the layer's input at
    the probe's tokens, and `output` [H, G, Dv, E]."""

    probe: Probe
    queries: Tensor
    keys: Tensor
    values: Tensor
    positions: Tensor
    scale: float
    hidden: Tensor | None = None
    output: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """Frame of every compression method.

    keep: kept fraction of the candidate rows, in (0, 1]. rows: if set, this many rows a head (mean) instead. bytes: if set,
    rows of this many bytes in all layers and heads together instead.
    when: "prompt" drops once, when the prompt has been read; "chunk" after each chunk, among that chunk's rows (among all
    rows, if the budget is in rows or bytes); "decode" leaves the prompt alone. every: decode steps between evictions among
    all rows (0: none).
    allocator: "even", the same number for each head; "heads", heads of a layer compete; "layers", heads of all layers do;
    "pyramid", falling with depth. heads: "kv" stores a row once per KV head; "query" once per query head, as several
    papers' code does, at G times the bytes.
    """

    keep: float = 0.25
    rows: int = 0
    bytes: int = 0
    when: str = "prompt"
    every: int = 0
    allocator: str = "even"
    heads: str = "kv"

    row: ClassVar[Row]
    role: ClassVar[str] = "compression"
    window: ClassVar[int] = 0  # how many last queries `score` needs; those tokens' own rows are kept
    recent: ClassVar[int] = 0  # how many of the last rows stay in any case
    sinks: ClassVar[int] = 0  # how many of the first tokens stay in any case
    among: ClassVar[str] = "new"  # candidates while reading in chunks: the "new" rows, or "all" that are stored
    floor: ClassVar[float] = 0.2  # allocator "heads": the fraction of its even share that a head is sure of
    beta: ClassVar[int] = 20  # allocator "pyramid": the last layer's free rows are the mean's over beta
    tally: ClassVar[str] = ""  # a number kept with each row: "mass" of attention so far, "rate" when stored, "probe"
    learns: ClassVar[bool] = False  # `learn` is called with every forward's tokens
    needs: ClassVar[tuple[str, ...]] = ()  # of "hidden", "output", "rope", "whole"
    every_head: ClassVar[bool] = (
        False  # works on all heads of the model together, so that no head profile stands beside it
    )
    exact: ClassVar[bool] = True  # spends exactly its budget; False where a threshold decides

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} is outside (0, 1]: it is the kept fraction")
        for name in ("rows", "bytes", "every", "window", "recent", "sinks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative")
        if self.rows and self.bytes:
            raise ValueError(f"rows={self.rows} and bytes={self.bytes} are two budgets: give one")
        choices = (("when", WHEN), ("heads", ("kv", "query")), ("allocator", tuple(allocate.ALLOCATORS)))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown{nearest(str(getattr(self, name)), known)}")
        if self.when == "decode" and not self.every:
            raise ValueError("when='decode' leaves the prompt alone, so every= must say after how many steps to drop")

    # ---- what a method says --------------------------------------------------------------------------------------

    def score(self, view: View) -> Tensor:
        """What each candidate is worth: [H, N] float, higher is better. Padding may get anything."""
        raise NotImplementedError

    def allocate(self, scores: Tensor, view: View) -> Tensor:
        """Which candidates stay: [H, N] bool, by the allocator. +inf marks rows that must stay, -inf those that cannot."""
        return allocate.ALLOCATORS[self.allocator](scores, view, self.floor, self.beta)

    def rate(self, fresh: Fresh) -> Tensor:
        """tally="rate": the number [H, T] to keep with each new row."""
        raise NotImplementedError

    def learn(self, fresh: Fresh, state: Any) -> Any:
        """learns: what is known after these tokens, a tuple of tensors (`state` is None at first; never changed in place)."""
        raise NotImplementedError

    def probes(
        self, ids: Sequence[int], start: int, encode: Callable[[str], list[int]], lead: Sequence[int]
    ) -> Iterator[Probe]:
        """tally="probe": what to read once the tokens `ids`, the first of them number `start`, have been read. `encode` makes
        ids of a text; `lead` are the ids between a question and its answer."""
        raise NotImplementedError

    def watch(self, glance: Glance) -> Tensor:
        """tally="probe": what a probe's tokens say of the stored rows of its span, [H, rows]. The frame keeps each row's
        maximum over probes."""
        raise NotImplementedError

    # ---- what the frame asks -------------------------------------------------------------------------------------

    @property
    def drops(self) -> bool:
        """Whether anything is ever dropped."""
        return self.keep < 1 or self.rows > 0 or self.bytes > 0

    @property
    def must_drop(self) -> bool:
        """Whether a prompt of any length loses rows: a budget in rows or bytes, a threshold or an answer may be long enough."""
        return self.keep < 1 and not self.rows and not self.bytes and self.exact and self.when != "decode"

    @property
    def fingerprint(self) -> str:
        """Short hash of the files that the method reads, if any, so that records of other files are not mixed in."""
        return ""

    def fit(self, shape: Shape) -> None:
        """ValueError if the method cannot serve a model of this shape."""

    @property
    def deferred(self) -> bool:
        """Whether all layers must have been scored before rows can be shared out."""
        return self.allocator == "layers"

    def guarded(self, view: View) -> Tensor:
        """Scores [H, N] float32 in which pinned rows and, as far as the budget goes, sinks and recent rows stand at +inf, and
        what is not stored at -inf. ValueError if the pinned rows alone exceed the budget."""
        scores = self.score(view).to(torch.float32).expand(view.shape).clone()
        pinned = view.pinned & view.stored
        room = view.budget - pinned.sum(-1, keepdim=True)
        if int(room.min()) < 0:
            most = view.budget - int(room.min())
            raise ValueError(
                f"{most} protected rows do not fit a budget of {view.budget} rows a head: raise the budget of "
                f"{type(self).row.name}, or protect less"
            )
        sinks = (view.positions < self.sinks) & view.stored & ~pinned
        sinks &= sinks.cumsum(-1) <= room
        recent = view.recent & view.stored & ~pinned & ~sinks
        youngest = recent.flip(-1).cumsum(-1).flip(-1) <= room - sinks.sum(-1, keepdim=True)
        scores[recent] = -torch.inf
        scores[pinned | sinks | (recent & youngest)] = torch.inf
        return scores.masked_fill(~view.stored, -torch.inf)

    def select(self, view: View) -> Tensor:
        """Score and allocate. The mask [H, N]."""
        return self.allocate(self.guarded(view), view) & view.stored

    def allowance(self, candidates: int, row_bytes: int) -> int:
        """Rows a head may keep of `candidates` (mean over heads and layers), at least one. `row_bytes`: of one row in every
        head and layer together."""
        if self.rows:
            return self.rows
        if self.bytes:
            return max(1, self.bytes // row_bytes)
        return max(1, floor(self.keep * candidates + 1e-9))


def window_attention(view: View, kernel: int, pool: str) -> Tensor:
    """Attention mass that the last W queries put on each candidate, smoothed over neighbours: [H, N].

    softmax(q·k·scale) in float32 with a causal mask, summed over the W queries, pooled over the rows that are not recent
    (zero padding, counted), mean over the G queries that share a KV head.  SnapKV (arXiv 2404.14469) §4; the order of
    pooling and group mean does not matter for average pooling and follows the published code for maximum pooling.
    """
    mass = softmax_mass(view)
    recent = view.recent.any(0).nonzero()
    prefix = int(recent[0]) if len(recent) else mass.shape[-1]  # recent rows are the last of every head
    smooth = torch.nn.functional.avg_pool1d if pool == "avg" else torch.nn.functional.max_pool1d
    if prefix:
        mass[..., :prefix] = smooth(mass[..., :prefix], kernel, stride=1, padding=kernel // 2)[..., :prefix]
    return mass.mean(1)


def softmax_mass(view: View) -> Tensor:
    """softmax(q·k·scale) of the window's queries over the candidates, causal, summed over the queries: [H, G, N] float32."""
    W = len(view.query_positions)
    if W and chunks.weighable(view.queries, view.keys) and bool((view.positions[:, -W:] == view.query_positions).all()):
        return chunks.window_mass(view.queries, view.keys, view.stored.sum(-1).tolist(), view.scale)
    logits = (view.queries.float() @ view.keys.float().transpose(-1, -2)[:, None]).mul_(view.scale)
    later = (
        (view.positions > view.query_positions[:1]).any(0).nonzero()
    )  # rows that some query may not see: the last ones
    if len(later):
        tail = slice(int(later[0]), None)
        unseen = view.positions[:, None, tail] > view.query_positions[None, :, None]
        logits[..., tail].masked_fill_(unseen[:, None], -torch.inf)
    if not bool(view.stored.all()):
        logits.masked_fill_(~view.stored[:, None, None], -torch.inf)
    return logits.softmax(-1).nan_to_num_(0.0).sum(-2)
