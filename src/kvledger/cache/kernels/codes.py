"""Rows in fewer bits: how the CUDA reader expects them, and what they stand for.

One affine rule covers what is in use: fp8 with a scale per row or head, int8 per token, KIVI's keys (arXiv 2402.02750 §3.2: a
scale and a zero point per channel in groups of rows) and its values (per row in groups of channels).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """`rows` × `dim` numbers as `code · scale + zero`.

    data: [rows, dim] of float8_e4m3fn, int8 or uint8; with 4 or 2 `bits`, [rows, dim · bits / 8] uint8, the first dimension of
    a byte in its low bits.  scale, zero: floats [ceil(rows / row_group), ceil(dim / dim_group)]; no zero means 0.
    A segment starts at a multiple of `row_group`, a power of two up to 32, so that no group is shared by two heads; `dim_group`
    divides the head dim rounded up to a power of two.  The kernels take float8 from compute capability 8.9 on, and
    not 2 bits.
    """

    data: Tensor
    scale: Tensor
    zero: Tensor | None = None
    row_group: int = 1
    dim_group: int = 1 << 30
    bits: int = 8
    dtype: torch.dtype = torch.float32  # of the numbers

    @property
    def dim(self) -> int:
        return self.data.shape[-1] * 8 // self.bits

    @property
    def shape(self) -> tuple[int, int]:
        """Of the numbers."""
        return self.data.shape[0], self.dim

    def plain(self, rows: slice = slice(None)) -> Tensor:
        """The numbers themselves, [rows, dim]; for readers that know no codes."""
        start, stop, _ = rows.indices(len(self.data))
        numbers = unpack(self.data[start:stop], self.bits).float() * self._spread(self.scale, start, stop)
        return (numbers if self.zero is None else numbers + self._spread(self.zero, start, stop)).to(self.dtype)

    def _spread(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Scales or zeros of rows `start` to `stop`, repeated over their groups: [n, dim or 1]."""
        first = start // self.row_group
        x = x[first : -(-stop // self.row_group)].float()
        if self.row_group > 1:
            x = x.repeat_interleave(self.row_group, 0)[start - first * self.row_group :][: stop - start]
        return x.repeat_interleave(self.dim_group, 1)[:, : self.dim] if x.shape[1] > 1 and self.dim_group > 1 else x


def pack(code: Tensor, bits: int) -> Tensor:
    """Codes [..., dim] below 2^bits in bytes [..., dim · bits / 8]; the first dimension of a byte in its low bits. 3 bits are
    spread over three bytes for eight dimensions: their lowest bits, the next ones, the highest."""
    code = code.to(torch.uint8)
    if bits == 3:
        planes = torch.stack([code >> i & 1 for i in range(3)], -1).unflatten(-2, (-1, 8))  # [..., dim / 8, 8, 3]
        return _join(planes.transpose(-1, -2), 1).flatten(-2)
    return code if bits == 8 else _join(code.unflatten(-1, (-1, 8 // bits)), bits)


def _join(code: Tensor, bits: int) -> Tensor:
    """[..., 8 / bits] codes in a byte each."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=code.device)
    return (code << shifts).sum(-1, dtype=torch.uint8)


def unpack(data: Tensor, bits: int) -> Tensor:
    """The codes [..., dim] that `pack` has put into `data`."""
    if bits == 8:
        return data
    if bits == 3:
        planes = unpack(data, 1).unflatten(-1, (-1, 3, 8))
        return planes[..., 0, :].add(planes[..., 1, :] << 1).add(planes[..., 2, :] << 2).flatten(-2)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    return (data[..., None] >> shifts & ((1 << bits) - 1)).flatten(-2)
