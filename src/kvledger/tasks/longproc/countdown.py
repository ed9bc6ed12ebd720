"""LongProc's Countdown (arXiv 2501.05414, section 3; data and code Apache-2.0, none of the code is copied).

Reach a target with four numbers by a depth-first search that is written down step by step.  `trace` writes LongProc's
reference texts character for character.  Any valid solution scores; `partial` is LongProc's credit for a search that went
wrong.  Deviations: no model text is evaluated (LongProc calls eval on it): an equation is read by a regular expression, and
what is none scores 0 where LongProc raises; the worked example is one short search, not two long ones; the `small` form has
three numbers up to 20.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import combinations

from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft
from kvledger.tasks.longproc.frame import Tier, numbered, seeded, tagged
from kvledger.tasks.scorers import Golds

MOST = 2000  # an intermediate result is below
STEPS = ("Final step", "The step before", "The first step")
LINES: dict[Form, dict[Tier, tuple[int, int]]] = {
    "small": {"0.5k": (4, 12), "2k": (13, 30), "8k": (31, 64)},
    "full": {"0.5k": (6, 13), "2k": (30, 59), "8k": (120, 243)},
}
EQUATION = re.compile(r"\s*(\d{1,9})\s*([-+*/])\s*(\d{1,9})\s*=\s*(\d{1,9})\s*")
PROBLEM = re.compile(r"Initial number set: \[([\d, ]{1,200})\], target: (\d{1,9})\.")
INSTRUCTION = (
    "Use all the numbers of a problem, each exactly once, with + - * / to reach its target. Search depth first: pick two "
    "numbers in order, try the larger with the smaller by all four operations in order, and drop a branch whose result is a "
    f"decimal, is {MOST} or more, or misses the target. Write the search down as in the example, then the solution between "
    "<Solution> and </Solution>.\n\n"
)


class Search:
    """One search: its lines and, if it succeeded, the equations. Gives up, unsolved, after `most` lines."""

    def __init__(self, numbers: list[int], target: int, most: int = 100_000) -> None:
        self.target, self.most = target, most
        self.lines = [f"Initial number set: {numbers}, target: {target}. {_options(numbers)}"]
        self.equations: list[str] = []
        self.solved = self._explore(numbers, 0)

    def _explore(self, numbers: list[int], level: int) -> bool:
        for (i, a), (j, b) in combinations(enumerate(numbers), 2):
            left = [n for k, n in enumerate(numbers) if k not in (i, j)]
            if left:
                self.lines.append(
                    f"{bullet(level + 1)}Pick two numbers ({a}, {b}) (numbers left: {left}). Try possible operations."
                )
            for equation, result in _operations(max(a, b), min(a, b)):
                if len(self.lines) > self.most:
                    return False
                self.equations.append(equation)
                if self._follow(equation, result, left, level + 1 + bool(left)):
                    return True
                self.equations.pop()
        return False

    def _follow(self, equation: str, result: int | str, left: list[int], level: int) -> bool:
        """Writes what came of an operation, and goes on from there if numbers are left."""
        say = f"{bullet(level)}Try {equation}. "
        if isinstance(result, str):
            self.lines.append(f"{say}{result}drop this branch.")
            return False
        if not left:
            found = result == self.target
            verdict = f"== {self.target}, target found!" if found else f"!= {self.target}, drop this branch."
            self.lines.append(f"{say}Evaluate {result} {verdict}")
            return found
        now = [result, *left]
        rest = f". {_options(now)}" if len(now) > 2 else ", just two numbers left."
        self.lines.append(
            f"{say}Add {result} to the number set. Current number set: {now}, target: {self.target}{rest}"
        )
        return self._explore(now, level)


def bullet(level: int) -> str:
    return " " * level + "|- " if level else ""


def _options(numbers: list[int]) -> str:
    return f"Options for choosing two numbers: {list(combinations(numbers, 2))}."


def _operations(a: int, b: int) -> Iterator[tuple[str, int | str]]:
    """The four operations on a >= b: equation, and the result or why the branch is dropped."""
    for sign, result in (("+", a + b), ("-", a - b), ("*", a * b)):
        yield f"{a} {sign} {b} = {result}", _bounded(result)
    if b == 0:
        yield f"{a} / {b} (invalid operation)", ""
    elif a % b:
        yield f"{a} / {b} = {a / b:.1f}", f"{a / b:.1f} is a decimal, "
    else:
        yield f"{a} / {b} = {a // b}", _bounded(a // b)


def _bounded(result: int) -> int | str:
    return result if result < MOST else f"{result} exceeds the maximum intermediate result, "


def trace(search: Search) -> str:
    """The reference answer: the search, the way back, and the solution between its tags."""
    names = STEPS if len(search.equations) == 3 else (STEPS[0], STEPS[2])
    back = [f"{name}: {equation}" for name, equation in zip(names, reversed(search.equations), strict=True)]
    return "\n".join(
        [
            "# Search Procedure",
            *search.lines,
            "",
            "Now we have found the target, let's trace back the solution:",
            *back,
            "",
            "Output the solution in the required format:",
            "<Solution>",
            *search.equations,
            "</Solution>",
            "",
        ]
    )


def build(tier: Tier, rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` problems; those asked for have a search of the tier's length."""
    own = seeded(rng)
    searches = [_problem(own, LINES[form][tier], form) for _ in range(turns)]
    draft = Draft()
    draft.add("instruction", INSTRUCTION)
    example = _problem(own, (0, 12) if form == "small" else (0, 14), form)
    draft.add("demos", f"# Example\n{_stated(*_given(example))}\n\n{trace(example)}\n")
    hay = seeded(rng)
    asked = [_stated(*_given(search)) for search in searches]
    numbers, spans = numbered(draft, rng, asked, size, lambda: _stated(*_draw(hay, form)))
    turns_ = []
    for search, number, span in zip(searches, numbers, spans, strict=True):
        which = f"problem {number}" if size > 1 else "the problem"
        turns_.append(Turn(f"Now solve {which}.\n\n", trace(search), (trace(search),), 0, (span,)))
    return draft.sample(f"longproc/countdown_{tier}", turns_)


