"""The compression family in one table: every method at every budget on five tasks, the question hidden and visible.

Multi-turn with gold history, rows dropped after the prompt; `random` and `streaming` are the floors, `oracle` (the rows that
hold the evidence, and recent ones) the ceiling. Resumes; writes Markdown, JSON, the page, and the
critical footprints of all methods.

    python benchmarks/family.py --out results/family --samples 4 --table docs/results/family.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

from kvledger.critical import Question
from kvledger.recipe import parse, registry
from kvledger.records import Record, read
from kvledger.report import critical, write_page
from kvledger.report.interval import mean
from kvledger.run.sweep import Grid, Progress, sweep

KEEPS = (0.1, 0.2, 0.3, 0.5, 0.7)
TASKS = ("scbench/kv", "scbench/prefix_suffix", "scbench/vt", "scbench/mf", "scbench/many_shot")
DECODING = ("rkv", "triattention")  # they leave the prompt alone unless asked
SMALLEST = """From the records of [the family's table](family.md), by `benchmarks/family.py`: where the line through a
method's five budgets first reaches 90 % of the full cache's score. Few contexts make wide intervals; what lies beyond
the budgets is marked `<` and `>`."""
MORE = {  # while the context is read, and trained heads
    "snapkv, by chunks": "snapkv(keep={keep}, when='chunk')",
    "headgate, PruLong": "headgate(keep={keep})",
    "headgate, Duo": "headgate(path='zoo/duo', keep={keep})",
    "oracle": "streaming(keep={keep}) + protect(evidence=True)",
}


def recipes(methods: list[str]) -> dict[str, tuple[str, float]]:
    """Recipe -> (line of the table, kept fraction)."""
    found = {"full": ("full", 1.0)}
    for name in methods:
        for keep in KEEPS:
            more = ", when='prompt', rows=0, every=0" if name in DECODING else ""
            found[str(parse(f"{name}(keep={keep}{more})"))] = (name, keep)
    for keep in KEEPS:
        for line, recipe in MORE.items():
            found[str(parse(recipe.format(keep=keep)))] = (line, keep)
    return found


def table(records: list[Record], lines: dict[str, tuple[str, float]], visibility: str, task: str = "") -> list[str]:
    """Mean score in points with half its 95 % interval, methods by budgets."""
    turns: dict[tuple[str, float], dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in records:
        if r.recipe in lines and r.visibility == visibility and task in ("", r.task):
            turns[lines[r.recipe]][r.task, r.sample].append(r.score)
    names = list(dict.fromkeys(name for name, _ in lines.values()))
    text = ["| | " + " | ".join(f"keep {keep}" for keep in KEEPS) + " |", "|---" * (1 + len(KEEPS)) + "|"]
    for name in names:
        cells = []
        for keep in KEEPS:
            found = turns.get((name, 1.0 if name == "full" else keep))
            value = mean(found) if found else None
            half = 0.0 if value is None or value.low is None or value.high is None else 50 * (value.high - value.low)
            cells.append("–" if value is None else f"{100 * value.mean:.0f} ± {half:.0f}")
        text.append(f"| {name} | " + " | ".join(cells) + " |")
    return text


def summary(records: list[Record], lines: dict[str, tuple[str, float]]) -> str:
    """The records, summed up: one JSON object a line for each recipe, task and visibility."""
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for r in records:
        if r.recipe in lines:
            groups[r.recipe, r.task, r.visibility].append(r)
    rows = []
    for (recipe, task, visibility), found in sorted(groups.items()):
        score = mean({i: [r.score for r in found if r.sample == i] for i in {r.sample for r in found}})
        facts = {"recipe": recipe, "task": task, "visibility": visibility, "turns": len(found)}
        facts |= {"score": score.mean, "low": score.low, "high": score.high}
        facts |= {"footprint": sum(r.footprint for r in found) / len(found)}
        facts |= {"stored": sum(r.stored_bytes / r.full_bytes for r in found) / len(found)}
        rows.append(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}))
    return "[\n" + ",\n".join(rows) + "\n]\n"


def smallest(records: list[Record], lines: dict[str, tuple[str, float]]) -> str:
    """The stored bytes at which each method keeps 90 % of the full cache's score, from the same records."""
    question = Question(axis="stored", lines={recipe: line for recipe, (line, _) in lines.items()})
    text = ["# How many KVs does each method need?", "", SMALLEST, ""]
    for found in critical.tables([r for r in records if r.recipe in lines], question):
        text += [*critical.markdown(found), ""]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=[])
    arguments = parser.parse_args()
    known = sorted(n for n, part in registry().items() if part.role == "compression" and n != "full")
    lines = recipes(arguments.methods or known)
    grid = Grid(
        "zoo",
        tuple(lines),
        tuple(arguments.tasks),
        visibility=("hidden", "visible"),
        context=(arguments.context,),
        chunk=512,
        samples=arguments.samples,
        turns=5,
        seed=11,
    )

    def watch(now: Progress) -> None:
        print(f"\r{now.done} of {now.total} turns", end="", file=sys.stderr)

    sweep(grid, arguments.out, watch, lambda line: print(line, file=sys.stderr))
    records = read(arguments.out)[0]
    text = []
    for visibility in ("hidden", "visible"):
        text += [f"## Question {visibility}: mean of {len(arguments.tasks)} tasks", ""]
        text += [*table(records, lines, visibility), ""]
        for task in arguments.tasks:
            text += [f"### {task}, question {visibility}", "", *table(records, lines, visibility, task), ""]
    print("\n" + "\n".join(text))
    if arguments.table:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text("\n".join(text))
        arguments.table.with_suffix(".json").write_text(summary(records, lines))
        arguments.table.with_name("family-critical.md").write_text(smallest(records, lines))
        write_page(records, arguments.table.with_suffix(".html"))


if __name__ == "__main__":
    main()
