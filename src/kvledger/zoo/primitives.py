"""What is learned before the tasks: repeating, and looking things up, in bare tokens.

Measured on the way here: lookups alone stay at chance for millions of tokens; after plain repetition has formed heads
that copy, lookups in several shapes at once follow within minutes, and the tasks after them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from kvledger.tasks.words import SYLLABLES
from kvledger.zoo.tokenizer import NUMBERS

GLUE = ('": "', '", "', " -> (", ", ", ")\n", '"\n')
BACK_GLUE = (" = ", " = VAR ")  # what a backward lookup is known by
SHAPES = ("repeat", "k : v", "k k : v v", "v of k back", "v k back", "ends of three")


@dataclass(frozen=True)
class Alphabet:
    """Token ids of the things that are looked up and of what stands between them."""

    words: list[int]
    glue: list[int]
    back_glue: list[int]
    bos: int


def alphabet(tokenizer: PreTrainedTokenizerFast) -> Alphabet:
    def ids(pieces: tuple[str, ...]) -> list[int]:
        return [int(tokenizer.convert_tokens_to_ids(piece)) for piece in pieces]  # type: ignore[arg-type]

    return Alphabet(ids((*SYLLABLES, *NUMBERS, *"ABCDEF")), ids(GLUE), ids(BACK_GLUE), int(tokenizer.bos_token_id))


def lesson(rng: random.Random, letters: Alphabet, shape: str, length: int) -> tuple[list[int], list[int]]:
    """Token ids, and for each token the number of the answer it belongs to (-1: none), about `length` long."""
    if shape == "repeat":
        return _repeat(rng, letters, length)
    return _lookup(rng, letters, shape, length)


def _repeat(rng: random.Random, letters: Alphabet, length: int) -> tuple[list[int], list[int]]:
    """A random segment over and over; every repeat is learned from, one token an answer."""
    size = rng.randint(min(6, length // 3), length // 2)
    segment = rng.choices(letters.words, k=size)
    ids = [letters.bos, *(segment * (length // size + 1))][:length]
    return ids, [i if i > size else -1 for i in range(len(ids))]


def _lookup(rng: random.Random, letters: Alphabet, shape: str, length: int) -> tuple[list[int], list[int]]:
    """A list of items, then questions about them in another order, answers beside the questions."""
    draw = {"k : v": (1, 1), "k k : v v": (2, 2), "v of k back": (1, 1), "v k back": (1, 1), "ends of three": (3, 0)}[
        shape
    ]
    glue, stop, ask, tell = rng.sample(letters.glue, 4)
    if shape == "v of k back":
        glue = rng.choice(letters.back_glue)
    if shape == "v k back":
        stop = rng.choice(letters.back_glue)
    context_item = _show(shape, [0] * draw[0], [0] * draw[1], glue, stop)
    ask_item, answer_item = _ask(shape, [0] * draw[0], [0] * draw[1], ask, tell)
    cost = len(context_item) + len(ask_item) + len(answer_item)
    items = max(2, min((length - 1) // cost, len(letters.words) // 2))
    ends = rng.sample(letters.words, int(items**0.5) + 2)
    keys: list[list[int]] = []
    seen: set[tuple[int, int]] = set()
    while len(keys) < items:
        key = rng.choices(letters.words, k=draw[0])
        if shape == "ends of three":  # few different ends: neither of them alone tells which item
            key[0], key[2] = rng.choice(ends), rng.choice(ends)
        if (key[0], key[-1]) not in seen:
            seen.add((key[0], key[-1]))
            keys.append(key)
    values = [rng.choices(letters.words, k=draw[1]) for _ in keys]
    ids = [letters.bos]
    for key, value in zip(keys, values, strict=True):
        ids += _show(shape, key, value, glue, stop)
    answers = [-1] * len(ids)
    for number in rng.sample(range(items), items):
        question, answer = _ask(shape, keys[number], values[number], ask, tell)
        ids += question + answer
        answers += [-1] * len(question) + [number] * len(answer)
    return ids, answers


def _show(shape: str, key: list[int], value: list[int], glue: int, stop: int) -> list[int]:
    """How an item is written in the context."""
    if shape == "v of k back":
        return [*value, glue, *key, stop]
    if shape == "v k back":
        return [*value, *key, stop]
    if shape == "ends of three":
        return [*key, stop]
    return [*key, glue, *value, stop]


def _ask(shape: str, key: list[int], value: list[int], ask: int, tell: int) -> tuple[list[int], list[int]]:
    """The question about an item and its answer."""
    if shape == "ends of three":
        return [key[0], ask, key[-1], tell], key
    return [*key, tell], value
