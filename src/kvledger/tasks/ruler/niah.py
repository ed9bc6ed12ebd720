"""RULER's needles in a haystack: single 1-3, multi-key 1-3, multi-value, multi-query (arXiv 2404.06654, table 8; the code is
NVIDIA's, Apache-2.0; none of it is copied).

The `full` form has RULER's prompt, letter by letter, and its needles: keys are an adjective and a noun or a uuid, values
seven digits or a uuid; the haystack is one line of noise again and again, prose, or other needles.  Deviations:
- The prose is ours (`prose.py`; RULER's essays have no licence) and so are the words.
- Keys and values are different from each other throughout, so a key is always there once; RULER draws them with repeats.
- Several turns ask of one context: each has needles of its own. With one turn it is RULER's task.
- The `small` form has short sentences, keys of syllables, values of two digits or of syllables.
- The haystack grows by a sentence, a line or a needle; RULER's by 500 words or 25 lines.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span, stratify
from kvledger.tasks.prose import sentences
from kvledger.tasks.ruler.lexicon import compound
from kvledger.tasks.words import distinct, identifier, syllables

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
MANY = 4000  # needles; beyond so many, names of the small form get one syllable more

Kind = Literal["number", "uuid", "word"]


@dataclass(frozen=True)
class Needles:
    """A task of the family. `keys` names with needles beside those asked for, `values` a key, `asked` keys a question."""

    task: str
    haystack: Literal["noise", "prose", "needles"]
    key: Kind = "word"
    value: Kind = "number"
    others: int = 0
    values: int = 1
    asked: int = 1

    @property
    def plural(self) -> bool:
        return self.values * self.asked > 1

    def build(self, rng: random.Random, size: int, turns: int, form: Form) -> Sample:
        """`size` sentences, lines or needles of haystack with the needles of `turns` questions among them."""
        keys, values = self._draw(rng, size, turns, form)
        needles = [needle(self, form, key, value) for key, mine in zip(keys, values, strict=True) for value in mine]
        at = self._places(rng, size, turns)
        draft = Draft()
        draft.add("instruction", instruction(self, form, turns))
        spans = _weave(draft, self._hay(rng, size, keys, form), needles, at, " " if self.haystack == "prose" else "\n")
        of_key = [spans[i : i + self.values] for i in range(0, len(spans), self.values)]
        asked: list[Turn] = []
        for turn in range(turns):
            mine = range(turn * self.asked, (turn + 1) * self.asked)
            golds = tuple(value for i in mine for _, value in sorted(zip(of_key[i], values[i], strict=True)))
            evidence = tuple(sorted(span for i in mine for span in of_key[i]))
            asked.append(_turn(self, form, [keys[i] for i in mine], golds, evidence))
        return draft.sample(self.task, asked)

    def _draw(self, rng: random.Random, size: int, turns: int, form: Form) -> tuple[list[str], list[list[str]]]:
        count = turns * self.asked + self.others
        keys = distinct(lambda: _name(rng, self.key, size, form, self.haystack), count)
        flat = distinct(lambda: _name(rng, self.value, size, form, self.haystack), count * self.values, set(keys))
        return keys, [flat[i : i + self.values] for i in range(0, len(flat), self.values)]

    def _places(self, rng: random.Random, size: int, turns: int) -> list[int]:
        """After how much hay each needle comes: the first of a question in a depth bin of its own, the others anywhere."""
        mine = self.asked * self.values
        places = [int(rng.random() * (size + 1)) for _ in range(turns * mine + self.others * self.values)]
        places[: turns * mine : mine] = stratify(rng, size + 1, turns)
        return places

    def _hay(self, rng: random.Random, size: int, keys: list[str], form: Form) -> Iterator[str]:
        if self.haystack == "prose":
            return islice(sentences(rng), size)
        if self.haystack == "noise":
            return iter([NOISE] * size)
        taken = set(keys)
        names = distinct(lambda: _name(rng, self.key, size, form, self.haystack), size, taken)
        values = distinct(lambda: _name(rng, self.value, size, form, self.haystack), size, taken)
        return (needle(self, form, *pair) for pair in zip(names, values, strict=True))


def _weave(draft: Draft, hay: Iterator[str], needles: list[str], places: list[int], gap: str) -> list[Span]:
    """Adds the hay with each needle after `places[i]` pieces of it; the needles' spans."""
    due: dict[int, list[int]] = {}
    for i, place in enumerate(places):
        due.setdefault(place, []).append(i)
    spans: list[Span] = [(0, 0)] * len(needles)
    between, last = "", 0
    pieces = list(hay)
    for place in sorted(due):
        if place > last:
            draft.add("context", between + gap.join(pieces[last:place]))
            between, last = gap, place
        for i in due[place]:
            draft.add("context", between)
            spans[i], between = draft.add("context", needles[i]), gap
    if last < len(pieces):
        draft.add("context", between + gap.join(pieces[last:]))
    return spans


def _name(rng: random.Random, kind: Kind, size: int, form: Form, haystack: str) -> str:
    if form == "small":
        if kind == "number" and haystack != "needles":
            return str(rng.randint(10, 99))
        return syllables(rng, (3 if kind == "uuid" else 2) + (haystack == "needles" and size > MANY))
    if kind == "number":
        return str(rng.randint(1_000_000, 9_999_999))
    return identifier(rng, form) if kind == "uuid" else compound(rng, haystack == "needles" and size > MANY)


def needle(spec: Needles, form: Form, key: str, value: str) -> str:
    if form == "small":
        return f"{'A' if spec.values > 1 else 'The'} magic value of {key} is {value}."
    return f"One of the special magic {spec.value}s for {key} is: {value}."


def instruction(spec: Needles, form: Form, turns: int) -> str:
    if form == "small":
        return "Remember the magic values in the text below.\n\n"
    one = turns == 1 and not spec.plural
    some, what, are = ("A", spec.value, "is") if one else ("Some", f"{spec.value}s", "are")
    return (
        f"{some} special magic {what} {are} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {what} afterwards.\n"
    )


def question(spec: Needles, form: Form, keys: list[str]) -> str:
    names = ", ".join(keys[:-1]) + f", and {keys[-1]}" if len(keys) > 1 else keys[0]
    if form == "small":
        return f"\n\nThe magic {'values' if spec.plural else 'value'} of {names} {'are' if spec.plural else 'is'} "
    what, are, all_ = (f"{spec.value}s", "are", "are all") if spec.plural else (spec.value, "is", "is")
    return (
        f"\nWhat {all_} the special magic {what} for {names} mentioned in the provided text?"
        f" The special magic {what} for {names} mentioned in the provided text {are}"
    )


def _turn(spec: Needles, form: Form, keys: list[str], golds: tuple[str, ...], evidence: tuple[Span, ...]) -> Turn:
    if form == "small":
        return Turn(question(spec, form, keys), " ".join(golds), golds, 8 * len(golds), evidence)
    return Turn(question(spec, form, keys), " " + ", ".join(golds), golds, 128, evidence)
