"""Passkeys hidden in a long text and asked for at its end, after DuoAttention (arXiv 2410.10819, section 2.2 and code).

Several passkeys of random words lie at random depths, 5 % to 95 %, of a natural text, in their order; then all are asked
for, one after the other.  Context lengths are spread evenly up to the longest.

Deviations: the text is the standard library's, not BookSum; the prompt is the model's own chat format; only the answers
are learned (the released code counts the questions as well); short conversations share a sequence, so that no token of it
is idle; for a model with a small vocabulary names and passkeys are two syllables each, asked for as Retr.KV asks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvledger.hf.chat import Chat
from kvledger.tasks.retrieval import KV_ASK, KV_END, KV_IS
from kvledger.tasks.words import distinct, identifier
from kvledger.train.corpus import Shelf
from kvledger.train.packing import Packed, Piece, filler_of, join

_WORDS = """
alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo
sierra tango uniform victor whiskey xray yankee zulu
"""
_ORDINALS = """
first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth
sixteenth seventeenth eighteenth nineteenth twentieth
"""
WORDS, ORDINALS = _WORDS.split(), _ORDINALS.split()
COUNT, LENGTHS = 10, 50
SHALLOW, DEEP = 0.05, 0.95
MARGIN = 8  # least tokens of text for each passkey
OPEN, CLOSE = "This is a very long text:\n\n", "\n\nThe text ends here.\n\n"


@dataclass(frozen=True)
class Form:
    """How a passkey is hidden and asked for."""

    needle: str
    ask: str
    draw: Callable[[random.Random], str]
    names: Callable[[random.Random, int], list[str]]


FULL = Form(
    "\n\nRemember these words, they are the {name} passkey to the vault: {passkey}\n\n",
    "According to the text, what is the {name} passkey to the vault?",
    lambda rng: " ".join(rng.choices(WORDS, k=32)),
    lambda rng, count: ORDINALS[:count],
)
SMALL = Form(
    '\n"{name}' + KV_IS + '{passkey}"\n',
    KV_ASK + "{name}" + KV_END,
    lambda rng: identifier(rng, "small"),
    lambda rng, count: distinct(lambda: identifier(rng, "small"), count),
)


@dataclass(frozen=True)
class Passkeys:
    """Sequence number i depends on the seed and i alone."""

    tokenizer: Any
    shelf: Shelf
    seq_len: int
    seed: int
    form: Form
    count: int = COUNT

    def __post_init__(self) -> None:
        if not 1 <= self.count <= len(ORDINALS):
            raise ValueError(f"passkeys:{self.count}: there can be 1 to {len(ORDINALS)} passkeys")

    def sequence(self, number: int) -> Packed:
        """Conversations until `seq_len` tokens are full. ValueError if not even one has room."""
        rng = random.Random(f"{self.seed} passkeys {number}")
        pieces: list[Piece] = []
        room = self.seq_len
        while True:
            draft = Draft.make(rng, Chat(self.tokenizer), self.form, self.count)
            least = draft.size + MARGIN * self.count
            if least > room:
                break
            length = least + (self.seq_len - least) * rng.randint(1, LENGTHS) // LENGTHS
            if room - length < least:  # what is left would hold no other: this one takes it
                length = room
            pieces.append(draft.hide(rng, self._haystack(rng, length - draft.size)))
            room -= length
        if not pieces:
            raise ValueError(
                f"{self.seq_len} tokens are too few for {self.count} passkeys, which need {least} or so: "
                "train on longer sequences, or on fewer passkeys ('passkeys:4')"
            )
        return join(pieces, self.seq_len, filler_of(self.tokenizer))

    def _haystack(self, rng: random.Random, tokens: int) -> list[int]:
        """Text from random documents, the first from a random place."""
        first = self.shelf.ids(rng.randrange(self.shelf.count))
        found = list(first[rng.randrange(len(first) or 1) :])
        while len(found) < tokens:
            found += self.shelf.ids(rng.randrange(self.shelf.count))
        return found[:tokens]


@dataclass(frozen=True)
class Draft:
    """A conversation without its text: opening, needles, and question and answer of each turn, as token ids."""

    opening: list[int]
    needles: list[list[int]]
    turns: list[tuple[list[int], list[int]]]

    @classmethod
    def make(cls, rng: random.Random, chat: Chat, form: Form, count: int) -> Draft:
        names, passkeys = form.names(rng, count), [form.draw(rng) for _ in range(count)]
        asks = [form.ask.format(name=name) for name in names]
        opening, first = chat.opening(OPEN, CLOSE + asks[0])
        questions = [first, *(chat.follow_up(ask) for ask in asks[1:])]
        needles = [chat.ids(form.needle.format(name=n, passkey=p)) for n, p in zip(names, passkeys)]
        return cls(opening, needles, list(zip(questions, map(chat.answer, passkeys))))

    @property
    def size(self) -> int:
        parts = [self.opening, *self.needles, *(ids for turn in self.turns for ids in turn)]
        return sum(map(len, parts))

    def hide(self, rng: random.Random, haystack: list[int]) -> Piece:
        """The needles at random depths of the text, in their order; then the turns."""
        ids, last = list(self.opening), 0
        for depth, needle in zip(sorted(rng.uniform(SHALLOW, DEEP) for _ in self.needles), self.needles):
            place = int(depth * len(haystack))
            ids += haystack[last:place] + needle
            last = place
        ids += haystack[last:]
        learn = [False] * len(ids)
        for question, answer in self.turns:
            ids += question + answer
            learn += [False] * len(question) + [True] * len(answer)
        return Piece(ids, learn)
