"""The look-alike of pseudocode to C++: what a program prints is found by two independent readings of it."""

from __future__ import annotations

import json
import random
import re
import shutil

import pytest

from kvledger.tasks import TASKS, sandbox
from kvledger.tasks.longproc import programs, pseudo_to_code

BY_HAND = """begin
  let a be 7
  let c be 5
  read a and b
  for i from 1 to 3
    add 10 to a
    if a is even
      set c to the product of a and b, modulo 100
      for j from 1 to 2
        add 1 to c
      end
    end
  end
  if b is greater than a
    set c to the larger of a and b
  end
  set d to the distance between b and c
  print a
  print c
  print d
end"""
CODE = """int main() {
  long long a = 7;
  long long c = 5;
  cin >> a >> b;
  for (long long i = 1; i <= 3; i++) {
    a += 10;
    if (a % 2 == 0) {
      c = (a * b) % 100;
      for (long long j = 1; j <= 2; j++) {
        c += 1;
      }
    }
  }
  if (b > a) {
    c = max(a, b);
  }
  d = abs(b - c);
  cout << a << endl;
  cout << c << endl;
  cout << d << endl;
}"""


def as_python(pseudocode: str, given: tuple[int, int]) -> list[str]:
    """The same program, its C++ rewritten as Python by other rules, and run. The reference of `run`: tests only."""
    lines = []
    for line in programs.translate(pseudocode).split("\n")[1:-1]:
        line = re.sub(r"for \(long long (\w) = 1; \w <= (\d+); \w\+\+\) {", r"for \1 in range(1, \2 + 1):", line[2:])
        line = re.sub(r"if \((.+)\) {", r"if \1:", line)
        line = re.sub(r"cin >> (\w) >> (\w);", rf"\1, \2 = {given}", line)
        line = re.sub(r"cout << (\w) << endl;", r"out.append(str(\1))", line)
        lines += [] if line.strip() == "}" else [line.replace("long long ", "").rstrip(";")]
    out: list[str] = []
    exec("\n".join(lines), {"out": out})
    return out


def test_a_program_by_hand():
    assert programs.translate(BY_HAND) == CODE
    assert programs.run(BY_HAND, (2, 6)) == ["32", "94", "88"]
    assert programs.run(BY_HAND, (1, 60)) == ["31", "60", "0"]


def test_what_programs_print_is_what_a_second_reading_of_their_code_prints():
    kinds, opened = set(), 0
    for seed in range(60):
        rng = random.Random(seed)
        text = programs.program(rng, (4, 40))
        given = rng.randint(0, 999), rng.randint(0, 999)
        assert programs.run(text, given) == as_python(text, given)
        kinds |= {programs._read(line)[0].said for line in text.split("\n")}
        opened += text.count("\n    if ") + text.count("\n    for ")
    assert kinds == {rule.said for rule in programs.RULES}
    assert opened > 10, "blocks stand in blocks"


def test_lines_are_as_many_as_asked_for_and_values_stay_small():
    for seed in range(20):
        text = programs.program(random.Random(seed), (30, 30))
        assert text.count("\n") == 30 + len(programs.VARIABLES) + 5
        assert all(int(value) < 10**6 for value in programs.run(text, (999, 999)))


def test_a_line_that_is_none_is_an_error():
    with pytest.raises(ValueError, match="no line of this pseudocode: 'import os'"):
        programs.translate("begin\nimport os\nend")


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_the_compiler_agrees(monkeypatch):
    monkeypatch.setenv(sandbox.SWITCH, "1")
    made = TASKS["longproc/pseudo_to_code_2k_alike"].make(0, 0, 4000, lambda text: len(text) // 4, 1, "full")
    (turn,) = made.turns
    assert len(json.loads(turn.golds[1])) == programs.TESTS
    assert turn.gold == f"```cpp\n{turn.golds[0]}\n```"
    assert pseudo_to_code.passes(turn.gold, turn.golds) == 1
    ((start, end),) = turn.evidence
    assert programs.translate(made.text[start:end]) == turn.golds[0]
    assert turn.max_new_tokens == 3072
