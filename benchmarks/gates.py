"""Trained head gates against random ones, a plain window and SnapKV, at equal footprint, on fresh seeds of all embedded tasks.

PruLong's gates (trained on natural text or on the tasks' own kind) and DuoAttention's (passkeys), at three sparsities; random
gates in five draws; `streaming` and chunked SnapKV with the kept fraction that costs the same footprint; and SnapKV inside the
full heads of PruLong's gates. Multi-turn with gold history, the questions hidden. Resumes; writes Markdown tables.

    python benchmarks/gates.py --out results/gates --lines "random gates" --samples 3 2
    python benchmarks/gates.py --out results/gates --table docs/results/gates.md
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from kvledger.recipe import parse
from kvledger.records import Record, read
from kvledger.report.interval import Estimate, contrast, mean
from kvledger.run.sweep import Grid, Progress, sweep

SPARSITIES, CONTEXTS, DRAWS, CHUNK = (0.3, 0.5, 0.7), (2048, 4096), 5, 512
SINK, WINDOW, WRITTEN, SEED = 16, 128, 120, 7
LEARNED = {"PruLong, natural text": "zoo/prulong-natural-{s}", "PruLong, tasks": "zoo/prulong-tasks-{s}",
           "DuoAttention, passkeys": "zoo/duo"}  # fmt: skip
Row = tuple[str, float]


def gate(path: str, sparsity: float) -> str:
    more = f", sink={SINK}, window={WINDOW}" if path.startswith("random") else ""
    return f"headgate(path='{path}', keep={round(1 - sparsity, 2)}{more})"


def reading(context: int, held) -> float:  # type: ignore[no-untyped-def]
    """Entry footprint of one head: chunks of CHUNK read, then WRITTEN tokens; `held(tokens)` rows are left after a chunk."""
    area, start = 0.0, 0
    while start < context:
        size = min(CHUNK, context - start)
        area += size * (size + 1) / 2 + size * held(start)
        start += size
    return area + WRITTEN * (WRITTEN + 1) / 2 + WRITTEN * held(context)


def equal_keep(context: int, sparsity: float) -> float:
    """The kept fraction whose chunked eviction has the footprint of gates with that sparsity."""
    wanted = sparsity * reading(context, lambda n: min(n, SINK + WINDOW)) + (1 - sparsity) * reading(
        context, lambda n: n
    )
    low, high = 0.0, 1.0
    for _ in range(40):
        keep = (low + high) / 2
        low, high = (keep, high) if reading(context, lambda n: keep * n) < wanted else (low, keep)  # noqa: B023
    return round(low, 3)


def recipes(context: int) -> dict[str, Row]:
    """Recipe -> (line of the table, sparsity)."""
    found: dict[str, Row] = {"full": ("full", 0.0)}
    for s in SPARSITIES:
        keep = equal_keep(context, s)
        for name, path in LEARNED.items():
            found[gate(path.format(s=s), s)] = (name, s)
        for seed in range(DRAWS):
            found[gate(f"random:{seed}", s)] = ("random gates", s)
        found[f"streaming(keep={keep}, when='chunk', sinks={SINK})"] = ("streaming only", s)
        found[f"snapkv(keep={keep}, when='chunk')"] = ("SnapKV", s)
    both = gate(LEARNED["PruLong, tasks"].format(s=0.5), 0.5) + " + snapkv(keep=0.5, when='chunk')"
    found[both] = ("PruLong, tasks + SnapKV 0.5", 0.5)
    return {str(parse(recipe)): row for recipe, row in found.items()}


def points(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.mean:.0f}"
    return f"{100 * estimate.mean:.0f} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


class Results:
    """The records of one context length, by line of the table."""

    def __init__(self, records: list[Record], context: int):
        lines = recipes(context)
        self.by_row: dict[Row, list[Record]] = defaultdict(list)
        for r in {
            (r.cell, r.sample, r.turn): r for r in records
        }.values():  # `full` may have been played by two processes
            if r.context == context and r.recipe in lines:
                self.by_row[lines[r.recipe]].append(r)
        self.full = {(r.task, r.sample, r.turn): r.score for r in self.by_row["full", 0.0]}
        self.rows = list(dict.fromkeys(lines.values()))

    def kept(self, row: Row, task: str = "") -> str:
        """Score over the full cache's on the same turns, in points, with its 95 % interval over samples."""
        pairs: dict[tuple[str, str, int], list[tuple[float, float]]] = defaultdict(list)  # draws are redrawn, too
        for r in self.by_row[row]:
            if r.task == task or not task:
                pairs[r.recipe, r.task, r.sample].append((r.score, self.full[r.task, r.sample, r.turn]))
        against = contrast(pairs)
        return "–" if against is None else points(against.ratio)

    def score(self, task: str) -> Estimate:
        """The full cache's score."""
        turns: dict[int, list[float]] = defaultdict(list)
        for r in self.by_row["full", 0.0]:
            if r.task == task:
                turns[r.sample].append(r.score)
        return mean(turns)

    def footprint(self, row: Row) -> str:
        values = {(r.recipe, r.task, r.sample): [r.footprint] for r in self.by_row[row]}
        return f"{100 * mean(values).mean:.0f}" if values else "–"


