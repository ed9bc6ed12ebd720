"""Loading a model by name, and attaching a recipe to any code that calls it."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.cache_utils import Cache

from kvledger import zoo
from kvledger.cache.ledger import Ledger
from kvledger.hf import cache as caches
from kvledger.hf.attention import use
from kvledger.hf.chat import Chat
from kvledger.hf.hybrid import states
from kvledger.hf.place import stored
from kvledger.hf.probing import ask, choose

OWN_CODE = (
    "it comes with code of its own, which kvledger does not run: load it yourself (trust_remote_code=True), and hand model and "
    "tokenizer to kvledger.open"
)


def load(name: str, dtype: str = "auto", device: str = "", quantization: Any = None) -> tuple[Any, Any]:
    """Model (in eval mode, set to our attention) and tokenizer of "zoo" or "zoo-wide" (embedded), a folder or a hub id.

    dtype: "auto" takes the checkpoint's, and float32 for the embedded models on a CPU. device: "" takes a GPU if there is one,
    "auto" spreads the layers over all devices and, if need be, the host (by accelerate, the extra "devices"); a layer's cache
    is where the layer computes. quantization: a config of transformers (BitsAndBytesConfig, TorchAoConfig), handed on as it is;
    checkpoints that are quantised already need none. Code that comes with a checkpoint is not run. ValueError for what cannot
    be loaded, or not as a whole.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    embedded = name in zoo.MODELS
    path = str(zoo.path(name)) if embedded else name
    wanted = "float32" if embedded and dtype == "auto" and device == "cpu" else dtype
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        where = _where(path, device, quantization)
        model = _whole(path, dtype=wanted, **where)
    except ImportError as error:
        raise ValueError(f"the model {name!r} needs a package that is not installed: {_first_line(error)}") from error
    except (OSError, ValueError, SafetensorError) as error:
        reason = OWN_CODE if "trust_remote_code" in str(error) else _first_line(error)
        raise ValueError(
            f"cannot load the model {name!r} (choices: 'zoo', 'zoo-wide', a folder, a hub id): {reason}"
        ) from error
    ready: Any = model.eval()
    ready = ready if where else ready.to(device)
    use(ready)
    return ready, tokenizer


def _whole(path: str, **options: Any) -> Any:
    """The model. ValueError if the checkpoint lacks weights, which transformers would draw at random."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path, trust_remote_code=False, output_loading_info=True, **options
    )
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"its checkpoint lacks the weights {', '.join(missing[:3])}{more}")
    return model


def _where(path: str, device: str, quantization: Any) -> dict[str, Any]:
    """Options for transformers where the weights must not be moved once they are loaded: spread out, or quantised."""
    if device == "auto" and importlib.util.find_spec("accelerate") is None:
        raise ImportError("pip install 'kvledger[devices]' (accelerate) spreads a model over devices")
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    quantised = quantization is not None or getattr(config, "quantization_config", None) is not None
    if device != "auto" and not quantised:
        return {}
    more = {} if quantization is None else {"quantization_config": quantization}
    return {"device_map": "auto" if device == "auto" else {"": device}, **more}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def fingerprint(model: Any) -> str:
    """A short hash of a model's shape and a few of its parameters, so that records of other weights are not mixed in."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in model.named_parameters():
        path, _, own = name.rpartition(".")
        weight = stored(model.get_submodule(path), own).detach()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(_first(weight, 16).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _first(weight: torch.Tensor, count: int) -> torch.Tensor:
    try:
        return weight.flatten()[:count]
    except NotImplementedError:  # torchao's tensors know few operations beside their products
        return weight.dequantize().flatten()[:count]


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
    model's `tokenizer`, and prompts given as `input_ids`. Nothing is left on the model that other caches would notice: its
    attention name is put back, and a cache made inside is of use only in a block again.
    """
    attached, before, name = Attached(), model.config._attn_implementation, caches.argument(model)
    resolved = caches.resolve(recipe)
    caches.check_supported(model)

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = kwargs.get(name)
        if cache is None and kwargs.get("use_cache", True):
            cache = caches.new_cache(model, resolved)
        elif cache is not None and not caches.installed(cache):
            if any(getattr(layer, "is_initialized", False) or states(layer) for layer in cache.layers):
                raise ValueError("this cache holds tokens already; attach before the first call")
            caches.install(cache, model, resolved)
        if cache is not None and caches.run_of(cache).auto:  # a session's cache is the session's
            attached.cache = cache
            caches.run_of(cache).probes = tokenizer is not None
        return args, {**kwargs, name: cache}

    def note(module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        cache = attached.cache
        if cache is None or id(cache) != id(kwargs.get(name)):
            return
        run = caches.run_of(cache)
        ids = kwargs.get("input_ids", args[0] if args else None)
        if run.probes and run.reading and run.watching is None and run.method.tally == "probe":
            run.reading = False
            _probe(module, cache, ids, kwargs, tokenizer)
        caches.account(cache, run, (kwargs["inputs_embeds"] if ids is None else ids).shape[1])

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
