"""A session that speaks while it writes: token by token, likeliest or drawn, and stops where it is told to.

Drawing is nucleus sampling (Holtzman et al., 2020, arXiv 1904.09751): of the tokens in order of probability, the fewest that
together have `top_p` of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from kvledger.hf.chat import Chat
from kvledger.hf.session import Session
from kvledger.serve.request import Request


class Stopped(Exception):
    """A stop string was said; `text` is what stands before it."""

    def __init__(self, text: str, tokens: int):
        super().__init__("a stop string was said")
        self.text, self.tokens = text, tokens


class Talk(Session):
    """A `Session` whose tokens are chosen by `picks(logits [V]) -> token` and told to `hears(token)` as they come."""

    picks: Callable[[Tensor], int]  # of one answer
    hears: Callable[[int], None]

    def pick(self, logits: Tensor) -> int:
        return self.picks(logits)

    def hear(self, token: int) -> None:
        self.hears(token)

    @classmethod
    def of(cls, session: Session) -> Self:
        """The same session, which must not be used any more."""
        talk = cls.__new__(cls)
        vars(talk).update(vars(session))
        return talk

    def rows_left(self, ids: int, new: int) -> int:
        """Bytes that `ids` tokens and an answer of `new` tokens would add to a full cache of this model."""
        copies = 1
        if self.recipe.method.heads == "query":
            config = self.model.config.get_text_config(decoder=True)
            copies = config.num_attention_heads // config.num_key_value_heads
        books = self.ledger.layers.values()
        return copies * (ids + new) * sum(book.heads * book.full_row_bytes for book in books)

    def waiting(self, ask: str) -> int:
        """Tokens that would be read before the answer to `ask`."""
        return len(self._unread) + len(self.chat.ids(ask))


def picker(request: Request) -> Callable[[Tensor], int]:
    """How a request wants its tokens chosen; with a seed always the same."""
    if request.temperature == 0 or request.top_p == 0:
        return lambda logits: int(logits.argmax())
    draw = torch.Generator()
    draw.seed() if request.seed is None else draw.manual_seed(request.seed)

    def pick(logits: Tensor) -> int:
        share, order = (logits.float().cpu() / request.temperature).softmax(-1).sort(descending=True)
        share[share.cumsum(-1) - share >= request.top_p] = 0
        return int(order[torch.multinomial(share, 1, generator=draw)])

    return pick


class Voice:
    """Tokens to text as it grows. `tell` gets each new stretch; what could still become a stop string, or is half a
    character, is held back. The stretches joined are `said`."""

    def __init__(self, chat: Chat, stop: tuple[str, ...], tell: Callable[[str], Any]):
        self.chat, self.stop, self.tell = chat, stop, tell
        self.tokens: list[int] = []
        self.said, self.told = "", 0
        self._from, self._upto = 0, 0  # of the tokens: where decoding starts, and what is in `said`

    def hear(self, token: int) -> None:
        """One more token. `Stopped` if the text now holds a stop string."""
        self.tokens.append(token)
        before = self.chat.text(self.tokens[self._from : self._upto])
        now = self.chat.text(self.tokens[self._from :])
        if now.endswith("\ufffd") or len(now) <= len(before):
            return
        self.said += now[len(before) :]
        self._from, self._upto = self._upto, len(self.tokens)
        for text in self.stop:
            if text in self.said:
                self.said = min((self.said.partition(one)[0] for one in self.stop), key=len)
                self._send(len(self.said))
                raise Stopped(self.said, len(self.tokens))
        self._send(len(self.said) - max([len(text) - 1 for text in self.stop], default=0))

    def end(self, text: str) -> None:
        """All has been said: `text`, of which the rest is told."""
        if text.startswith(self.said):
            self.said = text
        self._send(len(self.said))

    def _send(self, upto: int) -> None:
        if upto > self.told:
            self.tell(self.said[self.told : upto])
            self.told = upto
