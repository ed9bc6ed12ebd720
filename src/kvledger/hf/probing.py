"""Reading what a method wants to ask of a prompt a second time (KVzip): its probes vote, are forgotten, and rows go."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from kvledger.hf import cache as caches
from kvledger.hf.chat import Chat
from kvledger.hf.eviction import evict
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.place import home
from kvledger.hf.recurrent import check_probes
from kvledger.methods.base import Probe


def ask(model: Any, cache: Any, sequences: Sequence[list[int]], chat: Chat, mask: Tensor | None = None) -> None:
    """Read the probes of the method that `cache` follows over the last tokens `sequences` of each sequence, and forget them.
    `mask` [B, columns]: which of the tokens that the model was given are real (None: all)."""
    check_probes(model, cache)
    run, lead = caches.run_of(cache), chat.opening("", "")[1]
    seen = next(layer.arena.seen for layer in caches.arenas(cache) if layer.arena is not None)
    asked = [
        list(run.method.probes(ids, seen[b] - len(ids), chat.ids, lead)) if ids else []
        for b, ids in enumerate(sequences)
    ]
    for batch in zip_longest(*asked):
        others = [None if isinstance(layer, ArenaLayer) else copy.deepcopy(layer) for layer in cache.layers]
        run.watching, run.ledger.kind = batch, "read" if not run.auto else "auto"
        _forward(model, cache, batch, list(seen), mask)
        cache.layers = [new if old is None else old for old, new in zip(others, cache.layers)]
    run.watching = None


@torch.inference_mode()
def choose(cache: Any, sequences: Sequence[list[int]]) -> None:
    """Let the method say which of the rows of the last tokens `sequences` stay."""
    run = caches.run_of(cache)
    run.evict = True
    for layer in caches.arenas(cache):
        evict(layer, [len(ids) for ids in sequences], asked=True)
    run.evict = False


@torch.inference_mode()
def _forward(model: Any, cache: Any, batch: Sequence[Probe | None], seen: list[int], mask: Tensor | None) -> None:
    """One probe of each sequence, padded on the left; a sequence that has no more gets padding only."""
    lists = [[] if one is None else list(one.ids) for one in batch]
    width, more = max(map(len, lists)), {}
    ids = torch.tensor([[0] * (width - len(one)) + one for one in lists], device=home(model))
    if mask is not None or min(map(len, lists)) < width:
        columns = caches.arenas(cache)[0].columns
        old = torch.ones(len(lists), columns, dtype=torch.long) if mask is None else mask[:, -columns:].cpu().long()
        new = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in lists])
        places = [[max(0, n - width + len(one) + i) for i in range(width)] for n, one in zip(seen, lists)]
        more["attention_mask"] = torch.cat([old, new], 1).to(home(model))
        more["position_ids"] = torch.tensor(places, device=home(model))
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        more["logits_to_keep"] = 1  # type: ignore[assignment]
    model(input_ids=ids, past_key_values=cache, use_cache=True, **more)
    caches.run_of(cache).ledger.hold_other(caches.other_bytes(cache))
