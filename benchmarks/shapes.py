"""Model shapes by name, with random weights: what a benchmark needs of a model, and nothing to download."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

POSITIONS = 1 << 18
SHAPES: dict[str, dict[str, Any]] = {
    "embedded": dict(model_type="llama", vocab_size=1024, hidden_size=256, intermediate_size=384, num_hidden_layers=6,
                     num_attention_heads=8, num_key_value_heads=4, head_dim=32),
    # the layers of Qwen3-0.6B, four of them
    "bench-4x1024": dict(model_type="llama", vocab_size=32768, hidden_size=1024, intermediate_size=3072, num_hidden_layers=4,
                         num_attention_heads=16, num_key_value_heads=8, head_dim=128),
    "qwen3-4b": dict(model_type="qwen3", vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
                     num_attention_heads=32, num_key_value_heads=8, head_dim=128),
    "llama-3.1-8b": dict(model_type="llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336,
                         num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128),
}  # fmt: skip
SPREAD = (0.2, 0.33, 0.5, 0.67, 0.93, 1.23, 1.67, 2.47)  # shares of 8 heads that compete for rows, mean 1


def config_of(shape: str, layers: int = 0) -> Any:
    """The configuration of a shape, with fewer `layers` if given. ValueError for an unknown name."""
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    options = {**SHAPES[shape], "max_position_embeddings": POSITIONS, "tie_word_embeddings": False}
    if layers:
        options["num_hidden_layers"] = layers
    return AutoConfig.for_model(**options)


def model_of(shape: str, layers: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_of(shape, layers), dtype=dtype).eval()


def lengths_of(kind: str, tokens: int, heads: int, keep: float, window: int = 1152) -> list[int]:
    """Rows of each head: "full"; "even", a share `keep` of each; "half", every second head whole and the others `window`
    rows; "spread", heads that competed for a mean share `keep`."""
    if kind == "full":
        return [tokens] * heads
    if kind == "half":
        return [tokens if h % 2 == 0 else min(window, tokens) for h in range(heads)]
    shares = [1.0] * heads if kind == "even" else [SPREAD[h % len(SPREAD)] for h in range(heads)]
    return [min(tokens, int(keep * share * tokens)) for share in shares]
