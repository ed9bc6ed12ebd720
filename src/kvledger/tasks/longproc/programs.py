"""Small programs in pseudocode and C++, in place of LongProc's (arXiv 2501.05414, section 3), which people wrote for SPoC.

A program reads two numbers, changes five variables by lines that may stand in loops and conditions, and prints some of them.
Every line of pseudocode is one line of C++; `translate` is the reference procedure, `run` gives the output that the tests
demand, straight from the pseudocode.  Named `_alike`: not to be set beside published scores.  Deviations: one wording for
each kind of line, where people have many; programs of a context differ only in their lines; the `small` form has fewer.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Draft
from kvledger.tasks.longproc.frame import Tier, numbered, seeded

LINES: dict[Form, dict[Tier, tuple[int, int]]] = {
    "small": {"0.5k": (4, 7), "2k": (10, 15)},
    "full": {"0.5k": (10, 20), "2k": (45, 70)},
}
TESTS = 5
VARIABLES, COUNTERS = "abcde", "ij"
INSTRUCTION = (
    "Translate the pseudocode of a program to C++, line by line, as in the example. Write the program between ```cpp and ```. "
    "The headers and `using namespace std;` are there already.\n\n"
)
Slots = dict[str, int]


@dataclass(frozen=True)
class Rule:
    """A kind of line: how it is said, and its C++; x, y, z are names of variables, n is a number. `value` of these is what x
    becomes, or whether the condition holds."""

    said: str
    code: str
    value: Callable[[Slots], int] = lambda at: 0


PLAIN = (
    Rule("set x to the sum of y and z, modulo n", "x = (y + z) % n;", lambda at: (at["y"] + at["z"]) % at["n"]),
    Rule("set x to the product of y and z, modulo n", "x = (y * z) % n;", lambda at: at["y"] * at["z"] % at["n"]),
    Rule("set x to the larger of y and z", "x = max(y, z);", lambda at: max(at["y"], at["z"])),
    Rule("set x to the smaller of y and z", "x = min(y, z);", lambda at: min(at["y"], at["z"])),
    Rule("set x to the distance between y and z", "x = abs(y - z);", lambda at: abs(at["y"] - at["z"])),
    Rule("add n to x", "x += n;", lambda at: at["x"] + at["n"]),
)
OPENING = (
    Rule("if x is greater than y", "if (x > y) {", lambda at: at["x"] > at["y"]),
    Rule("if x is even", "if (x % 2 == 0) {", lambda at: at["x"] % 2 == 0),
)
LOOP = Rule("for x from 1 to n", "for (long long x = 1; x <= n; x++) {")
PRINT = Rule("print x", "cout << x << endl;")
START, END = Rule("begin", "int main() {"), Rule("end", "}")
DECLARE = Rule("let x be n", "long long x = n;", lambda at: at["n"])
READ = Rule("read x and y", "cin >> x >> y;")
RULES = (*PLAIN, *OPENING, LOOP, PRINT, START, END, DECLARE, READ)
SLOT = re.compile(r"\b[nxyz]\b")


def _pattern(rule: Rule) -> re.Pattern[str]:
    return re.compile(SLOT.sub(lambda m: rf"(?P<{m[0]}>{r'[0-9]+' if m[0] == 'n' else '[a-z]'})", rule.said))


PATTERNS = tuple((rule, _pattern(rule)) for rule in RULES)


def _read(line: str) -> tuple[Rule, dict[str, str]]:
    """The kind of a line, and its names and numbers. ValueError if it is of none."""
    for rule, pattern in PATTERNS:
        if found := pattern.fullmatch(line.strip()):
            return rule, found.groupdict()
    raise ValueError(f"no line of this pseudocode: {line[:80]!r}")


def translate(pseudocode: str) -> str:
    """The C++ of a program, line by line; blanks in front stay. ValueError for a line of no known kind."""
    lines = []
    for line in pseudocode.split("\n"):
        rule, names = _read(line)
        lines.append(line[: len(line) - len(line.lstrip())] + _filled(rule.code, names))
    return "\n".join(lines)


def run(pseudocode: str, given: tuple[int, int]) -> list[str]:
    """What the program prints, line by line, when it reads `given`."""
    machine = Machine([_read(line) for line in pseudocode.split("\n")], given)
    machine.block(1, True)
    return machine.printed


class Machine:
    """Runs the lines of a program; no compiler, and nothing of Python's own is evaluated."""

    def __init__(self, lines: list[tuple[Rule, dict[str, str]]], given: tuple[int, int]) -> None:
        self.lines, self.given = lines, given
        self.values: dict[str, int] = {}
        self.printed: list[str] = []

    def block(self, at: int, on: bool) -> int:
        """Runs, or if not `on` passes over, the lines from `at` to their end; the place after it."""
        while self.lines[at][0] is not END:
            rule, names = self.lines[at]
            if rule is LOOP or rule in OPENING:
                times = self.slots(names)["n"] if rule is LOOP else int(on and rule.value(self.slots(names)))
                for _ in range(times if on else 0):
                    self.block(at + 1, True)
                at = self.block(at + 1, False)
            else:
                if on:
                    self.step(rule, names)
                at += 1
        return at + 1

    def step(self, rule: Rule, names: dict[str, str]) -> None:
        if rule is READ:
            self.values[names["x"]], self.values[names["y"]] = self.given
        elif rule is PRINT:
            self.printed.append(str(self.values[names["x"]]))
        else:
            self.values[names["x"]] = rule.value(self.slots(names))

    def slots(self, names: dict[str, str]) -> Slots:
        return {slot: int(name) if slot == "n" else self.values.get(name, 0) for slot, name in names.items()}


