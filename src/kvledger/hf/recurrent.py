"""Recurrent layers are left to transformers, and some of them forget: Jamba's start from nothing whenever several tokens arrive
at once, so that a chunk, or a question, would be read as if no prompt came before it. Others keep their state where all prompts
share it, or count the positions of each forward from zero."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from kvledger.hf.hybrid import STATE, HybridLayer, states
from kvledger.hf.place import home

if TYPE_CHECKING:
    from kvledger.hf.session import Session


def state_of(cache: Cache) -> Tensor | None:
    """The state of the first recurrent layer that has one."""
    return next((x for layer in cache.layers for x in states(layer)), None)


def carry_states(model: Any, cache: Cache) -> None:
    """RecurrentGemma keeps its states in its modules, one for all prompts: let each of our caches have its own, put there for
    a forward and taken back. Bamba's positions are told, where nobody else does. Nothing is changed for other caches.
    ValueError if `cache` has no place for the states."""
    stateful = any(hasattr(layer, "conv_states") for layer in cache.layers)
    places = "position_ids" in inspect.signature(model.forward).parameters
    if stateful and places and not hasattr(model, "_kvledger_tells"):
        model.register_forward_pre_hook(_tell, with_kwargs=True)
        model._kvledger_tells = True
    blocks = [module for module in model.modules() if hasattr(module, "conv1d_state") and hasattr(module, "rg_lru")]
    if len(blocks) > sum(hasattr(layer, "conv_states") for layer in cache.layers):
        raise ValueError(f"{model.config.model_type!r} has states that this transformers gives no place in its cache")
    for i, block in enumerate(blocks):
        if not getattr(block, "_kvledger_carries", False):
            block.register_forward_pre_hook(partial(_put, i), with_kwargs=True)
            block.register_forward_hook(partial(_take, i), with_kwargs=True)
            block._kvledger_carries = True


def _seat(i: int, kwargs: dict[str, Any]) -> Any:
    """The layer of our cache that belongs to the recurrent block `i`."""
    from kvledger.hf.cache import installed

    cache = kwargs.get("past_key_values")
    if cache is None or not installed(cache):
        return None
    return [layer for layer in cache.layers if hasattr(layer, "conv_states")][i]


def _put(i: int, block: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if (layer := _seat(i, kwargs)) is not None:
        block.conv1d_state, block.rg_lru.recurrent_states = layer.conv_states[0], layer.recurrent_states[0]


def _take(i: int, block: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    if (layer := _seat(i, kwargs)) is not None:
        layer.conv_states[0], layer.recurrent_states[0] = block.conv1d_state, block.rg_lru.recurrent_states
        block.conv1d_state = block.rg_lru.recurrent_states = None


def _tell(model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Say where the tokens stand that a cache of ours is given, to a model that would count them from zero."""
    from kvledger.hf.cache import arenas, installed

    cache, told = kwargs.get("past_key_values"), len(args) > 1 or kwargs.get("position_ids") is not None
    if cache is None or told or not installed(cache):
        return None
    given = (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
    ids = next(x for x in given if x is not None)
    seen = arenas(cache)[0].columns if arenas(cache) else 0
    if not seen or not counts_anew(model):
        return None
    return args, {**kwargs, "position_ids": torch.arange(seen, seen + ids.shape[1], device=ids.device)[None]}


def counts_anew(model: Any) -> bool:
    """Whether the model takes a token for the first one whatever its cache has seen (Bamba), unless it is told its place. Found
    out once a model, by a few forwards of one token."""
    if not hasattr(model, "_kvledger_counts"):
        model._kvledger_counts = False  # of the trial itself
        try:
            untold, first, second = (_second_token(model, told) for told in (None, 0, 1))
            model._kvledger_counts = torch.equal(untold, first) and not torch.equal(untold, second)
        except BaseException:
            del model._kvledger_counts
            raise
    return bool(model._kvledger_counts)


@torch.inference_mode()
def _second_token(model: Any, place: int | None) -> Tensor:
    """Logits of a token after another one, told its place or not."""
    from kvledger.hf.cache import new_cache, run_of

    cache = new_cache(model, "full")
    run_of(cache).auto = False
    ids = torch.tensor([[1, 2]], device=home(model))
    model(input_ids=ids[:, :1], use_cache=True, past_key_values=cache)
    told = {} if place is None else {"position_ids": torch.full_like(ids[:, :1], place)}
    return model(input_ids=ids[:, 1:], use_cache=True, past_key_values=cache, **told).logits  # type: ignore[no-any-return]


def restarts(model: Any) -> bool:
    """Whether several tokens at once do away with a state before them, of the convolutions or the recurrence. Found out once
    a model, by a few forwards of two tokens."""
    if not hasattr(model, "_kvledger_restarts"):
        model._kvledger_restarts = any(_forgets(model, name) for name in STATE)
    return bool(model._kvledger_restarts)


@torch.inference_mode()
def _forgets(model: Any, name: str) -> bool:
    """Whether two tokens leave the same logits and states after either of two states `name`."""
    from kvledger.hf.cache import argument, new_cache, run_of

    ids, after = torch.ones(1, 2, dtype=torch.long, device=home(model)), []
    for value in (0.0, 1.0):
        cache = new_cache(model, "full")
        run_of(cache).auto = False
        model(input_ids=ids, use_cache=True, **{argument(model): cache})
        held = [x for layer in cache.layers for x in states(layer, (name,))]
        if not held:
            return False
        for x in held:
            x.fill_(value)
        logits = model(input_ids=ids, use_cache=True, **{argument(model): cache}).logits
        after.append([logits, *(x.clone() for layer in cache.layers for x in states(layer))])
    return all(map(torch.equal, *after))


def forgets_between_chunks(model: Any) -> None:
    """ValueError if a prompt read in chunks would be forgotten but for its last chunk."""
    if restarts(model):
        raise ValueError(
            f"model type {model.config.model_type!r} forgets its state between chunks: read in one shot, chunk=0"
        )


def parts(session: Session, ids: list[int], kind: str) -> list[list[int]]:
    """The forwards that the tokens `ids` take: one, or one each where the model would forget what it has read. ValueError for
    a context in chunks, which would take as many forwards as it has tokens."""
    if not session.tokens or len(ids) == 1 or state_of(session.cache) is None:
        return [ids]
    if not restarts(session.model):
        return [ids]
    if kind == "read":
        forgets_between_chunks(session.model)
    return [[token] for token in ids]


def check_probes(model: Any, cache: Cache) -> None:
    """ValueError if the tokens of a probe would be read as if no prompt came before them, or could not be taken back."""
    from kvledger.hf.cache import run_of

    bare = not run_of(cache).layers
    if (
        bare
        or any(isinstance(layer, HybridLayer) for layer in cache.layers)
        or (state_of(cache) is not None and restarts(model))
    ):
        raise ValueError(
            f"model type {model.config.model_type!r} has a state that a second reading of the prompt would spoil; choose a "
            "method that reads it once (see `kvledger methods`)"
        )
