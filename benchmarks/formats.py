"""Decode attention over rows in fewer bits, beside the same rows as bfloat16 and float32.

Each format packs the same rows; a step reads all of them for one token, and the ways take turns, so that a noisy neighbour
slows both sides of a ratio. Stored bytes are those of the tensors, over a bfloat16 cache's.

    python benchmarks/formats.py --tokens 8192 32768 --layers 2 --json formats.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from timing import ratio, seconds, setting, table

from kvledger.cache.arena import Arena
from kvledger.cache.attend import attend
from kvledger.recipe import parse

PLAIN = {"bfloat16": torch.bfloat16, "float32": torch.float32}
FORMATS = ("int8", "fp8", "int4", "kivi(bits=4)", "kivi(bits=2)", "turboquant(bits=4)")


def filled(name: str, heads: int, tokens: int, dim: int) -> Arena:
    """An arena of one layer that has read `tokens` tokens and one more, as a decode step finds it."""
    dtype = PLAIN.get(name, torch.bfloat16)
    arena = Arena(1, heads) if name in PLAIN else parse(name).format.arena(1, heads, lambda held: None)
    draw = torch.Generator().manual_seed(0)
    for count in (tokens, 1):
        k, v = (torch.randn(1, heads, count, dim, generator=draw) for _ in "kv")
        arena.append(*(x.to(dtype) for x in (k, v)))
        arena.seal()
    return arena


def measure(names: list[str], options: argparse.Namespace, tokens: int) -> list[dict[str, float | str]]:
    """A row for each format: bytes, milliseconds a layer, and the ratios to bfloat16 and float32."""
    arenas = {n: [filled(n, options.heads, tokens, options.dim) for _ in range(options.layers)] for n in names}
    q = torch.randn(1, options.heads * options.groups, 1, options.dim)
    new = torch.zeros(1, options.heads, 1, options.dim)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.rounds + 1):
        for name in names:
            x = q if name == "float32" else q.bfloat16()
            took = seconds(lambda x=x, name=name: [attend(x, new, new, one, options.dim**-0.5) for one in arenas[name]])
            times[name] += [took] if turn else []  # the first is to warm up
    full = 4 * options.heads * tokens * options.dim
    return [
        {
            "format": name,
            "stored / bf16": arenas[name][0].nbytes / full,
            "ms a layer": 1e3 * statistics.median(times[name]) / options.layers,
            "/ bf16": ratio(times[name], times["bfloat16"]),
            "/ fp32": ratio(times[name], times["float32"]),
        }
        for name in names
    ]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    for tokens in options.tokens:
        rows = results[tokens] = measure(["bfloat16", "float32", *options.formats], options, tokens)
        print(
            f"\n{tokens:,} rows, {options.heads} KV heads of {options.dim}, {options.groups} queries each, {setting()}\n"
        )
        print(table(rows), flush=True)
    if options.json:
        options.json.write_text(json.dumps({**vars(options), "results": results}, indent=1, default=str))


if __name__ == "__main__":
    main()
