"""What learned scorers learn: for each row of a text what it turned out to be worth, beside what the scorer will see of it.

kvzap   the logarithm of the KVzip+ score (arXiv 2601.07891 §2): the text is read, then repeated in pieces as KVzip does
        (`methods/kvzip.py`), and each row keeps the most that a repeated token made of it. Below `LEAST` it counts as that.
locret  causal importance (arXiv 2410.01805 §3.1): the greatest logit, before the softmax, that any query of an answer has with
        the row, over the queries of its KV head. Queries are those of tokens that predict a token to be learned, so in a
        conversation those that write its answers and in plain text all; only later ones than the row count.

Deviation: rows of questions and answers are examples too, not only those of the context. Nothing of the model is changed; a
document is read whole, in one forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvledger.cache.softmax import LOGITS_AT_ONCE
from kvledger.hf.attention import use
from kvledger.hf.cache import arenas, new_cache, run_of
from kvledger.hf.chat import Chat
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.probing import ask
from kvledger.methods.base import Fresh, Method
from kvledger.methods.kvzip import KVzip
from kvledger.methods.locret import joined
from kvledger.train.packing import Packed

SHORTEST = 16  # tokens of a document that is worth reading
LEAST = 1e-6  # of a KVzip+ score


@dataclass(frozen=True)
class Example:
    """One document: for each slot what the scorer sees, [T, I], and what each row is worth, [H, T]; -inf: nobody could tell."""

    inputs: tuple[Tensor, ...]
    wanted: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Repeater(KVzip):
    """KVzip+ that writes down what each layer was given."""

    plus: bool = True
    inputs: list[Tensor] = field(default_factory=list, compare=False)

    learns: ClassVar[bool] = True

    def learn(self, fresh: Fresh, state: Any) -> Any:
        assert fresh.hidden is not None
        self.inputs.append(fresh.hidden.float())
        return ()


@dataclass(frozen=True, kw_only=True)
class Answerer(Method):
    """Writes down queries, keys and values of each layer, and what the `asking` queries make of the rows before them."""

    asking: tuple[int, ...] = ()
    inputs: list[Tensor] = field(default_factory=list, compare=False)
    wanted: list[Tensor] = field(default_factory=list, compare=False)

    learns: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("rope", "whole")

    def learn(self, fresh: Fresh, state: Any) -> Any:
        self.inputs.append(joined(fresh))
        self.wanted.append(causal_importance(fresh.queries, fresh.keys, self.asking, fresh.scale))
        return ()


def causal_importance(queries: Tensor, keys: Tensor, asking: tuple[int, ...], scale: float) -> Tensor:
    """The greatest logit of each row with the queries `asking` after it, over the group: [H, T] float32, -inf where none is.
    `queries` [H, G, T, D], `keys` [H, T, D]."""
    H, G, T, _ = queries.shape
    best = torch.full((H, T), -torch.inf, device=keys.device)
    rows, block = torch.arange(T, device=keys.device), max(1, LOGITS_AT_ONCE // (H * G * T))
    for a in range(0, len(asking), block):
        at = torch.tensor(asking[a : a + block], device=keys.device)
        logits = (queries[:, :, at].float() @ keys.float().mT[:, None]) * scale
        best = torch.maximum(best, logits.masked_fill(rows >= at[:, None], -torch.inf).amax((1, 2)))
    return best


@torch.no_grad()
def examples(kind: str, model: Any, tokenizer: Any, sequence: Packed) -> Iterator[Example]:
    """An example of each document of a packed sequence that is long enough and has something to learn."""
    for a, b in pairwise((*sequence.starts, len(sequence.ids))):
        if b - a >= SHORTEST and any(sequence.learn[a:b]):
            ids = list(sequence.ids[a:b])
            asking = tuple(t for t in range(b - a - 1) if sequence.learn[a + t + 1])
            yield _repeated(model, Chat(tokenizer), ids) if kind == "kvzap" else _answered(model, ids, asking)


def _repeated(model: Any, chat: Chat, ids: list[int]) -> Example:
    method = Repeater()
    cache = read_by(model, method, ids)
    ask(model, cache, [ids], chat)
    tallies = [_tally(layer) for layer in arenas(cache)]
    return Example(tuple(method.inputs), tuple(x.clamp(min=LEAST).log() for x in tallies))


def _tally(layer: ArenaLayer) -> Tensor:
    """What the rows of each head were given, [H, T]."""
    store = layer.arena
    assert store is not None
    assert store.tally is not None
    return torch.stack([store.tally[store.segment(h)] for h in range(store.heads)])


def _answered(model: Any, ids: list[int], asking: tuple[int, ...]) -> Example:
    method = Answerer(asking=asking)
    read_by(model, method, ids)
    return Example(tuple(method.inputs), tuple(method.wanted))


def read_by(model: Any, method: Method, ids: list[int]) -> Any:
    """A cache that has read `ids` and dropped nothing, with `method` looking on."""
    cache = new_cache(model, method)
    run = run_of(cache)
    run.auto, run.reading = False, True
    use(model)
    _feed(model, cache, ids)
    return cache


def _feed(model: Any, cache: Any, ids: Any) -> None:
    model.base_model(input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache, use_cache=True)
