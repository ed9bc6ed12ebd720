"""Which query heads retrieve: how often is a head's top attention on the needle, from the question to the end of the answer?

The measure is that of retrieval heads (Wu et al., 2024, arXiv 2404.15574) and HeadKV (arXiv 2410.19258), teacher-forced: the
context has been read, the question and the gold answer are fed, and for each of their queries the row with the largest logit is
looked up. Deviations: the question's queries count as well as the answer's, since a model may have found the needle by then; so
does the one row behind the needle, where a head that reads "the token before" finds its end.

Only those queries are multiplied with the keys, one KV head and a block of them at a time; what was fed is taken back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvledger.cache.softmax import LOGITS_AT_ONCE
from kvledger.hf.attention import use
from kvledger.hf.cache import check_supported, new_cache, run_of
from kvledger.hf.chat import Chat
from kvledger.hf.place import home
from kvledger.methods.base import Glance, Method, Probe
from kvledger.methods.importance import Importance


@dataclass(frozen=True)
class Needle:
    """A context, a question and its answer, and the character spans of the context that hold what the answer needs."""

    context: str
    question: str
    answer: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Observer(Method):
    """Drops nothing; notes, for each KV head in turn, the share of steps [G] whose top row is one of the needle's."""

    keep: float = 1.0
    needle: frozenset[int] = frozenset()
    hits: list[Tensor] = field(default_factory=list, compare=False)

    tally: ClassVar[str] = "probe"

    def watch(self, glance: Glance) -> Tensor:
        top = top_rows(glance.queries[0], glance.keys[0], glance.scale)
        needle = torch.tensor(sorted(self.needle), device=top.device)
        self.hits.append(torch.isin(glance.positions[top], needle).double().mean(-1))
        return torch.zeros(1, 0, device=top.device)  # of no row: the probe has no span


def top_rows(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """`queries` [G, T, D] of the last T of `keys` [N, D]: each one's most attended row among those up to itself, [G, T]."""
    G, T, _ = queries.shape
    N = len(keys)
    block = max(1, LOGITS_AT_ONCE // (G * N))
    tops = []
    for t in range(0, T, block):
        part = queries[:, t : t + block]
        logits = (part @ keys.T).float() * scale
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(N - T + t + 1)
        tops.append(logits.masked_fill(later, -torch.inf).argmax(-1))
    return torch.cat(tops, dim=-1)


@torch.inference_mode()
def head_importance(model: Any, tokenizer: Any, needles: Iterable[Needle], chunk: int = 2048) -> Importance:
    """For each full-attention layer and query head, the share of question and answer tokens that look at the needle, in [0, 1],
    mean over `needles`. ValueError for a model whose cache cannot be held, or if there is no needle."""
    check_supported(model)
    chat = Chat(tokenizer)
    hits = [_observe(model, chat, needle, chunk) for needle in needles]
    if not hits:
        raise ValueError("no sample to probe with: ask for one at least")
    mean = torch.stack(hits).mean(0).tolist()
    return Importance(tuple(tuple(round(score, 4) for score in row) for row in mean))


def _observe(model: Any, chat: Chat, needle: Needle, chunk: int) -> Tensor:
    """Hits of one needle, [slots, query heads]."""
    context, question = chat.opening(needle.context, needle.question)
    tail = question + chat.answer(needle.answer)[:-1]  # the last token predicts nothing of the answer
    rows = chat.places(needle.context, needle.spans, system=False)
    observer = Observer(needle=frozenset(rows | {row + 1 for row in rows}))
    cache = new_cache(model, observer)
    run = run_of(cache)
    run.auto = run.reading = False
    use(model)
    for start in range(0, len(context), chunk):
        _feed(model, cache, context[start : start + chunk])
    run.watching = [Probe(ids=tuple(tail), start=0, stop=0)]
    _feed(model, cache, tail)
    return torch.cat(observer.hits).view(run.layers, -1).cpu()


def _feed(model: Any, cache: Any, ids: list[int]) -> None:
    model(input_ids=torch.tensor([ids], device=home(model)), past_key_values=cache, use_cache=True)
