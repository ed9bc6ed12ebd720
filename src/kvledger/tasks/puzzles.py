"""Two of BIG-Bench Hard's tasks that SCBench's ICL.ManyShot takes, from templates: dates, and objects that change hands.

Suzgun et al., arXiv 2210.09261 (data: MIT); the sentences here are our own, the shapes theirs: a question, lettered
options, and shots that end in the letter.  The answers follow from the question alone, as in the original; what the shots
teach is the form, so these rows have no evidence in the context.
"""

from __future__ import annotations

import random
from datetime import date, timedelta

from kvledger.tasks.base import Sample, Turn
from kvledger.tasks.draft import Draft

READ = "Answer the last question as the questions before it are answered, with the letter of the right option.\n\n"
PLAYERS = ("Alice", "Bob", "Claire", "Dave", "Eve", "Fred", "Gertrude")
THINGS = (
    ("a red ball", "a green ball", "a blue ball", "a white ball", "a black ball", "a yellow ball", "an orange ball"),
    ("a novel", "an atlas", "a cookbook", "a diary", "a songbook", "a dictionary", "a comic"),
    ("a violin", "a flute", "a drum", "a harp", "a horn", "a guitar", "a cello"),
)  # fmt: skip
STEPS = {
    "tomorrow": 1, "yesterday": -1, "one week from today": 7, "one week ago": -7, "10 days ago": -10, "in 30 days": 30,
    "24 hours later": 1,
}  # fmt: skip
Puzzle = tuple[str, list[str], str]
"""The question, the options in their order, and the one that is right."""


def many_shot(rng: random.Random, size: int, turns: int, kind: str) -> Sample:
    """`size` solved puzzles of a kind ("dates" or "objects"), and `turns` more as questions."""
    draft = Draft()
    draft.add("instruction", READ)
    puzzle = _dates if kind == "dates" else _objects
    seen: set[str] = set()
    for _ in range(size):
        made = puzzle(rng)
        seen.add(made[0])
        draft.add("demos", f"{_text(made)} ({_letter(made)})\n\n")
    asked: list[Turn] = []
    while len(asked) < turns:
        if (made := puzzle(rng))[0] not in seen:
            seen.add(made[0])
            asked.append(Turn(f"\n\n{_text(made)} ", _letter(made), (_letter(made),), 10, subtask=kind))
    return draft.sample("scbench/many_shot", asked)


def _text(made: Puzzle) -> str:
    options = "\n".join(f"({letter}) {option}" for letter, option in zip("ABCDEFG", made[1]))
    return f"Q: {made[0]}\nOptions:\n{options}\nA:"


def _letter(made: Puzzle) -> str:
    return "ABCDEFG"[made[1].index(made[2])]


def _dates(rng: random.Random) -> Puzzle:
    today = date(1930, 1, 1) + timedelta(days=rng.randrange(36_000))
    step, days = rng.choice(list(STEPS.items()))
    right = today + timedelta(days=days)
    near = [right + timedelta(days=offset) for offset in (-3, -2, 2, 3, 9, 31, -31, 365, -365)]
    options = [f"{day:%m/%d/%Y}" for day in (right, *rng.sample(near, 5))]
    rng.shuffle(options)
    said = f"{today:%B} {today.day}, {today.year}"
    return f"Today is {said}. What is the date {step} in MM/DD/YYYY?", options, f"{right:%m/%d/%Y}"


def _objects(rng: random.Random) -> Puzzle:
    kind = rng.choice(THINGS)
    held = dict(zip(PLAYERS, rng.sample(kind, len(PLAYERS)), strict=True))
    start = ", ".join(f"{who} has {what}" for who, what in held.items())
    swaps = []
    for number in range(len(PLAYERS)):
        one, other = rng.sample(PLAYERS, 2)
        held[one], held[other] = held[other], held[one]
        when = "First" if not number else "Then" if number < len(PLAYERS) - 1 else "Finally"
        swaps.append(f"{when}, {one} and {other} swap.")
    who = rng.choice(PLAYERS)
    options = list(kind)
    rng.shuffle(options)
    story = f"Seven friends hold one thing each: {start}. They swap in pairs. {' '.join(swaps)}"
    return f"{story} At the end, what does {who} hold?", options, held[who]
