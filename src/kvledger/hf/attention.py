"""The attention function and the mask function that transformers calls by the name "kvledger".

A cache layer tags the keys it returns with itself; the attention function finds the tag and lets the layer store, attend
and evict.  Keys without a tag (sliding-window layers, a model called without our cache) get ordinary SDPA attention, so a
model set to "kvledger" still works everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

NAME = "kvledger"
TAG = "_kvledger_layer"
UNKNOWN = {"position_bias": "adds a bias by position", "block_indices": "reads blocks chosen by an index of its own"}


class Columns:
    """What a mask is to an arena: which of the new tokens are real. `valid` [B, T] bool, or None if all are.

    Older tokens need no mask, since padding was never stored.  `dense()` is the ordinary boolean mask, made on demand for
    layers that do not keep an arena.
    """

    def __init__(self, valid: Tensor | None, plain_causal: bool, arguments: dict[str, Any]):
        self.valid, self.plain_causal = valid, plain_causal
        self._arguments = arguments
        self._dense: Tensor | None = None

    def dense(self) -> Tensor:
        if self._dense is None:
            self._dense = sdpa_mask(**{**self._arguments, "allow_is_causal_skip": False})
        assert self._dense is not None
        return self._dense


def mask_function(*, attention_mask: Tensor | None = None, local_size: int | None = None, **arguments: Any) -> Any:
    """Registered mask: `Columns` for full-attention layers, the usual boolean mask for sliding and chunked ones."""
    arguments = {**arguments, "attention_mask": attention_mask, "local_size": local_size}
    if local_size is not None:
        return sdpa_mask(**{**arguments, "allow_is_causal_skip": False})
    valid = None
    if attention_mask is not None:
        first = int(arguments.get("q_offset", 0))
        valid = attention_mask[:, first : first + arguments["q_length"]].bool()
        if bool(valid.all()):
            valid = None
    return Columns(valid, arguments.get("mask_function") in (None, causal_mask_function), arguments)


def attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Registered attention: query [B, Hq, T, D], key and value [B, H, T, D] (not repeated); returns [B, T, Hq, D]."""
    for name, what in UNKNOWN.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"its attention {what}, which kvledger does not do")
    layer = getattr(key, TAG, None)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layer is not None:
        masked = attention_mask if getattr(layer, "masks", True) else None
        if isinstance(masked, Tensor) or (masked is not None and not masked.plain_causal):
            raise ValueError(
                "kvledger attends causally to what it stores; 4D, packed or bidirectional masks have no place"
            )
        valid = None if masked is None else masked.valid
        valid = None if valid is None else valid.to(query.device)  # made where the model takes its tokens
        out = layer.attend(query, key, value, scale, valid, softcap=softcap, sinks=s_aux, module=module)
        return out.transpose(1, 2).contiguous(), None
    mask = attention_mask.dense().to(query.device) if isinstance(attention_mask, Columns) else attention_mask
    return attend_densely(module, query, key, value, mask, scale, softcap, s_aux, dropout=dropout, **kwargs), None


def attend_densely(
    module: nn.Module | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    **kwargs: Any,
) -> Tensor:
    """PyTorch's attention, or, for what it lacks, our own; q [B, Hq, T, D], k and v not repeated. Returns [B, T, Hq, D]."""
    if softcap is None and sinks is None:
        out: Tensor = sdpa_attention_forward(module, q, k, v, mask, scaling=scale, **kwargs)[0]  # type: ignore[arg-type]
        return out
    return _explicit(q, k, v, mask, scale, softcap, sinks)


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Dense attention with what SDPA lacks: soft-capped logits (Gemma 2), sink logits (gpt-oss)."""
    groups = q.shape[1] // k.shape[1]
    logits = (q @ repeat_kv(k, groups).transpose(-1, -2)).float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    if sinks is not None:
        logits = torch.cat([logits, sinks.float()[None, :, None, None].expand(*logits.shape[:3], 1)], dim=-1)
    weights = logits.softmax(-1).nan_to_num(0.0)[..., : k.shape[2]].to(v.dtype)
    return (weights @ repeat_kv(v, groups)).transpose(1, 2).contiguous()


def use(model: Any) -> None:
    """Register both functions (once a process is enough, again does no harm) and select them on `model`."""
    AttentionInterface.register(NAME, attention_function)
    AttentionMaskInterface.register(NAME, mask_function)
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
