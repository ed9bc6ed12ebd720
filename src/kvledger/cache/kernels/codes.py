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

    data: [rows, dim] of float8_e4m3fn, int8 or uint8; with `packed`, [rows, dim / 2] uint8, two 4-bit codes a byte, the even
    dimension in the low half.  scale, zero: float32 [ceil(rows / row_group), ceil(dim / dim_group)]; no zero means 0.
    A segment starts at a multiple of `row_group`, a power of two up to 32, so that no group is shared by two heads; `dim_group`
    divides the head dim rounded up to a power of two.  The kernels take float8 from compute capability 8.9 on.
    """

    data: Tensor
    scale: Tensor
    zero: Tensor | None = None
    row_group: int = 1
    dim_group: int = 1 << 30
    packed: bool = False

    @property
    def dim(self) -> int:
        return self.data.shape[-1] * (2 if self.packed else 1)

    def plain(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers themselves, [rows, dim]. Slow; for tests and for readers that know no codes."""
        code = self.data
        if self.packed:
            code = torch.stack([code & 15, code >> 4], dim=-1).flatten(-2)
        row = torch.arange(code.shape[0], device=code.device)[:, None] // self.row_group
        dim = torch.arange(code.shape[1], device=code.device)[None] // self.dim_group
        numbers = code.float() * self.scale[row, dim]
        return (numbers if self.zero is None else numbers + self.zero[row, dim]).to(dtype)
