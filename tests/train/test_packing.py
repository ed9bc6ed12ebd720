"""Packing: nothing lost, nothing twice, boundaries right."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from packs import sound, spans

from kvledger.train.packing import Packed, Piece, join, pack

BOS = -1
lengths = st.lists(st.integers(0, 60), max_size=12)


def numbered(counts: list[int]) -> list[list[int]]:
    """Documents in which every token has another number."""
    first = [sum(counts[:i]) for i in range(len(counts))]
    return [list(range(start, start + count)) for start, count in zip(first, counts)]


@given(lengths, st.integers(2, 20), st.booleans())
def test_every_token_of_every_document_is_packed_once_and_in_order(counts: list[int], seq_len: int, bos: bool) -> None:
    documents = numbered(counts)
    sequences = list(pack(documents, seq_len, BOS if bos else None))
    assert all(sound(packed, seq_len) for packed in sequences)
    pieces = [span for packed in sequences for span in spans(packed)]
    assert all((piece[0] == BOS and BOS not in piece[1:]) if bos else BOS not in piece for piece in pieces)
    texts = [piece[bos:] for piece in pieces]
    assert all(list(text) == list(range(text[0], text[0] + len(text))) for text in texts if text)
    owner = {token: number for number, document in enumerate(documents) for token in document}
    assert all(owner[text[0]] == owner[text[-1]] for text in texts if text)
    seen = Counter(token for text in texts for token in text)
    assert set(seen.values()) <= {1}
    assert len(set(owner) - set(seen)) < seq_len  # the last sequence is not full


@given(lengths, st.integers(2, 20))
def test_all_but_the_first_token_of_a_document_is_learned(counts: list[int], seq_len: int) -> None:
    for packed in pack(numbered(counts), seq_len, BOS):
        assert [i for i, flag in enumerate(packed.learn) if not flag] == list(packed.starts)


def test_a_long_document_gives_whole_sequences_and_its_tail_shares_one() -> None:
    sequences = list(pack([range(0, 20), range(100, 103)], 8, BOS))
    assert [spans(packed) for packed in sequences] == [
        [(BOS, *range(0, 7))],
        [(BOS, *range(7, 14))],
        [(BOS, *range(14, 20)), (BOS,)],
    ]
    assert [p.starts for p in pack([range(3), range(3), range(9)], 4, None)] == [(0, 3), (0,), (0,)]


def test_room_that_is_left_is_filled_and_teaches_nothing() -> None:
    packed = join([Piece([5, 6], [False, True]), Piece([7], [False])], 6, 9)
    assert packed == Packed((5, 6, 7, 9, 9, 9), (0, 2, 3), (False, True, False, False, False, False))
    assert join([Piece([5, 6], [False, True])], 2, 9).starts == (0,)
