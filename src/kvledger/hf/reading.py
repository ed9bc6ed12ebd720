"""Reading a prompt in chunks: by one session, or once for several whose recipes drop nothing before the prompt's end.

What such recipes see while they read is the same, so one forward serves them all: the leader's cache stores the rows and
attends, the others follow it layer by layer, each with its own notes, its own books and, at the end, its own choice.  Each
is left with the same rows, the same answers and the same ledger as if it had read alone (a test); the seconds each is
charged with are those of the shared forwards and of its own part.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvledger.hf import cache as caches
from kvledger.hf.blend import blend
from kvledger.hf.hybrid import HybridLayer
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.probing import ask, choose
from kvledger.recipe import Recipe

if TYPE_CHECKING:
    from kvledger.hf.session import Session


def shares(recipe: Recipe) -> bool:
    """Whether a recipe sees the full cache until the prompt has been read, stored once for each KV head."""
    method = recipe.method
    if recipe.source or recipe.pattern or recipe.format or getattr(recipe.reader, "host", False):
        return False
    dense = recipe.profile is None or not recipe.profile.drops
    return dense and method.heads == "kv" and (not method.drops or method.when != "chunk")


class Reading:
    """A prompt that is being read by `lead` and, on the same forwards, by `others`. ValueError if they cannot share: with
    others, every recipe must be one that `shares`, and the lead's must drop nothing."""

    def __init__(self, lead: Session, others: Sequence[Session] = ()):
        if others and (lead.recipe.method.drops or not all(shares(one.recipe) for one in (lead, *others))):
            raise ValueError("a reading is shared by recipes that drop nothing before its end, and led by a full cache")
        self.lead, self.others = lead, list(others)
        self._link()

    @property
    def sessions(self) -> list[Session]:
        return [self.lead, *self.others]

    def _link(self) -> None:
        for layer in caches.arenas(self.lead.cache):
            layer.followers = [caches.arenas(one.cache)[layer.slot] for one in self.others]

    def advance(self, ids: list[int], stop: int, patch: Sequence[int] = ()) -> None:
        """Read the chunks of the prompt `ids` that begin before token `stop`. The tokens `patch` are read with each chunk
        but the last, vote and are forgotten."""
        lead, size = self.lead, self.lead.chunk or len(ids)
        lead.expected = len(ids)
        if lead.chunks and not lead.tokens:
            blend(lead, ids, lead.chunks)
        for start in range(lead.tokens, stop, size):
            due = [one.schedule(ids, start, len(patch)) for one in self.sessions]
            self._forward(ids[start : start + size], list(patch) if lead.run.probe else [])
            alike: dict[Any, list[Session]] = {}
            for one, now in zip(self.sessions, due):
                if now and one.recipe.method.tally == "probe":
                    alike.setdefault(replace(one.recipe.method, keep=1.0, rows=0, bytes=0), []).append(one)
            for ones in alike.values():
                self._probe(ones, ids[start if ones[0].recipe.method.when == "chunk" else 0 : start + size])

    @staticmethod
    def _probe(ones: list[Session], ids: list[int]) -> None:
        """Methods that differ in their budgets only ask the same: one asks, and all choose."""
        started = time.perf_counter()
        ask(ones[0].model, ones[0].cache, [ids], ones[0].chat)
        asked = time.perf_counter() - started
        for one in ones[1:]:
            one.run.ledger = ones[0].run.ledger.fork()
            for mine, theirs in zip(caches.arenas(one.cache), caches.arenas(ones[0].cache)):
                assert theirs.arena is not None
                mine.arena, mine.columns = theirs.arena.fork(mine._hold), theirs.columns
        for one in ones:
            started = time.perf_counter()
            choose(one.cache, [ids])
            one.reading_seconds += asked + time.perf_counter() - started

    def _forward(self, ids: list[int], patch: list[int]) -> None:
        lead, started, before = self.lead, time.perf_counter(), [one.run.spent for one in self.others]
        for one in self.others:
            one.run.ledger.kind = "read"
        lead.forward(ids + patch, "read")
        lead.tokens -= len(patch)
        own = [one.run.spent - then for one, then in zip(self.others, before)]
        shared = time.perf_counter() - started - sum(own)
        lead.reading_seconds += shared
        for one, seconds in zip(self.others, own):
            one.reading_seconds += shared + seconds
            one.tokens, one.logits = lead.tokens, lead.logits
            caches.account(lead.cache, one.run, len(ids) + len(patch))

    def fork(self) -> Reading:
        """The same prompt so far, to be continued in another way."""
        return Reading(self.lead.fork(), [one.fork() for one in self.others])

    def end(self) -> None:
        """The prompt has been read: each session goes its own way."""
        for one in self.others:
            mine, theirs = one.cache.layers, self.lead.cache.layers
            one.cache.layers = [a if isinstance(a, ArenaLayer) else copy.deepcopy(b) for a, b in zip(mine, theirs)]
            for a, b in zip(mine, theirs):
                if isinstance(a, HybridLayer):
                    a.take_states(b)
        self.others, sessions = [], self.sessions
        self._link()
        for one in sessions:
            one.run.reading = one.run.evict = False
            one.run.probe = 0
            for layer in caches.arenas(one.cache):
                if not one.recipe.method.every:
                    layer.close()
                layer.loader.catch_up(layer)
