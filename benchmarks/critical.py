"""The search for critical footprints against a dense grid, on the embedded model: does it agree, and what does it save?

Each task is searched (`kvledger critical`), and then played as a grid of 19 budgets on the same samples into the same records.
The search agrees on a (method, task) pair if the grid's crossing lies in the interval that the search states.  Costs are
counted in tokens that go through the model (prompts and answers; every evaluation reads its context).  Resumes; tasks can be
played in several processes, each with its own, and the table is made of all that are there.

    python benchmarks/critical.py --out results/critical --tasks scbench/kv scbench/vt
    python benchmarks/critical.py --out results/critical --table docs/results/critical.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from kvledger.critical import Question
from kvledger.critical.crossing import Bound, Crossing, crossing
from kvledger.critical.search import Aim
from kvledger.records import Record, read
from kvledger.report.critical import markdown, tables
from kvledger.run.plan import conversation
from kvledger.run.search import FULL, Field, Quest, Search, open_field, pursue, quests
from kvledger.run.sweep import Grid, sweep

METHODS = ("random(when='chunk')", "snapkv(when='chunk')", "kvzap(when='chunk')", "headgate")
TURNS = 5
HEAD = """# How many KVs: the search against a dense grid

The smallest entry footprint that keeps 90 % of the full cache's score (arXiv 2506.17121), on the embedded model: 1,024
tokens read in chunks of 256, five questions in turn with gold history, the question hidden, rows dropped after each chunk.
`grid`: 19 budgets, keep 0.05 to 0.95, each on all contexts. `search`: `kvledger critical`, which asks for as little of that
as it can, on the same contexts. Percent of the full cache's footprint, 95 % intervals in brackets; `<` and `>`: beyond what
was measured (for a search, beyond the budgets that it asked for). Nothing below the line "reading alone" can be reached
with chunks of this size.

```
python benchmarks/critical.py --out results/critical --tasks {tasks}
python benchmarks/critical.py --out results/critical --table docs/results/critical.md
```
Where rows are dropped once after the prompt, a grid shares one reading of each context among all methods and budgets, and a
search saves questions only; here each budget reads for itself, as chunked eviction must.
"""
TASKS = ("scbench/kv", "scbench/prefix_suffix", "scbench/vt", "scbench/mf", "scbench/many_shot", "scbench/mix")


@dataclass(frozen=True)
class Pair:
    """One method on one task, by both ways; costs in forward tokens."""

    task: str
    method: str
    grid: Crossing
    search: Crossing
    end: str

    @property
    def agrees(self) -> bool:
        return self.search.holds(self.grid.value)


def searching(task: str, samples: int) -> Search:
    grid = Grid("zoo", METHODS, (task,), context=(1024,), chunk=256, samples=samples, turns=TURNS, seed=23)
    return Search(
        grid, {task: (task,)}, Aim(first=min(4, samples), samples=samples, budget=int(4.5 * samples), width=0.1)
    )


def play(task: str, samples: int, out: Path) -> None:
    """The search, then the grid."""
    find(task, samples, out)
    search = searching(task, samples)
    recipes = tuple(recipe for goal in quests(search) for recipe in goal.ladder)
    grid = Grid(**{**vars(search.grid), "recipes": (FULL, *recipes)})
    sweep(grid, out, lambda now: print(f"\r{task}: {now.done} of {now.total} turns", end="", file=sys.stderr), warn)


def find(task: str, samples: int, out: Path) -> tuple[list[Quest], Field]:
    """The search; where the records are there, it plays nothing and comes to the same end."""
    search = searching(task, samples)
    goals = quests(search)
    known = open_field(search, goals, out, warn)
    try:
        pursue(search, goals, known, lambda record: None)
    finally:
        known.log.close()
    return goals, known


def warn(line: str) -> None:
    print(line, file=sys.stderr)


def tokens(records: Iterable[Record]) -> int:
    """That go through the model, every conversation reading its own context."""
    groups: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for r in records:
        groups[r.cell, r.sample].append(r)
    return sum(sum(conversation(found)[:2]) for found in groups.values())


def compare(task: str, samples: int, out: Path) -> tuple[list[Pair], int, int, list[Record]]:
    """Pairs, forward tokens of the grid and of the search, and the grid's records."""
    goals, known = find(task, samples, out)
    question = Question(lines={recipe: goal.line for goal in goals for recipe in goal.ladder})
    records = [r for r in read(out)[0] if r.recipe in (FULL, *question.lines)]
    (table,) = tables(records, question)
    pairs = []
    for goal in goals:
        found, dense = crossing(list(goal.points.values()), 0.9), table.entries[goal.line, task].found
        assert found is not None
        assert dense is not None
        pairs.append(Pair(task, goal.line, dense, found, goal.end))
    used = [r for key in known.used for r in known.heard[key].values()]
    return pairs, tokens(records), tokens(used), records


