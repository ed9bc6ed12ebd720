"""Hard-concrete gates against numerical integration, schedules and multipliers against loops written by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kvledger.train.gates import Gates, draw, hard_concrete, probability_open, rate, target
from kvledger.train.options import CODE, DUO, PAPER, Options, changed

PRESETS = [Options(), PAPER, CODE]
ALPHAS = torch.tensor([-6.0, -1.6, 0.0, 0.7, 4.0, 9.0], dtype=torch.float64)


def grid(n: int = 400_001) -> Tensor:
    """Midpoints of n equal parts of (0, 1): a mean over them is an integral over u."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def sample(log_alpha: float, u: Tensor, o: Options) -> Tensor:
    """The sample, from the formulas of the paper (§4.1) and of Louizos et al. (§2.2), with logits written out."""
    logit = torch.log(u / (1 - u))
    inside = logit / o.temperature + (log_alpha / o.temperature if o.scaled else log_alpha)
    stretched = 1 / (1 + torch.exp(-inside)) * (o.high - o.low) + o.low
    return torch.minimum(torch.ones_like(u), torch.maximum(torch.zeros_like(u), stretched))


@pytest.mark.parametrize("o", PRESETS, ids=lambda o: o.preset)
@pytest.mark.parametrize("log_alpha", ALPHAS.tolist())
def test_samples_and_closed_form_equal_the_integral(o: Options, log_alpha: float) -> None:
    u = grid()
    here = torch.full_like(u, log_alpha)
    z = hard_concrete(here, u, o)
    torch.testing.assert_close(z, sample(log_alpha, u, o), rtol=0, atol=1e-12)
    assert float(probability_open(torch.tensor(log_alpha), o)) == pytest.approx(
        float((z > 0).double().mean()), abs=1e-5
    )


def test_the_figures_that_separate_mean_gate_and_expected_l0() -> None:
    """At log α = 0 the mean gate is 0.5 but P(z > 0) 0.83; at 4, where training starts, 2.4 % against 0.4 % are closed."""
    o, u = Options(), grid()
    assert float(hard_concrete(torch.zeros_like(u), u, o).mean()) == pytest.approx(0.5, abs=1e-4)
    assert float(probability_open(torch.tensor(0.0), o)) == pytest.approx(0.832, abs=1e-3)
    assert float(probability_open(torch.tensor(0.0), o)) == pytest.approx(1 / (1 + math.exp(-1.599)), abs=1e-4)
    four = torch.full_like(u, 4.0)
    assert 1 - float(hard_concrete(four, u, o).mean()) == pytest.approx(0.024, abs=1e-3)
    assert 1 - float(probability_open(torch.tensor(4.0), o)) == pytest.approx(0.004, abs=5e-4)


@pytest.mark.parametrize("o", PRESETS, ids=lambda o: o.preset)
def test_gradients_of_sample_and_closed_form(o: Options) -> None:
    u = draw((6,), 3, 0, o.eps)
    alpha = torch.linspace(-1.5, 1.5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: hard_concrete(a, u, o), alpha)
    assert torch.autograd.gradcheck(lambda a: probability_open(a, o), alpha)
    assert bool(torch.autograd.grad(probability_open(alpha, o).sum(), alpha)[0].gt(0).all())


def test_noise_depends_on_seed_and_step_alone_and_stays_inside() -> None:
    torch.manual_seed(0)
    first = draw((1000,), 1, 5, 1e-2)
    torch.manual_seed(7)
    assert torch.equal(first, draw((1000,), 1, 5, 1e-2))
    assert not torch.equal(first, draw((1000,), 1, 6, 1e-2))
    assert not torch.equal(first, draw((1000,), 2, 5, 1e-2))
    assert 0.01 < float(first.min()) < 0.03
    assert 0.97 < float(first.max()) < 0.99
    assert float(first.mean()) == pytest.approx(0.5, abs=0.03)


