"""Whole training runs of a tiny model, on any number of ranks; those with `stopped` are cut off and taken up again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tiny import ids, model, tokenizer

from kvledger.train.data import Packed
from kvledger.train.loop import train
from kvledger.train.options import Options, preset
from kvledger.train.parallel import Peers

TOKENS, BATCH, STEPS = 48, 4, 4


@dataclass(frozen=True)
class Run:
    name: str
    sequence: int = 1
    sharded: bool = False
    stopped: bool = False
    weights: bool = False
    objective: str = "prulong"

    def options(self) -> Options:
        small = dict(sink=2, window=8, seq_len=TOKENS, batch=BATCH, steps=STEPS, sparsity=0.5, save_every=2, lr=0.1)
        start = dict(init=0.6) if self.objective == "duo" else dict(init=0.5, spread=1.0)
        more = dict(train_weights=self.weights, lr_weights=1e-3, checkpointing=self.sharded)
        return replace(preset(self.objective), **small, **start, **more)


RUNS = [
    Run("data"),
    Run("sequence", sequence=2, sharded=True, stopped=True),
    Run("weights", stopped=True, weights=True, sharded=True),
    Run("duo", sequence=2, objective="duo"),
]


class Stopped(Exception):
    """The power went out."""


@dataclass(frozen=True)
class Numbers:
    """Random tokens in two documents a sequence; `last`: how many sequences can be had."""

    last: int | None = None
    name: str = "numbers"

    def sequences(self, start: int = 0) -> Iterator[Packed]:
        while start != self.last:
            learn = tuple(i not in (0, 19) and i > start for i in range(TOKENS))
            yield Packed(tuple(ids(TOKENS, seed=start)[0].tolist()), (0, 19), learn)
            start += 1
        raise Stopped


def whole(peers: Peers, run: Run, folder: Path, stop: bool) -> None:
    """Train to the end: `run.name`.json, its log and, with trained weights, its model come to lie in `folder`."""
    options, out = run.options(), folder / f"{run.name}.json"
    if stop:
        try:
            train(options, fresh_model(), tokenizer(), Numbers(BATCH * 3), peers, out, sharded=run.sharded)
        except Stopped:
            peers.barrier()
    train(options, fresh_model(), tokenizer(), Numbers(), peers, out, sharded=run.sharded)


def fresh_model():
    return copy.deepcopy(model("llama", torch.float64))
