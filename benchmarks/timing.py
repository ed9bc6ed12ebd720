"""What the benchmarks share: a clock, medians of ratios, a table.

One thread is timed by its own CPU time, which leaves out when others had the processor; several by the clock on the wall.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Row = Mapping[str, float | str]


def seconds(run: Callable[[], object]) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    run()
    return clock() - started


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the rounds' ratios: a noisy moment slows both sides."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def table(rows: Sequence[Row]) -> str:
    """Markdown, numbers with two places."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = (f"{x:.2f}" if isinstance(x, float) else str(x) for x in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def setting() -> str:
    kind = "CPU time" if torch.get_num_threads() == 1 else "wall time"
    return f"{torch.get_num_threads()} threads ({kind}), torch {torch.__version__}"