def _draw(rng: random.Random, form: Form) -> tuple[list[int], int]:
    count, high = (3, 20) if form == "small" else (4, 49)
    return [rng.randint(1, high) for _ in range(count)], rng.randint(10, 50)


def _problem(rng: random.Random, bounds: tuple[int, int], form: Form) -> Search:
    while True:
        search = Search(*_draw(rng, form), bounds[1])
        if search.solved and bounds[0] <= len(search.lines) <= bounds[1]:
            return search


def _stated(numbers: list[int], target: int) -> str:
    return f"Numbers: {numbers}\nTarget: {target}"


def _given(search: Search) -> tuple[list[int], int]:
    return given(search.lines[0])


def given(reference: str) -> tuple[list[int], int]:
    """The numbers and the target that a reference answer starts from. ValueError if it has none."""
    found = PROBLEM.search(reference)
    if not found:
        raise ValueError(
            f"a countdown reference must hold 'Initial number set: [...], target: n.', not {reference[:80]!r}"
        )
    return [int(number) for number in found.group(1).split(",")], int(found.group(2))


def solution(prediction: str, golds: Golds) -> float:
    """1 if the equations between the solution's tags use the numbers and end at the target. golds[0] is a reference answer;
    any solution counts."""
    numbers, target = given(golds[0])
    said = tagged(prediction, "Solution")
    lines = said.split("\n", len(numbers)) if said is not None else []
    if len(lines) != len(numbers) - 1:
        return 0.0
    for line in lines:
        read = EQUATION.fullmatch(line[:100])
        if not read or not _holds(*read.groups()):
            return 0.0
        for used in (int(read.group(1)), int(read.group(3))):
            if used not in numbers:
                return 0.0
            numbers.remove(used)
        numbers.append(int(read.group(4)))
    return float(numbers == [target])


def _holds(a: str, sign: str, b: str, c: str) -> bool:
    x, y, z = int(a), int(b), int(c)
    return {"+": x + y == z, "-": x - y == z, "*": x * y == z, "/": y != 0 and x == y * z}[sign]


def partial(prediction: str, golds: Golds) -> float:
    """LongProc's partial credit: 1 for a solution, else how far the search follows the reference's, up to results."""
    if solution(prediction, golds):
        return 1.0
    if "# Search Procedure" not in prediction:
        return 0.0
    said = prediction.rsplit("# Search Procedure", 1)[1].strip().split("\n")
    meant = golds[0].rsplit("# Search Procedure", 1)[-1].split("Now we have found the target")[0].strip().split("\n")
    if said[0] != meant[0]:
        return 0.0
    pairs = list(zip(said[1:], meant[1:], strict=False))
    for at, (mine, theirs) in enumerate(pairs):
        dropped = ["drop this branch" in line for line in (mine, theirs)]
        same_try = "|- Try" in theirs and mine.split("=")[0] == theirs.split("=")[0] and dropped[0] == dropped[1]
        if mine != theirs and not same_try:
            return at / len(meant[1:])
    return max(len(pairs) - 1, 0) / len(meant[1:])
