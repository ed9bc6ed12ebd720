"""How much of a sweep's time is saved by writing answers at once: `python benchmarks/together.py`.

The same sweep with `--together` 1 and more, records compared: short answers (keys) and long ones (paths), many recipes and
one.  Each line's ratio is to its own first column, measured in the same run, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from kvledger.records import Record, read
from kvledger.run.sweep import Grid, sweep

MANY = (
    "full",
    "snapkv(keep=0.3)",
    "adakv(keep=0.3)",
    "headgate(keep=0.5)",
    "streaming(keep=0.3, when='chunk')",
    "full + int8()",
)
CASES: dict[str, tuple[tuple[str, ...], str, dict[str, int]]] = {
    "six recipes, both modes, keys": (MANY, "scbench/kv", {"context": 1024}),
    "one recipe, multi-turn, keys": (MANY[1:2], "scbench/kv", {"context": 1024}),
    "one recipe, multi-turn, paths": (MANY[1:2], "longproc/path_traversal_0.5k", {"context": 1024}),
    "six recipes, multi-turn, paths": (MANY, "longproc/path_traversal_0.5k", {"context": 1024}),
}


def play(case: str, together: int, arguments: argparse.Namespace) -> tuple[float, list[Record]]:
    recipes, task, options = CASES[case]
    modes = ("multi-turn", "multi-request") if "both" in case else ("multi-turn",)
    grid = Grid(
        arguments.model, recipes, (task,), modes, context=(options["context"],), chunk=256, samples=arguments.samples,
        together=together,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        sweep(grid, Path(out), lambda progress: None, lambda line: print(line, flush=True))
        return time.perf_counter() - started, read(Path(out))[0]


def facts(records: list[Record]) -> dict[tuple[str, int, int], tuple[object, ...]]:
    return {(r.cell, r.sample, r.turn): (r.prediction, r.score, r.footprint, r.peak_bytes) for r in records}


def measure(case: str, arguments: argparse.Namespace) -> dict[str, object]:
    seconds: dict[int, list[float]] = {n: [] for n in arguments.together}
    different, count, first = 0, 0, None
    for _ in range(arguments.rounds):
        for n in arguments.together:
            spent, records = play(case, n, arguments)
            seconds[n].append(spent)
            first, count = first or facts(records), len(records)
            different = max(different, sum(first[key] != fact for key, fact in facts(records).items()))
    medians = {n: statistics.median(spent) for n, spent in seconds.items()}
    return {"case": case, "turns": count, "seconds": medians, "different": different}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zoo")
    parser.add_argument("--together", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"| sweep | turns | {' | '.join(f'{n} at once, s' for n in arguments.together)} | ratio | records that differ |"
    )
    print("|" + "---|" * (len(arguments.together) + 4))
    results = []
    for case in CASES:
        found = measure(case, arguments)
        results.append(found)
        seconds: dict[int, float] = found["seconds"]  # type: ignore[assignment]
        ratios = ", ".join(f"{seconds[n] / seconds[arguments.together[0]]:.2f}" for n in arguments.together[1:])
        cells = " | ".join(f"{seconds[n]:.1f}" for n in arguments.together)
        print(f"| {case} | {found['turns']} | {cells} | {ratios} | {found['different']} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
