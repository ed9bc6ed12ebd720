"""A generated world: people and what is known of them, and events. What the look-alikes of prose data sets are made of.

No name of it exists, so nothing can be known without reading.  Every object of a fact is a name of its own that occurs
nowhere else, so the answer to a question stands in the text exactly once.  `small` names are syllables, `full` ones
words that can be spoken.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice

from kvledger.tasks.base import Form
from kvledger.tasks.words import SYLLABLES, distinct

SPOKEN = tuple(
    onset + vowel 
    for onset in ("b", "br", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w", "z")
    for vowel in "aeiou"
)  # fmt: skip
ENDS = ("", "l", "n", "r", "s", "th", "nd")
PLENTY = 5000  # names that two syllables can serve; beyond it they take three

# relation: the sentence that states it, the question that asks for it
RELATIONS = {
    "home": ("{s} lives in {o}.", "Where does {s} live?"),
    "boat": ("{s} sails the {o}.", "Which boat does {s} sail?"),
    "born": ("{s} was born in {o}.", "Where was {s} born?"),
    "dog": ("{s} has a dog called {o}.", "What is the dog of {s} called?"),
    "school": ("{s} went to school at {o}.", "Where did {s} go to school?"),
}
TEACHER = "{s} was taught by {o}."
FILLER = (
    "Not much else has been written down about those years.",
    "The neighbours remember long evenings, plain food and a good deal of laughter.",
    "A letter from that winter mentions the price of wood, the weather and little more.",
    "People who came by on market days were offered tea and a chair by the window.",
    "Later accounts differ, as such accounts do, and nobody has tried to settle the matter.",
    "There was always work to be done before the first snow, and it was done without complaint.",
)


@dataclass(frozen=True)
class Person:
    """Someone with one object for each relation, and with a teacher, who is another of the same world."""

    name: str
    facts: dict[str, str]
    teacher: str


def names(rng: random.Random, count: int, form: Form, taken: set[str]) -> list[str]:
    """`count` names that nobody has: two or three syllables, or one word that can be spoken."""
    parts = 2 if form == "small" and count + len(taken) < PLENTY else 3
    codes = rng.sample(range(100**parts), count + len(taken))
    drawn = (_spelled(code, parts, form) for code in codes)
    found = list(islice((name for name in drawn if name not in taken), count))
    taken.update(found)
    return found


def _spelled(code: int, parts: int, form: Form) -> str:
    """The name of a number below 100 to the power of `parts`."""
    units = SYLLABLES if form == "small" else SPOKEN
    word = "".join(units[code // 100**i % 100] for i in range(parts))
    return word if form == "small" else (word + ENDS[code % len(ENDS)]).capitalize()


def people(rng: random.Random, count: int, form: Form, relations: int, taken: set[str]) -> list[Person]:
    """`count` people, and so many relations of each, none of them named as anything in `taken`.

    Full names have a first and a last part, and each part is shared by several people, so that half a name finds nobody.
    """
    if form == "small":
        called = names(rng, count, form, taken)
    else:
        parts = names(rng, 4 + 2 * int(count**0.5), form, taken)
        first, last = parts[::2], parts[1::2]
        called = distinct(lambda: f"{rng.choice(first)} {rng.choice(last)}", count)
    chosen = list(RELATIONS)[:relations]
    objects = iter(names(rng, count * relations, form, taken))
    teachers = rng.sample(called, count)
    return [
        Person(name, {relation: next(objects) for relation in chosen}, teacher if teacher != name else called[i - 1])
        for i, (name, teacher) in enumerate(zip(called, teachers, strict=True))
    ]


def state(person: Person, relation: str) -> str:
    """The sentence that says it."""
    return RELATIONS[relation][0].format(s=person.name, o=person.facts[relation])


def ask(person: Person, relation: str) -> str:
    return RELATIONS[relation][1].format(s=person.name)
