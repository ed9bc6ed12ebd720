"""Where the time of a whole `kvledger run` goes: the model's forward, and each piece of work besides.

A sweep over tasks, modes and visibilities of one recipe at a time, and of all together, which then share their readings.
Processor time by piece, each without the pieces it calls; what no piece claims inside a forward is the model's own: embeddings,
projections, MLPs, and attention over the rows as they are stored.

    OMP_NUM_THREADS=1 python benchmarks/whole_run.py --tokens 2048 --table results/whole_run.md
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from kvledger import records
from kvledger.cache import arena, ledger
from kvledger.hf import chat, layer, reading, session, together
from kvledger.run import cell, host
from kvledger.run.sweep import Grid, sweep

RECIPES = (
    "full", "snapkv(keep=0.3)", "adakv(keep=0.3)", "pyramidkv(keep=0.3)", "headgate(keep=0.3)",
    "streaming(keep=0.3, when='chunk')",
    "snapkv(keep=0.3, when='chunk')", "tova(keep=0.3)", "kvzap(keep=0.3)", "h2o(keep=0.3)",
)  # fmt: skip
PIECES: dict[str, tuple[tuple[Any, tuple[str, ...]], ...]] = {
    "model": ((session.Session, ("forward",)), (together, ("_forward",))),
    "rows in": ((arena.Arena, ("append", "seal", "follow")),),
    "copies": ((arena.Arena, ("move",)),),
    "noting": ((layer, ("note", "watch")), (reading, ("ask",))),
    "choosing, dropping": ((layer, ("evict",)), (reading, ("choose",))),
    "books": (
        (ledger.Ledger, ("forward", "look", "hold", "hold_other", "evict", "rollback", "pass_by", "curve", "fork")),
        (layer, ("dense_pairs",)),
    ),
    "samples": ((cell, ("sample_of", "room")),),
    "prompts": ((chat.Chat, ("opening", "follow_up", "answer", "text")), (session, ("prepare",))),
    "forks": ((session.Session, ("fork",)), (reading.Reading, ("fork", "end"))),
    "loading": ((host, ("load", "fingerprint")),),
    "records": ((cell, ("_record",)), (records.Log, ("append",))),
}

COLUMNS = (*(piece for piece in PIECES if piece != "loading"), "the rest")


class Clock:
    """Processor time by piece; the one on top of the stack runs."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.stack, self.since = ["the rest"], time.process_time()

    def turn_to(self, piece: str | None) -> None:
        now = time.process_time()
        self.spent[self.stack[-1]] += now - self.since
        self.since = now
        if piece is None:
            self.stack.pop()
        else:
            self.stack.append(piece)

    def timed(self, piece: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.turn_to(piece)
            try:
                return function(*args, **kwargs)
            finally:
                self.turn_to(None)

        return call


def run(recipes: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds by piece of one sweep, without the loading of the model."""
    grid = Grid(
        arguments.model, recipes, tuple(arguments.tasks), ("multi-turn", "multi-request"), ("hidden", "visible"),
        (arguments.tokens,), arguments.chunk, arguments.samples,
    )  # fmt: skip
    clock = Clock()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as out:
        for piece, places in PIECES.items():
            for place, names in places:
                for name in names:
                    stack.enter_context(mock.patch.object(place, name, clock.timed(piece, getattr(place, name))))
        sweep(grid, Path(out), lambda progress: None, lambda line: print(line, flush=True))
    clock.spent.pop("loading")
    return clock.spent


def row(name: str, spent: dict[str, float]) -> str:
    total = sum(spent.values())
    shares = (f"{100 * spent.get(piece, 0.0) / total:.1f}" for piece in COLUMNS)
    return f"| {name} | {total:.1f} | " + " | ".join(shares) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="zoo")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--tasks", nargs="+", default=("scbench/kv", "scbench/vt", "scbench/many_shot"))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    run(("full",), arguments)  # warm: imports, files, the C reader
    lines = ["| recipe | CPU s | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    print("\n".join(lines), flush=True)
    for recipes in (*((one,) for one in arguments.recipes), tuple(arguments.recipes)):
        name = f"`{recipes[0]}`" if len(recipes) == 1 else "all in one run"
        lines.append(row(name, run(recipes, arguments)))
        print(lines[-1], flush=True)
    if arguments.table:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
