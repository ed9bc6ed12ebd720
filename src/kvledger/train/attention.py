"""Attention with a gate on every KV head: z·full + (1 - z)·streaming, inside an unmodified transformers model.

PruLong (arXiv 2506.17121 §4.1) and DuoAttention (arXiv 2410.10819 §3.2). Sinks and window mean here what they mean to the
cache (`kvledger.cache.window`), so that a head behaves in training as it will when it really forgets.

The function that transformers calls is a method bound to a `Gating`, not a context variable, so that layers recomputed in a
backward pass (gradient checkpointing; CUDA's backward runs in its own threads) find the gates of their own pass.
"""

from __future__ import annotations

from itertools import count, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from kvledger.cache.softmax import sdpa
from kvledger.cache.window import window_attention
from kvledger.train.parallel import Peers

WIDER = 8  # dimensions that a sink logit adds to a head: one would do, but kernels want multiples of 8
NUMBERS = count()  # every Gating registers under a name of its own
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class Gating:
    """A context in which `hidden` runs the model with gates. Weights are frozen inside (unless `train_weights`).

    `slots`: layer index -> slot, of the full-attention layers in order, those whose cache kvledger can compress. Gates are
    [slots, heads]. Sliding-window layers attend as ever. On exit the model has its attention and its flags back.
    """

    def __init__(self, model: Any, sinks: int, window: int, peers: Peers | None = None, train_weights: bool = False):
        self.model, self.sinks, self.window = model, sinks, window
        self.peers = Peers() if peers is None else peers
        self.train_weights = train_weights
        self.slots = full_layers(model)
        self.heads = _kv_heads(model)
        self.name = f"kvledger_gates_{next(NUMBERS)}"
        self._z: Tensor | None = None
        self._spans: list[tuple[int, int]] = []
        self._gated: set[int] = set()  # layers that reached us in the present pass

    def __enter__(self) -> Gating:
        self._before = self.model.config._attn_implementation
        self._flags = [(p, p.requires_grad) for p in self.model.parameters()]
        for p, _ in self._flags:
            p.requires_grad_(self.train_weights)
        AttentionInterface.register(self.name, self._attend)
        AttentionMaskInterface.register(self.name, _no_mask)
        self.model.set_attn_implementation(self.name)
        return self

    def __exit__(self, *error: Any) -> None:
        self.model.set_attn_implementation(self._before)
        for p, flag in self._flags:
            p.requires_grad_(flag)
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop(self.name, None)
        self._z = None

    def hidden(self, ids: Tensor, starts: tuple[int, ...], z: Tensor | None) -> Tensor:
        """Final hidden states [1, T/P, hidden] of this process's tokens. `ids` [T]: the whole packed sequence.

        starts: where its documents begin (first 0); attention, sinks, window and positions restart there. z: the gates
        [slots, H], or of each document [documents, slots, H]; None for full attention. They stay in place until the next
        call, for a backward pass may need them.
        """
        self._z, self._spans, self._gated = z, list(pairwise((*starts, len(ids)))), set()
        if z is not None and z.dim() == 2:
            self._z = z.expand(len(starts), -1, -1)
        position = torch.cat([torch.arange(b - a, device=ids.device) for a, b in self._spans])
        mine, at = (self.peers.own_tokens(x[None], 1) for x in (ids, position))
        out = self.model.base_model(input_ids=mine, position_ids=at, use_cache=False).last_hidden_state
        if self._gated != set(self.slots):
            raise ValueError(
                f"model type {self.model.config.model_type!r} is not supported: its attention bypasses transformers' attention "
                f"interface in {len(set(self.slots) - self._gated)} of {len(self.slots)} layers"
            )
        return out

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        scaling: float | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """What transformers calls: query [1, Hq, T/P, D], key and value [1, H, T/P, D] -> [1, T/P, Hq, D]."""
        slot = self.slots.get(int(module.layer_idx))  # type: ignore[arg-type]
        if slot is not None and key.shape[1] != self.heads:
            raise ValueError(f"layer {module.layer_idx} has {key.shape[1]} KV heads where the model says {self.heads}")
        self._gated |= set() if slot is None else {int(module.layer_idx)}  # type: ignore[arg-type]
        q, k, v = (self.peers.heads_first(x) for x in (query, key, value))
        aux = None if s_aux is None else self.peers.own_heads(s_aux)
        head = _Head(module, query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, aux)
        parts = []
        for document, (a, b) in enumerate(self._spans):
            rows = (q[:, :, a:b], k[:, :, a:b], v[:, :, a:b])
            if slot is None and sliding_window is not None:
                parts.append(head.streaming(*rows, 0, sliding_window))
            else:
                z = None if slot is None or self._z is None else self._z[document, slot]
                parts.append(self._two_branches(head, rows, z))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
        return self.peers.tokens_first(out).transpose(1, 2).contiguous(), None

    def _two_branches(self, head: _Head, rows: tuple[Tensor, Tensor, Tensor], z: Tensor | None) -> Tensor:
        """z·full + (1 - z)·streaming, exact at both ends. Where no token would be forgotten the two are one."""
        full = head.full(*rows)
        if z is None or rows[0].shape[2] <= self.sinks + self.window:
            return full
        streaming = head.streaming(*rows, self.sinks, self.window)
        z = self.peers.own_heads(z).to(full.dtype)
        each = z.repeat_interleave(full.shape[1] // len(z))[None, :, None, None]
        return torch.lerp(streaming, full, each)


class _Head:
    """The two kinds of attention of one layer, [1, Hq, T, D] over [1, H, T, D], with what the family adds to the softmax.

    A learned sink logit (gpt-oss) enters as one more row at position 0, a sink of its own: its key is the unit vector of one
    more dimension, in which the queries hold the logit and other keys nothing, and its value is zero. So the same kernels
    serve, with their gradients and their memory.
    """

    def __init__(self, module: nn.Module, scale: float, softcap: float | None, aux: Tensor | None):
        assert softcap is None or aux is None
        self.module, self.scale, self.softcap, self.aux = module, scale, softcap, aux

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.softcap is None and self.aux is None:  # the very call of the stock model
            out, _ = sdpa_attention_forward(self.module, q, k, v, None, scaling=self.scale, is_causal=True)
            return out.transpose(1, 2)
        q, k, v, extra = self._with_aux(q, k, v)
        H, G = k.shape[1], q.shape[1] // k.shape[1]
        k, v = (x.transpose(0, 1).expand(-1, G, -1, -1) for x in (k, v))
        out, _ = sdpa(q.reshape(H, G, q.shape[2], -1), k, v, self.scale, self.softcap, causal=True)
        return _without(out.reshape(1, H * G, q.shape[2], -1), extra)

    def streaming(self, q: Tensor, k: Tensor, v: Tensor, sinks: int, window: int) -> Tensor:
        q, k, v, extra = self._with_aux(q, k, v)
        H, G, T = k.shape[1], q.shape[1] // k.shape[1], q.shape[2]
        out, _ = window_attention(
            q.reshape(H, G, T, -1),  # KV heads to the batch, so that no key is repeated
            k.transpose(0, 1),
            v.transpose(0, 1),
            T - 1,
            sinks + extra,
            window,
            self.scale,
            self.softcap,
        )
        return _without(out.reshape(1, H * G, T, -1), extra)

    def _with_aux(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Queries, keys and values with the row of the sink logit, and how many rows and columns that added."""
        if self.aux is None:
            return q, k, v, 0
        logit = (self.aux.to(q.dtype) / self.scale)[None, :, None, None].expand(*q.shape[:3], 1)
        q = pad(torch.cat([q, logit], -1), (0, WIDER - 1, 1, 0))  # the row's own query is of no use
        unit = k.new_zeros(k.shape[2] + 1, k.shape[3] + WIDER)
        unit[0, k.shape[3]] = 1
        return q, pad(k, (0, WIDER, 1, 0)) + unit, pad(v, (0, WIDER, 1, 0)), 1


def _without(out: Tensor, extra: int) -> Tensor:
    return out[:, :, 1:, :-WIDER] if extra else out


def _no_mask(**arguments: Any) -> None:
    """Causality, windows and documents are our attention's business: no dense mask is made."""


def full_layers(model: Any) -> dict[int, int]:
    """Layer index -> slot of the layers whose cache kvledger replaces. ValueError if there are none, or other kinds of layer.

    Recurrent and chunked layers are refused: they would carry one packed document into the next.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or KNOWN_LAYERS)
    layers = DynamicCache(config=config).layers
    found = [i for i, layer in enumerate(layers) if type(layer) is DynamicLayer]
    if kinds - KNOWN_LAYERS or not found:
        raise ValueError(
            f"{config.model_type!r} cannot be trained: its layers are {', '.join(sorted(kinds))}, and gates need "
            "full-attention layers, beside which only sliding-window ones may stand"
        )
    return {layer: slot for slot, layer in enumerate(found)}


def _kv_heads(model: Any) -> int:
    config = model.config.get_text_config(decoder=True)
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
