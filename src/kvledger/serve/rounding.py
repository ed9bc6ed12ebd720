"""From head gates to whole layers, for engines that know a window for a layer and none for a head. No torch.

"budget": as many full layers as the full heads would fill, halves rounded up and at least one; those with the most full heads,
equal ones by the sum of their scores, then the earlier. Memory stays, heads change. "any": every layer with a full head stays
full. No head loses anything it had, memory grows.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvledger.methods.gatefile import Gates, Mask, Scores

ROUND = ("budget", "any")


@dataclass(frozen=True)
class Rounded:
    """layers [L]: which stay full. opened: heads that had a window and are full now; closed: the reverse; heads: all."""

    layers: tuple[bool, ...]
    opened: int
    closed: int
    heads: int

    @property
    def full(self) -> float:
        """Fraction of the heads that are full."""
        return sum(self.layers) / len(self.layers)

    def gates(self, gates: Gates) -> Gates:
        """Gates of the same sink and window whose best heads are the full layers'."""
        width = len(gates.scores[0])
        table = tuple((float(full),) * width for full in self.layers)
        return Gates(table, gates.sink, gates.window, gates.model, gates.revision, f"{gates.objective}, whole layers")


def rounded(mask: Mask, scores: Scores, how: str) -> Rounded:
    """`mask` [L][H] (true: full) by whole layers. ValueError for an unknown `how`."""
    if how not in ROUND:
        raise ValueError(f"--round {how!r} is not {' or '.join(map(repr, ROUND))}")
    width = len(mask[0])
    if how == "any":
        layers = tuple(any(row) for row in mask)
    else:
        count = max(1, int(sum(map(sum, mask)) / width + 0.5))
        order = sorted(range(len(mask)), key=lambda i: (-sum(mask[i]), -sum(scores[i]), i))
        layers = tuple(i in order[:count] for i in range(len(mask)))
    opened = sum(width - sum(row) for row, full in zip(mask, layers) if full)
    closed = sum(sum(row) for row, full in zip(mask, layers) if not full)
    return Rounded(layers, opened, closed, width * len(mask))
