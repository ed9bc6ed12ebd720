"""Training sequences of exactly one length, made of documents with their boundaries kept.

Two ways to fill one: natural documents are cut and joined until nothing is left over (`pack`); conversations stay whole
and what room is left is filled with tokens that teach nothing (`join`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Packed:
    """One training sequence of seq_len tokens.

    starts: where documents begin (the first is 0, ascending); attention, sinks and positions start anew there. learn[i]:
    predicting token i counts in the loss; never the first token of a document, which nothing precedes.
    """

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    learn: tuple[bool, ...]


@dataclass(frozen=True)
class Piece:
    """A document, or a part of one, with what of it is to be learned."""

    ids: Sequence[int]
    learn: Sequence[bool]


def natural(ids: Sequence[int]) -> Piece:
    """Text that is all learned, but for its first token."""
    return Piece(ids, [False] + [True] * (len(ids) - 1))


def pack(documents: Iterable[Sequence[int]], seq_len: int, bos: int | None) -> Iterator[Packed]:
    """Sequences of exactly `seq_len` tokens that hold every token of every document once, in order within a document.

    Long documents give whole sequences; their last part and short documents share sequences. Every piece of a document
    begins with `bos` (if there is one) and counts as a document. Tokens that do not fill a sequence when the documents
    end are left out.
    """
    head = [] if bos is None else [bos]
    whole = seq_len - len(head)
    shared: list[Piece] = []
    room = seq_len
    for ids in documents:
        cut = len(ids) - len(ids) % whole
        for start in range(0, cut, whole):
            yield join([natural([*head, *ids[start : start + whole]])], seq_len, 0)
        while cut < len(ids):
            part = [*head, *ids[cut : cut + max(0, room - len(head))]]  # with room for one token: the BOS alone
            shared.append(natural(part))
            cut, room = cut + len(part) - len(head), room - len(part)
            if room == 0:
                yield join(shared, seq_len, 0)
                shared, room = [], seq_len


def join(pieces: Sequence[Piece], seq_len: int, filler: int) -> Packed:
    """Pieces one after the other; room that is left is a last document of `filler`, of which nothing is learned."""
    room = seq_len - sum(len(piece.ids) for piece in pieces)
    assert room >= 0, room
    filled = [*pieces, Piece([filler] * room, [False] * room)] if room else pieces
    starts, total = [], 0
    for piece in filled:
        starts.append(total)
        total += len(piece.ids)
    ids = tuple(token for piece in filled for token in piece.ids)
    return Packed(ids, tuple(starts), tuple(flag for piece in filled for flag in piece.learn))


def filler_of(tokenizer: Any) -> int:
    """The token that fills up a sequence: padding, else end of text, else 0."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)
