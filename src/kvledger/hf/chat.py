"""From texts to token ids, piece by piece: a context, its first question, and each later turn.

The pieces joined are what the chat template renders for the whole conversation; they are tokenised apart at the places
where a cache may be shared, so the same ids are read whether the question is known early or late.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from kvledger.methods.source import merged

_ANSWER, _QUESTION = "\u2402answer\u2403", "\u2402question\u2403"  # cannot occur in a rendered template


def count(tokenizer: Any, text: str) -> int:
    """Tokens of `text`, special ones left away: in half the time that it takes to make them, where the tokenizer can count."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None or core.truncation or core.padding:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return len(core.encode_batch_fast([text], add_special_tokens=False)[0])


class Chat:
    """Renders with the tokenizer's chat template; without one, as plain paragraphs."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.templated = bool(getattr(tokenizer, "chat_template", None))
        self._last: tuple[str | None, list[int]] = None, []  # a context is asked for with each question, and is long
        self.made: tuple[object, Any] | None = None  # likewise, what a source made of the last one (prompting.py)

    def ids(self, text: str, first: bool = False) -> list[int]:
        """Token ids of a piece; only the first piece of a plain-text prompt gets the tokenizer's own BOS."""
        return list(self.tokenizer(text, add_special_tokens=first and not self.templated)["input_ids"])

    def opening(self, context: str, question: str) -> tuple[list[int], list[int]]:
        """Ids of the shared context (with all that comes before it) and of the first question up to the answer."""
        if self.templated:
            rendered = self._render([{"role": "user", "content": context + _QUESTION}])
            before, _, after = rendered.partition(_QUESTION)
        else:
            before, after = context, "\n"
        if before != self._last[0]:
            self._last = before, self.ids(before, first=True)
        question = question.rstrip() if self.templated and self._strips[0] else question
        return list(self._last[1]), self.ids(question + after)

    def places(self, context: str, spans: Sequence[tuple[int, int]], system: bool) -> set[int]:
        """Numbers of the tokens of `opening(context, …)` that touch the character spans [start, end) of the context, and, if
        `system`, of those before it. ValueError for a tokenizer that does not tell where its tokens come from."""
        before = self._render([{"role": "user", "content": context + _QUESTION}]) if self.templated else context
        before = before.partition(_QUESTION)[0]
        shift = before.find(context.strip())
        if shift < 0:
            raise ValueError("the chat template changes the context, so spans of it cannot be found again")
        shift -= len(context) - len(context.lstrip())
        try:
            coded = self.tokenizer(before, add_special_tokens=not self.templated, return_offsets_mapping=True)
        except NotImplementedError as error:
            raise ValueError("spans can be protected with fast tokenizers only: this one has no offsets") from error
        wanted = merged([(start + shift, end + shift) for start, end in spans] + ([(0, shift)] if system else []))
        lows = [low for low, _ in wanted]
        places = set()
        for number, (start, end) in enumerate(coded["offset_mapping"]):
            last = bisect_left(lows, end) - 1  # of the spans that begin before the token ends
            if (last >= 0 and start < wanted[last][1]) or (system and start == end == 0):
                places.add(number)
        return places

    def follow_up(self, question: str) -> list[int]:
        """Ids from the end of an answer to the start of the next: end of turn, question, header."""
        if not self.templated:
            return self.ids("\n\n" + question + "\n")
        turns = [
            {"role": "user", "content": "-"},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _QUESTION},
        ]
        rendered = self._render(turns)
        if _ANSWER not in rendered or _QUESTION not in rendered:
            raise ValueError("the chat template drops earlier turns, so one cache cannot hold a conversation in it")
        bridge, _, after = rendered.partition(_ANSWER)[2].partition(_QUESTION)
        question = question.strip() if self._strips[0] else question
        return self.ids(bridge + question + after)

    def answer(self, text: str) -> list[int]:
        """Ids of an answer as history shows it."""
        return self.ids(text.strip() if self.templated and self._strips[1] else text)

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @cached_property
    def _strips(self) -> tuple[bool, bool]:
        """Whether the template strips blanks off the user's messages, and off the answers."""
        user = self._render([{"role": "user", "content": f" {_QUESTION} "}])
        answer = self._render([{"role": "user", "content": "-"}, {"role": "assistant", "content": f" {_ANSWER} "}])
        return f" {_QUESTION} " not in user, _ANSWER in answer and f" {_ANSWER} " not in answer

    def _render(self, messages: list[dict[str, str]]) -> str:
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert isinstance(rendered, str)
        return rendered
