"""kvpress's half of `peers.py`, run by the interpreter that has it: `python peer_kvpress.py request.json answer.json`.

Nothing of kvledger is imported. "RATIO" in a press's options stands for the ratio; a press may stand in a press.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kvpress
import numpy
import torch
from timing import seconds
from transformers import AutoModelForCausalLM, DynamicCache


def build(spec: Any, ratio: float) -> Any:
    if spec == "RATIO":
        return ratio
    if not (isinstance(spec, list) and spec and isinstance(spec[0], str)):
        return spec
    kind, options = spec
    return getattr(kvpress, kind)(**{name: build(value, ratio) for name, value in options.items()})


def filled(model: Any, rows: int) -> DynamicCache:
    shape, cache = (1, model.config.num_key_value_heads, rows, model.config.head_dim), DynamicCache()
    draw = torch.Generator().manual_seed(0)
    for i in range(model.config.num_hidden_layers):
        cache.update(torch.randn(shape, generator=draw), torch.randn(shape, generator=draw), i)
    return cache


def compress(model: Any, cache: DynamicCache, press: Any, rows: int) -> None:
    """What the press's hook does to each layer at the end of a prompt of `rows` tokens."""
    hidden = torch.randn(1, rows, model.config.hidden_size)
    places = torch.arange(rows)
    more = {"position_embeddings": model.model.rotary_emb(hidden, places[None]), "cache_position": places}
    with press(model):
        for layer, held in zip(model.model.layers, cache.layers):
            more |= {"hidden_states": hidden, "past_key_values": cache}
            held.keys, held.values = press.compress(layer.self_attn, hidden, held.keys, held.values, None, more)


def step(model: Any, press: Any, rows: int, steps: int) -> float:
    cache, token = filled(model, rows), torch.tensor([[5]])
    if press is not None:
        compress(model, cache, press, rows)
    spent = []
    for i in range(steps + 2):
        place = torch.tensor([[rows + i]])
        spent.append(seconds(lambda: model(input_ids=token, past_key_values=cache, position_ids=place)))  # noqa: B023
    return statistics.median(spent[2:])


def read(model: Any, ids: torch.Tensor, press: Any, rounds: int) -> float:
    def run() -> None:
        model(input_ids=ids, past_key_values=DynamicCache(), logits_to_keep=1)

    def pressed() -> None:
        with press(model):
            run()

    way: Callable[[], None] = run if press is None else pressed
    return statistics.median([seconds(way) for _ in range(rounds)])


def forget(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.masked_key_indices = None


@torch.inference_mode()
def main(request: dict[str, Any]) -> dict[str, dict[str, float]]:
    torch.set_num_threads(request["threads"])
    sinks, window, scores = request["heads"]
    kvpress.DuoAttentionPress.load_attention_pattern = staticmethod(lambda model: (sinks, window, numpy.array(scores)))
    model = AutoModelForCausalLM.from_pretrained(request["folder"], attn_implementation="sdpa").eval()
    ids, answer = torch.tensor([request["ids"]]), {}
    model(input_ids=ids[:, :64])
    for name, spec in {"": None, **request["presses"]}.items():
        times = {}
        for what, size in (("read", request["rounds"]), ("step", request["steps"])):
            press = None if spec is None else build(spec, request["ratio"])
            forget(model)
            times[what] = read(model, ids, press, size) if what == "read" else step(model, press, request["held"], size)
        answer[name] = times
        print(name or "none", times, file=sys.stderr, flush=True)
    return answer


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
