"""Building caches: transformers' own cache for the model, with its full-attention layers replaced by ours."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, LinearAttentionAndFullAttentionLayer

from kvledger.hf.attention import NAME, use
from kvledger.hf.hybrid import HybridLayer, states
from kvledger.hf.inside import rope_of, show_hidden
from kvledger.hf.latent import LatentLayer, ranks
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.place import home
from kvledger.hf.recurrent import carry_states
from kvledger.hf.run import Run
from kvledger.methods.base import Method, Shape
from kvledger.recipe import Recipe, parse

COMPRESSIBLE = (DynamicLayer, LinearAttentionAndFullAttentionLayer)
LEFT_ALONE = ("DynamicSlidingWindowLayer", "LinearAttentionLayer", "DummyLayer")
RUN = "_kvledger_run"


class NothingToCompress(ValueError):
    """The recipe would change keys and values, and the model holds none but in layers that are left alone."""


def resolve(recipe: str | Recipe | Method) -> Recipe:
    """A Recipe from whatever a user may hand over."""
    if isinstance(recipe, str):
        return parse(recipe)
    return recipe if isinstance(recipe, Recipe) else Recipe((recipe,))


def new_cache(model: Any, recipe: str | Recipe | Method) -> Cache:
    """An empty cache for `model` that follows `recipe`. Pass it as the model's `argument`; `run_of(cache)` has its ledger."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    install(cache, model, resolve(recipe))
    return cache


def install(cache: Cache, model: Any, recipe: Recipe) -> Run:
    """Replace the full-attention layers of an empty cache in place. Where the model has none (Mamba, sliding windows only), all
    layers stay as they are and the ledger counts them; NothingToCompress for a recipe that would do more."""
    use(model)
    if not cache.layers:  # made without a config: its layers would appear one by one
        cache.layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    slots = [i for i, layer in enumerate(cache.layers) if type(layer) in COMPRESSIBLE]
    if not slots:
        _check_bare(model, cache, recipe)
    method, shape = recipe.method, _shape(model, slots)
    heads = shape.kv_heads
    for part in recipe.parts:
        if hasattr(part, "fit"):
            part.fit(shape)
    windows, profile, protection = None, recipe.profile, recipe.protection
    if profile is not None and profile.drops:
        windows = profile.windows(len(slots), heads)
    run = Run(method, len(slots), model.config, windows)
    run.dense_chunks = profile is not None and profile.inside == "dense"
    run.source, run.pattern, run.format, run.reader = recipe.source, recipe.pattern, recipe.format, recipe.reader
    run.rope = rope_of(model) if "rope" in run.needs else None
    if protection is not None:
        run.sinks, run.recent = protection.sinks, protection.recent
    latent = ranks(model)
    for slot, i in enumerate(slots):
        recurrent = getattr(cache.layers[i], "number_of_states", 0)
        if i in latent:
            cache.layers[i] = LatentLayer(slot, run, latent[i])
        else:
            cache.layers[i] = HybridLayer(slot, run, recurrent) if recurrent else ArenaLayer(slot, run)
    if "hidden" in run.needs:
        show_hidden(model, cache.layers)
    carry_states(model, cache)
    setattr(cache, RUN, run)
    return run


def _check_bare(model: Any, cache: Cache, recipe: Recipe) -> None:
    """ValueError unless the layers of `cache` are of kinds whose bytes are known and `recipe` leaves them alone."""
    if unknown := {type(layer).__name__ for layer in cache.layers} - {*LEFT_ALONE}:
        raise ValueError(
            f"{model.config.model_type!r} has no layer whose cache kvledger knows ({', '.join(sorted(unknown))})"
        )
    if not (recipe.drops or recipe.pattern or recipe.format or recipe.reader):
        return
    kinds = ", ".join(sorted({type(layer).__name__ for layer in cache.layers})) or "no layers"
    raise NothingToCompress(
        f"{model.config.model_type!r} has no full-attention layer whose cache could be compressed ({kinds}), so {recipe} "
        "would change nothing: use full"
    )


