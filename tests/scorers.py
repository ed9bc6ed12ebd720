"""Random scorers in files, and sessions that use them."""

from __future__ import annotations

from typing import Any

import tiny
import torch

from kvledger.hf.session import Session, open_session
from kvledger.methods.scorerfile import Facts, Net, Scorer, fresh_net


def scorer(kind: str, layers: int = 3, heads: int = 2, inputs: int = 0, hidden: int = 8, seed: int = 0) -> Scorer:
    """A random one, for `tiny`'s llama unless it says otherwise."""
    draw = torch.Generator().manual_seed(seed)
    inputs = inputs or {"kvzap": 64, "locret": (8 + 2 * 2) * 16}[kind]
    nets = [fresh_net(kind, heads, inputs, hidden, draw) for _ in range(layers)]
    if kind == "kvzap":  # biases that matter
        nets = [Net(net.weight, torch.randn(heads, generator=draw) - 4, net.inner, net.inner_bias) for net in nets]
    return Scorer(Facts(kind, model="tiny", data="noise", steps=7, seed=seed, version="0"), tuple(nets))


def opened(recipe: str, chunk: int = 0, **changes: Any) -> Session:
    return open_session(tiny.model("llama", torch.float64, **changes), tiny.tokenizer(), recipe, chunk)
