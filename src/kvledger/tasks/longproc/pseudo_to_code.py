"""LongProc's pseudocode to C++ (arXiv 2501.05414, section 3, after SPoC, arXiv 1906.04908; code Apache-2.0, none of it copied).

People wrote the pseudocode: the published data come through `real`, and `programs.py` makes a look-alike.  A program scores 1
if it passes its first ten tests, each within three seconds.  It is compiled and run in `sandbox`, which has to be switched on.
Deviation: every program has a folder of its own (LongProc's share one, named by their text, and overwrite each other).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from kvledger.tasks import sandbox
from kvledger.tasks.scorers import Golds

TESTS = 10
HEADERS = (
    "cstdio iostream vector algorithm numeric cmath cstring set map queue stack list fstream climits cassert iomanip "
    "sstream bitset"
)
PREAMBLE = "".join(f"#include <{name}>\n" for name in HEADERS.split()) + "using namespace std;\n"
COMPILE = sandbox.Limits(seconds=60, memory=2048 * sandbox.MEGABYTE, written=64 * sandbox.MEGABYTE)
READ = 1_000_000  # characters of an answer


def code(prediction: str) -> str | None:
    """What stands between the first ```cpp (or ```c++) and the last ```; None where one is missing."""
    _, fence, after = prediction[:READ].replace("```c++", "```cpp").partition("```cpp")
    return after.rpartition("```")[0] if fence and "```" in after else None


def tests(golds: Golds) -> list[tuple[str, str]]:
    """Input and expected output of each test. golds[1] is JSON: a list of [lines in, lines out]."""
    if len(golds) < 2:
        raise ValueError("golds of pseudo_to_code are the program and the JSON of its tests; the tests are missing")
    return [("\n".join(given) + "\n", "\n".join(wanted) + "\n") for given, wanted in json.loads(golds[1])[:TESTS]]


def passes(prediction: str, golds: Golds) -> float:
    """1 if the program compiles and gives every test's output, to the letter. ValueError while the sandbox is not on."""
    sandbox.check()
    program = code(prediction)
    if program is None:
        return 0.0
    with tempfile.TemporaryDirectory(prefix="kvledger-") as name:
        folder = Path(name)
        (folder / "answer.cpp").write_text(PREAMBLE + program, encoding="utf-8", errors="replace")
        try:
            built = sandbox.run(["g++", "-std=c++11", "-O", "-o", "answer", "answer.cpp"], folder, limits=COMPILE)
        except FileNotFoundError as error:
            raise ValueError("scoring pseudo_to_code needs the compiler g++, which is not installed") from error
        return float(built.ok and all(_right(folder, given, wanted) for given, wanted in tests(golds)))


def _right(folder: Path, given: str, wanted: str) -> bool:
    result = sandbox.run(["./answer"], folder, given)
    return result.status is not None and result.output == wanted
