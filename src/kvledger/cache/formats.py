"""How rows are stored: as the numbers they are, or in fewer bits.

- int8: `code · scale`, a scale per row (a token's key or value in one head). |x - x̂| <= scale / 2, scale = max|x| / 127.
- int4: `code · scale + zero`, likewise. |x - x̂| <= scale / 2, scale = (max - min) / 15.
- fp8: float8 e4m3 times a scale per row. |x - x̂| <= max(|x| / 16, scale / 1024), scale = max|x| / 448.
- groups (KIVI, arXiv 2402.02750 §3.2): affine as int4, for keys per channel in groups of rows, for values per row in groups of
  channels; 2 or 4 bits. |x - x̂| <= scale / 2, scale = (max - min) / (2^bits - 1) of the group.
- turboquant (arXiv 2504.19874 §3.1): see `turboquant.py`.

Scales and zeros are float16, rounded so that the bounds hold (scales up, zeros down: by 1/500 at most).  Numbers for which they
are too large become NaN, as in any overflow, and show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kvledger.cache.kernels.codes import Codes, pack
from kvledger.cache.turboquant import Levels

Stored = Tensor | Codes | Levels  # rows of keys or of values
Packed = dict[str, Tensor]  # "data" [..., bytes], and what belongs to it: "scale" and "zero"
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TINY = 2.0**-24  # the smallest float16 above 0


def numbers(x: Stored, rows: slice) -> Tensor:
    """Rows of `x` as numbers in the model's dtype, [n, D]: a view if they are stored as they are."""
    return x[rows] if isinstance(x, Tensor) else x.plain(rows)


def raw(x: Stored, rows: slice, dtype: torch.dtype) -> Tensor:
    """Rows of `x` as numbers [n, D] in its own basis: queries must be `turned` to it, and what was read `turned_back`."""
    return x.turned(rows).to(dtype) if isinstance(x, Levels) else numbers(x, rows)


def turned(q: Tensor, keys: Stored) -> Tensor:
    """`q` [..., D] in the basis in which `keys` are stored."""
    return (q.float() @ keys.turn).to(q.dtype) if isinstance(keys, Levels) else q


def turned_back(out: Tensor, values: Stored) -> Tensor:
    """`out` [..., D], a sum of `raw` values, in the model's basis."""
    return (out.float() @ values.turn.T).to(out.dtype) if isinstance(values, Levels) else out


class RowFormat(Protocol):
    """A form in which each row stands for itself."""

    def pack(self, x: Tensor) -> Packed:
        """Of rows [..., D]."""

    def stored(self, held: Packed, dtype: torch.dtype) -> Stored:
        """Packed rows [n, ...] as readers take them; `dtype` of their numbers."""

    def check(self, dim: int) -> None:
        """ValueError if rows of `dim` numbers cannot be packed."""


@dataclass(frozen=True)
class AsIs:
    """Rows as they are, through all that packed rows go through: what a format costs besides its bits, which is nothing."""

    def pack(self, x: Tensor) -> Packed:
        return {"data": x}

    def stored(self, held: Packed, dtype: torch.dtype) -> Stored:
        return held["data"]

    def check(self, dim: int) -> None:
        pass


@dataclass(frozen=True)
class Int8:
    def pack(self, x: Tensor) -> Packed:
        scale = up(x.float().abs().amax(-1, keepdim=True) / 127)
        return {"data": (x.float() / _safe(scale)).round().to(torch.int8), "scale": scale}

    def stored(self, held: Packed, dtype: torch.dtype) -> Stored:
        return Codes(held["data"], held["scale"], dtype=dtype)

    def check(self, dim: int) -> None:
        pass


@dataclass(frozen=True)
class Int4:
    def pack(self, x: Tensor) -> Packed:
        return affine(x, 4, -1)

    def stored(self, held: Packed, dtype: torch.dtype) -> Stored:
        return Codes(held["data"], held["scale"], held["zero"], bits=4, dtype=dtype)

    def check(self, dim: int) -> None:
        if dim % 2:
            raise ValueError(
                f"int4 packs two numbers into a byte, and heads of dimension {dim} have an odd one: use int8"
            )


@dataclass(frozen=True)
class Fp8:
    def pack(self, x: Tensor) -> Packed:
        scale = up(x.float().abs().amax(-1, keepdim=True) / 448)
        return {"data": (x.float() / _safe(scale)).to(torch.float8_e4m3fn).view(torch.uint8), "scale": scale}

    def stored(self, held: Packed, dtype: torch.dtype) -> Stored:
        return Codes(held["data"].view(torch.float8_e4m3fn), held["scale"], dtype=dtype)

    def check(self, dim: int) -> None:
        pass


def affine(x: Tensor, bits: int, over: int) -> Packed:
    """`x` in codes of `bits` bits, `code · scale + zero`, with a scale and a zero for all numbers along dimension `over`, which
    they keep with size 1."""
    x = x.float()
    zero = _down(x.amin(over, keepdim=True))
    scale = up((x.amax(over, keepdim=True) - zero.float()) / (2**bits - 1))
    code = ((x - zero.float()) / _safe(scale)).round().clamp(0, 2**bits - 1)
    return {"data": pack(code, bits), "scale": scale, "zero": zero}


def up(x: Tensor) -> Tensor:
    """Numbers >= 0 as float16 that are not smaller."""
    return (x * (1 + 2.0**-10) + TINY / 2).half()


def _down(x: Tensor) -> Tensor:
    """As float16 that are not larger."""
    return (x - x.abs() * 2.0**-10 - TINY / 2).half()


def _safe(scale: Tensor) -> Tensor:
    """To divide by: a scale is 0 only where all numbers are."""
    return scale.float().clamp(min=TINY)
