"""Random strings of the synthetic tasks, in both forms.

`full` is SCBench's: uuids, strings of character codes 65 to 122, five capital letters, five-digit values.  `small` is
made of open syllables in capitals and of two-digit numbers, which a small vocabulary can hold as single tokens.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable

from kvledger.tasks.base import Form

SYLLABLES: tuple[str, ...] = tuple(c + v for c in "BCDFGHJKLMNPQRSTVWXZ" for v in "AEIOU")
CODES = "".join(map(chr, range(65, 123)))
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def syllables(rng: random.Random, length: int) -> str:
    return "".join(rng.choice(SYLLABLES) for _ in range(length))


def letters(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(length))


MANY = 8_000  # identifiers that two syllables, of which there are 10,000 pairs, are still drawn for at ease


def identifier(rng: random.Random, form: Form, wanted: int = 0) -> str:
    """A key or value of Retr.KV: a uuid, or two syllables (three where more are `wanted` than two can tell apart)."""
    if form == "small":
        return syllables(rng, 2 if wanted <= MANY else 3)
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def name(rng: random.Random, form: Form) -> str:
    """A variable or word: five capitals, or one syllable."""
    return syllables(rng, 1) if form == "small" else letters(rng, CAPITALS, 5)


def number(rng: random.Random, form: Form) -> str:
    """A variable's value: five digits, or two."""
    return str(rng.randint(10, 99) if form == "small" else rng.randint(10_000, 99_999))


FRUITLESS = 100_000  # draws in a row


def distinct(draw: Callable[[], str], count: int, taken: set[str] | None = None) -> list[str]:
    """`count` different strings, none of which is in `taken`; those are added to it. ValueError once a long run of draws has
    brought nothing new: there are not as many."""
    seen = set() if taken is None else taken
    found: list[str] = []
    fruitless = 0
    while len(found) < count:
        fruitless += 1
        if (word := draw()) not in seen:
            seen.add(word)
            found.append(word)
            fruitless = 0
        elif fruitless > FRUITLESS:
            raise ValueError(
                f"there are not {count} different names to draw: ask for fewer turns, or a shorter context"
            )
    return found
