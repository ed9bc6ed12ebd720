"""StreamingLLM (Xiao et al., 2023, arXiv 2309.17453; code MIT): attention sinks and the most recent rows.

Deviations: the window is a fraction of what has been read (`keep`), so that it can be compared with other methods, instead
of a fixed size; kept keys stay at their true positions (the original numbers them anew inside the cache).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvledger.methods.base import Method, View
from kvledger.recipe import Row, register


@register(
    Row("streaming", "compression", "layer", "-", "arXiv 2309.17453", "first tokens (sinks) and the most recent ones")
)
@dataclass(frozen=True, kw_only=True)
class Streaming(Method):
    """sinks: how many of the first tokens stay for good."""

    sinks: int = 4  # type: ignore[misc]

    among: ClassVar[str] = "all"  # a sliding window forgets rows of earlier chunks, too

    def score(self, view: View) -> Tensor:
        return view.positions.float()
