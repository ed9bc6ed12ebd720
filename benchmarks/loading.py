"""Decode attention over the rows that a reader chooses, beside the dense read of the full cache in place, in one run.

Each step appends a token (not timed) and then reads: bringing the index up to date, choosing and attending are all timed, and
added up, so that the steps in which a page is completed weigh in. Keys are random, so that chosen pages lie apart, which is the
worst case for a reader. Building the index of the whole context, once, stands in its own column, in dense steps.

    python benchmarks/loading.py --shape llama-3.1-8b --tokens 8192 32768 --layers 2 --json loading.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shapes import config_of
from timing import seconds, setting, table
from torch import Tensor

from kvledger.cache.arena import Arena
from kvledger.cache.attend import attend
from kvledger.cache.spans import decode_spans
from kvledger.methods.quest import Quest
from kvledger.methods.reader import Look, Reader
from kvledger.methods.retrieval_attention import RetrievalAttention
from kvledger.methods.twilight import Twilight

PART = 8  # quest reads one page in so many


@dataclass
class Store:
    """A layer's rows, its index, and what its reader has read."""

    arena: Arena
    reader: Reader | None
    index: Any = None
    choice: Any = None

    def read(self, q: Tensor, new: Tensor) -> Tensor:
        scale, segments = q.shape[-1] ** -0.5, list(range(self.arena.heads))
        if self.reader is None:
            return attend(q, new, new, self.arena, scale)[0]
        if self.index is not None:
            self.index.update(self.arena, segments)
        self.choice = self.reader.choose(
            Look(q.view(len(segments), -1, q.shape[-1]), segments, self.arena, scale, self.index)
        )
        assert self.choice is not None, "everything is read"
        return decode_spans(q, self.arena, self.choice.spans.flatten(), scale)[0]

    @property
    def nbytes(self) -> int:
        """Bytes that the last step has read."""
        if self.choice is None:
            return self.arena.alive_nbytes
        return self.choice.nbytes + self.arena.read_nbytes(self.choice.spans)


def store_of(k: Tensor, v: Tensor, reader: Reader | None) -> tuple[Store, float]:
    """A store of rows [1, H, N, D], and the seconds that its index took to build."""
    arena = Arena(1, k.shape[1])
    arena.append(k, v)
    arena.append(k[:, :, :1], v[:, :, :1])  # with slack, as after a few steps
    store = Store(arena, reader, None if reader is None else reader.open())
    build = 0.0
    if store.index is not None:
        build = seconds(lambda: store.index.update(arena, range(arena.heads)))
    return store, build


def readers(tokens: int) -> dict[str, Reader | None]:
    return {
        "dense": None,
        f"quest, 1/{PART} of the pages": Quest(pages=tokens // 16 // PART),
        "twilight, p = 0.85": Twilight(),
        "retrieval, exact, k = 2000": RetrievalAttention(),
    }


def measure(config: Any, tokens: int, dtype: torch.dtype, layers: int, steps: int) -> list[dict[str, float | str]]:
    heads, queries, dim = config.num_key_value_heads, config.num_attention_heads, config.head_dim
    rows = [[torch.randn(1, heads, tokens, dim).to(dtype) for _ in "kv"] for _ in range(layers)]
    stores = {name: [store_of(k, v, reader) for k, v in rows] for name, reader in readers(tokens).items()}
    times = dict.fromkeys(stores, 0.0)
    for step in range(steps + 1):
        q, new = torch.randn(1, queries, 1, dim).to(dtype), torch.randn(1, heads, 1, dim).to(dtype)
        for name, some in stores.items():
            for store, _ in some:
                store.arena.append(new, new)
                spent = seconds(lambda store=store, q=q, new=new: store.read(q, new))
                times[name] += spent if step else 0.0
    dense, full = times["dense"], stores["dense"][0][0]
    return [
        {
            "tokens": f"{tokens:,}",
            "reader": name,
            "ms a layer": 1e3 * times[name] / steps / layers,
            "/ dense": times[name] / dense,
            "bytes read / all": some[0][0].nbytes / full.nbytes,
            "index / rows": getattr(some[0][0].index, "nbytes", 0) / full.arena.nbytes,
            "build, dense steps": statistics.mean(build for _, build in some) / (dense / steps / layers),
        }
        for name, some in stores.items()
    ]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config, results = config_of(arguments.shape), {}
    for name in arguments.dtypes:
        rows = [
            row
            for tokens in arguments.tokens
            for row in measure(config, tokens, getattr(torch, name), arguments.layers, arguments.steps)
        ]
        print(f"\n{arguments.shape}, {name}, {arguments.layers} layers, {arguments.steps} steps, {setting()}\n")
        print(table(rows), flush=True)
        results[name] = rows
    if arguments.json:
        arguments.json.write_text(json.dumps({**vars(arguments), "results": results}, indent=1, default=str))


if __name__ == "__main__":
    main()
