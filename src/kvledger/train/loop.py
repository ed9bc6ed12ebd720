"""The training loop: steps, their lines in the log, checkpoints, and how it ends.

Every process runs the same loop on its share of a step's sequences and tokens; gradients are summed (`kvledger.train.parallel`
has the convention).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from kvledger.methods import gatefile
from kvledger.train.attention import Gating
from kvledger.train.checkpoint import Files
from kvledger.train.data import Packed, Stream
from kvledger.train.objectives import head_of
from kvledger.train.options import Options
from kvledger.train.parallel import Peers
from kvledger.train.trainer import Step, Trainer


def train(
    options: Options,
    model: Any,
    tokenizer: Any,
    stream: Stream,
    peers: Peers,
    out: str | Path,
    watch: Callable[[Step], None] = lambda step: None,
    fresh: bool = False,
    sharded: bool = False,
) -> gatefile.Gates:
    """Train gates of `model` on `stream`; they are written to `out` (JSON) and returned. The same call resumes.

    Beside `out` lie a log, a state and, with train_weights, the weights (`kvledger.train.checkpoint`); with several processes
    the folder must be one that all see. fresh: forget an earlier run. sharded: split the weights over the processes (FSDP2).
    ValueError for what cannot be trained, RuntimeError once the loss is no number: the last good gates are in `out` then.
    """
    files = Files(Path(out), peers.rank if sharded and options.train_weights else 0)
    check(options, model, peers)
    head = head_of(model)
    with (
        Gating(model, options.sink, options.window, peers, options.train_weights) as gating,
        _recomputed(model, options.checkpointing),
    ):
        if sharded:
            peers.shard(model)
        run = Trainer(options, gating, head, peers)
        if fresh and (peers.main or sharded):
            files.forget()
        peers.barrier()
        run.resume(files)
        batches = _batches(stream, options.batch, run.step)
        while run.step < options.steps:
            _one(run, next(batches), files, stream.name, watch)
        return _finish(run, files, stream.name, tokenizer)


def check(options: Options, model: Any, peers: Peers) -> None:
    """ValueError with the reason if this model cannot be trained so, or not by these processes."""
    gating = Gating(model, options.sink, options.window, peers)
    options.full_heads(len(gating.slots) * gating.heads)
    peers.check(gating.heads, options.seq_len)
    if options.batch % (peers.groups * options.micro):
        raise ValueError(
            f"batch={options.batch} does not split over {peers.groups} data-parallel group(s) "
            f"that take micro={options.micro} sequences at a time"
        )
    if options.train_weights and model.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"weights in {str(model.dtype).removeprefix('torch.')} cannot take steps of {options.lr_weights}: they are lost in "
            "rounding; train weights with --dtype float32"
        )


def _one(run: Trainer, batch: list[Packed], files: Files, data: str, watch: Callable[[Step], None]) -> None:
    """A step, its line in the log and, now and then, a checkpoint."""
    try:
        record = run.advance(batch)
    except FloatingPointError as error:
        run.save_gates(files, data)
        raise RuntimeError(
            f"{error} in step {run.step}; the gates before it are in {files.gates} (a smaller --lr or --dtype float32 may help)"
        ) from None
    if run.peers.main:
        files.append(asdict(record))
        watch(record)
    if run.step % run.options.save_every == 0 or run.step == run.options.steps:
        run.save(files)
        run.save_gates(files, data)


def _finish(run: Trainer, files: Files, data: str, tokenizer: Any) -> gatefile.Gates:
    if run.options.train_weights:
        _save_model(run, files.model, tokenizer)
    return run.save_gates(files, data)


def _batches(stream: Stream, batch: int, done: int) -> Iterator[list[Packed]]:
    sequences = stream.sequences(done * batch)
    while True:
        yield list(islice(sequences, batch))


@contextmanager
def _recomputed(model: Any, wanted: bool) -> Iterator[None]:
    """Recompute layers in the backward pass. Only the layers are told that they train, so that no dropout wakes up."""
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if wanted and not layers:
        raise ValueError(
            f"model type {model.config.model_type!r} cannot recompute its layers; leave out --checkpointing"
        )
    before = [m.training for m in layers]
    if wanted:
        # transformers before 5.20 knows only the older name, later ones warn of it
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
        for m in layers:
            m.training = True
    try:
        yield
    finally:
        if wanted:
            getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
            for m, flag in zip(layers, before):
                m.training = flag


def _save_model(run: Trainer, folder: Path, tokenizer: Any) -> None:
    """The trained weights as a transformers folder; sharded ones are gathered."""
    model = run.gating.model
    whole = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in model.state_dict().items()}
    if run.peers.main:
        model.save_pretrained(folder, state_dict=whole)
        tokenizer.save_pretrained(folder)
