"""From messages to the pieces that a session reads: the context, what is asked of it, and each later turn.

All messages are rendered once by the model's own chat template, with a mark at each place where a cache may be shared or where
an answer stands, and the text is cut there.  The pieces of a conversation are the same as those of `Session.read` and
`Session.ask` (a test), so its answers are, too.

What is the context: all that stands before the last part of the first user message (a system message, earlier parts of it);
where nothing stands before it, that message itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvledger.hf.chat import Chat
from kvledger.serve.request import Message, Refused

_MARK = "\u2402seam\u2403"


@dataclass(frozen=True)
class Pieces:
    """Rendered texts: context, asks[0], answers[0], asks[1], …, asks[-1]: each ask runs up to the start of its answer."""

    context: str
    asks: tuple[str, ...]
    answers: tuple[str, ...]

    def key(self, turns: int) -> str:
        """Names the conversation after `turns` answers. Blanks around an answer do not count: clients strip them."""
        answers = [answer.strip() for answer in self.answers[:turns]]
        return hashlib.sha256(json.dumps([self.context, self.asks[:turns], answers]).encode()).hexdigest()


class Rendered(Chat):
    """A `Chat` of texts that have been rendered: nothing is put around them."""

    def opening(self, context: str, question: str) -> tuple[list[int], list[int]]:
        if not context and not question:
            return super().opening("", "")  # what methods with probes end them with
        if context != self._last[0]:
            self._last = context, self.ids(context, first=True)
        return list(self._last[1]), self.ids(question)

    def follow_up(self, question: str) -> list[int]:
        return self.ids(question)

    def answer(self, text: str) -> list[int]:
        return self.ids(text)

    def places(self, context: str, spans: Sequence[tuple[int, int]], system: bool) -> set[int]:
        """As `Chat.places`; `spans` are counted in the rendered context."""
        lead = self._render([{"role": "user", "content": _MARK}]).partition(_MARK)[0] if self.templated else ""
        alike = next((i for i, (a, b) in enumerate(zip(lead, context)) if a != b), min(len(lead), len(context)))
        wanted = [*spans, (0, alike)] if system else spans
        try:
            coded = self.tokenizer(context, add_special_tokens=not self.templated, return_offsets_mapping=True)
        except NotImplementedError as error:
            raise ValueError("spans can be protected with fast tokenizers only: this one has no offsets") from error
        places = enumerate(coded["offset_mapping"])
        return {i for i, (a, b) in places if any(a < high and low < b for low, high in wanted) or (system and a == b)}

    def pieces(self, messages: Sequence[Message]) -> Pieces:
        """The conversation in pieces. `Refused` (400) for what the chat template cannot render."""
        if any(_MARK in part for message in messages for part in message.parts):
            raise Refused(400, f"the messages hold {_MARK!r}, which marks seams here", "invalid_value", "messages")
        first = next(i for i, message in enumerate(messages) if message.role == "user")
        turns = [{"role": m.role, "content": _content(m, i == first, first > 0)} for i, m in enumerate(messages)]
        rendered = self._all(turns).split(_MARK)
        answers = tuple("".join(m.parts) for m in messages if m.role == "assistant")
        if len(rendered) != len(answers) + 2:
            raise Refused(400, "the model's chat template drops or repeats some of these messages", param="messages")
        return Pieces(rendered[0], tuple(rendered[1:]), tuple(map(self._said, answers)))

    def _said(self, answer: str) -> str:
        return answer.strip() if self.templated and self._strips[1] else answer

    def _all(self, turns: list[dict[str, str]]) -> str:
        if not self.templated:
            return _plain(turns)
        try:
            return self._render(turns)
        except Exception as error:  # jinja's, or whatever a template raises
            reason = str(error).strip() or type(error).__name__
            raise Refused(400, f"the model's chat template refuses: {reason[:200]}", param="messages") from error


def _content(message: Message, first: bool, above: bool) -> str:
    """A message's text with its mark. `above`: something stands before the first user message."""
    if message.role == "assistant":
        return _MARK
    if not first:
        return "".join(message.parts)
    *context, question = message.parts
    if not context and not above:
        return question + _MARK
    return "".join(context) + _MARK + question


def _plain(turns: list[dict[str, Any]]) -> str:
    """Paragraphs, as `Chat` writes them for a tokenizer without a template."""
    text, before = "", ""
    for turn in turns:
        role, content = turn["role"], turn["content"]
        gap = "\n\n" if role == "user" and before == "assistant" else ""
        end = {"user": "\n", "assistant": ""}.get(role, "\n\n")
        text, before = text + gap + content + end, role
    return text
