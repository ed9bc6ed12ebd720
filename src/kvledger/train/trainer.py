"""One training step on this process, and what is needed to go on from it.

Gates (and, if wanted, weights) move by AdamW, multipliers by ascent. Noise, schedules and data depend on the seed and the step
alone, so a run that was stopped goes on to the very gates that it would have reached.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kvledger import __version__
from kvledger.methods import gatefile
from kvledger.train.attention import Gating
from kvledger.train.checkpoint import Files, load_state, save_state
from kvledger.train.data import Packed
from kvledger.train.gates import Gates, rate, target
from kvledger.train.objectives import Head, distillation_loss, next_token_loss, targets
from kvledger.train.options import Options
from kvledger.train.parallel import Peers


@dataclass(frozen=True)
class Step:
    """One line of the log. Sparsities and target are fractions of heads; rates are of the gates; λ are None for duo."""

    step: int
    loss: float
    expected: float
    realised: float
    target: float | None
    lambda1: float | None
    lambda2: float | None
    lr: float
    tokens_per_second: float
    seconds: float


class Trainer:
    """Parameters, optimisers and the count of steps done."""

    def __init__(self, options: Options, gating: Gating, head: Head, peers: Peers):
        self.options, self.gating, self.head, self.peers = options, gating, head, peers
        self.step, self.spent = 0, 0.0
        model = gating.model
        self.device = model.device
        self.gates = Gates(len(gating.slots), gating.heads, options).to(self.device)
        self.own = [p for p in self.gates.parameters() if p.requires_grad]
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizers = [_gate_optimizer(self.gates, options)]
        if self.weights:
            self.optimizers.append(_weight_optimizer(list(self.weights.values()), options))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]

    # ---- one step ------------------------------------------------------------------------------------------------

    def advance(self, batch: list[Packed]) -> Step:
        """Gradients of all sequences of the step, then one update. FloatingPointError if something is no number."""
        began = time.perf_counter()
        o, now = self.options, rate(self.step, self.options)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * now
        loss = float(self.peers.total(self._backward(batch)))
        if not isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}")
        self._update()
        seconds = time.perf_counter() - began
        self.spent += seconds
        lam1, lam2 = (None, None) if o.objective == "duo" else self.gates.lam.tolist()
        record = Step(
            step=self.step,
            loss=loss,
            expected=self.gates.expected(),
            realised=self.gates.realised(),
            target=None if o.objective == "duo" else target(self.step, o),
            lambda1=lam1,
            lambda2=lam2,
            lr=o.lr * now,
            tokens_per_second=o.batch * o.seq_len / seconds,
            seconds=self.spent,
        )
        self.step += 1
        return record

    def _backward(self, batch: list[Packed]) -> Tensor:
        """This process's share of the loss, its gradients and those of the regulariser left in `.grad`."""
        z = self.gates.sample(self.step, len(batch))
        leaf = z.detach().requires_grad_()
        labels = sum(sum(sequence.learn) for sequence in batch)
        share = len(batch) // self.peers.groups
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for a in range(self.peers.group * share, (self.peers.group + 1) * share, self.options.micro):
            part = self._loss(batch[a : a + self.options.micro], leaf[a : a + self.options.micro], max(1, labels))
            part.backward()
            loss += part.detach()
        extra = self.gates.regulariser(z, self.step)
        downstream = torch.zeros_like(z) if leaf.grad is None else leaf.grad
        torch.autograd.backward([z, extra], [downstream, torch.ones_like(extra) / self.peers.world])
        return loss

    def _loss(self, sequences: list[Packed], z: Tensor, labels: int) -> Tensor:
        """The objective on some sequences, joined to one row of documents. z [sequences, slots, H]."""
        ids, starts, wanted, owner = _joined(sequences, self.device)
        mine = self.peers.own_tokens(wanted, 0)
        if self.options.objective == "duo":
            with torch.no_grad():
                full = self.gating.hidden(ids, starts, None)
            return distillation_loss(full, self.gating.hidden(ids, starts, z[owner]), mine, labels)
        hidden = self.gating.hidden(ids, starts, z[owner])
        return next_token_loss(self.head, hidden, mine, labels, self.options.block)

    def _update(self) -> None:
        self.peers.add_gradients([*self.own, *self.weights.values()])
        norms = [
            self.peers.clip(group, self.options.clip) for group in (self.own, list(self.weights.values())) if group
        ]
        if not all(torch.isfinite(norm) for norm in norms):
            raise FloatingPointError("a gradient is not finite")
        for optimizer in self.optimizers:
            optimizer.step()
        self.gates.confine()

    # ---- what is kept --------------------------------------------------------------------------------------------

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {"gate": self.gates.gate, "lam": self.gates.lam, **self.weights}

    def resume(self, files: Files) -> None:
        """Go on from a state, if there is one. ValueError if the processes do not see the same."""
        self.step = load_state(files.state, self.options, self._parameters(), self.optimizers)
        steps = torch.tensor([self.step, self.step**2], dtype=torch.float64, device=self.device)
        total = self.peers.total(steps)
        if total[0] != steps[0] * self.peers.world or total[1] != steps[1] * self.peers.world:
            raise ValueError(
                f"the processes do not find the same {files.state}: put --out into a folder that all of them see"
            )
        if self.peers.main:
            self.spent = files.cut_log(self.step)

    def save(self, files: Files) -> None:
        if self.peers.main or any(isinstance(p, DTensor) for p in self.weights.values()):
            save_state(files.state, self.step, self.options, self._parameters(), self.optimizers)

    def save_gates(self, files: Files, data: str) -> gatefile.Gates:
        o, config = self.options, self.gating.model.config
        made = gatefile.Gates(
            tuple(tuple(row) for row in self.gates.scores().tolist()), o.sink, o.window, model=o.model,
            revision=getattr(config, "_commit_hash", None) or "", objective=o.objective, target=o.sparsity, data=data,
            seed=o.seed, steps=self.step, version=__version__,
        )  # fmt: skip
        if self.peers.main:
            made.save(files.gates)
        return made


def _gate_optimizer(gates: Gates, o: Options) -> torch.optim.Optimizer:
    groups = [
        {"params": [gates.gate], "lr": o.lr},
        {"params": [gates.lam], "lr": o.lr_lambda, "maximize": True},
    ]
    return torch.optim.AdamW(groups, betas=(o.beta1, o.beta2), weight_decay=o.weight_decay)


def _weight_optimizer(weights: list[nn.Parameter], o: Options) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=o.lr_weights, betas=(o.beta1, o.beta2), weight_decay=o.decay_weights)


def _joined(sequences: list[Packed], device: Any) -> tuple[Tensor, tuple[int, ...], Tensor, Tensor]:
    """Ids [T], document starts, next tokens that count (else -1) [T], and each document's sequence, of joined sequences."""
    length = len(sequences[0].ids)
    starts = tuple(i * length + s for i, sequence in enumerate(sequences) for s in sequence.starts)
    owner = torch.tensor([i for i, sequence in enumerate(sequences) for _ in sequence.starts], device=device)
    ids = torch.tensor([x for sequence in sequences for x in sequence.ids], device=device)
    learn = torch.tensor([x for sequence in sequences for x in sequence.learn], device=device)
    return ids, starts, targets(ids, learn), owner
