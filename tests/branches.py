"""Random weights of NSA's compressors and gates, in files, for `tiny`'s models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from kvledger.methods.nsafile import Branches, Facts, Trained, fresh

SIZES = "compress=4, stride=2, block=4, select=4, window=6"


def trained(layers: int = 2, heads: int = 4, seed: int = 0, gates: tuple[float, ...] | None = None) -> Trained:
    """Random ones, or with gates that are always the same (as logits)."""
    draw = torch.Generator().manual_seed(seed)

    def one() -> Branches:
        made = fresh(4, 16, 5, heads, 64, draw)
        made = Branches(**{name: torch.randn(x.shape, generator=draw) * 0.3 for name, x in made.tensors().items()})
        if gates is None:
            return made
        bias = torch.tensor(gates)[:, None].repeat(1, heads)
        return replace(made, gate=torch.zeros_like(made.gate), gate_bias=bias)

    facts = Facts("nsa", model="tiny", data="noise", steps=7, seed=seed, version="0")
    return Trained(facts, 2, tuple(one() for _ in range(layers)))


def recipe(path: Path, sizes: str = SIZES) -> str:
    return f"nsa({sizes}, path={str(path)!r})"
