"""Every constant of training head gates, as a documented option, and the presets. (No torch: the command line reads this.)

PruLong: arXiv 2506.17121 §4 and its released code (github.com/princeton-pli/PruLong, MIT). DuoAttention: arXiv 2410.10819 §3
and its code (github.com/mit-han-lab/duo-attention, MIT).

`prulong` has three presets, for the paper and its code differ:

| | paper | code | recommended |
|---|---|---|---|
| sample | σ(logit(u)/τ + log α), τ = 3/2 | σ((logit(u) + log α)/β), β = 2/3 | code |
| stretch | [-0.1, 1] | [-0.1, 1.1] | code |
| u | (1e-6, 1 - 1e-6) | (1e-8, 1 - 1e-8) | code |
| sparsity in the penalty | closed form | 1 - mean of the sampled gates | closed form |
| weight decay on gates and λ | none | 0.1 | none |
| learning rate of gates and λ | 1 | 1 | 0.2 |
| learning rate after warm-up | linear to 1 % | cosine to 1 % | linear to 1 % |
| log α at the start | not said; N(4, 0.01) | N(4, 0.01) | N(2, 0.01) |

Without the decay, which pulls log α and λ to 0 by a tenth a step, a rate of 1 swings around the target until gates saturate on
the wrong side; 0.2 arrives, in 200 steps as in 1000. The closed form printed in the paper, σ(log α - log(0.1/r)), leaves τ out;
ours is the probability that follows from the sample, whatever the constants are.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any

from kvledger.train.saved import Saved, option

OBJECTIVES = ("prulong", "duo")
PRESETS = {"prulong": ("recommended", "paper", "code"), "duo": ("recommended",)}


@dataclass(frozen=True)
class Options(Saved):
    """What decides a training run. `help` of each field is what the command line prints."""

    objective: str = option("prulong", "prulong (next-token loss) or duo (distillation)")
    preset: str = option("recommended", "constants: of prulong recommended, paper or code; of duo recommended")
    model: str = option("zoo", "zoo or zoo-wide (embedded), a folder or a hub id")
    data: str = option("stdlib", "stdlib, passkeys, tasks, a folder, a .jsonl file, hub:NAME, or a mixture")
    sparsity: float = option(0.7, "fraction of KV heads that shall become streaming heads")
    sink: int = option(128, "first tokens that a streaming head keeps")
    window: int = option(1024, "last tokens that a streaming head keeps")
    steps: int = option(1000, "optimiser steps")
    seq_len: int = option(4096, "tokens of a sequence; documents are packed to it")
    batch: int = option(8, "sequences of a step, over all processes")
    micro: int = option(1, "sequences of one forward")
    seed: int = option(0, "of the data's order, the start and the gates' noise")
    lr: float = option(0.2, "learning rate of the gates")
    lr_lambda: float = option(0.2, "learning rate of the multipliers λ1, λ2 (gradient ascent)")
    lr_weights: float = option(1e-5, "learning rate of the weights, with --train-weights")
    decay: str = option(
        "linear", "learning rate after warm-up: linear, cosine, or ends (falls over the last warm-up's length)"
    )
    warmup: float = option(0.1, "fraction of the steps over which the learning rate rises")
    floor: float = option(0.01, "least learning rate, as a fraction")
    beta1: float = option(0.9, "Adam's first moment")
    beta2: float = option(0.95, "Adam's second moment")
    weight_decay: float = option(0.0, "of gates and multipliers (AdamW)")
    decay_weights: float = option(0.1, "weight decay of the weights, with --train-weights")
    clip: float = option(
        1.0, "norm to which the gradient of gates and multipliers is cut, and that of the weights; 0: never"
    )
    temperature: float = option(2 / 3, "of the hard-concrete sample")
    scaled: bool = option(True, "whether log α is divided by the temperature too")
    low: float = option(-0.1, "left end of the stretched interval")
    high: float = option(1.1, "right end of the stretched interval")
    eps: float = option(1e-8, "u is drawn from (eps, 1 - eps)")
    init: float = option(2.0, "mean of log α at the start; of duo: the gates at the start")
    spread: float = option(0.01, "standard deviation of log α at the start")
    penalty: str = option("closed", "sparsity in the penalty: closed (expected) or sampled (1 - mean of the gates)")
    ramp: float = option(0.8, "fraction of the steps over which the target rises to the sparsity")
    schedule: str = option("linear", "shape of that rise: linear, or log (linear in log(1 - target))")
    first_order: bool = option(True, "whether the penalty has its λ1 term")
    l1: float = option(0.05, "duo: weight of mean |z|")
    block: int = option(1024, "tokens whose logits are held at once")
    save_every: int = option(10, "steps between checkpoints")
    dtype: str = option("auto", "of the model: auto, float32, bfloat16 (or bf16), float16, float64")
    checkpointing: bool = option(False, "recompute layers in the backward pass: less memory, a third more work")
    train_weights: bool = option(False, "train the weights too; they go to OUT.model/")

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_limits(self)

    def full_heads(self, heads: int) -> int:
        """How many of `heads` KV heads the target leaves full. ValueError if none."""
        full = int((1 - self.sparsity) * heads + 0.5 + 1e-9)
        if not full:
            raise ValueError(
                f"sparsity {self.sparsity} leaves none of the {heads} KV heads full; the most is {1 - 0.5 / heads:.4g}"
            )
        return full


SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
CHOICES = {
    "objective": OBJECTIVES,
    "decay": ("linear", "cosine", "ends"),
    "penalty": ("closed", "sampled"),
    "schedule": ("linear", "log"),
    "dtype": ("auto", "float32", "bfloat16", "float16", "float64", *SHORT),
}
AT_LEAST_ONE = ("sink", "window", "steps", "batch", "micro", "block", "save_every")
POSITIVE = ("lr", "lr_lambda", "lr_weights", "temperature")
NOT_NEGATIVE = ("weight_decay", "decay_weights", "clip", "spread", "l1", "seed")
FRACTIONS = ("warmup", "floor", "ramp")


def _check_choices(options: Options) -> None:
    for name, known in (*CHOICES.items(), ("preset", PRESETS.get(options.objective, ()))):
        if (value := getattr(options, name)) not in known:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")


def _check_limits(o: Options) -> None:
    for f in fields(o):
        if isinstance(value := getattr(o, f.name), float) and not isfinite(value):
            raise ValueError(f"{f.name}={value} is not a number to train with")
    for names, least, text in ((AT_LEAST_ONE, 1, "at least 1"), (NOT_NEGATIVE, 0, "not negative")):
        for name in names:
            if (value := getattr(o, name)) < least:
                raise ValueError(f"{name}={value} must be {text}")
    for name in POSITIVE:
        if (value := getattr(o, name)) <= 0:
            raise ValueError(f"{name}={value} must be above 0")
    for name in FRACTIONS:
        if not 0 <= (value := getattr(o, name)) <= 1:
            raise ValueError(f"{name}={value} is outside [0, 1]: it is a fraction")
    if not 0 <= o.sparsity < 1:
        raise ValueError(
            f"sparsity={o.sparsity} is outside [0, 1): it is the fraction of heads that stream, and one must stay full"
        )
    if o.seq_len <= o.sink + o.window:
        raise ValueError(
            f"seq_len={o.seq_len} is not longer than sink + window = {o.sink + o.window}: no head would ever forget a token, "
            "so there is nothing to learn; take longer sequences or a smaller window"
        )
    if o.batch % o.micro:
        raise ValueError(f"micro={o.micro} does not divide batch={o.batch}")
    if not (o.low < 0 < 1 <= o.high and 0 < o.eps < 0.5):
        raise ValueError(f"low={o.low}, high={o.high}, eps={o.eps}: need low < 0, high >= 1 and eps in (0, 0.5)")


PAPER = Options(
    preset="paper", lr=1.0, lr_lambda=1.0, init=4.0, temperature=1.5, scaled=False, high=1.0, eps=1e-6
)  # fmt: skip
CODE = Options(
    preset="code", lr=1.0, lr_lambda=1.0, init=4.0, penalty="sampled", weight_decay=0.1, decay="cosine"
)  # fmt: skip
DUO = Options(
    objective="duo", lr=0.02, beta2=0.999, decay="ends", warmup=0.2, floor=0.1, clip=0.0, init=1.0, batch=1, steps=2000,
    window=256, data="passkeys", sparsity=0.5,
)  # fmt: skip


def preset(objective: str, name: str = "recommended") -> Options:
    """The constants of `objective` under `name`. ValueError with the choices."""
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r} is not one of {', '.join(OBJECTIVES)}")
    if name not in PRESETS[objective]:
        raise ValueError(f"preset={name!r} is not one of {', '.join(PRESETS[objective])} (of {objective})")
    return DUO if objective == "duo" else {"paper": PAPER, "code": CODE}.get(name, Options())


def changed(base: Options, changes: dict[str, Any]) -> Options:
    """`base` with the options that a command names (None: not named)."""
    return replace(base, **{name: value for name, value in changes.items() if value is not None})
