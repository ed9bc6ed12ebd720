"""`kvledger run` and the bar of every sweep: options, what they mean, progress on stderr. (Torch is imported by `sweep`.)"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvledger.run.jobs import TOGETHER
from kvledger.run.staff import ENGINES, Staff

if TYPE_CHECKING:
    from kvledger.run.sweep import Grid


def add_parser(commands: Any) -> Any:
    """The subcommand, on argparse's sub-parsers. Loads no torch."""
    run = commands.add_parser("run", help="play recipes on tasks; the same command resumes", allow_abbrev=False)
    run.add_argument("--model", default="zoo", help="zoo or zoo-wide (embedded), a folder or a hub id")
    run.add_argument("--recipes", nargs="+", required=True, metavar="RECIPE", help='e.g. full "snapkv(keep=0.3)"')
    run.add_argument(
        "--tasks", nargs="+", required=True, metavar="TASK", help="scbench/kv, a suite (scbench), my.jsonl"
    )
    run.add_argument("--modes", nargs="+", default=["multi-turn"], metavar="MODE", help="multi-turn, multi-request")
    run.add_argument("--visibility", nargs="+", default=["hidden"], metavar="V", help="hidden, visible, patched")
    run.add_argument("--context", nargs="+", type=int, default=[2048], metavar="TOKENS", help="of the shared context")
    run.add_argument("--chunk", type=int, default=512, metavar="TOKENS", help="tokens read at a time; 0: in one shot")
    run.add_argument("--tier", default="quick", help="contexts per task: quick 10, standard 50, full all published")
    run.add_argument("--samples", type=int, help="contexts per task, instead of the tier's")
    run.add_argument("--turns", type=int, help="questions per context; default: the task's own number")
    run.add_argument("--data", default="", metavar="hub|DIR", help="published data instead of generated samples")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--history", default="gold", help="what later turns see as earlier answers: gold, model")
    run.add_argument("--form", default="auto", help="small or full SCBench shapes; auto: small for small vocabularies")
    run.add_argument("--out", required=True, metavar="DIR", help="records go to DIR/records")
    _staff_options(run.add_argument_group("who plays"))
    run.set_defaults(parser=run)
    return run


def together_option(group: Any) -> None:
    group.add_argument("--together", type=int, default=TOGETHER, metavar="N", help="answers written in one forward")


def _staff_options(group: Any) -> None:
    together_option(group)
    group.add_argument("--engine", default="local", choices=ENGINES, help="processes here, or a Ray cluster's actors")
    group.add_argument("--workers", type=int, metavar="N", help="models at work; default: one a GPU, or one on a CPU")
    group.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs that each model is spread over")
    group.add_argument("--shard", default="", metavar="I/N", help="play the I-th of N shares, for a scheduler's N jobs")
    group.add_argument("--plan", action="store_true", help="say how many devices and hours it will take, and stop")


def run(arguments: argparse.Namespace) -> bool:
    """Play what the command line asks for, or say what it would take; whether there is something to show."""
    from kvledger.run.sweep import Grid

    sys.path.insert(0, "")  # so that a recipe can name a class in a file of the current folder
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in vars(arguments).items()}
    staff = Staff(**{f.name: given[f.name] for f in fields(Staff)})
    grid, out = Grid(**{f.name: given[f.name] for f in fields(Grid)}), Path(arguments.out)
    if arguments.plan:
        from kvledger.run.forecast import forecast

        print(forecast(grid, out, staff, lambda line: print(f"kvledger: {line}", file=sys.stderr)))
        return False
    play(grid, out, staff)
    if staff.shard:
        print(f"shard {staff.shard} is played; once all are: kvledger report {out}")
    return not staff.shard


def play(grid: Grid, out: Path, staff: Staff | None = None) -> None:
    """Run a sweep under a progress bar on stderr."""
    from kvledger.run.sweep import sweep

    grid.cells()  # a mistake in the command is told before anything is drawn or loaded
    (staff or Staff()).cards()
    started = time.perf_counter()
    with _bar() as (watch, console):
        played = sweep(grid, out, watch, lambda line: console.print(line, style="yellow"), staff)
    console.print(f"{played} turns in {time.perf_counter() - started:.0f} s; records in {out / 'records'}")


@contextmanager
def _bar() -> Iterator[Any]:
    """(what a sweep tells its progress, the console)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
               TimeRemainingColumn()]  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("turns", total=None)

        def watch(now: Any) -> None:
            workers = f"{now.workers} workers · " if now.workers > 1 else ""
            text = f"{workers}{now.cell.recipe} · {now.cell.task} · {now.cell.mode}, {now.cell.visibility}"
            bar.update(task, total=now.total, completed=now.done, description=f"{text:<60}")

        yield watch, console
