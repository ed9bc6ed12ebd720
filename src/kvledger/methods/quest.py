"""Quest (Tang et al., 2024, arXiv 2406.10774; code Apache-2.0): read the pages of keys that a query could match best.

A page of 16 rows is summed up by the largest and the smallest number of its keys in each dimension (§3.2); for a query q,
Σ_d max(q_d·max_d, q_d·min_d) is above any q·k in the page. The pages with the largest bounds are read exactly, the newest
one always (as the authors' kernels do), and the first two layers read everything. While everything fits, no bound is computed.

Deviations: the paper's models have one KV head a query head. Where G query heads share one, a page is worth the largest of
their G bounds, which is a bound for all of them, and the pages chosen serve all G; so the budget is what a KV head reads. The
authors' evaluation code keeps at least three pages and lets the newest compete.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvledger.cache import native
from kvledger.cache.choose import padded, spans_of, top_k
from kvledger.cache.index import Index, against_bounds, bounds, logits
from kvledger.methods.reader import Choice, Look, Reader, at_least
from kvledger.recipe import Row, register


@register(Row("quest", "loading", "head", "page bounds", "arXiv 2406.10774", "reads the pages that could match best"))
@dataclass(frozen=True, kw_only=True)
class Quest(Reader):
    """pages: how many a KV head reads, the newest among them. size: rows of a page. dense: first layers that read all."""

    pages: int = 64
    size: int = 16
    dense: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(
            1, "a head reads the newest page at the least, and a page holds a row: it", pages=self.pages, size=self.size
        )

    def open(self) -> Index:
        return Index(self.size, bounds)

    def choose(self, look: Look) -> Choice | None:
        if max(look.lengths) <= self.pages * self.size:
            return None
        found = page_logits(look)
        if native.available(found):
            facts = [(s, look.arena.start[s], look.arena.length[s], look.index.count[s]) for s in look.segments]
            spans = native.pages(found, [x for fact in facts for x in fact], self.pages, self.size)
        else:
            spans = spans_of(top_k(_scores(look, found), self.pages), look.arena, look.segments, self.size)
        return Choice(spans, bounds_read(look))


def page_logits(look: Look) -> Tensor:
    """The bounds of each complete page, [G, pages of all segments]."""
    return logits(against_bounds(look.q), look.index.tables[0], look.index.spans(look.segments), look.scale)


def page_scores(look: Look) -> Tensor:
    """What each page is worth to a KV head's queries, [S, P]: the newest +inf, and -inf behind a segment's last page."""
    return _scores(look, page_logits(look))


def _scores(look: Look, found: Tensor) -> Tensor:
    counts = [look.index.count[s] for s in look.segments]
    pages = torch.tensor([-(-n // look.index.size) for n in look.lengths])
    scores = padded(found.amax(0), counts, int(pages.max()))
    scores[torch.arange(len(pages)), pages - 1] = torch.inf
    return scores


def bounds_read(look: Look) -> int:
    """Bytes of the bounds of all complete pages."""
    table = look.index.tables[0]
    return sum(look.index.count[s] for s in look.segments) * table.shape[-1] * table.element_size()
