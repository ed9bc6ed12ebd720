"""What the layers of one cache share: the recipe's parts, the phase a request is in, and what is due."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from kvledger.cache.attend import Windows
from kvledger.cache.ledger import Ledger
from kvledger.methods.base import Method, Probe
from kvledger.methods.rope import Rope


@dataclass
class Waiting:
    """A layer's scores that wait until all layers have theirs: [H, N], with the candidates' number per head."""

    layer: Any
    sequence: int
    scores: Tensor
    counts: list[int]
    heads: list[int]
    budget: int


@dataclass
class Run:
    """State shared by the layers of one cache. A session sets `reading`, `evict` and `probe` before each forward; left to
    itself (`auto`) the cache treats the first forward of several tokens as the prompt, and every such forward as a chunk.

    windows: per layer and KV head, (sinks, window) of heads that see no more than that. since: tokens since the last
    eviction while decoding. pinned: token indices that stay in any case.
    """

    method: Method
    layers: int
    config: Any  # of the model, to see which attention it is set to
    windows: list[Windows] | None = None
    dense_chunks: bool = False  # heads with a window see all of the chunk they are read in, as the papers' code does
    source: Any = None  # what is made of a context before it is read
    pattern: Any = None  # what queries look at while a prompt is read
    format: Any = None  # how rows are stored
    reader: Any = None  # what a decode step reads of them
    sinks: int = 0  # first and
    recent: int = 0  # last tokens that stay
    rope: Rope | None = None
    ledger: Ledger = field(default_factory=Ledger)
    auto: bool = True
    reading: bool = True
    evict: bool = False
    ends: bool = True  # the prompt ends with the forward's tokens, as far as anybody knows
    probe: int = 0
    watching: Sequence[Probe | None] | None = None  # of each sequence, while probes are read
    probes: bool = False  # left to itself, somebody reads the method's probes all the same
    since: int = 0
    pinned: frozenset[int] = frozenset()
    waiting: list[Waiting] = field(default_factory=list)
    order: MutableMapping[int, Any] = field(
        default_factory=WeakValueDictionary
    )  # layers whose rows live elsewhere and are fetched in turn
    spent: float = 0.0  # seconds of its own in a reading that it shares

    @property
    def needs(self) -> tuple[str, ...]:
        """What method and pattern ask for of the model's inside."""
        return (*self.method.needs, *getattr(self.pattern, "needs", ()))

    @property
    def forgets(self) -> bool:
        """Whether rows go while an answer is written, so that going back needs a copy."""
        moves = self.format is not None and self.format.seals
        return moves or self.windows is not None or (self.method.drops and self.method.every > 0)

    def begin(self, slot: int, tokens: int) -> None:
        """A forward of `tokens` has reached a layer. The first one finds the phase (`auto`) and whether eviction is due."""
        if slot:
            return
        method = self.method
        probing = method.drops and method.tally == "probe"
        if self.auto and probing and not self.probes:
            raise ValueError(
                f"{type(method).row.name} reads the context a second time: use kvledger.open, or give attach its tokenizer"
            )
        if self.auto and self.source is not None:
            raise ValueError(
                f"{type(self.source).row.name} works on a context, and here are tokens only: use kvledger.open, and read"
            )
        if self.auto:  # nobody says where a prompt ends: its first forward of several tokens is taken for all of it
            first = len(self.ledger.steps) == 1
            self.reading = tokens > 1 and method.drops and (first or method.when == "chunk")
            self.evict = self.reading and method.when != "decode" and not probing
        if not self.reading and method.drops and method.every:
            self.since += tokens
            self.evict = self.since >= method.every
        elif not self.reading:
            self.evict = False
        if self.evict:
            self.since = 0

    def fork(self) -> Run:
        return replace(self, ledger=self.ledger.fork(), waiting=[], order=WeakValueDictionary())
