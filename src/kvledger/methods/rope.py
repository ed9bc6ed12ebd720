"""Rotary position embeddings, forwards and backwards: what a scorer needs to look at queries and keys without position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """RoPE in the half-split convention (llama, qwen, mistral, gemma …): dims i and i + R/2 of the first R turn together.

    `frequencies` [R/2] radians a token; `scaling` multiplies cosine and sine (YaRN), and is divided out by `back`.
    """

    frequencies: Tensor
    scaling: float = 1.0

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """`x` [..., T, D] rotated to `positions` [..., T] (any shape that broadcasts), float32 or float64."""
        return self._rotate(x, positions, self.scaling, 1.0)

    def back(self, x: Tensor, positions: Tensor) -> Tensor:
        """Undo `turn`: what a key or query was before its rotation."""
        return self._rotate(x, positions, 1.0 / self.scaling, -1.0)

    def shift(self, x: Tensor, steps: Tensor) -> Tensor:
        """Rows `x` [..., T, D] that are rotated already, moved by `steps` [..., T] positions."""
        return self._rotate(x, steps, 1.0, 1.0)

    def mean(self, x: Tensor, positions: Tensor) -> Tensor:
        """The mean of `x` [..., D] rotated to each of `positions` [P]: linear in `x`, and no longer a rotation."""
        angles = positions[:, None].to(x.dtype) * self.frequencies.to(x)
        return self._combine(x, angles.cos().mean(0) * self.scaling, angles.sin().mean(0) * self.scaling)

    def _rotate(self, x: Tensor, positions: Tensor, factor: float, sign: float) -> Tensor:
        x = x if x.dtype == torch.float64 else x.float()
        angles = positions[..., None].to(x.dtype) * self.frequencies.to(x)
        return self._combine(x, angles.cos() * factor, angles.sin() * (sign * factor))

    def _combine(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = len(self.frequencies)
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