def tables(records: list[Record]) -> str:
    results = {context: Results(records, context) for context in CONTEXTS}
    tasks = sorted({r.task for r in records})
    head = "| | " + " | ".join(f"{c:,} tokens, sparsity {s}" for c in CONTEXTS for s in SPARSITIES) + " |"
    rule = "|---" * (1 + len(CONTEXTS) * len(SPARSITIES)) + "|"
    names = list(dict.fromkeys(name for name, s in results[CONTEXTS[0]].rows if s))
    text = []
    for title, cell in (
        ("Score kept, all tasks", lambda c, n, s: results[c].kept((n, s))),
        ("Score kept, Retr.KV", lambda c, n, s: results[c].kept((n, s), "scbench/kv")),
        ("Entry footprint", lambda c, n, s: results[c].footprint((n, s))),
    ):
        text += [f"## {title}", "", head, rule]
        text += [f"| {n} | " + " | ".join(cell(c, n, s) for c in CONTEXTS for s in SPARSITIES) + " |" for n in names]
        text += [""]
    for context in CONTEXTS:
        text += [f"## Score kept by task, sparsity 0.5, {context:,} tokens", "", "| | " + " | ".join(tasks) + " |"]
        text += ["|---" * (1 + len(tasks)) + "|"]
        text += ["| full (score) | " + " | ".join(points(results[context].score(t)) for t in tasks) + " |"]
        text += [f"| {n} | " + " | ".join(results[context].kept((n, 0.5), t) for t in tasks) + " |" for n in names]
        text += [""]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--samples", nargs=2, type=int, default=[6, 3], help="contexts a task, at each length")
    parser.add_argument(
        "--contexts", nargs="+", type=int, default=list(CONTEXTS), help="lengths to play in this process"
    )
    parser.add_argument(
        "--lines", nargs="+", default=[], help="lines of the table to play in this process (default: all)"
    )
    parser.add_argument("--tasks", nargs="+", default=["scbench"])
    arguments = parser.parse_args()

    def watch(now: Progress) -> None:
        print(f"\r{now.done} of {now.total} turns", end="", file=sys.stderr)

    for context, samples in zip(CONTEXTS, arguments.samples):
        if context in arguments.contexts:
            wanted = ["full", *arguments.lines]
            names = tuple(r for r, (line, _) in recipes(context).items() if line in wanted or not arguments.lines)
            grid = Grid(
                "zoo", names, tuple(arguments.tasks), context=(context,), chunk=CHUNK, samples=samples, seed=SEED
            )
            sweep(grid, arguments.out, watch, lambda line: print(line, file=sys.stderr))
    text = tables(read(arguments.out)[0])
    print("\n" + text)
    if arguments.table:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text(text)


if __name__ == "__main__":
    main()
