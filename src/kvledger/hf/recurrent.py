"""Recurrent layers are left to transformers, and some of them forget: Jamba's start from nothing whenever several tokens arrive
at once, so that a chunk, or a question, would be read as if no prompt came before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from kvledger.hf.hybrid import HybridLayer, states

if TYPE_CHECKING:
    from kvledger.hf.session import Session


def state_of(cache: Cache) -> Tensor | None:
    """The state of the first recurrent layer that has one."""
    return next((x for layer in cache.layers for x in states(layer, ("recurrent_states",))), None)


@torch.inference_mode()
def restarts(model: Any) -> bool:
    """Whether several tokens at once do away with the state before them: two more are read after either of two states."""
    from kvledger.hf.cache import new_cache, run_of

    ids, after = torch.zeros(1, 2, dtype=torch.long, device=model.device), []
    for value in (0.0, 1.0):
        cache = new_cache(model, "full")
        run_of(cache).auto = False
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        if (state := state_of(cache)) is None:
            return False
        state.fill_(value)
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        after.append(state.clone())
    return torch.equal(*after)


def parts(session: Session, ids: list[int], kind: str) -> list[list[int]]:
    """The forwards that the tokens `ids` take: one, or one each where the model would forget what it has read. ValueError for
    a context in chunks, which would take as many forwards as it has tokens."""
    if not session.tokens or len(ids) == 1 or state_of(session.cache) is None:
        return [ids]
    if session.restarts is None:  # four forwards to find out
        session.restarts = restarts(session.model)
    if not session.restarts:
        return [ids]
    if kind == "read":
        raise ValueError(
            f"model type {session.model.config.model_type!r} forgets its state between chunks: read in one shot, chunk=0"
        )
    return [[token] for token in ids]


def check_probes(model: Any, cache: Cache) -> None:
    """ValueError if the tokens of a probe would be read as if no prompt came before them, or could not be taken back."""
    if any(isinstance(layer, HybridLayer) for layer in cache.layers) or (
        state_of(cache) is not None and restarts(model)
    ):
        raise ValueError(
            f"model type {model.config.model_type!r} has a state that a second reading of the prompt would spoil; choose a "
            "method that reads it once (see `kvledger methods`)"
        )
