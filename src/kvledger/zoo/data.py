"""Training rows for the embedded model: conversations of the tasks, and the standard library as natural text.

A row is one conversation in the chat format, cut or padded to the row length; only answers are learned from (and the
text rows, at a small weight).  Questions per context are many, because a context is what costs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from kvledger.tasks import overall, retrieval
from kvledger.tasks.base import Sample
from kvledger.tasks.draft import Build

FIRST_TRAINING_SEED = 1_000_000  # evaluation seeds lie below: no training sample is ever asked
TEXT_WEIGHT = 0.1


@dataclass(frozen=True)
class Plan:
    """How a task fills a row: tokens of one unit of context and of one turn, most turns, loss weight."""

    build: Build
    head: int
    unit: float
    turn: float
    most_turns: int
    least: Callable[[int], int]
    weight: float = 1.0


PLANS: dict[str, Plan] = {
    "kv": Plan(retrieval.kv, 5, 6, 10, 40, lambda turns: max(2, turns // 2)),
    "prefix_suffix": Plan(retrieval.prefix_suffix, 5, 4, 12, 32, lambda turns: max(4, turns)),
    "vt": Plan(retrieval.vt, 20, 5.5, 27, 20, lambda turns: 1),
    "mf": Plan(overall.mf, 5, 2, 8, 4, lambda turns: 12, 5.0),  # few questions a context: each counts more
    "many_shot": Plan(overall.many_shot, 5, 4, 8, 40, lambda turns: max(8, turns)),
    "mix": Plan(overall.mix, 5, 7.5, 9, 40, lambda turns: max(6, turns // 2)),
}


@dataclass
class Row:
    """Token ids; `answers[i]` numbers the answer that token i belongs to (-1: none) and `weights[i]` its loss weight."""

    task: str
    ids: list[int]
    answers: list[int]
    weights: list[float]


def sample(rng: random.Random, task: str, length: int) -> Sample:
    """A sample of `task` that, asked all its turns, fills about `length` tokens."""
    plan = PLANS[task]
    share = rng.choice((0.02, 0.08, 0.2, 0.4))
    turns = max(1, min(plan.most_turns, int(length * share / plan.turn)))
    size = max(plan.least(turns), int((length - plan.head - turns * plan.turn) / plan.unit))
    return plan.build(rng, size, turns, "small")


def conversation(tokenizer: PreTrainedTokenizerFast, task: str, made: Sample) -> Row:
    """The chat with all turns: context and first question, gold answer, second question, …"""
    row, plan = Row(task, [], [], []), PLANS[task]
    ask = "<|bos|><|user|>" + made.text
    for number, turn in enumerate(made.turns):
        _append(row, tokenizer.encode(ask + turn.question + "<|end|><|assistant|>"), -1, 0.0)
        _append(row, tokenizer.encode(turn.gold + "<|end|>"), number, plan.weight)
        ask = "<|user|>"
    return row


def text_row(tokenizer: PreTrainedTokenizerFast, texts: list[str], rng: random.Random, length: int) -> Row:
    text = rng.choice(texts)
    start = rng.randrange(max(1, len(text) - 6 * length))
    row = Row("text", [], [], [])
    _append(row, tokenizer.encode("<|bos|>")[:1], -1, 0.0)
    _append(row, tokenizer.encode(text[start : start + 6 * length]), -1, TEXT_WEIGHT)
    return row


def fill(row: Row, length: int, pad: int) -> Row:
    """Cut or pad to `length`."""
    spare = max(0, length - len(row.ids))
    return Row(
        row.task,
        row.ids[:length] + [pad] * spare,
        row.answers[:length] + [-1] * spare,
        row.weights[:length] + [0.0] * spare,
    )


def _append(row: Row, ids: list[int], answer: int, weight: float) -> None:
    row.ids += ids
    row.answers += [answer] * len(ids)
    row.weights += [weight] * len(ids)
