"""Uniformly random rows, seeded: the floor that every idea has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvledger.methods.base import Method, View
from kvledger.recipe import Row, register


@register(Row("random", "compression", "head", "-", "-", "uniformly random rows: the floor of every comparison"))
@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """seed: another seed keeps other rows; layers and chunks draw independently."""

    seed: int = 0

    def score(self, view: View) -> Tensor:
        moment = int(view.positions.max()) if view.positions.numel() else 0
        draw = torch.Generator().manual_seed((self.seed * 1009 + view.layer) * 10_000_019 + moment)
        return torch.rand(view.shape, generator=draw).to(view.keys.device)
