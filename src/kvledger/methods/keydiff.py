"""KeyDiff (Park et al., 2025, arXiv 2504.15364): the keys least like the others stay.

A key is compared by cosine with the mean of all candidates' directions. Deviation: the paper evicts block by block while
reading and compares with all that is stored; when="chunk" here compares with the chunk's own keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvledger.methods.base import Method, View
from kvledger.recipe import Row, register


@register(Row("keydiff", "compression", "head", "keys", "arXiv 2504.15364", "keys unlike the mean key"))
@dataclass(frozen=True, kw_only=True)
class KeyDiff(Method):
    def score(self, view: View) -> Tensor:
        directions = torch.nn.functional.normalize(view.keys.float(), dim=-1)
        return -torch.nn.functional.cosine_similarity(directions, directions.mean(1, keepdim=True), dim=-1)
