"""Attention of a prompt's queries by a pattern over dense causal attention, one KV head, in one run; choosing included.

Queries and keys are drawn so that attention is as in a model: first tokens and near tokens are preferred, a few columns are.
"work" is the ledger's: query-key pairs computed, products for choosing at one half, over those of causal attention.

    python benchmarks/sparse.py --tokens 8192 16384 32768 --json sparse.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from timing import ratio, seconds, setting, table
from torch import Tensor

from kvledger.cache.masks import Band
from kvledger.cache.sparse import read
from kvledger.methods.pattern import Look
from kvledger.recipe import parse

RECIPES = ("ashape", "trishape", "minference", "flexprefill", "xattention", "moba", "nsa")


def drawn(tokens: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [1, T, D], keys and values [T, D] that prefer the first tokens, near ones (by rotation) and 64 columns."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(tokens, dim, generator=draw) for _ in range(3))
    angle = torch.arange(tokens)[:, None] * 10_000.0 ** (-torch.arange(dim // 4) / (dim // 4))
    near = torch.cat([angle.cos(), angle.sin()], -1) * 2
    q[:, : dim // 2], k[:, : dim // 2] = near, near
    q[:, -1], k[:, -1] = 2.0, 0.0
    k[:4, -1], k[torch.randint(0, tokens, (64,), generator=draw), -1] = 60.0, 50.0
    return q[None], k, v


def measure(recipes: list[str], tokens: int, dim: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Time over dense, and work over dense, of each recipe."""
    (q, k, v), scale, work = drawn(tokens, dim), dim**-0.5, {}

    def sparse(name: str) -> None:
        choice = parse(name).pattern.choose(Look(0, range(1), q, k, scale))
        work[name] = (read(q, k, v, choice, scale)[2] + getattr(choice, "scored", 0.0) / 2) / (
            tokens * (tokens + 1) / 2
        )

    times: dict[str, list[float]] = {name: [] for name in ("", *recipes)}
    for _ in range(rounds):
        times[""].append(seconds(lambda: read(q, k, v, Band(0, tokens), scale)))
        for name in recipes:
            times[name].append(seconds(lambda name=name: sparse(name)))
    return {name: (ratio(times[name], times[""]), work[name]) for name in recipes}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: dict[str, dict[str, float | str]] = {name: {"pattern": name} for name in arguments.recipes}
    for tokens in arguments.tokens:
        for name, (time, work) in measure(arguments.recipes, tokens, arguments.dim, arguments.rounds).items():
            rows[name] |= {f"time at {tokens // 1024}K": time, f"work at {tokens // 1024}K": work}
            print(f"{name}, {tokens}: time {time:.2f}, work {work:.2f}", flush=True)
    print(
        f"\none head of {arguments.dim}, float32, {setting()}; dense causal attention = 1\n\n{table(list(rows.values()))}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({**vars(arguments), "rows": list(rows.values())}, indent=1, default=str))


if __name__ == "__main__":
    main()
