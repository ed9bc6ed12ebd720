"""Conversations that may go on: the caches of those that were used last, within a number of bytes."""

from __future__ import annotations

from kvledger.hf.cache import arenas
from kvledger.serve.pieces import Pieces
from kvledger.serve.request import Refused
from kvledger.serve.talk import Talk

MOST = 256  # conversations; of short ones, what is kept beside the rows weighs more than the rows


def release(talk: Talk) -> None:
    """Give the buffers of a talk back at once. Its layers and their stores refer to each other, so that otherwise they would
    wait for Python's collector, which counts objects and not their bytes."""
    for layer in arenas(talk.cache):
        layer.arena = None


class Talks:
    """Talks by what has been said in them, at most `bytes` bytes of them, least recently used ones going first.

    A talk that goes on is a fork, and what it was forked from goes before all others: it is of use only to a client that asks
    again from there.
    """

    def __init__(self, bytes: int):
        self.budget = bytes
        self._talks: dict[str, Talk] = {}  # first to go first
        self._bytes: dict[str, int] = {}  # of each; what nobody goes on with does not change

    def __len__(self) -> int:
        return len(self._talks)

    @property
    def bytes(self) -> int:
        """Bytes held now, each talk counted as if it shared nothing."""
        return sum(self._bytes.values())

    def find(self, pieces: Pieces) -> tuple[Talk, int] | None:
        """A fork of the talk that has the most of these pieces behind it, and how many answers those are."""
        for turns in range(len(pieces.answers), 0, -1):
            key = pieces.key(turns)
            if key in self._talks:
                talk = self._talks.pop(key)
                self._talks = {key: talk, **self._talks}
                return talk.fork(), turns  # type: ignore[return-value]
        return None

    def make_room(self, wanted: int) -> None:
        """Let talks go until there is room for one of `wanted` bytes. `Refused` (400) if there can be none."""
        if wanted > self.budget:
            raise Refused(
                400,
                f"this conversation would hold up to {wanted:,} bytes of keys and values, and conversations may hold "
                f"{self.budget:,} here: send less, ask for fewer max_tokens, or serve with a larger --memory",
                "memory_limit",
            )
        held = self.bytes
        for key in list(self._talks):
            if held + wanted <= self.budget and len(self._talks) < MOST:
                return
            held -= self._bytes.pop(key)
            release(self._talks.pop(key))

    def holds(self, talk: Talk) -> bool:
        return any(talk is one for one in self._talks.values())

    def keep(self, key: str, talk: Talk) -> None:
        """Keep a talk that has just been answered, if it fits."""
        size = talk.ledger.stored_bytes
        if key in self._talks:
            del self._bytes[key]
            release(self._talks.pop(key))
        if size <= self.budget:
            self.make_room(size)
            self._talks[key], self._bytes[key] = talk, size
