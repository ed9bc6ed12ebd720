"""`kvledger train`: its options, those of the three kinds of training, and what it does. (Torch is imported by `run`.)"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvledger.train.nsa_options import NSAOptions
from kvledger.train.options import OBJECTIVES, PRESETS, SHORT, Options, changed, preset
from kvledger.train.scorer_options import SCORERS, ScorerOptions

if TYPE_CHECKING:
    from kvledger.train.nsa import NSAStep
    from kvledger.train.scorers import ScorerStep
    from kvledger.train.trainer import Step


KINDS = (Options, ScorerOptions, NSAOptions)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every field of all kinds of options as --field; what a command does not name is the preset's."""
    parser.add_argument(
        "objective",
        choices=(*OBJECTIVES, *SCORERS, "nsa"),
        help="head gates: prulong (next-token loss), duo (distillation); scorers: kvzap, locret; nsa: branches, gates",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="gates.json, or .safetensors of others; log and state lie beside it",
    )
    names = sorted({name for presets in PRESETS.values() for name in presets})
    parser.add_argument(
        "--preset", default="recommended", choices=names, help="constants: paper and code are prulong's"
    )
    for name in dict.fromkeys(f.name for kind in KINDS for f in fields(kind)):
        if name not in ("objective", "preset"):
            _add(parser, name)
    parser.add_argument("--device", default="", help="cpu or cuda (cuda if there is one)")
    parser.add_argument("--fresh", action="store_true", help="begin anew instead of resuming")
    parser.add_argument(
        "--sequence-parallel", type=int, default=1, metavar="P", help="processes that share one sequence"
    )
    parser.add_argument("--fsdp", action="store_true", help="split the weights over the processes of torchrun (FSDP2)")


def _add(parser: argparse.ArgumentParser, name: str) -> None:
    """One option, with its default and, where others have another one or alone have it, theirs."""
    holders = {"": preset("prulong"), "duo": preset("duo"), "scorers": ScorerOptions(), "nsa": NSAOptions()}
    found = {who: getattr(o, name) for who, o in holders.items() if hasattr(o, name)}
    about = next(f for o in holders.values() for f in fields(o) if f.name == name)
    first = next(iter(found.values()))
    shown = {who: f"{value:.4g}" if isinstance(value, float) else str(value) for who, value in found.items()}
    others = [f"{who}: {text}" for who, text in shown.items() if who and text != shown.get("")]
    text = f"{about.metadata['help']} ({'; '.join([shown[''], *others] if '' in shown else others)})"
    flag, text = f"--{name.replace('_', '-')}", text.replace("%", "%%")
    if isinstance(first, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    else:
        parser.add_argument(flag, type=type(first), metavar=type(first).__name__.upper(), help=text)


def options_of(arguments: argparse.Namespace) -> Options:
    """The options that a command line names, over its preset."""
    return changed(preset(arguments.objective, arguments.preset), _named(arguments, Options))


def scorer_options_of(arguments: argparse.Namespace) -> ScorerOptions | NSAOptions:
    """Of a scorer or of NSA: the options that a command line names, over the defaults."""
    if arguments.preset != "recommended":
        raise ValueError(f"preset={arguments.preset!r} is not one of recommended (of {arguments.objective})")
    if arguments.fsdp or arguments.sequence_parallel != 1:
        raise ValueError(f"{arguments.objective} trains in one process: leave out --fsdp and --sequence-parallel")
    kind = NSAOptions if arguments.objective == "nsa" else ScorerOptions
    named = {name: value for name, value in _named(arguments, kind).items() if value is not None}
    return kind(**{**named, "objective": arguments.objective})


def _named(
    arguments: argparse.Namespace, kind: type[Options] | type[ScorerOptions] | type[NSAOptions]
) -> dict[str, Any]:
    """What a command says of the options of `kind`. ValueError for one that only other kinds have."""
    known = {f.name for f in fields(kind)} - {"objective", "preset"}
    for f in (f for other in KINDS for f in fields(other)):
        if f.name not in (*known, "objective", "preset") and getattr(arguments, f.name) is not None:
            raise ValueError(f"--{f.name.replace('_', '-')} has no place in training {arguments.objective}")
    return {name: getattr(arguments, name) for name in known}


def run(arguments: argparse.Namespace) -> tuple[Path, Path] | None:
    """Train; returns the paths of gates or scorer, and log (None on all processes but the first). ValueError before work."""
    out = Path(arguments.out)
    if arguments.objective not in OBJECTIVES:
        _train_file(scorer_options_of(arguments), out, arguments)
        return out, out.with_suffix(".log.jsonl")
    options = options_of(arguments)
    if out.suffix != ".json":
        raise ValueError(f"--out {out} must end in .json: gates are written as JSON")

    from kvledger.train.parallel import Peers

    peers = Peers.start(arguments.sequence_parallel)
    try:
        _train(options, peers, out, arguments)
    finally:
        peers.close()
    return (out, out.with_suffix(".log.jsonl")) if peers.main else None


def _train_file(options: ScorerOptions | NSAOptions, out: Path, arguments: argparse.Namespace) -> None:
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out} must end in .safetensors: that is what {options.objective} is written as")

    from kvledger.hf.load import load
    from kvledger.train.data import open_stream
    from kvledger.train.nsa import train_nsa
    from kvledger.train.scorers import train_scorer

    model, tokenizer = load(options.model, SHORT.get(options.dtype, options.dtype), arguments.device)
    stream = open_stream(options.data, tokenizer, options.seq_len, options.seed)
    with _live(options.steps, True) as watch:
        if isinstance(options, NSAOptions):
            train_nsa(options, model, stream, out, watch, arguments.fresh)
        else:
            train_scorer(options, model, tokenizer, stream, out, watch, arguments.fresh)


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
def _live(steps: int, shown: bool) -> Iterator[Callable[[Step | ScorerStep | NSAStep], None]]:
    """A line on stderr with where training is and the time left; of one process only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = [BarColumn(12), MofNCompleteColumn(), TextColumn("{task.description}")]
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("reading data", total=steps)
        first: list[tuple[int, float]] = []

        def watch(step: Step | ScorerStep | NSAStep) -> None:
            if not first:
                first.append((step.step, time.perf_counter()))
            bar.update(task, completed=step.step + 1, description=describe(step) + _left(first[0], step, steps))

        yield watch


def describe(step: Step | ScorerStep | NSAStep) -> str:
    """A step in one line: of gates expected and realised sparsity, the target behind the arrow."""
    speed = f"{step.tokens_per_second:,.0f} tokens/s"
    if hasattr(step, "correlation"):
        return f"loss {step.loss:.3g} rank correlation {step.correlation:.2f} {speed}"
    if hasattr(step, "held"):
        return f"loss {step.loss:.3g} error {step.error:.2f} held {step.held:.2f} {speed}"  # type: ignore[union-attr]
    aim = "" if step.target is None else f"→{step.target:.2f}"
    lam = "" if step.lambda1 is None else f" λ {step.lambda1:.1f} {step.lambda2:.1f}"
    sparsity = f"sparsity {step.expected:.2f}/{step.realised:.2f}{aim}"
    return f"loss {step.loss:.3g} {sparsity}{lam} {speed}"


def _left(first: tuple[int, float], step: Step | ScorerStep | NSAStep, steps: int) -> str:
    done = step.step - first[0]
    if not done:
        return ""
    seconds = (time.perf_counter() - first[1]) / done * (steps - step.step - 1)
    return f" {int(seconds // 60)}:{int(seconds % 60):02d} left"
