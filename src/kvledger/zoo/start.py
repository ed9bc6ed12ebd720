"""The embedded models before training: a Llama of six layers with random weights, and beside it a state-space model (Mamba-2,
arXiv 2405.21060) and a hybrid of that with one layer of attention (Bamba), of four layers.

What is not random are positions: by their query and key biases, heads of the first layer start out looking 1 to 5
tokens back (structure at initialisation, in the spirit of ALiBi, arXiv 2108.12409, and of mimetic initialisation, arXiv
2305.09828).  Learning this from nothing took longer than everything after it.  What these heads copy, what later heads
match and every other weight is learned from data. The other two need none of this: their convolutions look back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedModel,
)
from transformers.models.llama.modeling_llama import LlamaAttention

from kvledger.zoo.tokenizer import VOCABULARY

THETA = 1e7
BACKS = (1, 2, 1, 2, 3, 4, 5)  # tokens back, by query head of the first layer; the last head stays free
FAST = 6  # rotary frequencies, from the fastest, that tell near distances apart
EMBEDDED = 0.1  # standard deviation of an embedding
WRITTEN = 0.12  # scale of what a layer writes, so that it is about as much as an embedding holds


KINDS = ("llama", "mamba2", "bamba")


def model(kind: str, bos: int, eos: int, pad: int) -> PreTrainedModel:
    """A fresh model of one of `KINDS`."""
    if kind == "llama":
        made = LlamaForCausalLM(config(bos, eos, pad))
        initialise(made)
        return made
    ids: dict[str, Any] = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad, "vocab_size": VOCABULARY}
    shared = ids | {"hidden_size": 192, "num_hidden_layers": 4, "tie_word_embeddings": True}
    if kind == "mamba2":
        state: dict[str, Any] = {
            "num_heads": 12,
            "head_dim": 32,
            "state_size": 64,
            "n_groups": 1,
            "expand": 2,
            "chunk_size": 32,
        }
        return _scaled(Mamba2ForCausalLM(Mamba2Config(**shared, **state)))
    state = {"mamba_n_heads": 12, "mamba_d_head": 32, "mamba_d_state": 32, "mamba_n_groups": 1, "mamba_chunk_size": 32}
    attention: dict[str, Any] = {"attn_layer_indices": [2], "num_attention_heads": 6, "num_key_value_heads": 3}
    return _scaled(
        BambaForCausalLM(
            BambaConfig(**shared, **state, **attention, intermediate_size=288, max_position_embeddings=8192)
        )
    )


def _scaled(made: PreTrainedModel) -> PreTrainedModel:
    """Matrices scaled by fan-in, as in the Llama; decays, time steps and convolutions as transformers starts them."""
    for name, weight in made.named_parameters():
        if weight.dim() == 2:
            std = EMBEDDED if "embed" in name else weight.shape[1] ** -0.5
            writes = ("out_proj" in name) or ("o_proj" in name) or ("down_proj" in name)
            nn.init.normal_(weight, std=std * (WRITTEN if writes else 1.0))
    return made


def config(bos: int, eos: int, pad: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        attention_bias=True,
        rms_norm_eps=1e-6,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def initialise(model: LlamaForCausalLM) -> None:
    """Random weights, scaled by fan-in; no biases but those that look back."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            std = EMBEDDED if "embed" in name else weight.shape[1] ** -0.5
            nn.init.normal_(weight, std=std * (WRITTEN if "o_proj" in name or "down_proj" in name else 1.0))
        elif "norm" not in name:
            nn.init.zeros_(weight)
    first = model.model.layers[0].self_attn
    assert isinstance(first, LlamaAttention)
    _look_back(first)


@torch.no_grad()
def _look_back(attention: LlamaAttention, sharpness: float = 8.0) -> None:
    """Rotary attention between constant vectors is a kernel over distance: turn the query's by the wanted distance."""
    d = attention.head_dim
    angles = (THETA ** (-torch.arange(0, d, 2) / d))[:FAST]
    q, k = attention.q_proj, attention.k_proj
    k.weight.mul_(0.1)
    k.bias.view(-1, 2, d // 2)[:, 0, :FAST] = sharpness
    for head, back in enumerate(BACKS):
        q.weight[head * d : (head + 1) * d].mul_(0.1)
        q.bias.view(-1, 2, d // 2)[head, 0, :FAST] = sharpness * torch.cos(back * angles)
        q.bias.view(-1, 2, d // 2)[head, 1, :FAST] = -sharpness * torch.sin(back * angles)
