"""Decode attention of one token over ragged heads, beside the time to merely read the bytes that are stored.

The floor is the faster of two reductions (sum of 64-bit words, largest float) over buffers of just the bytes stored, measured
next to each of our steps; ratios are medians over rounds, so that a noisy neighbour slows both sides of a ratio. Enough layers
take turns that nothing stays in a cache. `PyTorch` is our path without a C compiler, `per head` an SDPA call for each head,
`static SDPA` the uncompressed cache read in place by PyTorch.

    python benchmarks/decode.py --shape llama-3.1-8b --tokens 16384 --layers 3 --json decode.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from shapes import config_of, lengths_of
from timing import ratio, seconds, setting, table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from kvledger.cache import native
from kvledger.cache.arena import Arena
from kvledger.cache.attend import attend

KINDS = ("full", "even", "half", "spread")
Times = dict[str, list[float]]


def arena_of(lengths: list[int], dim: int, dtype: torch.dtype) -> Arena:
    """An arena whose head `h` holds `lengths[h]` of as many tokens as the longest has, with slack as after a few steps."""
    most, heads = max(lengths), len(lengths)
    arena = Arena(1, heads)
    arena.append(*(torch.randn(1, heads, most, dim).to(dtype) for _ in "kv"))
    places = torch.stack([torch.arange(most) >= most - n for n in lengths])
    arena.keep([places])
    arena.append(*(torch.randn(1, heads, 1, dim).to(dtype) for _ in "kv"))
    return arena


def per_head(q: Tensor, arena: Arena) -> None:
    groups = q.shape[1] // arena.heads
    for s in range(arena.heads):
        rows = arena.segment(s)
        sdpa(q[:, s * groups : (s + 1) * groups].transpose(1, 2), arena.k[None, None, rows], arena.v[None, None, rows])


def measure(arenas: list[Arena], q: Tensor, rounds: int) -> Times:
    """Seconds of each way to go over all layers, turn about."""
    scale, bare = q.shape[-1] ** -0.5, mock.patch.object(native, "usable", return_value=False)
    rows = [torch.cat([x[a.segment(s)] for s in range(a.heads)]) for a in arenas for x in (a.k, a.v)]
    new = q[:, : arenas[0].heads]
    ways: dict[str, Callable[[], object]] = {
        "sum": lambda: [x.view(torch.int64).sum() for x in rows],
        "largest": lambda: [x.view(torch.float32).amax() for x in rows],
        "kvledger": lambda: [attend(q, new, new, arena, scale) for arena in arenas],
        "per head": lambda: [per_head(q, arena) for arena in arenas],
    }
    times: Times = {name: [] for name in (*ways, "PyTorch")}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            times[name].append(seconds(way))
        with bare:
            times["PyTorch"].append(seconds(ways["kvledger"]))
        if not turn:
            times = {name: [] for name in times}  # warm
    return times


def static(q: Tensor, layers: int, tokens: int, heads: int, rounds: int) -> float:
    k, v = (torch.randn(layers, 1, heads, tokens, q.shape[-1]).to(q.dtype) for _ in "kv")
    runs = [seconds(lambda: [sdpa(q, k[i], v[i], enable_gqa=True) for i in range(layers)]) for _ in range(rounds + 1)]
    return statistics.median(runs[1:])


def row(kind: str, times: Times, nbytes: int, full: float) -> dict[str, float | str]:
    times["read"] = [min(pair) for pair in zip(times["sum"], times["largest"])]
    ours = statistics.median(times["kvledger"])
    return {
        "rows": kind,
        "MB": nbytes / 1e6,
        "read ms": 1e3 * statistics.median(times["read"]),
        "kvledger ms": 1e3 * ours,
        "kvledger / read": ratio(times["kvledger"], times["read"]),
        "PyTorch / read": ratio(times["PyTorch"], times["read"]),
        "per head / read": ratio(times["per head"], times["read"]),
        "kvledger / its full": ours / full if full else 1.0,
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config, results = config_of(arguments.shape), {}
    heads, dim = config.num_key_value_heads, config.head_dim
    for name in arguments.dtypes:
        dtype, full, rows = getattr(torch, name), 0.0, []
        q = torch.randn(1, config.num_attention_heads, 1, dim).to(dtype)
        for kind in KINDS:
            lengths = lengths_of(kind, arguments.tokens, heads, arguments.keep)
            arenas = [arena_of(lengths, dim, dtype) for _ in range(arguments.layers)]
            times = measure(arenas, q, arguments.rounds)
            nbytes = sum(a.rows for a in arenas) * 2 * dim * dtype.itemsize
            rows.append(row(kind, times, nbytes, full))
            full = full or statistics.median(times["kvledger"])
            del arenas
        whole = 1e3 * static(q, arguments.layers, arguments.tokens, heads, 5)
        print(f"\n{arguments.shape}, {arguments.layers} layers, {arguments.tokens:,} tokens, keep {arguments.keep}, {name}, "
              f"{setting()}; static SDPA over all rows: {whole:.1f} ms\n")  # fmt: skip
        print(table(rows), flush=True)
        results[name] = {"rows": rows, "static_ms": whole}
    if arguments.json:
        arguments.json.write_text(json.dumps({**vars(arguments), "results": results}, indent=1, default=str))


if __name__ == "__main__":
    main()
