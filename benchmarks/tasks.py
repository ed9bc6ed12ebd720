"""SCBench's tasks and RULER's on an embedded model: the full cache against compressed ones, in both modes.

Every task that is generated offline, in its small form, at each length; the question hidden. Says beside each task what a guess
scores, since some of these tasks are beyond a model of three million weights. Resumes; writes Markdown and JSON.

    python benchmarks/tasks.py --out results/tasks --samples 2 --table docs/results/tasks.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

from kvledger.recipe import parse
from kvledger.records import Record, read
from kvledger.report.interval import mean
from kvledger.run.staff import Staff
from kvledger.run.sweep import Grid, Progress, sweep
from kvledger.tasks import get

RECIPES = ("full", "snapkv(keep=0.3)", "headgate(keep=0.5)", "streaming(keep=0.3, when='chunk')")
FEW = 5  # contexts: with less an interval does not hold what it claims (docs/results/coverage.md)
ABLE = 0.5  # a task that the full cache answers at least this well, and better than a guess, can be compared on


def scores(records: list[Record]) -> dict[tuple[str, str], dict[tuple[str, int], list[float]]]:
    """Scores of the turns of each sample, by task and recipe."""
    found: dict[tuple[str, str], dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in records:
        found[r.task, r.recipe][r.task, r.sample].append(r.score)
    return found


def cell(found: dict[tuple[str, int], list[float]] | None) -> str:
    if not found:
        return "–"
    value = mean(found)
    if len(found) < FEW or value.low is None or value.high is None:
        return f"{100 * value.mean:.0f}"
    return f"{100 * value.mean:.0f} ± {50 * (value.high - value.low):.0f}"


def able(task: str, full: dict[tuple[str, int], list[float]] | None) -> bool:
    if not full:
        return False
    return mean(full).mean >= max(ABLE, get(task).chance + 0.2, get(task).baseline + 0.2)


def table(records: list[Record], tasks: list[str], recipes: list[str]) -> list[str]:
    """A line a task; tasks the model cannot do come last, under a line that says so."""
    found = scores(records)
    can = [task for task in tasks if able(task, found.get((task, recipes[0])))]
    text = ["| task | guess | " + " | ".join(f"`{recipe}`" for recipe in recipes) + " |"]
    text.append("|---" * (2 + len(recipes)) + "|")
    for some, heading in ((can, ""), ([t for t in tasks if t not in can], "*not beyond a guess, or under one half*")):
        if heading and some:
            text.append(f"| {heading} |" + " |" * (1 + len(recipes)))
        for task in some:
            guess = max(get(task).chance, get(task).baseline)
            cells = [cell(found.get((task, recipe))) for recipe in recipes]
            text.append(f"| {task} | {100 * guess:.0f} | " + " | ".join(cells) + " |")
    return text


def facts(records: list[Record]) -> list[dict[str, object]]:
    groups: dict[tuple[str, str, str, int], list[Record]] = defaultdict(list)
    for r in records:
        groups[r.task, r.recipe, r.mode, r.context].append(r)
    return [
        {
            "task": task, "recipe": recipe, "mode": mode, "context": context, "turns": len(some),
            "score": round(sum(r.score for r in some) / len(some), 4),
            "legacy_score": round(sum(r.legacy_score for r in some) / len(some), 4),
            "footprint": round(sum(r.footprint for r in some) / len(some), 4),
        }
        for (task, recipe, mode, context), some in sorted(groups.items())
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--context", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--model", default="zoo")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--tasks", nargs="+", default=["scbench", "ruler"])
    arguments = parser.parse_args()
    grid = Grid(
        arguments.model,
        tuple(arguments.recipes),
        tuple(arguments.tasks),
        modes=("multi-turn", "multi-request"),
        context=tuple(arguments.context),
        chunk=512,
        samples=arguments.samples,
        seed=23,
    )

    def watch(now: Progress) -> None:
        print(f"\r{now.done} of {now.total} turns", end="", file=sys.stderr)

    sweep(grid, arguments.out, watch, lambda line: print(line, file=sys.stderr), Staff(workers=arguments.workers))
    records, recipes = read(arguments.out)[0], [str(parse(recipe)) for recipe in arguments.recipes]
    tasks = list(dict.fromkeys(cell.task for cell in grid.cells()))
    text = []
    for context in arguments.context:
        for mode in grid.modes:
            some = [r for r in records if r.context == context and r.mode == mode]
            text += [f"## {context:,} tokens, {mode}", "", *table(some, tasks, recipes), ""]
    print("\n" + "\n".join(text))
    if arguments.table:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text("\n".join(text))
        lines = [json.dumps(row) for row in facts(records)]
        arguments.table.with_suffix(".json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
