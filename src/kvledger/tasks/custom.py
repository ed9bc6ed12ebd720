"""Users' own data: a JSONL file whose lines are contexts with their questions runs as a task by its path.

A line is `{"context": …, "turns": [{"question": …, "answer": …}], "scorer": …}`. `context` is a text; `instruction`, a text
before it, is optional.  `answer` is a text or a list of texts, any of which is right, the first being what history shows.  A
turn may have `max_new_tokens` (64) and `evidence`, a list of quotes from the context.  `scorer` is the same in every line.
Everything is checked when the file is named, before any work; a line that is wrong is named by its number.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvledger.tasks import hub, metrics, scorers
from kvledger.tasks.base import CountTokens, Sample, Score, Segment, Task, Turn, Unfit
from kvledger.tasks.hub import Data

SUITE, SUFFIX = "own data", ".jsonl"
CAP = 64  # tokens of an answer
SCORERS: dict[str, Score] = {
    "contains": metrics.answer_in,
    "exact": metrics.exact_match,
    "string": scorers.exact_string,
    "f1": metrics.f1,
    "number": scorers.one_number,
    "letter": scorers.one_letter,
    "rouge_l": metrics.rouge_l,
}
LINE = {"context": str, "turns": list, "scorer": str, "instruction": str}
TURN = {"question": str, "answer": (str, list), "max_new_tokens": int, "evidence": list}
NEEDED = {"context", "turns", "question", "answer"}


def task(path: str) -> Task:
    """The task of a file. ValueError for a file that is not there, or for the first line that is wrong."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no file {path!r}: --tasks takes a task, a suite, or the path of a {SUFFIX} file of your own")
    stat = file.stat()
    return _task(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _task(path: str, size: int, changed: int) -> Task:
    table = hub.table(Path(path))
    checked = [_checked(row, where) for row, where in _lines(table)]
    if not checked:
        raise ValueError(f"{path} has no lines")
    names = {row.get("scorer", "contains") for row in checked}
    if len(names) > 1:
        raise ValueError(f"{path}: all lines must have one scorer, not {', '.join(sorted(names))}")
    score = SCORERS[names.pop()]

    def real(data: Data, seed: int, index: int, tokens: int, count: CountTokens, turns: int) -> Sample:
        data.used[path] = hub.hash_of(Path(path), size, changed)
        return _sample(path, table, index, tokens, count, turns)

    most = max(len(row["turns"]) for row in checked)
    return Task(
        name=path, suite=SUITE, capability="own data", metric=score.__name__.replace("_", " "), make=None, score=score,
        legacy=score, chance=0.0, source=path, licence="yours", turns=most, real=real, rows=len(checked),
    )  # fmt: skip


def _lines(table: hub.Table) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in table.numbered():
        yield line, f"{table.path}, line {number}"


def _sample(path: str, table: hub.Table, index: int, tokens: int, count: CountTokens, turns: int) -> Sample:
    if index >= len(table):
        raise Unfit(f"{path} has {len(table)} lines, there is no sample {index}")
    row = table[index]
    segments = [Segment("instruction", row["instruction"] + "\n\n")] if row.get("instruction") else []
    segments.append(Segment("context", row["context"] + "\n\n"))
    text = "".join(segment.text for segment in segments)
    if (used := count(text)) > tokens:
        raise Unfit(f"{path}: sample {index} has {used} tokens, more than the {tokens} of --context: left out, not cut")
    start = len(text) - len(segments[-1].text)
    return Sample(path, index, tuple(segments), tuple(_turn(turn, text, start) for turn in row["turns"][:turns]))


def _turn(row: dict[str, Any], text: str, start: int) -> Turn:
    golds = tuple(row["answer"]) if isinstance(row["answer"], list) else (row["answer"],)
    places = [(text.index(quote, start), quote) for quote in row.get("evidence", ())]
    spans = tuple((at, at + len(quote)) for at, quote in places)
    depth = spans[0][0] / len(text) if spans else 0.0
    return Turn(row["question"], golds[0], golds, row.get("max_new_tokens", CAP), spans, depth)


# ---- checks ----------------------------------------------------------------------------------------------------------


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    _typed(row, LINE, where)
    if not row["context"].strip():
        raise ValueError(f"{where}: the context is empty")
    if not row["turns"]:
        raise ValueError(f"{where}: there are no turns")
    if row.get("scorer", "contains") not in SCORERS:
        raise ValueError(f"{where}: unknown scorer {row['scorer']!r}; choices: {', '.join(SCORERS)}")
    for number, turn in enumerate(row["turns"], start=1):
        _turn_checked(turn, row["context"], f"{where}, turn {number}")
    return row


def _turn_checked(turn: Any, context: str, where: str) -> None:
    if not isinstance(turn, dict):
        raise ValueError(f"{where}: a turn must be an object, not {type(turn).__name__}")
    _typed(turn, TURN, where)
    golds = turn["answer"] if isinstance(turn["answer"], list) else [turn["answer"]]
    if not golds or not all(isinstance(gold, str) and gold.strip() for gold in golds):
        raise ValueError(f"{where}: answer must be a text, or a list of texts, and not empty: {turn['answer']!r:.60}")
    if not turn["question"].strip():
        raise ValueError(f"{where}: the question is empty")
    if turn.get("max_new_tokens", CAP) < 1:
        raise ValueError(f"{where}: max_new_tokens={turn['max_new_tokens']} must be at least 1")
    for quote in turn.get("evidence", ()):
        if not isinstance(quote, str) or not quote or quote not in context:
            raise ValueError(f"{where}: evidence must be quotes from the context; {quote!r:.60} is none")


def _typed(row: dict[str, Any], types: dict[str, Any], where: str) -> None:
    for name in types:
        if name in NEEDED and name not in row:
            raise ValueError(f"{where}: {name!r} is missing; it has {', '.join(row) or 'nothing'}")
    for name, value in row.items():
        if name not in types:
            near = get_close_matches(name, types, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: unknown field {name!r}{hint} (fields: {', '.join(types)})")
        if not isinstance(value, types[name]) or isinstance(value, bool):
            wanted = types[name] if isinstance(types[name], tuple) else (types[name],)
            names = " or ".join({str: "a text", list: "a list", int: "a whole number"}[kind] for kind in wanted)
            raise ValueError(f"{where}: {name} must be {names}, not {type(value).__name__} ({value!r:.40})")
