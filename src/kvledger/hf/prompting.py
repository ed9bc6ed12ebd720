"""What is read of a context and a question: a source has its say, tokens are checked, and those that stay are noted."""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvledger.hf.attention import use
from kvledger.hf.chat import Chat
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.place import home
from kvledger.methods.source import Judged, Span

if TYPE_CHECKING:
    from kvledger.hf.session import Session


@dataclass(frozen=True)
class Made:
    """What a source made of a context: the text, where protected spans lie in it, and the seconds it took."""

    text: str
    spans: Sequence[Span]
    seconds: float


def prepare(session: Session, context: str, question: str | None, protect: Sequence[Span]) -> list[int]:
    """The tokens to read, checked; those that may not be dropped are noted."""
    before, after = session.chat.opening(context, question or "")
    session.context_hash = hash_of(before)
    source = session.recipe.source
    if getattr(source, "shortens", False):
        whole, made = len(before), _made(session, context, protect)
        context, protect = made.text, made.spans
        before = session.chat.opening(context, "")[0]
        session.run.ledger.skip(max(0, whole - len(before)))
        session.reading_seconds += made.seconds - session.made_seconds  # once, however often the prompt is asked for
        session.made_seconds = made.seconds
    ids = before + (after if question is not None else [])
    if not ids:
        raise ValueError("the context is empty: there is nothing to read")
    session.check_length(len(ids))
    method = session.recipe.method
    if method.drops and method.tally == "probe":
        probes = method.probes(ids, 0, session.chat.ids, session.chat.opening("", "")[1])
        session.check_length(len(ids) + max(len(probe.ids) for probe in probes))
    _protect(session, context, protect, range(len(before), len(ids)))
    if getattr(source, "blends", False):
        session.chunks = _chunks(session, context, len(before))
    return ids


def hash_of(ids: list[int]) -> str:
    return hashlib.sha256(array("q", ids)).hexdigest()[:16]


def _protect(session: Session, context: str, spans: Sequence[Span], question: range) -> None:
    """Token indices that stay: of spans of the context and, if the recipe says so, of the template and the question."""
    wish = session.recipe.protection
    places: set[int] = set()
    if spans or (wish is not None and wish.system):
        places = session.chat.places(context, spans, wish is not None and wish.system)
    if wish is not None and wish.evidence:  # an oracle spends what it has, and no more
        places = set(sorted(places)[: session.recipe.method.allowance(question.stop, 1)])
    if wish is not None and wish.question:
        places |= set(question)
    session.run.pinned |= frozenset(places)


# ---- a shorter text ----------------------------------------------------------------------------------------------


def _made(session: Session, context: str, protect: Sequence[Span]) -> Made:
    """What the recipe's source makes of `context`; the last of these is remembered, since each question asks for it again."""
    chat, source = session.chat, session.recipe.source
    key = source, context, tuple(protect)
    if chat.made is None or chat.made[0] != key:
        started = time.perf_counter()
        text, spans = source.shorten(context, protect, partial(_judge, session.model, chat))
        chat.made = key, Made(text, spans, time.perf_counter() - started)
    made: Made = chat.made[1]
    return made


def _judge(model: Any, chat: Chat, text: str, window: int) -> Judged:
    """`kvledger.methods.source.Judge`. ValueError for a tokenizer that does not tell where its tokens come from."""
    try:
        coded = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except NotImplementedError as error:
        raise ValueError(
            "selfinfo needs a fast tokenizer: this one does not tell where its tokens come from"
        ) from error
    lead = [] if chat.tokenizer.bos_token_id is None else [chat.tokenizer.bos_token_id]
    return Judged(coded["offset_mapping"], surprise(model, list(coded["input_ids"]), window, lead))


@torch.inference_mode()
def surprise(model: Any, ids: list[int], window: int, lead: Sequence[int] = ()) -> Tensor:
    """−ln p of each token given `lead` and the window/2 to window − 1 tokens before it (at the start those there are), [N]
    float32 on the CPU; +inf for a first token with nothing before it. Nothing is stored."""
    use(model)
    found, half = torch.full((len(ids),), torch.inf), max(1, window // 2)
    for start in range(0, len(ids), half):
        first, stop = max(0, start - half), min(start + half, len(ids))
        piece = torch.tensor([[*lead, *ids[first:stop]]], device=home(model))
        judged = min(stop - start, piece.shape[1] - 1)
        if judged:
            logits = model(input_ids=piece, use_cache=False).logits[0, -judged - 1 : -1]
            told = logits.float().log_softmax(-1).gather(1, piece[0, -judged:, None])
            found[stop - judged : stop] = -told.squeeze(1).cpu()
    return found


# ---- chunks that are read apart ----------------------------------------------------------------------------------


def _chunks(session: Session, context: str, tokens: int) -> list[int]:
    """Where the chunks begin that are read apart, and where the last one ends; [] where there is only one. The last tokens of
    the context, which the method may look at, are in none. ValueError for a separator that is not there, and for a model some
    of whose rows cannot be written again."""
    source, method = session.recipe.source, session.recipe.method
    if any(type(layer) is not ArenaLayer for layer in session.cache.layers):
        raise ValueError(
            "cacheblend writes rows again, so every layer must be a full-attention layer: take another source"
        )
    stop = tokens - max(1, method.window if method.drops else 0)
    behind: set[int] = set()
    if source.separator:
        ends = [i + len(source.separator) for i in _places(context, source.separator)]
        if not ends:
            raise ValueError(f"separator={source.separator!r} of cacheblend is nowhere in the context: leave it away")
        touched = session.chat.places(context, [(end, end + 1) for end in ends], system=False)
        behind = {place for place in touched if place - 1 not in touched}
    starts = source.starts(stop, behind)
    return [*starts, stop] if len(starts) > 1 else []


def _places(text: str, part: str) -> list[int]:
    found, at = [], text.find(part)
    while at >= 0:
        found.append(at)
        at = text.find(part, at + len(part))
    return found
