"""Head gates at work: a few KV heads keep everything, the others sinks and a window (DuoAttention, Xiao et al., 2024, arXiv
2410.10819, code MIT; PruLong, Bhaskar et al., 2025, arXiv 2506.17121).

Deviations: a head with a window never sees more than that, in the middle of a chunk as at its end, so that what was trained
is what runs and the size of a chunk changes nothing; both papers' code attends densely inside a chunk (inside="dense").
Which heads stay full is found by rank, without noise (`gatefile.py`).
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from typing import ClassVar

from kvledger.cache.attend import Windows
from kvledger.methods.gatefile import Gates, read_gates
from kvledger.recipe import Row, register

RANDOM = "random:"


@register(
    Row("headgate", "compression", "head", "trained gates", "arXiv 2506.17121", "heads that need no more keep a window")
)
@dataclass(frozen=True, kw_only=True)
class HeadGate:
    """path: gates of `kvledger train`, a DuoAttention folder or .tsv, "zoo/NAME" (embedded), or "random:SEED" (a baseline).
    keep: fraction of the KV heads that stay full. sink, window: tokens the others keep; -1 takes the file's. budget: heads
    are chosen over all layers ("global") or in each ("layer"). inside: what a window head sees of its own chunk, "window" or
    all of it ("dense", as both papers' code does)."""

    path: str = "zoo/prulong-tasks-0.5"
    keep: float = 0.5
    sink: int = -1
    window: int = -1
    budget: str = "global"
    inside: str = "window"

    row: ClassVar[Row]
    role: ClassVar[str] = "profile"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} is outside (0, 1]: it is the fraction of heads that stay full")
        if self.sink < -1 or self.window < -1 or self.window == 0:
            raise ValueError(
                f"sink={self.sink}, window={self.window}: a window holds at least 1 token; -1 takes the file's"
            )
        for name, known in (("budget", ("global", "layer")), ("inside", ("window", "dense"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not {known[0]!r} or {known[1]!r}")
        if self.path.startswith(RANDOM) and not self.path.removeprefix(RANDOM).isdecimal():
            raise ValueError(f"path={self.path!r}: a random draw is named by its seed, like 'random:0'")

    @property
    def drops(self) -> bool:
        return self.keep < 1

    @property
    def fingerprint(self) -> str:
        """Short hash of what the gate file says, so that records of other gates are not mixed in."""
        if self.path.startswith(RANDOM):
            return ""
        gates = read_gates(self.path)
        return hashlib.sha256(repr((gates.scores, gates.sink, gates.window)).encode()).hexdigest()[:12]

    def gates(self, layers: int, heads: int) -> Gates:
        """The gates for a model of this shape. ValueError for a file of another one."""
        if self.path.startswith(RANDOM):
            draw = random.Random(self.path)
            table = tuple(tuple(draw.random() for _ in range(heads)) for _ in range(layers))
            gates = Gates(table, sink=128, window=1024)
        else:
            gates = read_gates(self.path)
        shape = len(gates.scores), len(gates.scores[0])
        if shape != (layers, heads):
            raise ValueError(
                f"the gates {self.path!r} are for {shape[0]} layers of {shape[1]} KV heads, and this model has {layers} of "
                f"{heads}: train gates for it with `kvledger train`"
            )
        return replace(
            gates,
            sink=gates.sink if self.sink < 0 else self.sink,
            window=gates.window if self.window < 0 else self.window,
        )

    def windows(self, layers: int, heads: int) -> list[Windows]:
        """For each layer and KV head (sinks, window), or None where a head keeps all."""
        gates = self.gates(layers, heads)
        limits = gates.sink, gates.window
        return [[None if full else limits for full in row] for row in gates.full_heads(self.keep, self.budget)]
