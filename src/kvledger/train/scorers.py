"""Training learned scorers: the model is frozen and read only; small networks learn what its rows turn out to be worth.

Each step reads `batch` new sequences, makes examples of them (`targets.py`), notes how well the scorer ranked their rows before
it learned from them, and takes `updates` steps of AdamW. State, log and last good scorer are kept as for
gates, and the same call resumes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, smooth_l1_loss

from kvledger import __version__
from kvledger.hf.cache import check_supported
from kvledger.methods.scorerfile import Facts, Net, Scorer, fresh_net
from kvledger.train.checkpoint import Files, load_state, save_state
from kvledger.train.data import Packed, Stream
from kvledger.train.descent import descend
from kvledger.train.gates import rate
from kvledger.train.scorer_options import ScorerOptions
from kvledger.train.targets import Example, examples


@dataclass(frozen=True)
class ScorerStep:
    """One line of the log: loss and rank correlation on rows that were new, mean over layers and KV heads."""

    step: int
    loss: float
    correlation: float
    lr: float
    tokens_per_second: float
    seconds: float


class ScorerTrainer:
    """Networks of all slots, their optimiser and the count of steps done."""

    def __init__(self, options: ScorerOptions, model: Any, tokenizer: Any):
        self.options, self.model, self.tokenizer = options, model, tokenizer
        self.step, self.spent = 0, 0.0
        self.nets = self._start()
        parameters = list(self._parameters().values())
        self.optimizer = torch.optim.AdamW(
            parameters, lr=options.lr, betas=(options.beta1, options.beta2), weight_decay=options.weight_decay
        )

    def _start(self) -> list[Net]:
        """Untrained networks, in the shape that a look at a short text shows."""
        count = min(32, self.model.config.get_text_config(decoder=True).vocab_size)
        look = Packed(tuple(range(count)), (0,), (False, *[True] * (count - 1)))
        (example,) = examples(self.options.objective, self.model, self.tokenizer, look)
        draw = torch.Generator().manual_seed(self.options.seed)
        nets = []
        for inputs, wanted in zip(example.inputs, example.wanted):
            width = self.options.width(inputs.shape[1])
            made = fresh_net(self.options.objective, len(wanted), inputs.shape[1], width, draw)
            nets.append(
                Net(**{name: nn.Parameter(x.to(self.model.device)) for name, x in made.tensors().items()})  # type: ignore[arg-type]
            )
        return nets

    def _parameters(self) -> dict[str, nn.Parameter]:
        named = {f"{i}.{name}": x for i, net in enumerate(self.nets) for name, x in net.tensors().items()}
        return named  # type: ignore[return-value]

    # ---- one step ------------------------------------------------------------------------------------------------

    def advance(self, batch: list[Packed]) -> ScorerStep:
        """Look at new sequences, then learn from them. FloatingPointError if something is no number."""
        began, o = time.perf_counter(), self.options
        found = [x for sequence in batch for x in examples(o.objective, self.model, self.tokenizer, sequence)]
        if not found:
            raise ValueError(f"step {self.step} has no document that a scorer could learn from: take longer sequences")
        if not self.step:
            self._centre(found)
        scorer, lr = self.scorer(), o.lr * rate(self.step, o)
        with torch.no_grad():
            loss, correlation = float(self._loss(scorer, found)), ranking(scorer, found)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for _ in range(o.updates):
            descend(self.optimizer, self._loss(scorer, found), self._parameters().values(), o.clip)
        seconds = time.perf_counter() - began
        self.spent += seconds
        speed = o.batch * o.seq_len / seconds
        self.step += 1
        return ScorerStep(self.step - 1, loss, correlation, lr, speed, self.spent)

    def _loss(self, scorer: Scorer, found: list[Example]) -> Tensor:
        """Mean over examples and layers of the error, and what neighbours differ."""
        o, parts = self.options, []
        for example in found:
            for slot, (inputs, wanted) in enumerate(zip(example.inputs, example.wanted)):
                told = wanted > -torch.inf
                given = scorer(slot, inputs)
                error = mse_loss if o.objective == "kvzap" else smooth_l1_loss
                part = error(given[told], wanted[told])
                if o.objective == "locret" and given.shape[1] > 1:
                    part = part + o.smooth * mse_loss(given[:, 1:], given[:, :-1])
                parts.append(part)
        return torch.stack(parts).mean()

    @torch.no_grad()
    def _centre(self, found: list[Example]) -> None:
        """Biases begin at the mean of what is wanted, or the first hundred steps would be spent on getting there."""
        for slot, net in enumerate(self.nets):
            if net.bias is not None:
                wanted = torch.cat([example.wanted[slot] for example in found], dim=1)
                net.bias.copy_(wanted.where(wanted > -torch.inf, torch.nan).nanmean(1).nan_to_num(0.0))

    # ---- what is kept --------------------------------------------------------------------------------------------

    def resume(self, files: Files) -> None:
        self.step = load_state(files.state, self.options, self._parameters(), [self.optimizer])
        self.spent = files.cut_log(self.step)

    def save(self, files: Files) -> None:
        save_state(files.state, self.step, self.options, self._parameters(), [self.optimizer])

    def scorer(self, data: str = "") -> Scorer:
        """The networks as they are, sharing their tensors."""
        o = self.options
        return Scorer(Facts(o.objective, o.model, data, self.step, o.seed, __version__), tuple(self.nets))


def train_scorer(
    options: ScorerOptions,
    model: Any,
    tokenizer: Any,
    stream: Stream,
    out: str | Path,
    watch: Callable[[ScorerStep], None] = lambda step: None,
    fresh: bool = False,
) -> Scorer:
    """Train a scorer for `model` on `stream`; it is written to `out` (.safetensors) and returned. The same call resumes.

    ValueError for what cannot be trained, RuntimeError once the loss is no number: the last good scorer is in `out` then.
    """
    check_supported(model)
    run, files = ScorerTrainer(options, model, tokenizer), Files(Path(out))
    if fresh:
        files.forget()
    run.resume(files)
    sequences = stream.sequences(run.step * options.batch)
    while run.step < options.steps:
        _one(run, list(islice(sequences, options.batch)), files, stream.name, watch)
    made = run.scorer(stream.name)
    made.save(out)
    return made


def _one(run: ScorerTrainer, batch: list[Packed], files: Files, data: str, watch: Callable[[ScorerStep], None]) -> None:
    """A step, its line in the log and, now and then, a checkpoint."""
    before = [{name: x.detach().clone() for name, x in net.tensors().items()} for net in run.nets]
    try:
        record = run.advance(batch)
    except FloatingPointError as error:
        Scorer(run.scorer(data).facts, tuple(Net(**parts) for parts in before)).save(files.gates)
        raise RuntimeError(
            f"{error} in step {run.step}; the scorer before it is in {files.gates} (a smaller --lr or --dtype float32 may help)"
        ) from None
    files.append(asdict(record))
    watch(record)
    if run.step % run.options.save_every == 0 or run.step == run.options.steps:
        run.save(files)
        run.scorer(data).save(files.gates)


def ranking(scorer: Scorer, found: list[Example]) -> float:
    """Spearman's rank correlation of given and wanted scores, mean over examples, layers and KV heads."""
    parts = []
    for example in found:
        for slot, (inputs, wanted) in enumerate(zip(example.inputs, example.wanted)):
            given = scorer(slot, inputs)
            for h in range(len(wanted)):
                told = wanted[h] > -torch.inf
                if int(told.sum()) > 2:
                    parts.append(spearman(given[h][told], wanted[h][told]))
    return sum(parts) / max(1, len(parts))


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two lists of numbers; equal ones get the mean of their ranks."""
    ranks = torch.stack([_ranks(a), _ranks(b)])
    return float(torch.corrcoef(ranks)[0, 1].nan_to_num(0.0))


def _ranks(x: Tensor) -> Tensor:
    _, place, counts = x.double().unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]