def test_sequences_of_a_step_have_noise_of_their_own_and_duo_none() -> None:
    z = Gates(2, 3, changed(Options(), {"init": 0.0})).sample(0, 4)
    assert z.shape == (4, 2, 3)
    assert not torch.equal(z[0], z[1])
    duo = Gates(2, 3, DUO)
    assert torch.equal(duo.sample(0, 2), torch.ones(2, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("schedule", ["linear", "log"])
def test_the_target_rises_over_its_part_of_the_steps_and_stays(schedule: str) -> None:
    o = changed(Options(), {"sparsity": 0.7, "steps": 1000, "ramp": 0.8, "schedule": schedule})
    values = [target(step, o) for step in range(1000)]
    assert values[0] == 0
    assert values[800:] == pytest.approx([0.7] * 200)
    middle = 0.35 if schedule == "linear" else 1 - math.exp(math.log(0.3) / 2)
    assert values[400] == pytest.approx(middle)
    assert all(a < b for a, b in pairwise(values[:801]))


def test_rates() -> None:
    linear, cosine = (changed(Options(), {"steps": 100, "decay": decay}) for decay in ("linear", "cosine"))
    assert [rate(s, linear) for s in (0, 4, 9, 10, 55, 100)] == pytest.approx([0.1, 0.5, 1, 1, 0.505, 0.01])
    assert [rate(s, cosine) for s in (0, 9, 10, 55, 100)] == pytest.approx([0.1, 1, 1, 0.505, 0.01])
    assert rate(20, cosine) > rate(20, linear)
    assert rate(90, cosine) < rate(90, linear)
    duo = changed(DUO, {"steps": 100})
    assert [rate(s, duo) for s in (0, 9, 19, 50, 80, 90, 99)] == pytest.approx([0.1, 0.5, 1, 1, 1, 0.5, 0.1])


@pytest.mark.parametrize("first_order", [True, False])
def test_multipliers_ascend_as_a_loop_by_hand(first_order: bool) -> None:
    """Adam (bias-corrected) on the penalty alone, both written out: gates descend, multipliers ascend."""
    from kvledger.train.trainer import _gate_optimizer

    o = changed(
        Options(),
        {
            "steps": 40,
            "sparsity": 0.5,
            "first_order": first_order,
            "clip": 0.0,
            "init": 1.0,
            "lr": 1.0,
            "lr_lambda": 1.0,
        },
    )
    gates = Gates(1, 4, o)
    optimizer = _gate_optimizer(gates, o)
    alpha, lam = gates.gate.detach().clone(), [0.0, 0.0]
    moments = [(torch.zeros(1, 4, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)), (0.0, 0.0), (0.0, 0.0)]
    shift = 2 / 3 * math.log(0.1 / 1.1)
    for step in range(40):
        p = 1 / (1 + torch.exp(shift - alpha))
        gap = float(1 - p.mean()) - target(step, o)
        slope = (lam[0] if first_order else 0.0) + 2 * lam[1] * gap
        ups = [gap if first_order else 0.0, gap**2]
        grads = [slope * -(p * (1 - p)) / 4, *ups]
        for i, g in enumerate(grads):
            m, v = (0.9 * moments[i][0] + 0.1 * g, 0.95 * moments[i][1] + 0.05 * g * g)
            moments[i] = (m, v)
            rise = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.95 ** (step + 1))) ** 0.5 + 1e-8)
            if i == 0:
                alpha = alpha - rise
            else:
                lam[i - 1] += rise
        optimizer.zero_grad()
        gates.regulariser(gates.sample(step, 1), step).backward()
        optimizer.step()
    torch.testing.assert_close(gates.gate.detach(), alpha, rtol=0, atol=1e-9)
    assert gates.lam.tolist() == pytest.approx(lam, abs=1e-9)


@pytest.mark.parametrize("steps", [200, 1000])
def test_the_penalty_alone_leads_to_the_target(steps: int) -> None:
    from kvledger.train.trainer import _gate_optimizer

    o = changed(Options(), {"steps": steps, "sparsity": 0.5})
    gates = Gates(2, 8, o)
    optimizer = _gate_optimizer(gates, o)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = o.lr * rate(step, o)
        optimizer.zero_grad()
        gates.regulariser(gates.sample(step, 1), step).backward()
        optimizer.step()
        gates.confine()
    assert gates.expected() == pytest.approx(0.5, abs=0.1)


def test_the_penalty_of_the_released_code_counts_sampled_gates() -> None:
    gates = Gates(2, 4, changed(CODE, {"init": 0.0, "spread": 0.0}))
    z = gates.sample(3, 2)
    assert gates.sparsity(z).item() == pytest.approx(1 - z.mean().item())
    closed = Gates(2, 4, changed(Options(), {"init": 0.0, "spread": 0.0}))
    assert closed.sparsity(z).item() == pytest.approx(1 - 0.832, abs=1e-3)


def test_scores_rank_as_gates_do_and_fill_the_unit_interval() -> None:
    gates = Gates(1, 5, Options())
    with torch.no_grad():
        gates.gate.copy_(torch.tensor([[-18.0, -8.0, 0.0, 8.0, 18.0]]))
    scores = gates.scores()[0]
    assert bool((scores.diff() > 0).all())
    assert float(scores[0]) > 0
    assert float(scores[4]) < 1
    assert float(scores[3]) == pytest.approx(1 / (1 + math.exp(-0.8 * 8 * 1.5)))
    assert gates.realised() == pytest.approx(0.4)


def test_duos_gates_are_clamped_after_a_step() -> None:
    duo, free = Gates(1, 2, DUO), Gates(1, 2, Options())
    for gates in (duo, free):
        with torch.no_grad():
            gates.gate.copy_(torch.tensor([[-20.0, 20.0]]))
        gates.confine()
    assert duo.gate.tolist() == [[0, 1]]
    assert free.gate.tolist() == [[-20, 20]]


def test_duo_has_an_l1_term_and_no_multipliers() -> None:
    gates = Gates(2, 2, changed(DUO, {"l1": 0.05}))
    extra = gates.regulariser(gates.sample(0, 1), 0)
    extra.backward()
    assert extra.item() == pytest.approx(0.05)
    assert gates.gate.grad is not None
    assert gates.gate.grad.flatten().tolist() == pytest.approx([0.05 / 4] * 4)
    assert not gates.lam.requires_grad
