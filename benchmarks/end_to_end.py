"""Decode steps of a whole model on caches that hold a long context: ours at several budgets, transformers' uncompressed ones.

Caches are filled with any rows, since only their sizes matter here; all take their steps turn about, in one run. The floor of a
step is what must be read: the weights and the rows stored, at the speed of a plain reduction over as many bytes.

    python benchmarks/end_to_end.py --shape bench-4x1024 --tokens 32768 --json end_to_end.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from shapes import lengths_of, model_of
from timing import ratio, seconds, setting, table
from transformers import DynamicCache, QuantizedCache, StaticCache

from kvledger.hf.attention import use
from kvledger.hf.cache import arenas, new_cache, run_of

OURS = {"kvledger, all rows": ("full", 1.0), "kvledger, even": ("even", 0.25), "kvledger, spread": ("spread", 0.25),
        "kvledger, half windows": ("half", 0.0)}  # fmt: skip


def rows_of(model: Any, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    config = model.config
    shape = 1, config.num_key_value_heads, tokens, config.head_dim
    return torch.full(shape, 0.1, dtype=model.dtype), torch.full(shape, 0.2, dtype=model.dtype)


def ours(model: Any, tokens: int, kind: str, keep: float) -> Any:
    """A cache as it is after reading `tokens` tokens and dropping all but `lengths_of` of each head."""
    cache = new_cache(model, "full")
    run = run_of(cache)
    run.auto = False
    lengths = lengths_of(kind, tokens, model.config.num_key_value_heads, keep)
    stay = torch.stack([torch.arange(tokens) >= tokens - n for n in lengths])
    for layer in arenas(cache):
        k, v = rows_of(model, tokens)
        layer._open(k, v, model.config.num_attention_heads)
        added = layer.arena.append(k, v)
        layer.columns, layer.scale, layer.is_initialized = tokens, model.config.head_dim**-0.5, True
        run.ledger.forward(layer.slot, added, layer.arena.length, layer.arena.row_nbytes)
        run.ledger.evict(layer.slot, lengths, layer.arena.keep([stay]))
        layer.hold()
    return cache


def theirs(model: Any, cache: Any, tokens: int) -> Any:
    for i in range(model.config.num_hidden_layers):
        cache.update(*rows_of(model, tokens), i)
    return cache


def made(model: Any, name: str, tokens: int, steps: int) -> Any:
    """A filled cache; None where a package is missing."""
    if name in OURS:
        return ours(model, tokens, *OURS[name])
    if name == "DynamicCache":
        return theirs(model, DynamicCache(config=model.config), tokens)
    if name == "StaticCache":
        return theirs(model, StaticCache(config=model.config, max_cache_len=tokens + steps), tokens)
    try:
        return theirs(model, QuantizedCache("quanto", model.config, nbits=4), tokens)
    except ImportError as missing:
        print(f"{name} is left out: {missing}")
        return None


def held(cache: Any) -> int:
    """Bytes of a cache's tensors."""
    if arenas(cache):
        return run_of(cache).ledger.stored_bytes
    tensors = [x for layer in cache.layers for x in vars(layer).values() if isinstance(x, torch.Tensor)]
    return sum(map(_stored, tensors))


def _stored(x: torch.Tensor) -> int:
    """Bytes of a tensor; of a packed one, those of its parts."""
    if not hasattr(x, "__tensor_flatten__"):
        return x.nbytes
    return sum(_stored(getattr(x, name)) for name in x.__tensor_flatten__()[0])


def floor(model: Any, cache: Any) -> float:
    """Seconds to read as many bytes as the weights and the cache hold."""
    size = (sum(x.nbytes for x in model.parameters()) + held(cache)) // 8
    room = torch.ones(size, dtype=torch.int64)
    return min(seconds(room.sum) for _ in range(3))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="bench-4x1024")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=4, help="decode steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    caches = [*OURS, "StaticCache", "DynamicCache", "QuantizedCache"]
    parser.add_argument("--caches", nargs="+", choices=caches, default=caches)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = model_of(arguments.shape, arguments.layers, getattr(torch, arguments.dtype))
    total = arguments.steps * (arguments.rounds + 1)
    caches = {name: made(model, name, arguments.tokens, total) for name in arguments.caches}
    caches = {name: cache for name, cache in caches.items() if cache is not None}
    token, times = torch.tensor([[5]]), {name: [] for name in caches}
    for turn in range(arguments.rounds + 1):
        for name, cache in caches.items():
            use(model) if name in OURS else model.set_attn_implementation("sdpa")
            spent = seconds(lambda: [model(input_ids=token, past_key_values=cache) for _ in range(arguments.steps)])  # noqa: B023
            times[name] += [spent / arguments.steps] if turn else []
    rows = []
    for name, cache in caches.items():
        rows.append({"cache": name, "MB": held(cache) / 1e6, "step ms": 1e3 * statistics.median(times[name]),
                     "floor ms": 1e3 * floor(model, cache)})  # fmt: skip
        rows[-1] |= {f"{other} / this": ratio(times[other], times[name]) for other in caches if other.endswith("Cache")}
    print(f"\n{arguments.shape}, {arguments.tokens:,} tokens, {arguments.dtype}, {setting()}\n\n{table(rows)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**vars(arguments), "rows": rows}, indent=1, default=str))


if __name__ == "__main__":
    main()
