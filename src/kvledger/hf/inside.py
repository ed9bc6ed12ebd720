"""What some scorers need of a model's inside: its rotation, a layer's input, the output projection. Nothing is changed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kvledger.hf.place import stored
from kvledger.methods.rope import Rope

HALF_SPLIT = (
    *(
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "phi3",
        "gemma",
        "gemma2",
        "gemma3_text",
    ),
    *("olmo2", "olmo3", "granite", "smollm3", "gpt_oss", "stablelm", "starcoder2"),
)
FIXED = ("default", "linear", "llama3", "yarn")  # frequencies that do not depend on how long a prompt is
OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "wo")


def rope_of(model: Any) -> Rope:
    """The rotation of the model's full-attention layers. ValueError if it is not the half-split kind of fixed frequencies."""
    config = model.config.get_text_config(decoder=True)
    for name, module in model.named_modules():
        if config.model_type not in HALF_SPLIT or name.split(".")[-1] != "rotary_emb":
            continue
        prefix = "full_attention_" if hasattr(module, "full_attention_inv_freq") else ""  # one for each kind of layer
        kinds = getattr(module, "rope_type", "default")
        kind = kinds.get("full_attention", "default") if isinstance(kinds, dict) else kinds
        if kind in FIXED:
            frequencies = getattr(module, prefix + "inv_freq").detach().clone()
            return Rope(frequencies, float(getattr(module, prefix + "attention_scaling", 1.0)))
    raise ValueError(
        f"keys of {config.model_type!r} cannot be turned back to position 0 here (known: {', '.join(HALF_SPLIT)}, with "
        f"{', '.join(FIXED)} frequencies)"
    )


def output_projection(module: nn.Module | None, heads: int, dim: int) -> Tensor:
    """Each query head's part of the output projection, [Hq, Dv, E]. ValueError if the layer has none by a known name."""
    for name in OUTPUTS:
        linear = getattr(module, name, None)
        weight = stored(linear, "weight") if isinstance(linear, nn.Linear) else getattr(linear, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[1] == heads * dim:
            return weight.detach().T.unflatten(0, (heads, dim))
    raise ValueError(f"{type(module).__name__} has no output projection of {heads} heads of {dim} by a known name")


def show_hidden(model: Any, layers: list[Any]) -> None:
    """Let the attention modules tell their cache layer what they are given. `layers` as in the cache, ours among them."""
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        ours = isinstance(index, int) and index < len(layers) and hasattr(layers[index], "hidden")
        if ours and any(hasattr(module, name) for name in OUTPUTS) and not getattr(module, "_kvledger_shows", False):
            module.register_forward_pre_hook(_tell, with_kwargs=True)
            module._kvledger_shows = True


def _tell(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    cache = kwargs.get("past_key_values")
    layer = None if cache is None else cache.layers[module.layer_idx]
    if layer is not None and hasattr(layer, "hidden") and layer.wants_hidden:
        layer.hidden = (args[0] if args else kwargs["hidden_states"]).detach()
