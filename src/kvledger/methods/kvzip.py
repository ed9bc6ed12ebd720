"""KVzip (Kim et al., 2025, arXiv 2505.23416; code MIT): rows that the model needs to repeat its context stay.

When the context has been read, the model is asked to repeat it, `chunk` tokens at a time, and is shown each piece as its own
answer. A row is worth the most that any of these tokens attends to it, over queries and heads of the group, the softmax
running over the sinks, the piece's rows and the repetition itself (§3.2); rows of all heads and layers compete. What the
repetition stored is taken back each time, so the peak is the context and one piece, and what is dropped is really gone.
`plus=True` is KVzip+ (as in KVzap, arXiv 2601.07891): weights times ‖W_o v‖ over the norm of the layer's input at the query.

Deviations: the chat template's header before the context is repeated with it, and competes too, but for `sinks`; with
when="chunk" each chunk is repeated once it has been read, in view of all that is still stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvledger.cache.softmax import sdpa
from kvledger.methods.base import Glance, Method, Probe, View
from kvledger.recipe import Row, register

FIRST = "\n\nRepeat the previous context exactly."
NEXT = "\n\nRepeat the part of the previous context exactly, starting with"
QUERIES = 512  # of the repetition that are looked at together


@register(
    Row("kvzip", "compression", "across layers", "a probe", "arXiv 2505.23416", "rows needed to repeat the context")
)
@dataclass(frozen=True, kw_only=True)
class KVzip(Method):
    """chunk: how many tokens are repeated at a time. echo: how many of the piece before open the next request. plus: weigh by
    the size of what a row adds to the output (KVzip+). sinks: the first tokens, which stay."""

    chunk: int = 2048
    echo: int = 8
    plus: bool = False
    sinks: int = 4  # type: ignore[misc]
    allocator: str = "layers"

    tally: ClassVar[str] = "probe"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}: at least one token must be repeated at a time")
        if self.echo < 0:
            raise ValueError(f"echo={self.echo} is negative")
        if self.every:
            raise ValueError(
                f"every={self.every}: nothing is repeated while decoding, so kvzip cannot judge rows there"
            )

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("hidden", "output") if self.plus else ()

    def score(self, view: View) -> Tensor:
        assert view.tally is not None
        return view.tally

    def probes(
        self, ids: Sequence[int], start: int, encode: Callable[[str], list[int]], lead: Sequence[int]
    ) -> Iterator[Probe]:
        for a in range(0, len(ids), self.chunk):
            ask = [*encode(NEXT), *ids[max(0, a - self.echo) : a]] if a else encode(FIRST)
            piece = ids[a : a + self.chunk]
            yield Probe((*ask, *lead, *piece), start + a, start + a + len(piece))

    def watch(self, glance: Glance) -> Tensor:
        """The greatest weight of each row of the span, [H, rows]: normalisers by fused attention, then logits in blocks."""
        positions, (_, G, T, _) = glance.positions, glance.queries.shape
        span = (positions >= glance.probe.start) & (positions < glance.probe.stop)
        queries, keys = glance.queries.float() * glance.scale, glance.keys[:, None].float().expand(-1, G, -1, -1)
        far, own = keys[:, :, span | (positions < min(self.sinks, glance.probe.start))], keys[:, :, -T:]
        lse = torch.logaddexp(sdpa(queries, far, far, 1.0)[1], sdpa(queries, own, own, 1.0, causal=True)[1])
        if glance.hidden is not None:
            lse = lse + glance.hidden.float().norm(dim=-1).log()
        rows = glance.keys[:, None, span].float().mT
        best = torch.full((*lse.shape[:2], rows.shape[-1]), -torch.inf, device=lse.device)
        for t in range(0, T, QUERIES):
            logits = (queries[:, :, t : t + QUERIES] @ rows).sub_(lse[:, :, t : t + QUERIES, None])
            best = torch.maximum(best, logits.amax(2))
        return (best.exp() * self._sizes(glance.values[:, span].float(), glance)).amax(1)

    def _sizes(self, values: Tensor, glance: Glance) -> Tensor | float:
        """‖W_o v‖ of `values` [H, n, Dv] for each query head, [H, G, n]; 1 without `plus`."""
        if glance.output is None:
            return 1.0
        gram = glance.output.float() @ glance.output.float().mT  # ‖W_o v‖² = vᵀ(W_o W_oᵀ)v, without the model's width
        return ((values[:, None] @ gram) * values[:, None]).sum(-1).clamp(min=0).sqrt()
