"""TurboQuant's codes (Zandieh et al., 2025, arXiv 2504.19874, §3.1, TurboQuant_mse): a random rotation makes the coordinates of
a unit vector alike and nearly independent, so that one scalar codebook, Lloyd and Max's for their density, is near the best.

A row is its norm (float16) and a code for each coordinate of its rotated direction.  The expected squared error of a row of
norm 1 is at most 0.36, 0.117, 0.03 and 0.009 for 1 to 4 bits (Theorem 1).

Deviations: no second stage (the paper's QJL on the residual, which makes inner products unbiased), as in the implementations in
use; all channels alike (no outlier channels in more bits).  Rotation and codebook follow from the seed and the head dim; all
layers share them, they are not stored and not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kvledger.cache.kernels.codes import pack, unpack

GRID = 8192  # points at which the density is taken


@dataclass(frozen=True)
class Levels:
    """Rows of `levels[code] · norm` in a rotated basis. data: [rows, dim · bits / 8] uint8. norm: [rows, 1] float16. levels:
    [2^bits] float32. turn: [dim, dim] float32, a number's row times it is the rotated row. dtype: of the numbers."""

    data: Tensor
    norm: Tensor
    levels: Tensor
    turn: Tensor
    bits: int
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[0], self.turn.shape[0]

    def turned(self, rows: slice = slice(None)) -> Tensor:
        """Rows in the rotated basis, [n, dim] float32."""
        return self.levels[unpack(self.data[rows], self.bits).int()] * self.norm[rows].float()

    def plain(self, rows: slice = slice(None)) -> Tensor:
        """The numbers themselves, [n, dim]."""
        return (self.turned(rows) @ self.turn.T).to(self.dtype)


@dataclass(frozen=True)
class TurboRows:
    """The format of rows in `bits` bits a coordinate."""

    bits: int
    seed: int = 0

    def pack(self, x: Tensor) -> dict[str, Tensor]:
        x, levels = x.float(), self._levels(x)
        norm = x.norm(dim=-1, keepdim=True).half()
        unit = x @ rotation(x.shape[-1], self.seed).to(x.device) / norm.float().clamp(min=2.0**-24)
        code = torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2)
        return {"data": pack(code, self.bits), "scale": norm}

    def stored(self, held: dict[str, Tensor], dtype: torch.dtype) -> Levels:
        data = held["data"]
        dim = data.shape[-1] * 8 // self.bits
        turn = rotation(dim, self.seed).to(data.device)
        return Levels(data, held["scale"], codebook(dim, self.bits).to(data.device), turn, self.bits, dtype)

    def _levels(self, x: Tensor) -> Tensor:
        return codebook(x.shape[-1], self.bits).to(x.device)

    def check(self, dim: int) -> None:
        if dim % 8 or dim < 8:
            raise ValueError(
                f"turboquant packs eight coordinates together, and heads have dimension {dim}: use int8 or int4"
            )


@lru_cache
def rotation(dim: int, seed: int) -> Tensor:
    """A random orthogonal matrix [dim, dim] float32, uniform over rotations and reflections."""
    draw = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(draw)
    return (q * r.diagonal().sign()).float()


@lru_cache
def codebook(dim: int, bits: int) -> Tensor:
    """Lloyd and Max's levels [2^bits] float32, ascending, for a coordinate of a random unit vector in `dim` dimensions, whose
    density is (1 - x²)^((dim - 3) / 2) (§3.1)."""
    edge = min(1.0, 8 / math.sqrt(dim))
    x = torch.linspace(-edge, edge, GRID + 1, dtype=torch.float64)
    x = (x[1:] + x[:-1]) / 2
    mass = (1 - x * x) ** ((dim - 3) / 2)
    levels = torch.linspace(-2, 2, 2**bits, dtype=torch.float64) / math.sqrt(dim)
    for _ in range(300):
        cell = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)
        weight = torch.zeros_like(levels).index_add_(0, cell, mass)
        levels = torch.zeros_like(levels).index_add_(0, cell, mass * x) / weight
    return levels.float()
