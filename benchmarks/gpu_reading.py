"""The part of `gpu.py` that goes through transformers: reading a long context, its peak memory, and eager decode steps."""

from __future__ import annotations

import time
from typing import Any

import torch
from gpu_model import Shape, free
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from kvledger.hf import cache as caches
from kvledger.recipe import parse

TOKENS = 16  # decode steps timed after reading


def measure(shape: Shape, device: torch.device) -> dict[str, Any]:
    """Seconds, peak bytes and eager decode steps of each way to read; ratios to one shot with transformers' own cache."""
    model = build(shape, device)
    weights = sum(x.nbytes for x in model.parameters())
    eviction = f"snapkv(keep=0.3, when='chunk', window={min(64, shape.chunk // 2)})"
    found: dict[str, Any] = {"weights_bytes": weights, "activations_bytes": activations(model, shape, device)}
    ways = {"DynamicCache, one shot": ("", 0), "full, one shot": ("full", 0), "full, chunks": ("full", shape.chunk)}
    ways["evicting, chunks"] = (eviction, shape.chunk)
    run(model, shape, device, eviction, shape.chunk, 2 * shape.chunk)  # compiles
    for name, (recipe, chunk) in ways.items():
        found[name] = run(model, shape, device, recipe, chunk, shape.context)
        free(device)
    first, last = found["DynamicCache, one shot"], found["evicting, chunks"]
    found["time_of_one_shot"] = last["seconds"] / first["seconds"]
    chunk_bytes = shape.chunk * shape.kv_heads * shape.row_bytes
    floor = weights + last["kept_bytes"] + chunk_bytes
    found["peak_over_weights_kept_chunk"] = last["peak_bytes"] / floor if last["peak_bytes"] else None
    found["not run"] = "kvpress and transformers' QuantizedCache: they need packages of their own"
    return found


def build(shape: Shape, device: torch.device) -> Any:
    """A random Llama of this shape, made on the device."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.dim,
        max_position_embeddings=2 * shape.context,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def activations(model: Any, shape: Shape, device: torch.device) -> int:
    """Bytes a chunk needs beside weights and cache."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    model.set_attn_implementation("sdpa")
    ids = torch.zeros(1, shape.chunk, dtype=torch.long, device=device)
    model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return torch.cuda.max_memory_allocated(device) - before


def run(model: Any, shape: Shape, device: torch.device, recipe: str, chunk: int, tokens: int) -> dict[str, Any]:
    """Read `tokens` random tokens and decode some more. An empty recipe: transformers' attention and cache."""
    ids = torch.randint(shape.vocabulary, (1, tokens), device=device)
    if not recipe:
        model.set_attn_implementation("sdpa")
    cache = caches.new_cache(model, recipe) if recipe else DynamicCache(config=model.config)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = clock(lambda: read(model, cache, parse(recipe) if recipe else None, ids, chunk or tokens), device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    kept = caches.arenas(cache) and sum(layer.arena.nbytes for layer in caches.arenas(cache))
    decode(model, cache, 2)
    each = clock(lambda: decode(model, cache, TOKENS), device) / TOKENS
    return {"seconds": seconds, "peak_bytes": peak, "kept_bytes": kept or None, "eager_step_seconds": each}


def read(model: Any, cache: Any, recipe: Any, ids: torch.Tensor, chunk: int) -> None:
    if recipe is not None:
        state = caches.run_of(cache)
        state.auto, state.reading = False, recipe.method.drops
    for start in range(0, ids.shape[1], chunk):
        if recipe is not None:
            state.evict = recipe.method.drops
        model(input_ids=ids[:, start : start + chunk], past_key_values=cache, use_cache=True, logits_to_keep=1)
    if recipe is not None:
        state.reading = state.evict = False


def decode(model: Any, cache: Any, tokens: int) -> None:
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    for _ in range(tokens):
        model(input_ids=ids, past_key_values=cache, use_cache=True)


def clock(work: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
