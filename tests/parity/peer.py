"""Run by the interpreter that has kvpress: which rows its presses keep.  `python peer.py request.json answer.json`

The request: "folders" of saved models, "ids" of one prompt, "ratios", "heads" (sinks, window and, for each layer, scores for
DuoAttention), "scorer" (a file of networks for KVzap), and "presses" by name, each [class, {option: value}], where "RATIO"
stands for the ratio and a press may stand in a press. The answer: [folder][press][ratio][layer][KV head] = positions kept.
Nothing of kvledger is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import kvpress
import numpy
import torch
from kvpress.presses import kvzap_press
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache


def build(spec: Any, ratio: float) -> Any:
    """A press of its description."""
    if spec == "RATIO":
        return ratio
    if not (isinstance(spec, list) and spec and isinstance(spec[0], str)):
        return spec
    kind, options = spec
    return getattr(kvpress, kind)(**{name: build(value, ratio) for name, value in options.items()})


@torch.inference_mode()
def fill(model: Any, ids: Tensor) -> DynamicCache:
    cache = DynamicCache()
    model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def kept(model: Any, ids: Tensor, full: DynamicCache, press: Any) -> list[list[list[int]]]:
    """Positions left in each layer and KV head: rows that are there, found by their keys, less those that are masked."""
    model.set_attn_implementation("eager" if isinstance(press, kvpress.ObservedAttentionPress) else "sdpa")
    model.to(torch.float32 if isinstance(press, kvpress.KVzipPress) else torch.float64)  # its mask overflows otherwise
    with torch.inference_mode(), press(model):
        cache = fill(model, ids)
    return [
        [find(rows.keys[0, h].double(), whole.keys[0, h], masked(layer, h)) for h in range(len(whole.keys[0]))]
        for layer, rows, whole in zip(model.model.layers, cache.layers, full.layers)
    ]


def masked(layer: Any, head: int) -> set[int]:
    """Positions that a layer's attention is told to leave out."""
    places = getattr(layer.self_attn, "masked_key_indices", None)
    if places is None:
        return set()
    _, heads, positions = (x.tolist() for x in places)
    return {n for h, n in zip(heads, positions) if h == head}


def find(rows: Tensor, of: Tensor, without: set[int]) -> list[int]:
    """Where each of `rows` [n, D] stands in `of` [N, D]."""
    distance = torch.cdist(rows, of)
    places = distance.argmin(-1)
    assert float(distance.gather(-1, places[:, None]).max()) < 1e-4, "a kept key is none of the prompt's"
    assert len(set(places.tolist())) == len(rows), "two kept keys are the same row"
    return sorted(set(places.tolist()) - without)


def scorer(path: str) -> Any:
    """kvpress's network for KVzap with the weights of our file."""
    weights = load_file(path)
    layers = len({name.split(".")[1] for name in weights})
    heads, hidden = weights["layers.0.weight"].shape
    shape = {"input_dim": weights["layers.0.inner"].shape[1], "output_dim": heads, "hidden_dim": hidden}
    made = kvzap_press.KVzapModel(kvzap_press.KVzapConfig(n_modules=layers, **shape))
    places = {"inner": "0.weight", "inner_bias": "0.bias", "weight": "2.weight", "bias": "2.bias"}
    names = {name: name.split(".") for name in weights}
    made.load_state_dict({f"layers.{i}.{places[part]}": weights[name] for name, (_, i, part) in names.items()})
    return made


def main(request: dict[str, Any]) -> list[Any]:
    (sinks, window, scores), network = request["heads"], scorer(request["scorer"])
    kvpress.DuoAttentionPress.load_attention_pattern = staticmethod(lambda model: (sinks, window, numpy.array(scores)))
    kvzap_press.KVzapModel.from_pretrained = staticmethod(lambda name: network)
    ids, answer = torch.tensor([request["ids"]]), []
    for folder in request["folders"]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        full = fill(model, ids)
        presses = request["presses"].items()
        answer.append(
            {name: [kept(model, ids, full, build(spec, r)) for r in request["ratios"]] for name, spec in presses}
        )
    return answer


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
