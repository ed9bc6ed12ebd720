"""Reading a long prompt in chunks with eviction, beside the dense reading of it in one shot; and the peak of what was held.

The floor is arithmetic: the linear layers' operations, and attention's over the rows that each token meets, at the speed that
the dense reading reached. Peaks are the ledger's, over what is left at the end plus one chunk.

    python benchmarks/prefill.py --shape bench-4x1024 --layers 1 --tokens 32768 --chunk 4096 --keep 0.25 --json prefill.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from shapes import model_of
from timing import seconds, setting, table
from transformers import DynamicCache

from kvledger.hf.cache import arenas, new_cache, run_of

METHODS = ("full", "streaming", "snapkv", "adakv")


def chunks(tokens: int, size: int) -> list[range]:
    return [range(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def read(model: Any, ids: torch.Tensor, cache: Any, size: int) -> float:
    """Seconds to read `ids`, `size` tokens a forward."""

    def run() -> None:
        for chunk in chunks(ids.shape[1], size):
            model(input_ids=ids[:, chunk.start : chunk.stop], past_key_values=cache, logits_to_keep=1)

    return seconds(run)


def operations(config: Any, tokens: int, size: int, keep: float) -> float:
    """Multiplications and additions of a reading in chunks of which a share `keep` stays."""
    pairs, stored = 0.0, 0.0
    for chunk in chunks(tokens, size):
        pairs += len(chunk) * stored + len(chunk) * (len(chunk) + 1) / 2
        stored += keep * len(chunk)
    heads, kv, dim, width = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.hidden_size,
    )
    linear = width * dim * (2 * heads + 2 * kv) + 3 * width * config.intermediate_size
    return config.num_hidden_layers * (2 * linear * tokens + 4 * heads * dim * pairs)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="bench-4x1024")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--chunk", type=int, default=4096)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model, tokens = model_of(arguments.shape, arguments.layers), arguments.tokens
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))
    model.set_attn_implementation("sdpa")
    dense = read(model, ids, DynamicCache(config=model.config), tokens)
    work, row = operations(model.config, tokens, tokens, 1.0), 2 * model.config.head_dim * model.dtype.itemsize
    rows = [
        {"reading": "dense, one shot", "s": dense, "/ dense": 1.0, "floor / dense": 1.0, "peak / (kept + chunk)": "-"}
    ]
    for name in arguments.methods:
        recipe = name if name == "full" else f"{name}(keep={arguments.keep}, when='chunk')"
        cache, keep = new_cache(model, recipe), 1.0 if name == "full" else arguments.keep
        spent, ledger = read(model, ids, cache, arguments.chunk), run_of(cache).ledger
        kept = sum(layer.arena.rows for layer in arenas(cache)) * row
        chunk = arguments.chunk * row * model.config.num_key_value_heads * model.config.num_hidden_layers
        most = ledger.peak_bytes / (kept + (chunk if keep < 1 else 0))
        least = operations(model.config, tokens, arguments.chunk, keep) / work
        rows.append({"reading": recipe, "s": spent, "/ dense": spent / dense, "floor / dense": least,
                     "peak / (kept + chunk)": most})  # fmt: skip
        print(f"{recipe}: {spent / dense:.2f}", flush=True)
    print(f"\n{arguments.shape}, {model.config.num_hidden_layers} layers, {tokens:,} tokens in chunks of {arguments.chunk:,}, "
          f"float32, {setting()}\n\n{table(rows)}")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps({**vars(arguments), "rows": rows}, indent=1, default=str))


if __name__ == "__main__":
    main()