def _shape(model: Any, slots: list[int]) -> Shape:
    """What a method may need to know of the compressible layers `slots`, from the first of them: in some models, layers of
    other kinds have heads of their own (Gemma 4)."""
    config = model.config.get_text_config(decoder=True)
    if not slots:
        return Shape(0, 0, 0, config.hidden_size, 0)
    if getattr(config, "is_heterogeneous", False):
        config = config.per_layer_config[slots[0]]
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:
        raise ValueError(f"{model.config.model_type!r} has no attention heads: there are no keys to keep")
    if latent := ranks(model):
        return Shape(len(slots), heads, 1, config.hidden_size, next(iter(latent.values())) + config.qk_rope_head_dim)
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(len(slots), heads, getattr(config, "num_key_value_heads", None) or heads, config.hidden_size, dim)


def arenas(cache: Cache) -> list[ArenaLayer]:
    return [layer for layer in cache.layers if isinstance(layer, ArenaLayer)]


def run_of(cache: Cache) -> Run:
    """What the layers of a cache share: method, ledger, phase."""
    run: Run = getattr(cache, RUN)
    return run


def installed(cache: Cache) -> bool:
    """Whether a cache is one of ours."""
    return hasattr(cache, RUN)


def argument(model: Any) -> str:
    """The name by which the model's forward takes its cache: Mamba's is another."""
    return "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else "past_key_values"


def account(cache: Cache, run: Run, tokens: int) -> None:
    """Tell the books of `run` what the layers of `cache` that are not ours hold after a forward of `tokens`."""
    if not run.layers:
        run.ledger.pass_by(tokens)
    run.ledger.hold_other(other_bytes(cache))


def other_bytes(cache: Cache) -> int:
    """Bytes held by layers that are left alone (sliding windows, recurrent states)."""
    held = [
        x for layer in cache.layers for x in (states(layer) if isinstance(layer, ArenaLayer) else tensors_of(layer))
    ]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}.values())


def tensors_of(layer: Any) -> list[torch.Tensor]:
    """Every tensor of a layer that is left alone."""
    return [x for x in vars(layer).values() if isinstance(x, torch.Tensor)] + states(layer)


def fork(cache: Cache) -> Cache:
    """An independent continuation: arenas share their buffers until one side writes, other layers are copied."""
    run = run_of(cache)
    twin_run = run.fork()
    twin = copy.copy(cache)
    twin.layers = [
        layer.fork(twin_run) if isinstance(layer, ArenaLayer) else copy.deepcopy(layer) for layer in cache.layers
    ]
    setattr(twin, RUN, twin_run)
    return twin


def check_supported(model: Any) -> None:
    """Two tokens through the model: every compressible layer must reach our attention function. ValueError names the type.

    Some models change keys after caching them, or do not use transformers' attention interface; they would silently run
    dense, so they are refused here, and left as they were.
    """
    before = model.config._attn_implementation
    try:
        _try_out(model)
    except ValueError:
        model.set_attn_implementation(before)
        raise


def _try_out(model: Any) -> None:
    use(model)
    if model.config._attn_implementation != NAME:
        raise ValueError(
            f"model type {model.config.model_type!r} is not supported: it attends by itself, not through transformers' "
            "attention interface"
        )
    cache = new_cache(model, "full")
    run_of(cache).auto = False
    ids = torch.zeros(1, 2, dtype=torch.long, device=home(model))
    try:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=True, **{argument(model): cache})
        lost = [layer.slot for layer in arenas(cache) if layer.arena is None or layer.pending]
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = "it computes with the attention mask, and kvledger makes none" if "'Columns'" in str(error) else error
        raise ValueError(f"model type {model.config.model_type!r} is not supported: {reason}") from error
    if lost:
        raise ValueError(
            f"model type {model.config.model_type!r} is not supported: its attention bypasses transformers' attention "
            f"interface in {len(lost)} of {len(arenas(cache))} layers"
        )
