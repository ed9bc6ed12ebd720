"""Steps of PruLong against the objective written out: dense masks, one document at a time, Adam by hand."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AttentionInterface

from kvledger.train.attention import Gating
from kvledger.train.data import Packed
from kvledger.train.gates import draw
from kvledger.train.objectives import head_of
from kvledger.train.options import Options, changed
from kvledger.train.parallel import Peers
from kvledger.train.trainer import Trainer

T, CUT, STEPS = 30, 11, 3
OPTIONS = changed(
    Options(),
    dict(sink=2, window=5, seq_len=T, batch=2, steps=10, sparsity=0.5, init=0.5, spread=0.5, block=7, clip=0.05),
)


def sequence(n: int) -> Packed:
    return Packed(
        tuple(tiny.ids(T, seed=n)[0].tolist()), (0, CUT), tuple(i not in (0, CUT) and i % 2 > 0 for i in range(T))
    )


def loss_of(made, packed: Packed, z: Tensor) -> Tensor:
    """Sum of -log p over what may be learnt, each document alone."""

    def attention(module, q, k, v, mask, scaling=1.0, **more):
        at, pos = torch.arange(q.shape[2])[:, None], torch.arange(q.shape[2])
        near = (pos < OPTIONS.sink) | (at - pos < OPTIONS.window)
        logits = q @ k.repeat_interleave(4, 1).transpose(-1, -2) * scaling
        full, stream = (
            logits.masked_fill(~allowed, -torch.inf).softmax(-1) @ v.repeat_interleave(4, 1)
            for allowed in (pos <= at, (pos <= at) & near)
        )
        each = z[module.layer_idx].repeat_interleave(4)[None, :, None, None]
        return (each * full + (1 - each) * stream).transpose(1, 2), None

    AttentionInterface.register("step_by_hand", attention)
    total = torch.zeros((), dtype=torch.float64)
    with tiny.implementation(made, "step_by_hand"):
        for a, b in ((0, CUT), (CUT, T)):
            log = made(input_ids=torch.tensor([packed.ids[a:b]]), use_cache=False).logits[0].log_softmax(-1)
            total = total - sum(log[i - 1 - a, packed.ids[i]] for i in range(a, b) if packed.learn[i])
    return total


def by_hand(made, alpha: Tensor, lam: Tensor) -> list[float]:
    """Three steps; `alpha` and `lam` are changed in place. Returns the losses."""
    moments, losses = [[torch.zeros_like(x), torch.zeros_like(x)] for x in (alpha, lam)], []
    for step in range(STEPS):
        batch = [sequence(2 * step), sequence(2 * step + 1)]
        a, l = alpha.clone().requires_grad_(), lam.clone().requires_grad_()
        u = draw((2, 3, 2), 0, step, 1e-8)
        z = (1.2 * torch.sigmoid((torch.log(u / (1 - u)) + a) * 1.5) - 0.1).clamp(0, 1)
        labels = sum(sum(packed.learn) for packed in batch)
        nll = (loss_of(made, batch[0], z[0]) + loss_of(made, batch[1], z[1])) / labels
        gap = 1 - torch.sigmoid(a - 2 / 3 * math.log(0.1 / 1.1)).mean() - 0.5 * step / 8
        (nll + l[0] * gap + l[1] * gap**2).backward()
        losses.append(float(nll.detach()))
        norm = float((a.grad.pow(2).sum() + l.grad.pow(2).sum()).sqrt())
        rate = 0.2 * (1.0 if step == 0 else 1 - 0.99 * (step - 1) / 9)
        for x, grad, moment, sign in ((alpha, a.grad, moments[0], -1), (lam, l.grad, moments[1], 1)):
            g = grad * min(1.0, 0.05 / (norm + 1e-6))
            moment[0] = 0.9 * moment[0] + 0.1 * g
            moment[1] = 0.95 * moment[1] + 0.05 * g * g
            up = moment[0] / (1 - 0.9 ** (step + 1)) / ((moment[1] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
            x += sign * rate * up
    return losses


@pytest.mark.parametrize("micro", [1, 2])
def test_three_steps_equal_three_steps_written_out(micro: int) -> None:
    made = tiny.model("llama", torch.float64)
    with Gating(made, OPTIONS.sink, OPTIONS.window) as gating:
        made.set_attn_implementation("sdpa")
        head = head_of(made)
        made.set_attn_implementation(gating.name)
        trainer = Trainer(changed(OPTIONS, {"micro": micro}), gating, head, Peers())
        alpha, lam = trainer.gates.gate.detach().clone(), trainer.gates.lam.detach().clone()
        steps = [trainer.advance([sequence(2 * n), sequence(2 * n + 1)]) for n in range(STEPS)]
    losses = by_hand(made, alpha, lam)
    assert [step.loss for step in steps] == pytest.approx(losses, rel=1e-6)
    assert [step.target for step in steps] == pytest.approx([0, 0.0625, 0.125])
    torch.testing.assert_close(trainer.gates.gate.detach(), alpha, rtol=0, atol=1e-5)
    torch.testing.assert_close(trainer.gates.lam.detach(), lam, rtol=0, atol=1e-5)
    assert float((alpha - 0.5).abs().max()) > 0.1
