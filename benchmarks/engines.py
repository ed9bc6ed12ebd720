"""What a second worker saves: the same sweep by one process and by two, on two cores with a thread each.

200 cells (tasks x modes x visibility x recipes) of the embedded model, in folders of their own, start of the workers (torch is
loaded, then the model) included.  Records are compared: they must be the same but for times.

    OMP_NUM_THREADS=1 python benchmarks/engines.py --workers 1 2 --out /tmp/engines
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path

from kvledger.records import read
from kvledger.run.staff import Staff
from kvledger.run.sweep import Grid, sweep

KEEPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
RECIPES = ("full", *(f"{name}(keep={keep})" for name in ("snapkv", "adakv", "knorm", "streaming") for keep in KEEPS))
TIMES = ("ttft_seconds", "seconds", "versions")


def grid(context: int, samples: int) -> Grid:
    """25 recipes x 2 tasks x 2 modes x 2 visibilities = 200 cells."""
    return Grid(
        "zoo", RECIPES, ("scbench/kv", "scbench/many_shot"), ("multi-turn", "multi-request"), ("hidden", "visible"),
        (context,), chunk=256, samples=samples, turns=2,
    )  # fmt: skip


def cpu() -> float:
    """Processor seconds of this process and of those it has seen end, which others on the machine lengthen less."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def facts(out: Path) -> list[tuple[object, ...]]:
    rows = [{name: x for name, x in asdict(r).items() if name not in TIMES} for r in read(out)[0]]
    return sorted(tuple(row[name] for name in ("cell", "sample", "turn", *sorted(row))) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--engine", default="local")
    parser.add_argument("--context", type=int, default=768)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    wanted = grid(arguments.context, arguments.samples)
    print(f"{len(wanted.cells())} cells, {arguments.samples} samples of {arguments.context} tokens", file=sys.stderr)
    found: list[list[tuple[object, ...]]] = []
    seconds: list[float] = []
    print("| workers | turns | s | CPU s | first / this |\n|---|---|---|---|---|")
    for count in arguments.workers:
        out = arguments.out / f"{arguments.engine}-{count}"
        began, before = time.perf_counter(), cpu()
        turns = sweep(
            wanted, out, lambda now: None, lambda line: print(line, file=sys.stderr), Staff(arguments.engine, count)
        )
        seconds.append(time.perf_counter() - began)
        busy, ratio = cpu() - before, seconds[0] / seconds[-1]
        found.append(facts(out))
        print(f"| {arguments.engine}, {count} | {turns} | {seconds[-1]:.1f} | {busy:.1f} | {ratio:.2f} |", flush=True)
    print("records: the same" if all(one == found[0] for one in found) else "RECORDS DIFFER")


if __name__ == "__main__":
    main()
