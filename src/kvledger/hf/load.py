"""Loading a model by name, and attaching a recipe to any code that calls it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.cache_utils import Cache

from kvledger import zoo
from kvledger.cache.ledger import Ledger
from kvledger.hf import cache as caches
from kvledger.hf.attention import use
from kvledger.hf.chat import Chat
from kvledger.hf.probing import ask, choose


def load(name: str, dtype: str = "auto", device: str = "") -> tuple[Any, Any]:
    """Model (in eval mode, set to our attention) and tokenizer of "zoo" (embedded), a folder or a hub id.

    dtype: "auto" takes the checkpoint's, and float32 for the embedded model on a CPU. device: "" takes a GPU if there is one.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    embedded = name == "zoo"
    path = str(zoo.path()) if embedded else name
    wanted = "float32" if embedded and dtype == "auto" and device == "cpu" else dtype
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=wanted)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot load the model {name!r} (choices: 'zoo', a folder, a hub id): {reason}") from error
    ready: Any = model.eval()
    ready = ready.to(device)
    use(ready)
    return ready, tokenizer


def fingerprint(model: Any) -> str:
    """A short hash of a model's shape and a few of its parameters, so that records of other weights are not mixed in."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


class Attached:
    """What `attach` yields: the cache of the latest call, and its ledger."""

    def __init__(self) -> None:
        self.cache: Cache | None = None

    @property
    def ledger(self) -> Ledger:
        if self.cache is None:
            raise ValueError("the model has not been called inside this block yet")
        ledger = caches.run_of(self.cache).ledger
        ledger.hold_other(caches.other_bytes(self.cache))
        return ledger


@contextmanager
def attach(model: PreTrainedModel, recipe: Any, tokenizer: Any = None) -> Iterator[Attached]:
    """Inside the block every fresh cache of `model` follows `recipe`, whoever calls it: `model.generate(...)`, a pipeline.

    The first forward of several tokens is taken for the whole prompt. Methods that read it a second time (kvzip) need the
    model's `tokenizer`, and prompts given as `input_ids`. Nothing is left on the model: its attention name is put
    back, and a cache made inside is of use only in a block again.
    """
    attached, before = Attached(), model.config._attn_implementation
    resolved = caches.resolve(recipe)
    caches.check_supported(model)

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = kwargs.get("past_key_values")
        if cache is None and kwargs.get("use_cache", True):
            cache = caches.new_cache(model, resolved)
        elif cache is not None and not caches.arenas(cache):
            if cache.get_seq_length():
                raise ValueError("this cache holds tokens already; attach before the first call")
            caches.install(cache, model, resolved)
        if cache is not None and caches.run_of(cache).auto:  # a session's cache is the session's
            attached.cache = cache
            caches.run_of(cache).probes = tokenizer is not None
        return args, {**kwargs, "past_key_values": cache}

    def note(module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        if attached.cache is None:
            return
        run = caches.run_of(attached.cache)
        if run.probes and run.reading and run.watching is None and run.method.tally == "probe":
            run.reading = False
            _probe(module, attached.cache, kwargs.get("input_ids", args[0] if args else None), kwargs, tokenizer)
        _ = attached.ledger

    handles = [
        model.register_forward_pre_hook(hook, with_kwargs=True),
        model.register_forward_hook(note, with_kwargs=True),
    ]
    try:
        yield attached
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(before)


def _probe(model: Any, cache: Cache, ids: Any, kwargs: dict[str, Any], tokenizer: Any) -> None:
    """Read the method's probes of the prompt that has just been read."""
    if ids is None:
        raise ValueError("a method that reads the prompt a second time needs it as input_ids, not as embeddings")
    mask = kwargs.get("attention_mask")
    mask = None if mask is None or mask.dim() != 2 or bool(mask.bool().all()) else mask
    new = ids.shape[1]
    real = torch.ones_like(ids).bool() if mask is None else mask[:, -new:].bool()
    sequences = [row[keep].tolist() for row, keep in zip(ids, real)]
    ask(model, cache, sequences, Chat(tokenizer), mask)
    choose(cache, sequences)