def between(found: Crossing) -> str:
    return f"{found.value} [{found.low}, {found.high}]"


def side_by_side(pairs: list[Pair]) -> list[str]:
    """Methods by tasks: the grid's answer above the search's."""
    found = {(p.method, p.task): p for p in pairs}
    tasks = list(dict.fromkeys(p.task for p in pairs))
    lines = [f"| | | {' | '.join(tasks)} |", "|---" * (2 + len(tasks)) + "|"]
    for method in dict.fromkeys(p.method for p in pairs):
        rows = [found[method, task] for task in tasks]
        lines.append(f"| `{method}` | grid | {' | '.join(between(p.grid) for p in rows)} |")
        lines.append(f"| | search | {' | '.join(between(p.search) + ('' if p.agrees else ' ✗') for p in rows)} |")
    return lines


def summary(pairs: list[Pair], grid: int, search: int, samples: int) -> list[str]:
    agree = sum(p.agrees for p in pairs)
    widths = [median(p.grid.width for p in pairs), median(p.search.width for p in pairs)]
    apart = median(abs(p.grid.value.above - p.search.value.above) for p in pairs)
    return [
        f"- The grid's crossing lies in the search's 95 % interval in **{agree} of {len(pairs)} pairs** "
        f"({100 * agree / len(pairs):.0f} %).",
        f"- The search took {search:,} forward tokens, the grid of 19 budgets {grid:,}: **{100 * search / grid:.0f} %**.",
        f"- Median width of the intervals: {100 * widths[0]:.0f} points for the grid, {100 * widths[1]:.0f} for the search; "
        f"the two answers are {100 * apart:.1f} points apart (median), with {samples} contexts a budget at most.",
    ]


def as_json(pairs: list[Pair], grid: int, search: int) -> str:
    def plain(found: Crossing) -> dict[str, list[float | str]]:
        def ends(b: Bound) -> list[float | str]:
            return [b.side, round(b.value, 4)]

        return {"value": ends(found.value), "low": ends(found.low), "high": ends(found.high)}

    rows = [
        json.dumps({"task": p.task, "method": p.method, "agrees": p.agrees, "end": p.end, "grid": plain(p.grid),
                    "search": plain(p.search)})
        for p in pairs
    ]  # fmt: skip
    return f'{{"grid_tokens": {grid}, "search_tokens": {search}, "pairs": [\n' + ",\n".join(rows) + "\n]}\n"


def write(out: Path, samples: int, table: Path) -> None:
    """The page and its JSON, from the tasks that have been played."""
    lines = {recipe: goal.line for goal in quests(searching(TASKS[0], samples)) for recipe in goal.ladder}
    whole = (len(lines) + 1) * samples * TURNS
    done = [t for t in TASKS if sum(r.recipe in (FULL, *lines) for r in read(folder(out, t))[0]) >= whole]
    if not done:
        raise SystemExit(f"no task under {out} has been played to its end")
    partly = f"**So far {len(done)} of {len(TASKS)} tasks have been played to their end.**\n"
    found = [compare(task, samples, folder(out, task)) for task in done]
    pairs = [pair for some, *_ in found for pair in some]
    grid, search = sum(g for _, g, _, _ in found), sum(s for _, _, s, _ in found)
    everything = [r for *_, records in found for r in records]
    text = [
        HEAD.format(tasks=" ".join(TASKS)),
        *([partly] if len(done) < len(TASKS) else []),
        *summary(pairs, grid, search, samples),
        "",
        *side_by_side(pairs),
        "",
        "## By the stricter rule",
        "",
    ]
    text += ["The smallest footprint from which on the curve of the grid stays at 90 % or above:", ""]
    text += [line for part in tables(everything, Question(rule="lasting", lines=lines)) for line in markdown(part)]
    print("\n".join(text))
    table.write_text("\n".join(text) + "\n")
    table.with_suffix(".json").write_text(as_json(pairs, grid, search))


def folder(out: Path, task: str) -> Path:
    return out / task.replace("/", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", default=[], choices=TASKS, help="tasks to play")
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--table", type=Path, help="write the page, from all tasks that have been played")
    arguments = parser.parse_args()
    for task in arguments.tasks:
        play(task, arguments.samples, folder(arguments.out, task))
    if arguments.table:
        write(arguments.out, arguments.samples, arguments.table)


if __name__ == "__main__":
    main()
