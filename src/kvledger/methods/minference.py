"""MInference: each head reads a prompt by the pattern that suits it (Jiang et al., 2024, arXiv 2407.02490 §3; code MIT).

Vertical-slash: the attention of the last queries is summed by column and by distance; the heaviest columns are seen by all
queries, the heaviest distances by all blocks of queries, to whole blocks. Block-sparse: queries and keys are pooled by blocks,
and each block of queries sees the key blocks with the largest products. A-shape: first rows and last ones, to whole blocks.

Which head has which is found by `kvledger probe minference` and read from its file, or from one of microsoft/MInference;
without a file every head is vertical-slash, which is what the authors' shipped file for Llama-3.1-8B says of all its 1,024
heads, with these sizes. Deviations: a diagonal's block that crosses the first row is cut there (the kernel moves it inside); in
chunked reading each chunk estimates for itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvledger.cache.masks import Blocks, Choice
from kvledger.methods.base import Shape
from kvledger.methods.headpatterns import HeadPattern, digest, patterns
from kvledger.methods.pattern import Look, Pattern, by_distance, largest, last_attention, pooled
from kvledger.recipe import Row, register

FIRST, NEAREST = 30, 100  # columns and distances that are always among those chosen, as far as there are so many


@register(
    Row(
        "minference",
        "generation",
        "head",
        "last queries",
        "arXiv 2407.02490",
        "columns and diagonals, found from the last queries",
    )
)
@dataclass(frozen=True, kw_only=True)
class MInference(Pattern):
    """path: a file of `kvledger probe minference`, one of microsoft/MInference, or "": every head vertical-slash. vertical,
    slash: columns and distances of such a head. queries: last queries that the estimate is made from. block: queries and rows
    that are seen together."""

    path: str = ""
    vertical: int = 512
    slash: int = 2048
    queries: int = 64
    block: int = 64

    def __post_init__(self) -> None:
        self.at_least(vertical=1, slash=1, queries=1, block=1)

    @property
    def fingerprint(self) -> str:
        return digest(self.path) if self.path else ""

    def fit(self, shape: Shape) -> None:
        if self.path:
            patterns(self.path, shape.layers, shape.heads)

    def choose(self, look: Look) -> Choice:
        wanted = [HeadPattern("vertical_slash", self.vertical, self.slash)] * len(look.heads)
        if self.path:
            wanted = [patterns(self.path)[look.layer][head] for head in look.heads]
        return choose(look, wanted, self.queries, self.block)


def choose(look: Look, wanted: list[HeadPattern], queries: int, block: int) -> Blocks:
    """What the query heads of `look` see, each by its own pattern."""
    G, _, N = look.shape
    columns, offsets = torch.zeros(2, G, N, dtype=torch.bool, device=look.keys.device)
    seen, scored = None, 0.0
    slashed = [one.kind == "vertical_slash" and max(one.first, one.second) < N for one in wanted]
    if any(slashed):
        weights = last_attention(look, queries)
        scored += weights.shape[1] * N * sum(slashed)
    for g, one in enumerate(wanted):
        if one.kind == "a_shape":
            columns[g, : one.first], offsets[g, : one.second] = True, True
        elif one.kind == "vertical_slash" and not slashed[g]:
            columns[g] = True
        elif slashed[g]:
            columns[g], offsets[g] = vertical_slash(weights[g], one.first, one.second)
        else:
            chosen, products = block_sparse(look, g, one.first, block)
            seen = chosen.new_zeros(G, *chosen.shape) if seen is None else seen
            seen[g], scored = chosen, scored + products
    return Blocks(block, seen, columns, offsets, scored)


def vertical_slash(weights: Tensor, vertical: int, slash: int) -> tuple[Tensor, Tensor]:
    """Of the last queries' attention [W, N]: the columns and the distances to see, [N] bool each."""
    by_column, by_offset = weights.sum(0), by_distance(weights[None])[0]
    by_column[: min(FIRST, vertical)], by_offset[: min(NEAREST, slash)] = torch.inf, torch.inf
    return largest(by_column, vertical), largest(by_offset, slash)


def block_sparse(look: Look, g: int, count: int, block: int) -> tuple[Tensor, float]:
    """For each block of queries of query head `g`, the `count` key blocks with the largest pooled products, among those up to
    its own: [blocks of queries, blocks of rows] bool, and the products computed."""
    _, T, N = look.shape
    first = (N - T) // block
    queries = pooled(look.queries[g : g + 1], block, N - T - first * block)[0]
    scores = queries @ pooled(look.keys[None], block)[0].T
    later = torch.ones_like(scores, dtype=torch.bool).triu(first + 1)
    return largest(scores.masked_fill(later, -torch.inf), count) & ~later, float(scores.numel())
