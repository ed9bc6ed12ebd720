"""What a method costs while a context is read: time of a compressed reading over the uncompressed one, in one run.

Every registered compression method on its defaults and the given keep, and `full` once a round, all in the same chunks. Two
figures, in processor time. `own work`: what is spent on noting, probing, scoring and dropping, over the rest of the same
reading, which is what an uncompressed one does; both sides meet the same machine, so this one is sharp (median). `readings`:
whole readings over whole uncompressed ones, the least of all rounds on either side, since whatever else a machine does only
ever adds; on a shared machine it is good to a tenth.

    python benchmarks/reading.py --tokens 8000 --chunk 2048 --repeats 5 --table docs/results/reading.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvledger.hf import layer as layers
from kvledger.hf import reading as readings
from kvledger.hf.cache import check_supported
from kvledger.hf.load import load
from kvledger.hf.session import Session
from kvledger.recipe import Recipe, parse, registry
from kvledger.tasks import get

FILES = {
    "kvzap": ", path='random:0'",
    "locret": ", path='random:0'",
    "headkv": ", importance='random:0'",
}  # of random models


OWN = {layers: ("note", "evict"), readings: ("ask", "choose")}  # all that a method adds to a reading


def reading(model, tokenizer, recipe: Recipe, text: str, chunk: int) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Seconds of processor time, and how much of them was the method's own work."""
    session = Session(model, tokenizer, recipe, chunk)
    own = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal own
            begun = time.process_time()
            result = function(*args, **kwargs)
            own += time.process_time() - begun
            return result

        return call

    with ExitStack() as stack:
        for module, names in OWN.items():
            for name in names:
                stack.enter_context(mock.patch.object(module, name, timed(getattr(module, name))))
        started = time.process_time()  # of all threads: others on the machine do not count
        session.read(text)
        return time.process_time() - started, own


def wide(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=16384,
    )
    return LlamaForCausalLM(config).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="zoo", help="zoo, a folder, or wide: random weights, 2 layers, width 1,024, 8 KV heads"
    )
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=[])
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    model, tokenizer = load("zoo" if arguments.model == "wide" else arguments.model)
    if (
        arguments.model == "wide"
    ):  # the embedded model is nearly all attention; here the layers' other work counts as in large ones
        model = wide(len(tokenizer))
    check_supported(model)
    sample = get("scbench/kv").make(
        seed=1,
        index=0,
        tokens=arguments.tokens,
        count=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        turns=1,
        form="small" if len(tokenizer) < 8192 else "full",
    )
    names = arguments.methods or sorted(
        n for n, part in registry().items() if part.role == "compression" and n != "full"
    )
    made = FILES if arguments.model == "wide" else {}
    recipes = {name: parse(f"{name}(keep={arguments.keep}, when='prompt'{made.get(name, '')})") for name in names}
    recipes["full"] = parse("full")
    reading(model, tokenizer, recipes["full"], sample.text, arguments.chunk)  # warm
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in recipes}
    for _ in range(arguments.repeats):
        for name, recipe in recipes.items():
            times[name].append(reading(model, tokenizer, recipe, sample.text, arguments.chunk))
            print(f"{name}: {times[name][-1][0]:.2f} s, of its own {times[name][-1][1]:.2f} s", flush=True)
    least = {name: min(total for total, _ in spent) for name, spent in times.items()}
    share = {name: statistics.median(total / (total - own) for total, own in spent) for name, spent in times.items()}
    lines = [
        f"`{arguments.model}`, {arguments.tokens:,} tokens in chunks of {arguments.chunk:,}, keep {arguments.keep}, "
        f"{torch.get_num_threads()} CPU threads, {arguments.repeats} rounds, processor time; uncompressed reading = 1.",
        "",
        "| method | own work | readings |",
        "|---|---|---|",
        *(f"| {name} | {share[name]:.2f} | {least[name] / least['full']:.2f} |" for name in names),
    ]
    print("\n".join(lines))
    if arguments.table:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
