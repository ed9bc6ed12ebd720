"""SCBench's own data: the twelve sets of `microsoft/SCBench` (arXiv 2412.10319), read as published.  (licence: MIT)

The columns are irregular: vt keeps its text in `input`, mf's context is a list of numbers, answers are strings, numbers or
lists; they are made alike here.  Rows and turns are counted against the published numbers when they come from the hub; a
folder may hold fewer.  Prompts are SCBench's, with these deviations:

- Math.Find: SCBench puts "What is {target}?" before the list, so the first question stands in the shared context of all
  requests, and later turns repeat the first target; here each question opens with its own.
- Nothing is cut: SCBench drops the middle of a long row; here the row is left out, and said so (`Unfit`).
- Follow-up turns of En.Sum do not begin the answer for the model ("This paper").
- Gold letters of En.MultiChoice and ICL.ManyShot are what history shows; SCBench shows the option's text in MultiChoice.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvledger.tasks import hub
from kvledger.tasks.base import CountTokens, Sample, Segment, Turn, Unfit
from kvledger.tasks.hub import Data, Table

REPO, REVISION = "microsoft/SCBench", "283310bb8c5ba6909dd9a6b1be087d2937f76f6d"
GAP = "\n\n"
ZH_READ = "阅读以下书籍并回答问题。请尽可能简洁地回答。"
REPO_ASK = (
    "Based on the function description and code context, please retrieve and repeat the exact described function from the "
    "code context in a code block wrapped by ```:"
)


@dataclass(frozen=True)
class Row:
    """One row, and where it stands, for messages."""

    facts: dict[str, Any]
    where: str

    def get(self, name: str) -> Any:
        if self.facts.get(name) is None:
            raise ValueError(f"{self.where}: column {name!r} is missing; it has {', '.join(self.facts)}")
        return self.facts[name]

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}: column {name!r} must be a string, not {type(value).__name__}")
        return value

    def turns(self) -> list[Row]:
        """The turns: a list of objects, or, as parquet may have it, an object of lists."""
        found = self.get("multi_turns")
        if isinstance(found, dict):
            found = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
        if not isinstance(found, list) or not found or not all(isinstance(turn, dict) for turn in found):
            raise ValueError(f"{self.where}: multi_turns must be a list of objects, and not empty")
        return [Row(turn, f"{self.where}, turn {i + 1}") for i, turn in enumerate(found)]

    def answers(self) -> tuple[str, ...]:
        """`answer` as strings, whether it is a string, a number or a list of them."""
        value = self.get("answer")
        found = value if isinstance(value, list) else [value]
        if not found or not all(isinstance(one, str | int | float) and str(one).strip() for one in found):
            raise ValueError(f"{self.where}: answer must be a string, a number or a list of them, not {value!r:.60}")
        return tuple(str(one) for one in found)


ReadTurn = Callable[[Row, str], Turn]
"""`read(turn, text)`: a Turn of a row whose context is `text`."""


@dataclass(frozen=True)
class Published:
    """One of the twelve sets: its file, how many rows and turns were published, and how a row becomes a Sample."""

    name: str
    rows: int
    turns: int
    read: ReadTurn
    instruction: str = ""
    column: str = "context"
    sha256: str = ""

    @property
    def file(self) -> str:
        return f"data/scbench_{self.name}.jsonl"

    def sample(self, data: Data, seed: int, index: int, tokens: int, count: CountTokens, turns: int) -> Sample:
        """`Task.real`: row `index` of the rows shuffled by `seed`, with its first `turns` turns. `Unfit` where there is no such
        row, or where it has more than `tokens` tokens."""
        table = self.table(data)
        if index >= len(table):
            raise Unfit(f"scbench/{self.name}: the data have {len(table)} rows, there is no sample {index}")
        number = random.Random(f"scbench {self.name} {seed}").sample(range(len(table)), len(table))[index]
        row = Row(table[number], f"{self.file}, row {number + 1}")
        made = self._of(row, table, index)
        if (used := count(made.text)) > tokens:
            raise Unfit(
                f"scbench/{self.name}: row {number + 1} has {used} tokens, more than {tokens}: left out, not cut"
            )
        return replace(made, turns=made.turns[:turns])

    def table(self, data: Data) -> Table:
        """The rows; ValueError if the hub's are not as many as were published."""
        path = data.path(REPO, self.file, REVISION, self.sha256 if data.root == "hub" else "")
        table = hub.table(path)
        if data.root == "hub":
            _count(path, self)
        return table

    def _of(self, row: Row, table: Table, index: int) -> Sample:
        context = row.get(self.column)
        if not isinstance(context, str | list) or not context:
            raise ValueError(f"{row.where}: column {self.column!r} must be a text or a list, and not empty")
        segments = [Segment("instruction", self.instruction + GAP)] if self.instruction else []
        segments.append(Segment("context", f"{context}{GAP}"))
        text = "".join(segment.text for segment in segments)
        turns = tuple(_placed(self.read(turn, text), text) for turn in row.turns())
        return Sample(f"scbench/{self.name}", index, tuple(segments), _with_rivals(turns, row, table))


@lru_cache(maxsize=64)
def _count(path: Path, published: Published) -> None:
    table = hub.table(path)
    turns = sum(len(Row(row, f"{path.name}, row {i + 1}").turns()) for i, row in enumerate(table))
    if (len(table), turns) != (published.rows, published.turns):
        raise ValueError(
            f"{published.file} of {REPO} has {len(table)} rows and {turns} turns; published were {published.rows} and "
            f"{published.turns}, so this is another edition than revision {REVISION[:7]}"
        )


