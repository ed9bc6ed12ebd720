"""RULER's variable tracking (arXiv 2404.06654, section 3; NVIDIA's code, Apache-2.0, none of it copied).

A chain of assignments lies in lines of noise: one variable has a value, four more copy it one from the other.  The `full`
form has RULER's prompt with its worked example, five capitals a name and five digits a value.  Deviations: with several
turns there is a chain for each; "assigned" is spelled right and blanks are single; the `small` form has syllables, two
digits, single sentences of noise and no example.
"""

from __future__ import annotations

import random
from itertools import pairwise

from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft, Span, stratify
from kvledger.tasks.retrieval import NOISE as SENTENCES
from kvledger.tasks.ruler.niah import NOISE
from kvledger.tasks.words import CAPITALS, distinct, letters, name, number

TASK = "ruler/vt"
HOPS = 4
EXAMPLE_LINES = 5
INSTRUCTION = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
SMALL_INSTRUCTION = "Keep track of the variables assigned in the text below.\n\n"


def build(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` pieces of noise with one chain per question, its links in order and apart."""
    values = distinct(lambda: number(rng, form), turns)
    names = distinct(lambda: name(rng, form), turns * (HOPS + 1))
    chains = [names[i * (HOPS + 1) : (i + 1) * (HOPS + 1)] for i in range(turns)]
    draft = Draft()
    if form == "full":
        draft.add("demos", _example(rng))
    draft.add("instruction", INSTRUCTION if form == "full" else SMALL_INSTRUCTION)
    spans = _text(draft, rng, size, chains, values, form)
    asked = [_turn(chain, value, mine, form) for chain, value, mine in zip(chains, values, spans, strict=True)]
    return draft.sample(TASK, asked)


def links(chain: list[str], value: str) -> list[str]:
    copies = (f"VAR {new} = VAR {old}" for old, new in pairwise(chain))
    return [f"VAR {chain[0]} = {value}", *copies]


def _text(
    draft: Draft, rng: random.Random, size: int, chains: list[list[str]], values: list[str], form: Form
) -> list[list[Span]]:
    """Adds the noise with the chains in it; the spans of each chain's links."""
    due: dict[int, list[tuple[int, str]]] = {}
    for i, first in enumerate(stratify(rng, size, len(chains))):
        later = sorted(rng.randint(first, size) for _ in range(HOPS))
        for place, link in zip((first, *later), links(chains[i], values[i]), strict=True):
            due.setdefault(place, []).append((i, link))
    spans: list[list[Span]] = [[] for _ in chains]
    last = 0
    for place in sorted(due):
        draft.add("context", _noise(last, place, form))
        for i, link in due[place]:
            spans[i].append(draft.add("context", link))
            draft.add("context", " " if form == "full" else ". ")
        last = place
    draft.add("context", _noise(last, size, form))
    return spans


def _noise(start: int, end: int, form: Form) -> str:
    if form == "full":
        return f"{NOISE}\n" * (end - start)
    return "".join(SENTENCES[i % len(SENTENCES)] for i in range(start, end))


def ask(value: str, form: Form) -> str:
    if form == "small":
        return f"\n\nFind all variables that are assigned the value {value} in the text above: "
    return (
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: According to the "
        f"chain(s) of variable assignment in the text above, {HOPS + 1} variables are assigned the value {value}, they are: "
    )


def _turn(chain: list[str], value: str, spans: list[Span], form: Form) -> Turn:
    cap = 4 * (HOPS + 1) if form == "small" else 30
    return Turn(ask(value, form), " ".join(chain), tuple(chain), cap, tuple(spans))


def _example(rng: random.Random) -> str:
    """A short text with its question and answer, in names of three letters."""
    chain = distinct(lambda: letters(rng, CAPITALS, 3), HOPS + 1)
    value = number(rng, "full")
    draft = Draft()
    _text(draft, rng, EXAMPLE_LINES, [chain], [value], "full")
    text = draft.sample(TASK, []).text
    return f"{INSTRUCTION}{text}{ask(value, 'full')} {' '.join(chain)}\n\n\n\n"
