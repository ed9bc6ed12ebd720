"""Gates of KV heads and what drives them to a sparsity.

PruLong (arXiv 2506.17121 §4.1): hard-concrete gates (Louizos et al., arXiv 1712.01312 §2.2) and a Lagrangian penalty
λ1(ŝ - t) + λ2(ŝ - t)² on the sparsity ŝ, whose multipliers ascend.  DuoAttention (arXiv 2410.10819 §3.2): plain gates in
[0, 1] and an L1 term.  A gate z of 1 is full attention, 0 the sinks and the window.

Deviation from the released code: ŝ is by default the closed form 1 - mean P(z > 0), not 1 - mean of the sampled gates.  It
needs no communication between processes, so its gradient reaches log α under any parallelism.

Gates are float64 whatever the model is: they are few, and their moments and scores then resume and rank exactly.
"""

from __future__ import annotations

from math import cos, log, pi

import torch
from torch import Tensor, nn

from kvledger.train.nsa_options import NSAOptions
from kvledger.train.options import Options
from kvledger.train.scorer_options import ScorerOptions

SOFTEN = 0.8  # of the deterministic score, as in the released code of PruLong


def hard_concrete(log_alpha: Tensor, u: Tensor, o: Options) -> Tensor:
    """A sample z in [0, 1] for noise `u` in (0, 1): the stretched concrete variable, clamped. Same shape as `log_alpha`."""
    noise = u.log() - (-u).log1p()
    s = torch.sigmoid((noise + log_alpha) / o.temperature if o.scaled else noise / o.temperature + log_alpha)
    return (s * (o.high - o.low) + o.low).clamp(0, 1)


def probability_open(log_alpha: Tensor, o: Options) -> Tensor:
    """P(z > 0), the expected L0 of a gate: the sample's own closed form, for any constants."""
    zero = log(-o.low / o.high)  # the logit of s at which the stretched variable is 0
    if o.scaled:
        return torch.sigmoid(log_alpha - o.temperature * zero)
    return torch.sigmoid(o.temperature * (log_alpha - zero))


def draw(shape: tuple[int, ...], seed: int, step: int, eps: float) -> Tensor:
    """Noise of a step, uniform on (eps, 1 - eps), float64 on the CPU: every process and every resumed run draws the same."""
    maker = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    return torch.rand(shape, generator=maker, dtype=torch.float64) * (1 - 2 * eps) + eps


class Gates(nn.Module):
    """The trained parameters: `gate` [slots, H] (log α, or z of Duo) and the multipliers `lam` [2], all float64."""

    def __init__(self, slots: int, heads: int, options: Options):
        super().__init__()
        self.options = options
        maker = torch.Generator().manual_seed(options.seed)
        start = torch.full((slots, heads), float(options.init), dtype=torch.float64)
        if options.objective == "prulong":
            start += options.spread * torch.randn(slots, heads, generator=maker, dtype=torch.float64)
        self.gate = nn.Parameter(start)
        self.lam = nn.Parameter(torch.zeros(2, dtype=torch.float64), requires_grad=options.objective == "prulong")

    def sample(self, step: int, count: int) -> Tensor:
        """z [count, slots, H] of a step's sequences; Duo's gates are the same for all."""
        if self.options.objective == "duo":
            return self.gate.expand(count, -1, -1)
        u = draw((count, *self.gate.shape), self.options.seed, step, self.options.eps).to(self.gate.device)
        return hard_concrete(self.gate.expand(count, -1, -1), u, self.options)

    def sparsity(self, z: Tensor) -> Tensor:
        """ŝ, a scalar with gradient: expected (closed form) or of the samples `z`."""
        if self.options.penalty == "sampled":
            return 1 - z.mean()
        return 1 - probability_open(self.gate, self.options).mean()

    def regulariser(self, z: Tensor, step: int) -> Tensor:
        """What is added to the loss of step `step`: PruLong's penalty or Duo's L1 term, a scalar."""
        if self.options.objective == "duo":
            return self.options.l1 * self.gate.abs().mean()
        gap = self.sparsity(z) - target(step, self.options)
        return (self.lam[0] * gap if self.options.first_order else 0) + self.lam[1] * gap**2

    @torch.no_grad()
    def confine(self) -> None:
        """After a step: Duo's gates back into [0, 1]."""
        if self.options.objective == "duo":
            self.gate.clamp_(0, 1)

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Deterministic soft scores in [0, 1], [slots, H]: σ(0.8·log α/β), or Duo's z. They rank as the gates do."""
        if self.options.objective == "duo":
            return self.gate.clamp(0, 1)
        return torch.sigmoid(SOFTEN * self.gate / (self.options.temperature if self.options.scaled else 1.0))

    @torch.no_grad()
    def expected(self) -> float:
        """Expected sparsity: 1 - mean P(z > 0), or 1 - mean z of Duo."""
        open_ = self.scores() if self.options.objective == "duo" else probability_open(self.gate, self.options)
        return float(1 - open_.mean())

    def realised(self) -> float:
        """Fraction of heads whose score rounds to streaming."""
        return float((self.scores() < 0.5).double().mean())


def target(step: int, o: Options) -> float:
    """Sparsity aimed at in step `step` = 0, 1, …: rises from 0 over `ramp` of the steps, then stays."""
    done = min(1.0, step / max(1, round(o.ramp * o.steps)))
    if o.schedule == "log":  # 1 - target falls by the same factor each step
        return 1 - (1 - o.sparsity) ** done
    return o.sparsity * done


def rate(step: int, o: Options | ScorerOptions | NSAOptions) -> float:
    """Learning rate of step `step` as a fraction of its peak: warm-up, then linear, cosine, or a fall over the last part."""
    rise = round(o.warmup * o.steps)
    if o.decay == "ends":  # DuoAttention: up over the first part, down over the last, never below the floor
        return max(o.floor, min(1.0, (step + 1) / max(1, rise), (o.steps - step) / max(1, rise)))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, o.steps - rise)
    shape = 1 - done if o.decay == "linear" else (1 + cos(pi * done)) / 2
    return o.floor + (1 - o.floor) * shape
