"""What gates are trained on: the next token (PruLong, arXiv 2506.17121 §4.1) or distillation (Duo, arXiv 2410.10819 §3.2).

Both are sums over this process's labelled tokens divided by the label count of all processes, so that the shares of all
processes and micro-batches add up to the mean.  Hidden states are [1, T/P, hidden].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Head:
    """From final hidden states to logits: the output layer, a factor (Granite, Cohere), a soft cap (Gemma 2)."""

    layer: nn.Module
    factor: float
    softcap: float | None

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = self.layer(hidden) * self.factor
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def head_of(model: Any) -> Head:
    """The model's head, tried on three tokens. ValueError if it does more than this module knows."""
    config = model.config.get_text_config(decoder=True)
    factor = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    head = Head(model.get_output_embeddings(), factor, getattr(config, "final_logit_softcapping", None))
    ids = torch.arange(3, device=model.device)[None]
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False).logits
        got = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(got, want, rtol=1e-2, atol=1e-3):
        raise ValueError(
            f"model type {config.model_type!r} turns hidden states into logits in a way that is not known here "
            "(known: a linear head, scaled, with a soft cap)"
        )
    return head


def targets(ids: Tensor, learn: Tensor) -> Tensor:
    """For each token of packed sequences [T] the next one if it counts, else -1. `learn[i]`: predicting token i counts."""
    shifted = torch.where(learn, ids, -1).roll(-1)
    shifted[-1] = -1
    return shifted


def next_token_loss(head: Head, hidden: Tensor, wanted: Tensor, labels: int, block: int) -> Tensor:
    """Sum of -log p over the labelled tokens, divided by `labels`. `wanted` [T/P]: as `targets` gives them.

    Logits are made `block` tokens at a time and again in the backward pass, so [T, V] is never held.
    """
    counted = wanted >= 0
    rows, tokens = hidden[0][counted], wanted[counted]
    total = hidden.sum() * 0  # a gradient of zero where no token counts, so that all processes have one
    total = total.to(torch.promote_types(hidden.dtype, torch.float32))
    for a in range(0, len(tokens), block):
        total = total + checkpoint(_block_loss, head, rows[a : a + block], tokens[a : a + block], use_reentrant=False)
    return total / labels


def _block_loss(head: Head, hidden: Tensor, tokens: Tensor) -> Tensor:
    logits = head(hidden)
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), tokens, reduction="sum")


def distillation_loss(full: Tensor, gated: Tensor, wanted: Tensor, labels: int) -> Tensor:
    """Squared difference of final hidden states, mean over hidden size, summed over labelled tokens, divided by `labels`.

    Labelled is the token that predicts (its hidden state gives the wanted one's probability).
    """
    counted = wanted >= 0
    wide = torch.promote_types(full.dtype, torch.float32)
    gap = gated[0][counted].to(wide) - full[0][counted].to(wide)
    return (gap**2).mean(-1).sum() / labels + gated.sum().to(wide) * 0
