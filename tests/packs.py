"""What holds for every training sequence, and ways to look into one. Shared by the tests of training data."""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import AutoTokenizer

from kvledger import zoo
from kvledger.train.packing import Packed


@cache
def embedded() -> Any:
    return AutoTokenizer.from_pretrained(zoo.path())


def spans(packed: Packed) -> list[tuple[int, ...]]:
    ends = [*packed.starts[1:], len(packed.ids)]
    return [packed.ids[start:end] for start, end in zip(packed.starts, ends)]


def sound(packed: Packed, seq_len: int) -> bool:
    """What holds for every sequence whatever it is made of."""
    starts = packed.starts
    return (
        len(packed.ids) == len(packed.learn) == seq_len
        and starts[0] == 0
        and list(starts) == sorted(set(starts))
        and starts[-1] < seq_len
        and not any(packed.learn[start] for start in starts)
    )


def turns_of(packed: Packed, tokenizer: Any) -> list[str]:
    """The stretches that are learned, as text."""
    found, last = [], -2
    for i, flag in enumerate(packed.learn):
        if flag:
            if i > last + 1:
                found.append([])
            found[-1].append(packed.ids[i])
            last = i
    return [tokenizer.decode(ids) for ids in found]
