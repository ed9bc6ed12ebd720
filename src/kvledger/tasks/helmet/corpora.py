"""HELMET's five ICL sets from their corpora (arXiv 2410.02694; code MIT, commits 4526dfb and fdd6333): `Task.real` of each.

Shots are balanced by label in rounds, drawn anew for each item by a hash of its text, and labels are renumbered at random for
each item.  A test set of more than 500 is shuffled and balanced to 500.  Licences: TREC unknown, BANKING77 CC-BY-4.0,
CLINC150 CC-BY-SA-3.0, NLU Evaluation CC-BY-4.0; nothing of them is shipped.
The corpora come as parquet (the hub's own conversion where the repository still has a script, which is never run); in a
data folder the same name ending in `.jsonl` will do, with the same columns and whole-number labels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from kvledger.tasks import hub
from kvledger.tasks.base import CountTokens, Sample, Segment, Turn
from kvledger.tasks.helmet import cut, files, templates
from kvledger.tasks.helmet.files import Row
from kvledger.tasks.hub import Data

CONVERTED = "refs/convert/parquet"  # a branch of the hub's converter; the data's fingerprint tells its state
TESTED = 500
HELD_OUT = 0.1  # of a corpus without a test set
Item = tuple[str, int]  # text and label


@dataclass(frozen=True)
class Corpus:
    """One set. `shots` by tier from 8K; `test` is "" where a part of `train` is held out."""

    name: str
    repo: str
    train: str
    test: str
    label: str
    labels: int
    shots: tuple[int, ...]
    revision: str = CONVERTED

    def real(self, data: Data, seed: int, index: int, tokens: int, count: CountTokens, turns: int = 1) -> Sample:
        """One item and its own shots. The context's end is cut if the model's tokens demand it."""
        task = f"helmet/icl_{self.name}"
        if files.tier(tokens) < 1:
            raise ValueError(f"{task} has no contexts of {tokens} tokens; the shortest has {files.TIERS[1]}")
        shots = self.shots[files.tier(tokens) - 1]
        train, test = self._parts(data, files.SEED + seed)
        text, label = files.pick(task, test, index)
        local = files.own_seed(text, files.SEED + seed)
        numbers = list(range(self.labels))
        random.Random(local).shuffle(numbers)
        shown = [train[i] for i in balanced([label for _, label in train], shots, local)]
        lines = [templates.ICL_SHOT.format(text=t, label=numbers[own]) for t, own in shown]
        at, spans = len(templates.ICL_TASK), []
        for line, (_, own) in zip(lines, shown, strict=True):
            if own == label:
                spans.append((at, at + len(line)))
            at += len(line) + 2
        gold = str(numbers[label])
        turn = Turn(templates.ICL_ASK.format(question=text), gold, (gold,), 20, tuple(spans))
        segments = [Segment("instruction", templates.ICL_TASK), Segment("demos", "\n\n".join(lines))]
        return cut.sample(task, segments, turn, index, tokens, count)

    def _parts(self, data: Data, seed: int) -> tuple[Sequence[Item], Sequence[Item]]:
        train: Sequence[Item] = _items(located(data, self.repo, self.train, self.revision), self.label, self.labels)
        test: Sequence[Item]
        if self.test:
            test = _items(located(data, self.repo, self.test, self.revision), self.label, self.labels)
        else:
            order = files.permutation(seed, len(train))
            held = ceil(HELD_OUT * len(train))
            train, test = [train[i] for i in order[held:]], [train[i] for i in order[:held]]
        if len(test) > TESTED:
            test = [test[i] for i in files.permutation(seed, len(test))]
            test = [test[i] for i in balanced([label for _, label in test], TESTED, seed)]
        return train, test


def balanced(labels: Sequence[int], shots: int, seed: int) -> list[int]:
    """`shots` indices in rounds that hold each label once, in an order of their own; none twice before all were taken."""
    rand = random.Random(seed)
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    count = ceil(shots / len(members))
    rounds: list[list[int]] = [[] for _ in range(count)]
    for own in members.values():
        picks = rand.sample(range(len(own)), count % len(own))
        while len(picks) < count:
            picks += rand.sample(range(len(own)), min(count - len(picks), len(own)))
        for turn, pick in zip(rounds, picks, strict=True):
            turn.append(own[pick])
    for turn in rounds:
        rand.shuffle(turn)
    return [i for turn in rounds for i in turn][:shots]


def located(data: Data, repo: str, file: str, revision: str) -> Path:
    """The path of a data set's file; in a folder, of its `.jsonl` where the parquet file is not there."""
    other = file.removesuffix(".parquet") + ".jsonl"
    if (
        data.root != "hub"
        and not (Path(data.root) / repo / file).is_file()
        and (Path(data.root) / repo / other).is_file()
    ):
        file = other
    return data.path(repo, file, revision)


def _items(path: Path, column: str, labels: int) -> tuple[Item, ...]:
    return _read(path, path.stat().st_mtime_ns, column, labels)


@lru_cache(maxsize=16)
def _read(path: Path, changed: int, column: str, labels: int) -> tuple[Item, ...]:
    rows = (Row(facts, f"{path.name}, row {i + 1}") for i, facts in enumerate(hub.table(path)))
    items = tuple((row.get("text", str), _label(row, column, labels)) for row in rows)
    if not items:
        raise ValueError(f"{path} has no rows")
    return items


def _label(row: Row, column: str, labels: int) -> int:
    label: Any = row.get(column, object)
    if type(label) is not int or not 0 <= label < labels:
        raise ValueError(f"{row.where}: {column} must be a whole number below {labels}, not {label!r:.40}")
    return label


TREC = ("CogComp/trec", "default/train/0000.parquet", "default/test/0000.parquet")
TREC_REVISION = "65752bf53af25bc935a0dce92fb5b6c930728450"  # of the converted branch
CORPORA = (
    Corpus("trec_coarse", *TREC, "coarse_label", 6, (400, 800, 1600, 3300, 6600), TREC_REVISION),
    Corpus("trec_fine", *TREC, "fine_label", 50, (400, 800, 1600, 3200, 6400), TREC_REVISION),
    Corpus(
        "banking77", "PolyAI/banking77", "default/train/0000.parquet", "default/test/0000.parquet", "label", 77,
        (360, 720, 1450, 2900, 5900),
    ),
    Corpus(
        "clinic150", "clinc/clinc_oos", "plus/train-00000-of-00001.parquet", "plus/validation-00000-of-00001.parquet",
        "intent", 151, (440, 880, 1750, 3525, 7050), "155b9c710419136e17307b80d0a13e68cd46b4ec",
    ),
    Corpus(
        "nlu", "xingkunliuxtracta/nlu_evaluation_data", "default/train/0000.parquet", "", "label", 68,
        (510, 1020, 2040, 4080, 8296),
    ),
)  # fmt: skip
