"""Every constant of training learned scorers, as a documented option. (No torch: the command line reads this.)

Locret: arXiv 2410.01805 §4.1 and its code (Apache-2.0): smooth L1 and 0.0025 times the squared difference of neighbours, AdamW
at 5e-4 with betas 0.9 and 0.95, 3,000 steps of one conversation, hidden width 1024. KVzap: arXiv 2601.07891 §3: squared error,
hidden width an eighth of the model's. A sequence is dear and a scorer small, so by default each step's rows are used for
several updates (`updates`; 1 is the papers').
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite

from kvledger.train.options import CHOICES
from kvledger.train.saved import Saved, option

SCORERS = ("kvzap", "locret")


@dataclass(frozen=True)
class ScorerOptions(Saved):
    """What decides a training run of a scorer. `help` of each field is what the command line prints."""

    objective: str = option(
        "kvzap", "kvzap (KVzip+'s scores from the layer's input) or locret (answers' logits from q, k, v)"
    )
    model: str = option("zoo", "zoo or zoo-wide (embedded), a folder or a hub id")
    data: str = option("tasks", "stdlib, passkeys, tasks, a folder, a .jsonl file, hub:NAME, or a mixture")
    steps: int = option(1000, "steps")
    seq_len: int = option(4096, "tokens of a sequence; documents are packed to it")
    batch: int = option(1, "sequences of a step")
    updates: int = option(8, "optimiser updates on each step's rows")
    hidden: int = option(-1, "hidden width of the scorer; 0: linear; -1: kvzap an eighth of its input, locret 1024")
    seed: int = option(0, "of the data's order and the start")
    lr: float = option(5e-4, "learning rate")
    decay: str = option("linear", "learning rate after warm-up: linear or cosine")
    warmup: float = option(0.1, "fraction of the steps over which the learning rate rises")
    floor: float = option(0.01, "least learning rate, as a fraction")
    beta1: float = option(0.9, "Adam's first moment")
    beta2: float = option(0.95, "Adam's second moment")
    weight_decay: float = option(0.01, "of AdamW")
    clip: float = option(1.0, "norm to which the gradient is cut; 0: never")
    smooth: float = option(0.0025, "locret: weight of the squared difference of neighbouring rows' scores")
    save_every: int = option(10, "steps between checkpoints")
    dtype: str = option("auto", "of the model: auto, float32, bfloat16 (or bf16), float16, float64")

    def __post_init__(self) -> None:
        choices = {"objective": SCORERS, "decay": ("linear", "cosine"), "dtype": CHOICES["dtype"]}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")
        for f in fields(self):
            if isinstance(value := getattr(self, f.name), float) and not isfinite(value):
                raise ValueError(f"{f.name}={value} is not a number to train with")
        least = {"steps": 1, "batch": 1, "updates": 1, "save_every": 1, "seq_len": 16, "hidden": -1, "seed": 0}
        for name, low in (*least.items(), ("weight_decay", 0), ("clip", 0), ("smooth", 0)):
            if (value := getattr(self, name)) < low:
                raise ValueError(f"{name}={value} must be at least {low}")
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr} must be above 0")
        for name in ("warmup", "floor", "beta1", "beta2"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name}={value} is outside [0, 1]")

    def width(self, inputs: int) -> int:
        """Hidden width of a scorer of so many inputs; 0 is linear."""
        if self.hidden >= 0:
            return self.hidden
        return 1024 if self.objective == "locret" else max(1, inputs // 8)
