"""SCBench's headline on the embedded model: does a cache that was compressed for the first question answer the next ones?

Multi-turn with gold history, `visible` (the first question is in the prompt when rows are dropped) beside `hidden`; scores
at turn 1 and at turns 2 to 5.  Resumes; writes a Markdown table.

    python benchmarks/headline.py --out results/headline --samples 10 --table docs/results/headline.md
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from kvledger.records import Record, read
from kvledger.run.sweep import Grid, Progress, sweep

RECIPES = ("full", "random(keep=0.3)", "streaming(keep=0.3)", "snapkv(keep=0.1)", "snapkv(keep=0.3)", "snapkv(keep=0.5)",
           "adakv(keep=0.3)")  # fmt: skip
COLUMNS = (("visible", True), ("visible", False), ("hidden", True), ("hidden", False))


def interval(scores: list[float]) -> str:
    """Mean in points, with half the 95 % bootstrap interval."""
    draw = np.random.default_rng(0)
    values = np.array(scores)
    means = draw.choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{100 * values.mean():.0f} ± {50 * (high - low):.0f}"


def table(records: list[Record]) -> str:
    cells: dict[tuple[str, str, str, bool], list[float]] = defaultdict(list)
    for r in records:
        cells[r.task, r.recipe, r.visibility, r.turn == 0].append(r.score)
    lines = [
        "| task | recipe | visible, turn 1 | visible, turns 2–5 | hidden, turn 1 | hidden, turns 2–5 |",
        "|---|---|---|---|---|---|",
    ]
    for task in sorted({r.task for r in records}):
        for recipe in RECIPES:
            row = [
                interval(cells[task, recipe, v, first]) if cells[task, recipe, v, first] else "–"
                for v, first in COLUMNS
            ]
            lines.append(f"| {task} | `{recipe}` | " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--tasks", nargs="+", default=["scbench"])
    arguments = parser.parse_args()
    grid = Grid(
        "zoo",
        RECIPES,
        tuple(arguments.tasks),
        visibility=("visible", "hidden"),
        context=(arguments.context,),
        samples=arguments.samples,
    )

    def watch(now: Progress) -> None:
        print(f"\r{now.done} of {now.total} turns", end="", file=sys.stderr)

    sweep(grid, arguments.out, watch, lambda line: print(line, file=sys.stderr))
    text = table(read(arguments.out)[0])
    print("\n" + text)
    if arguments.table:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text(text + "\n")


if __name__ == "__main__":
    main()