def _placed(turn: Turn, text: str) -> Turn:
    """With its evidence where the golds stand in the text once, and the depth of the first of them."""
    spans = []
    for gold in turn.golds if turn.subtask != "choice" else ():
        needle = assigned if (assigned := f"VAR {gold} =") in text else gold
        at = text.find(needle) if len(gold) > 3 else -1
        if at >= 0 and text.find(needle, at + 1) < 0:
            spans.append((at, at + len(needle)))
    spans.sort()
    return replace(turn, evidence=tuple(spans), depth=spans[0][0] / len(text) if spans else 0.0)


# ---- the turns of each set -------------------------------------------------------------------------------------------


def _plain(cap: int) -> ReadTurn:
    """The question is `input`; the answer, or all of them, is looked for."""

    def read(turn: Row, text: str) -> Turn:
        golds = turn.answers()
        return Turn(turn.text("input"), " ".join(golds), golds, cap)

    return read


def _asked(form: str, cap: int) -> ReadTurn:
    """The question is put into `form`; any of several answers is right, and the first is the history's."""

    def read(turn: Row, text: str) -> Turn:
        golds = turn.answers()
        return Turn(form.format(turn.text("input")), golds[0], golds, cap)

    return read


def _mf(turn: Row, text: str) -> Turn:
    asked = turn.text("input")
    found = re.search(r"The (.+) is", asked)
    target = f"What is the {found[1].lower()}?{GAP}" if found else ""
    return Turn(target + asked, turn.answers()[0], turn.answers(), 5)


def _choice(turn: Row, text: str) -> Turn:
    options, (answer, *_) = turn.get("options"), turn.answers()
    if not isinstance(options, list) or answer not in options:
        raise ValueError(f"{turn.where}: options must be a list that holds the answer {answer!r:.60}")
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCDEFG", options))
    letter = "ABCDEFG"[options.index(answer)]
    question = f"Question: {turn.text('input')}\n{lines}\nThe the correct answer is"
    return Turn(question, letter, (letter, answer), 40, subtask="choice")


def _letter(turn: Row, text: str) -> Turn:
    gold = turn.answers()[0].strip("() ")
    return Turn(turn.text("input"), gold, (gold,), 10)


def _repoqa(turn: Row, text: str) -> Turn:
    return Turn(turn.text("input"), turn.answers()[0], turn.answers()[:1], 1024, subtask="repoqa")


def _by_task(kinds: dict[str, tuple[str, ReadTurn]]) -> ReadTurn:
    """A mix: the turn's own `task` says which it is."""

    def read(turn: Row, text: str) -> Turn:
        if turn.get("task") not in kinds:
            raise ValueError(f"{turn.where}: task is {turn.get('task')!r}; choices: {', '.join(kinds)}")
        subtask, reader = kinds[turn.get("task")]
        return replace(reader(turn, text), subtask=subtask)

    return read


def _with_rivals(turns: tuple[Turn, ...], row: Row, table: Table) -> tuple[Turn, ...]:
    """RepoQA's golds: the function asked for, then all others that are asked of the same repository."""
    if not any(turn.subtask == "repoqa" for turn in turns):
        return turns
    asked = _functions(table.path, row.text("repo"))
    return tuple(
        replace(t, golds=(t.golds[0], *(f for f in asked if f != t.golds[0]))) if t.subtask == "repoqa" else t
        for t in turns
    )


@lru_cache(maxsize=128)
def _functions(path: Path, repo: str) -> tuple[str, ...]:
    table = hub.table(path)
    rows = [Row(facts, f"{path.name}, row {i + 1}") for i, facts in enumerate(table) if facts.get("repo") == repo]
    turns = [turn for row in rows for turn in row.turns() if turn.facts.get("task") != "scbench_kv"]
    return tuple(dict.fromkeys(turn.answers()[0] for turn in turns))


ANSWER = "Question: {}\nAnswer:"
SETS: dict[str, Published] = {
    published.name: published
    for published in (
        Published(
            "kv", 100, 500, _plain(150), "Extract the value corresponding to the specified key in the JSON object below."
        ),
        Published("prefix_suffix", 100, 500, _plain(150)),
        Published("vt", 90, 450, _plain(30), column="input"),
        Published("repoqa", 88, 440, _repoqa, REPO_ASK),
        Published(
            "qa_eng", 69, 351, _asked(ANSWER, 40),
            "Read the book and answer the question. Be very concise in your answer.",
            sha256="127ddb3cef2fcfc63c02e662466dead7ced84e20de6a3924df6926891394e01c",
        ),
        Published("qa_chn", 35, 189, _asked("问题：{}\n答案：", 40), ZH_READ),
        Published(
            "choice_eng", 58, 229, _choice, "Read the book and answer the question.",
            sha256="646aee28b3808ad19e66010be650dc13c454732e541d632862243549e41c2947",
        ),
        Published("mf", 100, 600, _mf),
        Published("many_shot", 54, 270, _letter),
        Published("summary", 70, 350, _plain(200)),
        Published(
            "summary_with_needles", 70, 560,
            _by_task({"scbench_summary": ("summary", _plain(800)), "scbench_passkey": ("passkey", _plain(15))}),
        ),
        Published(
            "repoqa_and_kv", 88, 704, _by_task({"scbench_repoqa": ("repoqa", _repoqa), "scbench_kv": ("kv", _plain(80))})
        ),
    )
}  # fmt: skip