def program(rng: random.Random, lines: tuple[int, int]) -> str:
    """The pseudocode of a program with so many lines between what it reads and what it prints at its end."""
    count = rng.randint(*lines)
    head = [_said(DECLARE, x=name, n=str(rng.randint(1, 99))) for name in VARIABLES]
    middle = list(_lines(rng, count, 0))
    tail = [_said(PRINT, x=name) for name in rng.sample(VARIABLES, 3)]
    body = [*head, _said(READ, x="a", y="b"), *middle, *tail]
    return "\n".join(["begin", *(f"  {line}" for line in body), "end"])


def _said(rule: Rule, **names: str) -> str:
    return _filled(rule.said, names)


def _filled(text: str, names: dict[str, str]) -> str:
    return SLOT.sub(lambda m: names[m[0]], text)


def _lines(rng: random.Random, count: int, depth: int) -> Iterator[str]:
    while count > 0:
        if depth < len(COUNTERS) and count > 3 and rng.random() < 0.3:
            held = rng.randint(1, min(5, count - 2))
            x, y = rng.sample(VARIABLES, 2)
            some = {"x": COUNTERS[depth], "n": str(rng.randint(2, 5))} if rng.random() < 0.5 else {"x": x, "y": y}
            yield _said(LOOP if "n" in some else rng.choice(OPENING), **some)
            yield from (f"  {line}" for line in _lines(rng, held, depth + 1))
            yield END.said
            count -= held + 2
        else:
            x, y, z = rng.sample(VARIABLES, 3)
            yield _said(rng.choice(PLAIN), x=x, y=y, z=z, n=str(rng.randint(101, 997)))
            count -= 1


def build(tier: Tier, rng: random.Random, size: int, turns: int, form: Form) -> Sample:
    """`size` programs, of which one is asked for in each turn."""
    own, hay, lines = seeded(rng), seeded(rng), LINES[form][tier]
    asked = [program(own, lines) for _ in range(turns)]
    draft = Draft()
    draft.add("instruction", INSTRUCTION)
    example = program(own, (2, 3))
    draft.add("demos", f"# Example\n{example}\n\n{_fenced(translate(example))}\n\n")
    numbers, spans = numbered(draft, rng, asked, size, lambda: program(hay, lines))
    turns_ = []
    for text, number, span in zip(asked, numbers, spans, strict=True):
        which = f"problem {number}" if size > 1 else "the problem"
        code = translate(text)
        turns_.append(Turn(f"Now translate {which}.\n\n", _fenced(code), (code, _tests(own, text)), 0, (span,)))
    return draft.sample(f"longproc/pseudo_to_code_{tier}_alike", turns_)


def _fenced(code: str) -> str:
    return f"```cpp\n{code}\n```"


def _tests(rng: random.Random, pseudocode: str) -> str:
    """Inputs and what the program prints for them, as JSON: a list of [lines in, lines out]."""
    pairs = [(rng.randint(0, 999), rng.randint(0, 999)) for _ in range(TESTS)]
    return json.dumps([[[f"{a} {b}"], run(pseudocode, (a, b))] for a, b in pairs])
