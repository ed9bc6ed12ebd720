"""Losses against the model's own logits and against their formulas."""

from __future__ import annotations

import pytest
import tiny
import torch

from kvledger.train.objectives import distillation_loss, head_of, next_token_loss, targets

CAPPED = {
    "gemma2": {"final_logit_softcapping": 5.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
}


def hidden_of(made, ids):
    return made.base_model(input_ids=ids, use_cache=False).last_hidden_state


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt_oss", "granite", "cohere", "glm4"])
def test_loss_in_blocks_is_the_models_own(family: str) -> None:
    dtype = torch.float32 if family == "gpt_oss" else torch.float64  # its experts know no float64
    made = tiny.model(family, dtype, **CAPPED.get(family, {}))
    ids = tiny.ids(30)
    learn = torch.rand(30, generator=torch.Generator().manual_seed(1)) < 0.6
    learn[0] = False
    with torch.no_grad():
        log = made(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        want = -sum(log[i - 1, ids[0, i]] for i in range(30) if learn[i]) / 17
        head, wanted = head_of(made), targets(ids[0], learn)
        hidden = hidden_of(made, ids)
        losses = [float(next_token_loss(head, hidden, wanted, 17, block)) for block in (1, 7, 1024)]
    assert losses == pytest.approx([float(want)] * 3, abs=1e-10 if dtype == torch.float64 else 1e-5)


def test_gradient_in_blocks_equals_the_gradient_of_all_logits() -> None:
    made = tiny.model("gemma2", torch.float64, final_logit_softcapping=5.0)
    ids = tiny.ids(20)
    head, wanted = head_of(made), targets(ids[0], torch.tensor([False] + [True] * 19))
    hidden = hidden_of(made, ids).detach().requires_grad_()
    (blocks,) = torch.autograd.grad(next_token_loss(head, hidden, wanted, 19, 6), hidden)
    whole = torch.nn.functional.cross_entropy(head(hidden[0, :-1]), ids[0, 1:])
    torch.testing.assert_close(blocks, torch.autograd.grad(whole, hidden)[0], rtol=0, atol=1e-12)


def test_logits_are_never_held_for_more_than_a_block() -> None:
    made = tiny.model()
    head, rows = head_of(made), []
    handle = head.layer.register_forward_hook(lambda module, args, out: rows.append(out.shape[0]))
    hidden = torch.randn(1, 50, 64, requires_grad=True)
    next_token_loss(head, hidden, torch.arange(50), 50, 16).backward()
    handle.remove()
    assert sorted(rows) == [2, 2, 16, 16, 16, 16, 16, 16]  # once forward, once again backward
    assert hidden.grad is not None
    assert bool(hidden.grad.abs().sum() > 0)


def test_only_labelled_tokens_count_and_none_at_all_is_a_zero_with_a_gradient() -> None:
    made = tiny.model()
    head = head_of(made)
    hidden = torch.randn(1, 6, 64, requires_grad=True)
    wanted = torch.tensor([-1, 3, -1, -1, 5, -1])
    next_token_loss(head, hidden, wanted, 2, 4).backward()
    assert [bool(row.abs().sum() > 0) for row in hidden.grad[0]] == [False, True, False, False, True, False]
    nothing = next_token_loss(head, hidden, torch.full((6,), -1), 2, 4)
    assert nothing.item() == 0
    assert nothing.requires_grad


def test_targets_are_the_next_tokens_that_may_be_learnt() -> None:
    ids, learn = torch.tensor([7, 8, 9, 7, 5]), torch.tensor([False, True, False, False, True])
    assert targets(ids, learn).tolist() == [8, -1, -1, 5, -1]


def test_distillation_is_the_mean_square_over_hidden_size_and_labels() -> None:
    full, gated = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    wanted = torch.tensor([4, -1, -1, 6, -1])
    want = ((full - gated)[0, [0, 3]] ** 2).sum() / 8 / 2
    assert float(distillation_loss(full, gated, wanted, 2)) == pytest.approx(float(want), rel=1e-6)
    assert float(distillation_loss(full, full, wanted, 2)) == 0


def test_a_head_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny.model("llama", torch.float64)
    monkeypatch.setattr(made.config, "logit_scale", 2.0, raising=False)  # the config says what the model does not do
    with pytest.raises(ValueError, match="'llama' turns hidden states into logits in a way"):
        head_of(made)
