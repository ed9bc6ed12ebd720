"""The tasks' own samples as training conversations: context, questions and gold answers in the model's chat format.

One conversation fills a sequence.  Seeds are apart from those of evaluations, so that no sample is trained and asked.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from kvledger.hf.chat import Chat
from kvledger.tasks import suite
from kvledger.tasks.base import Form, Sample, Task
from kvledger.train.packing import Packed, Piece, filler_of, join

FIRST_SEED = 1_000_000  # evaluations use smaller ones
SMALL_VOCABULARY = 8192
SHARES = (0.02, 0.08, 0.2, 0.4)  # of a sequence that is questions and answers: a context is dear, so it is asked often
FAR_BACK = "scbench/kv,scbench/prefix_suffix,scbench/vt,scbench/mf,scbench/many_shot,scbench/mix"
MOST_TURNS = 20  # vt of the small form has names for 33


def form_of(tokenizer: Any) -> Form:
    """The tasks' form that suits a vocabulary."""
    return "small" if len(tokenizer) < SMALL_VOCABULARY else "full"


def choose(names: str) -> tuple[Task, ...]:
    """Tasks and suites by name, separated by commas; if none is named, those that ask for what stands far back."""
    return tuple(dict.fromkeys(task for name in (names or FAR_BACK).split(",") for task in suite(name.strip())))


@dataclass(frozen=True)
class Dialogues:
    """Sequence number i depends on the seed and i alone."""

    tokenizer: Any
    tasks: tuple[Task, ...]
    seq_len: int
    seed: int

    def sequence(self, number: int) -> Packed:
        """One conversation and padding to `seq_len`. ValueError if the task does not fit."""
        rng = random.Random(f"{self.seed} tasks {number}")
        task, share = rng.choice(self.tasks), rng.choice(SHARES)
        turns, room, grown = MOST_TURNS, int(self.seq_len * (1 - share)), False
        while True:
            try:
                piece = self._piece(self._make(task, number, room, turns))
            except ValueError as error:
                if turns == 1:
                    raise ValueError(f"{task.name} does not fit sequences of {self.seq_len} tokens: {error}") from None
                turns //= 2
                continue
            spare = 0 if piece is None else self.seq_len - len(piece.ids)
            if piece is not None and (grown or spare <= self.seq_len // 16):
                return join([piece], self.seq_len, filler_of(self.tokenizer))
            grown = piece is not None  # the turns took less than their share: give the rest to the context, once
            room += spare - self.seq_len // 64 if grown else -max(1, self.seq_len // 64)

    def _make(self, task: Task, number: int, tokens: int, turns: int) -> Sample:
        def count(text: str) -> int:
            return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

        return task.sample(FIRST_SEED + self.seed, number, tokens, count, turns, form_of(self.tokenizer))

    def _piece(self, sample: Sample) -> Piece | None:
        """The conversation up to the last turn that fits, no question twice; None if not even one turn fits."""
        chat = Chat(self.tokenizer)
        ids: list[int] = []
        learn: list[bool] = []
        for turn in {turn.question: turn for turn in sample.turns}.values():
            opening, question = ([], chat.follow_up(turn.question)) if ids else chat.opening(sample.text, turn.question)
            answer = chat.answer(turn.gold)
            if len(ids) + len(opening) + len(question) + len(answer) > self.seq_len:
                break
            ids += opening + question + answer
            learn += [False] * (len(opening) + len(question)) + [True] * len(answer)
        return Piece(ids, learn) if ids else None
