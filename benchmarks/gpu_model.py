"""What `gpu.py` measures: shapes, ragged arenas of random rows, and a bare Llama decode step that a CUDA graph can hold.

The step is written out with plain matrix products, so that what is compared is the cache and not the launches of a framework:
the same weights and kernels serve the full cache, the compressed one, and PyTorch's own attention over a static cache.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvledger.cache.arena import Arena
from kvledger.cache.attend import attend


@dataclass(frozen=True)
class Shape:
    """A model's sizes, the context it is measured at, and how much of it is read at a time."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    dim: int
    inner: int
    vocabulary: int
    context: int
    chunk: int
    repeats: int

    @property
    def row_bytes(self) -> int:
        """Of one token in one head, keys and values, in bfloat16."""
        return 4 * self.dim


LLAMA = Shape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, 131072, 8192, 30)
TINY = Shape("tiny", 2, 64, 4, 2, 16, 96, 128, 300, 64, 2)


# ---- time ------------------------------------------------------------------------------------------------------------


def captured(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`work` as a CUDA graph, after it has run twice; `work` itself on a CPU."""
    if device.type != "cuda":
        return work
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of one call, by the device's own clock; the first call does not count."""
    work()
    if device.type != "cuda":
        return statistics.median(_wall(work) for _ in range(repeats))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


def _wall(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ---- arenas ----------------------------------------------------------------------------------------------------------


def spread(shape: Shape, keep: float, layer: int) -> list[int]:
    """Rows of each KV head, `keep` of the context on average and far from even, as budgets across heads are (AdaKV)."""
    total = round(keep * shape.context) * shape.kv_heads
    if keep == 1.0:
        return [shape.context] * shape.kv_heads
    weight = torch.randn(shape.kv_heads, generator=torch.Generator().manual_seed(layer)).exp()
    rows = torch.zeros(shape.kv_heads)
    for _ in range(shape.kv_heads):  # what a full head cannot take goes to the others
        room = rows < shape.context
        rows += (total - rows.sum()) * weight * room / (weight * room).sum()
        rows.clamp_(max=shape.context)
    return [int(n) for n in rows]


def stored(shape: Shape, keep: float, batch: int, device: torch.device, slack: int = 512) -> list[Arena]:
    """An arena for each layer with `batch` requests, rows drawn at random on the device."""
    arenas = []
    for layer in range(shape.layers):
        arena, lengths = Arena(batch, shape.kv_heads), spread(shape, keep, layer) * batch
        arena.length, arena.capacity = list(lengths), [n + slack for n in lengths]
        arena.start = [sum(arena.capacity[:s]) for s in range(len(lengths))]
        arena.seen, rows = [shape.context] * batch, sum(arena.capacity)
        arena.k, arena.v = (
            torch.empty(rows, shape.dim, device=device, dtype=torch.bfloat16).normal_() for _ in range(2)
        )
        if keep < 1.0:
            arena.position = torch.zeros(rows, dtype=torch.int32, device=device)
        arenas.append(arena)
    return arenas


def rows_bytes(arenas: list[Arena]) -> int:
    """Bytes of keys and values that one step reads."""
    return sum(arena.rows * (arena.k.shape[1] + arena.v.shape[1]) * arena.k.element_size() for arena in arenas)


# ---- a decode step ---------------------------------------------------------------------------------------------------


class Bare:
    """Random bfloat16 weights of a Llama, and one decode step over them."""

    def __init__(self, shape: Shape, device: torch.device):
        def draw(*size: int) -> Tensor:
            return torch.empty(*size, device=device, dtype=torch.bfloat16).normal_(0, size[-1] ** -0.5)

        self.shape = shape
        heads = (shape.heads + 2 * shape.kv_heads) * shape.dim
        self.embedding, self.head = draw(shape.vocabulary, shape.width), draw(shape.vocabulary, shape.width)
        self.layers = [
            (
                draw(heads, shape.width),
                draw(shape.width, shape.heads * shape.dim),
                draw(2 * shape.inner, shape.width),
                draw(shape.width, shape.inner),
            )
            for _ in range(shape.layers)
        ]
        self.frequency = 500000.0 ** (-torch.arange(0, shape.dim, 2, device=device) / shape.dim)

    @property
    def nbytes(self) -> int:
        weights = [self.embedding, self.head, *(w for layer in self.layers for w in layer)]
        return sum(w.nbytes for w in weights)

    def step(self, ids: Tensor, position: Tensor, attention: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Logits [B, V] of one new token each; `attention(layer, q, k, v)` stores and reads, [B, Hq, 1, D]."""
        shape, x = self.shape, self.embedding[ids]
        angle = (position * self.frequency).repeat(2)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        sin = torch.cat([-sin[: len(sin) // 2], sin[len(sin) // 2 :]])
        for layer, (qkv, out, up, down) in enumerate(self.layers):
            heads = F.linear(F.rms_norm(x, (shape.width,)), qkv).view(len(ids), -1, 1, shape.dim)
            turned, v = _rotate(heads[:, : -shape.kv_heads], cos, sin), heads[:, -shape.kv_heads :]
            mixed = attention(layer, turned[:, : shape.heads], turned[:, shape.heads :], v)
            x = x + F.linear(mixed.reshape(len(ids), -1), out)
            gate, value = F.linear(F.rms_norm(x, (shape.width,)), up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * value, down)
        return F.linear(F.rms_norm(x, (shape.width,)), self.head)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat([right, left], -1), sin)


def arena_step(bare: Bare, arenas: list[Arena], device: torch.device) -> Callable[[], object]:
    """A decode step over arenas that can be repeated as a graph: lengths and positions move on the device."""
    batch, scale = arenas[0].batch, bare.shape.dim**-0.5
    ids = torch.zeros(batch, dtype=torch.long, device=device)
    position = torch.full((1,), bare.shape.context, device=device)

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        arenas[layer].append(k, v)
        return attend(q, k, v, arenas[layer], scale)[0]

    bare.step(ids, position, attention)  # makes the work lists
    counter = torch.zeros(1, dtype=torch.int32, device=device)
    plans = [getattr(arena, "plan", None) for arena in arenas]
    for plan in plans:
        if plan is not None:
            plan.grown = counter
    stand = [(list(arena.length), list(arena.seen)) for arena in arenas]

    def step() -> Tensor:
        for arena, (length, seen) in zip(arenas, stand):  # the host stands still, the device counts
            if plans[0] is not None:
                arena.length, arena.seen = list(length), list(seen)
        logits = bare.step(ids, position, attention)
        counter.add_(1)
        position.add_(1)
        return logits

    work = captured(step, device)
    if [getattr(arena, "plan", None) for arena in arenas] != plans:
        raise RuntimeError("the work lists were remade while the step was captured: its lengths would not move")
    return work


def static_step(bare: Bare, batch: int, device: torch.device) -> Callable[[], object]:
    """The same step over a static cache, written in place and read by PyTorch's attention: the full cache at its best."""
    shape = bare.shape
    size = (2, batch, shape.kv_heads, shape.context + 1, shape.dim)
    caches = [torch.empty(size, device=device, dtype=torch.bfloat16).normal_() for _ in range(shape.layers)]
    ids = torch.zeros(batch, dtype=torch.long, device=device)
    position = torch.full((1,), shape.context, device=device)

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = caches[layer]
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)

    return captured(lambda: bare.step(ids, position, attention), device)
