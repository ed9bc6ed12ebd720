"""What the seam costs when nothing is compressed: the `full` recipe against plain transformers, in one run.

Reads a prompt in one shot and then decodes, on a random 4-layer Llama (d = 256, 8 query heads, 4 KV heads), with our
cache and with SDPA + DynamicCache, turn about.  Prints medians and ratios (ours / plain; below 1 is faster) and writes JSON.
A StaticCache, which appends in place as we do, stands beside them for decoding.

    python benchmarks/overhead.py --tokens 8192 --decode 64 --rounds 7 --json overhead.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from kvledger.hf.cache import new_cache, run_of

DECODE_WARM_UP = 4


def model_of(tokens: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=2 * tokens,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def full(model: Any, capacity: int) -> Any:
    cache = new_cache(model, "full")
    run_of(cache).auto = False
    return cache


def dynamic(model: Any, capacity: int) -> Any:
    model.set_attn_implementation("sdpa")
    return DynamicCache(config=model.config)


def static(model: Any, capacity: int) -> Any:
    model.set_attn_implementation("sdpa")
    return StaticCache(config=model.config, max_cache_len=capacity)


@torch.inference_mode()
def once(model: Any, ids: torch.Tensor, steps: int, make: Callable[[Any, int], Any]) -> tuple[float, float]:
    """Seconds to read `ids`, and seconds a decode step, the first few left out."""
    cache = make(model, ids.shape[1] + steps + DECODE_WARM_UP)
    started = time.perf_counter()
    token = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
    read = time.perf_counter() - started
    for step in range(steps + DECODE_WARM_UP):
        if step == DECODE_WARM_UP:
            started = time.perf_counter()
        token = model(input_ids=token, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
    return read, (time.perf_counter() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--decode", type=int, default=64, help="decode steps timed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = model_of(arguments.tokens)
    ids = torch.randint(0, 1024, (1, arguments.tokens), generator=torch.Generator().manual_seed(1))
    kinds = {"kvledger full": full, "DynamicCache": dynamic, "StaticCache": static}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for make in kinds.values():  # warm-up
        once(model, ids, 2, make)
    for _ in range(arguments.rounds):
        for name, make in kinds.items():
            times[name].append(once(model, ids, arguments.decode, make))
    median = {n: tuple(statistics.median(x[i] for x in runs) for i in (0, 1)) for n, runs in times.items()}
    print(
        f"{arguments.tokens} tokens, {torch.get_num_threads()} threads, median of {arguments.rounds}, torch {torch.__version__}"
    )
    print(f"{'cache':<15}{'read s':>10}{'ratio':>8}{'decode ms':>12}{'ratio':>8}")
    ours = median["kvledger full"]
    for name, (read, step) in median.items():
        print(f"{name:<15}{read:>10.3f}{ours[0] / read:>8.3f}{1000 * step:>12.3f}{ours[1] / step:>8.3f}")
    print("ratio = kvledger full / this cache")
    if arguments.json:
        table = {name: {"read_seconds": read, "decode_seconds": step} for name, (read, step) in median.items()}
        arguments.json.write_text(json.dumps({"tokens": arguments.tokens, "median": table, "runs": times}, indent=1))


if __name__ == "__main__":
    main()
