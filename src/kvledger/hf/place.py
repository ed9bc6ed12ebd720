"""Where a model takes its tokens and where its layers compute, when one device cannot hold it.

`model.device` is the device of its first parameter: "meta" for one whose weights are fetched when they are needed, and nothing
to go by for one that is spread over several devices.  accelerate writes down where a module computes (its hook's
`execution_device`); modules without a hook compute where their parameters are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def home(model: Any) -> torch.device:
    """The device on which the model expects token ids, and what goes with them."""
    try:
        tokens = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        tokens = None
    return model.device if tokens is None else _place(tokens)  # type: ignore[no-any-return]


def layer_home(model: Any, index: int) -> torch.device:
    """The device on which layer `index` of the model's cache is written and read."""
    for module in model.modules():
        if getattr(module, "layer_idx", None) == index and next(module.parameters(), None) is not None:
            return _place(module)
    return home(model)


def stored(module: nn.Module, name: str) -> Tensor:
    """Parameter `name` ("weight") of a module itself, as it is stored: also if it is offloaded, and now only a shape."""
    parameter: Tensor = getattr(module, name)
    for hook in _hooks(module) if parameter.is_meta else ():
        if getattr(hook, "weights_map", None) is not None:
            return hook.weights_map[name]  # type: ignore[no-any-return]
    return parameter


def _place(module: nn.Module) -> torch.device:
    for part in module.modules():
        for hook in _hooks(part):
            if getattr(hook, "execution_device", None) is not None:
                return torch.device(hook.execution_device)
    return next(module.parameters()).device


def _hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))
