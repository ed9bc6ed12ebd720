"""How often do 95 % intervals of a score ratio hold the truth? Synthetic answers, the true ratio 90 %.

The plain bootstrap (percentiles of redrawn samples) beside the one that is used (`kvledger.critical.points`). Answers are right
or wrong; of the turns of one sample a share is drawn from the sample's own luck, which makes them alike.

    python benchmarks/coverage.py --runs 2000 --table docs/results/coverage.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from kvledger.critical.points import Paired, score_ratio

TRUTH = 0.9
HEAD = """# Do 95 % intervals hold the truth?

A method that keeps 90 % of the full cache's score in the long run, {runs:,} synthetic runs a row: in how many of 100 does
the interval of the measured ratio hold 90 %? Few contexts with yes/no answers are where a plain bootstrap fails: it redraws
only what it saw, and says 100 ± 0 where all answers came out right. What `kvledger critical` uses instead is described in
`src/kvledger/critical/points.py`; it assumes that the turns of a context are alike by 0.25 (on the embedded model's tasks:
0.23 at most, 0.02 in the mean), and where they are far more alike, it too is too narrow. The interval of a critical
footprint inverts these; `tests/test_critical.py` holds it to 93–97 % over 2,000 synthetic curves.

```
python benchmarks/coverage.py --runs {runs} --table docs/results/coverage.md
```
"""
SHAPES = [(n, 1, 0.0) for n in (3, 5, 10, 20, 50)]
SHAPES += [(n, 5, alike) for n in (5, 10, 20, 50) for alike in (0.0, 0.1, 0.3, 0.6)]


def answers(rng: np.random.Generator, samples: int, turns: int, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """(method's, full cache's) right answers of each sample. `alike`: correlation of two turns of a sample."""
    full = rng.random((samples, turns)) < 0.97
    own = rng.random((samples, turns))
    luck = np.where(rng.random((samples, turns)) < alike**0.5, rng.random((samples, 1)), own)
    return ((luck < TRUTH) & full).sum(1).astype(float), full.sum(1).astype(float)


def plain(rng: np.random.Generator, ours: np.ndarray, full: np.ndarray) -> tuple[float, float]:
    """Percentiles of the ratio over 1,000 redraws."""
    weights = rng.multinomial(len(ours), np.full(len(ours), 1 / len(ours)), size=1000)
    below = weights @ full
    low, high = np.percentile((weights @ ours)[below > 0] / below[below > 0], [2.5, 97.5])
    return float(low), float(high)


def coverage(samples: int, turns: int, alike: float, runs: int) -> tuple[float, float]:
    """Shares of runs whose interval holds the truth: of the plain bootstrap, and of ours."""
    rng = np.random.default_rng(samples * 100 + turns)
    held = np.zeros(2)
    for _ in range(runs):
        ours, full = answers(rng, samples, turns, alike)
        found = score_ratio([[Paired(a, b, turns) for a, b in zip(ours.tolist(), full.tolist())]])
        if found is not None:
            low, high = plain(rng, ours, full)
            held += [low - 1e-9 <= TRUTH <= high + 1e-9, found.low <= TRUTH <= found.high]
    return float(held[0] / runs), float(held[1] / runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--table", type=Path, required=True)
    arguments = parser.parse_args()
    lines = ["| contexts | turns a context | correlation of turns | plain bootstrap | ours |", "|---|---|---|---|---|"]
    for shape in SHAPES:
        theirs, ours = coverage(*shape, arguments.runs)
        lines.append(f"| {shape[0]} | {shape[1]} | {shape[2]:g} | {100 * theirs:.1f} | {100 * ours:.1f} |")
        print(lines[-1], flush=True)
    arguments.table.write_text("\n".join([HEAD.format(runs=arguments.runs), *lines]) + "\n")


if __name__ == "__main__":
    main()
