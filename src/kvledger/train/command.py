"""`kvledger train`: its options, which are those of `Options`, and what the command does. (Torch is imported by `run`.)"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvledger.train.options import OBJECTIVES, PRESETS, SHORT, Options, changed, preset

if TYPE_CHECKING:
    from kvledger.train.trainer import Step


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every field of `Options` as --field; what a command does not name is the preset's."""
    parser.add_argument("objective", choices=OBJECTIVES, help="prulong: next-token loss; duo: distillation")
    parser.add_argument("--out", required=True, metavar="gates.json", help="the gates; log and state lie beside them")
    names = sorted({name for presets in PRESETS.values() for name in presets})
    parser.add_argument(
        "--preset", default="recommended", choices=names, help="constants: paper and code are prulong's"
    )
    prulong, duo = preset("prulong"), preset("duo")
    for f in fields(Options):
        if f.name in ("objective", "preset"):
            continue
        ours, theirs = getattr(prulong, f.name), getattr(duo, f.name)
        shown = f"{ours:.4g}" if isinstance(ours, float) else ours
        text = f"{f.metadata['help']} ({shown}" + (f"; duo: {theirs})" if theirs != ours else ")")
        flag, text = f"--{f.name.replace('_', '-')}", text.replace("%", "%%")
        if isinstance(ours, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(flag, type=type(ours), metavar=type(ours).__name__.upper(), help=text)
    parser.add_argument("--device", default="", help="cpu or cuda (cuda if there is one)")
    parser.add_argument("--fresh", action="store_true", help="begin anew instead of resuming")
    parser.add_argument(
        "--sequence-parallel", type=int, default=1, metavar="P", help="processes that share one sequence"
    )
    parser.add_argument("--fsdp", action="store_true", help="split the weights over the processes of torchrun (FSDP2)")


def options_of(arguments: argparse.Namespace) -> Options:
    """The options that a command line names, over its preset."""
    named = {f.name: getattr(arguments, f.name) for f in fields(Options) if f.name not in ("objective", "preset")}
    return changed(preset(arguments.objective, arguments.preset), named)


def run(arguments: argparse.Namespace) -> tuple[Path, Path] | None:
    """Train; returns the paths of gates and log (None on all processes but the first). ValueError before any work."""
    options = options_of(arguments)
    out = Path(arguments.out)
    if out.suffix != ".json":
        raise ValueError(f"--out {out} must end in .json: gates are written as JSON")

    from kvledger.train.parallel import Peers

    peers = Peers.start(arguments.sequence_parallel)
    try:
        _train(options, peers, out, arguments)
    finally:
        peers.close()
    return (out, out.with_suffix(".log.jsonl")) if peers.main else None


def _train(options: Options, peers: Any, out: Path, arguments: argparse.Namespace) -> None:
    from kvledger.hf.load import load
    from kvledger.train.data import open_stream
    from kvledger.train.loop import check, train

    # sharded weights go to the GPUs layer by layer, so they are loaded beside them
    dtype = SHORT.get(options.dtype, options.dtype)
    model, tokenizer = load(options.model, dtype, "cpu" if arguments.fsdp else arguments.device)
    check(options, model, peers)
    stream = open_stream(options.data, tokenizer, options.seq_len, options.seed, options.window)
    with _live(options.steps, peers.main) as watch:
        train(options, model, tokenizer, stream, peers, out, watch, arguments.fresh, arguments.fsdp)


@contextmanager
def _live(steps: int, shown: bool) -> Iterator[Callable[[Step], None]]:
    """A line on stderr with where training is and the time left; of one process only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = [BarColumn(12), MofNCompleteColumn(), TextColumn("{task.description}")]
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("reading data", total=steps)
        first: list[tuple[int, float]] = []

        def watch(step: Step) -> None:
            if not first:
                first.append((step.step, time.perf_counter()))
            bar.update(task, completed=step.step + 1, description=describe(step) + _left(first[0], step, steps))

        yield watch


def describe(step: Step) -> str:
    """A step in one line: expected and realised sparsity, the target behind the arrow."""
    aim = "" if step.target is None else f"→{step.target:.2f}"
    lam = "" if step.lambda1 is None else f" λ {step.lambda1:.1f} {step.lambda2:.1f}"
    sparsity = f"sparsity {step.expected:.2f}/{step.realised:.2f}{aim}"
    return f"loss {step.loss:.3g} {sparsity}{lam} {step.tokens_per_second:,.0f} tokens/s"


def _left(first: tuple[int, float], step: Step, steps: int) -> str:
    done = step.step - first[0]
    if not done:
        return ""
    seconds = (time.perf_counter() - first[1]) / done * (steps - step.step - 1)
    return f" {int(seconds // 60)}:{int(seconds % 60):02d} left"
