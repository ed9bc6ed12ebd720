"""Training rows for the embedded model: conversations of the tasks, and the standard library as natural text.

A row is one conversation in the chat format, cut or padded to the row length; only answers are learned from (and the
text rows, at a small weight).  Questions per context are many, because a context is what costs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from kvledger.tasks import get
from kvledger.tasks.base import Sample
from kvledger.zoo.wide import WIDE, Plan

FIRST_TRAINING_SEED = 1_000_000  # evaluation seeds lie below: no training sample is ever asked
SEEDS = 1 << 40
TEXT_WEIGHT = 0.1
ONE_LIST = ("ruler/cwe", "ruler/fwe")  # a list for each question: mostly one, as they are asked

PLANS: dict[str, Plan] = {
    "kv": Plan(10, 40),
    "prefix_suffix": Plan(12, 32),
    "vt": Plan(27, 20),
    "mf": Plan(8, 4, 5.0),  # few questions a context: each counts more
    "many_shot": Plan(8, 40, 1.0, 128),
    "mix": Plan(9, 40, 1.0, 256),
}


@dataclass
class Row:
    """Token ids; `answers[i]` numbers the answer that token i belongs to (-1: none) and `weights[i]` its loss weight."""

    task: str
    ids: list[int]
    answers: list[int]
    weights: list[float]


def sample(tokenizer: PreTrainedTokenizerFast, rng: random.Random, task: str, length: int) -> Sample:
    """A sample of `task` that, asked all its turns, fills about `length` tokens. ValueError for a length that does not hold
    one."""
    plan, name = plan_of(task), task if "/" in task else f"scbench/{task}"
    share = rng.choice((0.05, 0.15, 0.4, 0.6))
    turns = max(1, min(plan.most_turns, int(length * share / plan.turn)))
    if task in ONE_LIST and rng.random() < 0.5:
        turns = 1
    seed = FIRST_TRAINING_SEED + rng.randrange(SEEDS)
    while True:
        try:
            room = length - turns * plan.turn - 5
            return get(name).sample(seed, 0, room, lambda text: len(tokenizer.encode(text)), turns)
        except ValueError:  # so many questions need a longer context
            if turns == 1:
                raise
            turns //= 2


def plan_of(task: str) -> Plan:
    return PLANS[task] if task in PLANS else WIDE[task]


def conversation(tokenizer: PreTrainedTokenizerFast, task: str, made: Sample) -> Row:
    """The chat with all turns: context and first question, gold answer, second question, …"""
    row, weight = Row(task, [], [], []), plan_of(task).weight
    _append(row, tokenizer.encode("<|bos|><|user|>" + made.text), -1, 0.0)
    for number, turn in enumerate(made.turns):
        ask = "<|user|>" if number else ""
        _append(row, tokenizer.encode(ask + turn.question + "<|end|><|assistant|>"), -1, 0.0)
        _append(row, tokenizer.encode(turn.gold + "<|end|>"), number, weight)
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
