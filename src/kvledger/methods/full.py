"""The full cache: nothing is dropped. The reference of every table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvledger.methods.base import Method, View
from kvledger.recipe import Row, register


@register(Row("full", "compression", "-", "-", "-", "keeps every row: the reference"))
@dataclass(frozen=True, kw_only=True)
class Full(Method):
    keep: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != 1.0:
            raise ValueError(f"full keeps everything, so keep={self.keep} has no meaning; use random or streaming")

    def score(self, view: View) -> Tensor:
        return torch.ones(view.shape)
