"""Every constant of training NSA's compressors and gates, as a documented option. (No torch: the command line reads this.)

The sizes are those of arXiv 2502.11089 §4.1. The paper trains a whole model from scratch; here the model is frozen and its own
attention is the teacher, so the constants of training are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite

from kvledger.train.options import CHOICES
from kvledger.train.saved import Saved, option


@dataclass(frozen=True)
class NSAOptions(Saved):
    """What decides a training run. `help` of each field is what the command line prints."""

    objective: str = option("nsa", "nsa (attention's output, by compressed, selected and window branches)")
    model: str = option("zoo", "zoo or zoo-wide (embedded), a folder or a hub id")
    data: str = option("tasks", "stdlib, passkeys, tasks, a folder, a .jsonl file, hub:NAME, or a mixture")
    compress: int = option(32, "rows that are compressed to one")
    stride: int = option(16, "rows from the beginning of one such run to the next")
    block: int = option(64, "rows of a block")
    select: int = option(16, "blocks that a query sees")
    window: int = option(512, "last rows that a query sees besides")
    hidden: int = option(64, "width of the compressors' inner layer")
    steps: int = option(1000, "steps")
    seq_len: int = option(4096, "tokens of a sequence; documents are packed to it")
    queries: int = option(128, "queries of a document that are compared, half of them those that answer")
    updates: int = option(4, "optimiser updates on each step's rows")
    seed: int = option(0, "of the data's order and the start")
    lr: float = option(2e-3, "learning rate")
    decay: str = option("linear", "learning rate after warm-up: linear or cosine")
    warmup: float = option(0.05, "fraction of the steps over which the learning rate rises")
    floor: float = option(0.01, "least learning rate, as a fraction")
    beta1: float = option(0.9, "Adam's first moment")
    beta2: float = option(0.95, "Adam's second moment")
    weight_decay: float = option(0.01, "of AdamW")
    clip: float = option(1.0, "norm to which the gradient is cut; 0: never")
    focus: float = option(0.5, "weight of how well the compressed branch tells which blocks attention falls on")
    save_every: int = option(10, "steps between checkpoints")
    dtype: str = option("auto", "of the model: auto, float32, bfloat16 (or bf16), float16, float64")

    def __post_init__(self) -> None:
        choices = {"objective": ("nsa",), "decay": ("linear", "cosine"), "dtype": CHOICES["dtype"]}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")
        for f in fields(self):
            if isinstance(value := getattr(self, f.name), float) and not isfinite(value):
                raise ValueError(f"{f.name}={value} is not a number to train with")
        least = {"steps": 1, "updates": 1, "queries": 2, "save_every": 1, "seq_len": 16, "hidden": 1, "seed": 0}
        for name, low in (*least.items(), ("weight_decay", 0), ("clip", 0), ("focus", 0)):
            if (value := getattr(self, name)) < low:
                raise ValueError(f"{name}={value} must be at least {low}")
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr} must be above 0")
        for name in ("warmup", "floor", "beta1", "beta2"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name}={value} is outside [0, 1]")
