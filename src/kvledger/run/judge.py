"""`kvledger judge`: scores for answers that no comparison of strings can give, from any OpenAI-compatible endpoint.

Judgements are appended facts, one JSON line a call in `DIR/judgements/<judge>.jsonl`, on disk before the next call.  What is
there is not asked again, so the same command goes on where a judge that was down left off.  The records are not touched:
their scores (ROUGE) stay under their own name.
Exit status: 0 when every answer that a judge can score has its score, 1 while some are pending, 2 for a mistake.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kvledger.records import Record, read
from kvledger.run import rubrics
from kvledger.run.rubrics import Asked, Values

TRIES, GIVE_UP = 4, 3  # tries of a call; answers in a row that came to nothing before the rest is left for later
LARGEST = 1 << 20  # bytes of a reply
REFUSED = (400, 401, 403, 404, 405, 413, 422)  # asking again will not help
Key = tuple[str, int, int]
Judged = dict[Key, dict[str, Values]]


class Down(Exception):
    """The judge gave no usable reply, for now."""


class Judge(Protocol):
    """Anything that answers a prompt. `name` is what its scores are called after."""

    @property
    def name(self) -> str: ...

    def ask(self, prompt: str) -> str:
        """The reply's text. `Down` if there is none for now, ValueError if there will never be."""
        ...


@dataclass(frozen=True)
class Endpoint:
    """A server with OpenAI's chat completions. `url` is its base (…/v1) or the whole address; `seconds` bounds a call."""

    url: str
    name: str
    key: str = ""
    seconds: float = 120.0

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/\s]", self.url):
            raise ValueError(f"--endpoint {self.url!r} is no address: it begins with http:// or https://")

    def ask(self, prompt: str) -> str:
        body = {"model": self.name, "messages": [{"role": "user", "content": prompt}], "temperature": 0.1}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        url = self.url.rstrip("/")
        address = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as response:
                return _content(_all(response, time.monotonic() + self.seconds))
        except urllib.error.HTTPError as error:
            said = f"{address} says {error.code} {error.reason}"
            if error.code in REFUSED:
                raise ValueError(f"{said}; check the address, --judge-model {self.name} and the key") from error
            raise Down(said) from error
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise Down(f"{address} does not answer: {error or type(error).__name__}") from error


def _all(response: Any, deadline: float) -> bytes:
    """The whole body. `Down` if it is too large, or drips in too slowly."""
    read = b""
    while block := response.read1(1 << 16):
        read += block
        if len(read) > LARGEST:
            raise Down(f"a reply of more than {LARGEST} bytes")
        if time.monotonic() > deadline:
            raise Down("a reply that takes too long")
    return read


def _content(body: bytes) -> str:
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise Down(f"a reply that is no chat completion: {body[:80]!r}") from None
    if not isinstance(content, str):
        raise Down("a reply without text")
    return content


# ---- what is there, and what is not ----------------------------------------------------------------------------------


def waiting(records: Iterable[Record], judged: dict[str, str]) -> list[Asked]:
    """The answers that a judge can score: those of the tasks in `judged` (task -> what it is). Records of versions that
    did not note the question are judged by the gold alone."""
    return [
        Asked(
            (record.cell, record.sample, record.turn), record.task, judged[record.task],
            getattr(record, "question", "") or "(not recorded)",
            tuple(getattr(record, "golds", ())) or (record.gold,), record.prediction,
        )
        for record in records
        if record.task in judged
    ]  # fmt: skip


def path_of(directory: Path, judge: str) -> Path:
    """The judge's file. Names of models have slashes and colons."""
    return directory / "judgements" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', judge).strip('.-') or 'judge'}.jsonl"


def judgements(path: Path, warn: Callable[[str], None] = lambda line: None) -> Judged:
    """What a judge has said: (cell, sample, turn) -> part -> values; the first counts. Damaged lines are left out."""
    found: Judged = defaultdict(dict)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            facts = json.loads(line)
            key = str(facts["cell"]), int(facts["sample"]), int(facts["turn"])
            values = {str(name): int(value) for name, value in facts["values"].items()}
            found[key].setdefault(str(facts["part"]), values)
        except (ValueError, KeyError, TypeError, AttributeError):
            if line.strip():
                warn(f"{path}:{number}: damaged judgement skipped")
    return found


def scores(asked: Iterable[Asked], judged: Judged) -> dict[Key, float]:
    """Scores in [0, 1] of the answers that are judged in full."""
    found = ((one.key, rubrics.score(one, judged.get(one.key, {}))) for one in asked)
    return {key: score for key, score in found if score is not None}


def missing(one: Asked, judged: Judged) -> Iterator[rubrics.Part]:
    return (part for part in rubrics.PARTS[one.what] if part.name not in judged.get(one.key, {}))


# ---- asking ----------------------------------------------------------------------------------------------------------


def ask_all(
    judge: Judge, asked: list[Asked], path: Path, warn: Callable[[str], None], pause: float = 1.0, tries: int = TRIES
) -> int:
    """Ask for all that is missing, in order; the number of calls that succeeded. Stops early, with a word, once `GIVE_UP`
    answers in a row came to nothing."""
    judged, calls, failed = judgements(path, warn), 0, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" if torn else "")
        for one in asked:
            try:
                for part in list(missing(one, judged)):
                    values, reply = _tried(judge, one, part, pause, tries)
                    _append(file, judge.name, one, part.name, values, reply)
                    judged[one.key][part.name] = values
                    calls, failed = calls + 1, 0
            except Down as error:
                failed += 1
                warn(f"{one.task}, sample {one.key[1]}, turn {one.key[2]}: not judged ({error})")
            if failed == GIVE_UP:
                warn(f"{GIVE_UP} answers in a row came to nothing: the judge {judge.name} is taken to be down")
                break
    return calls


def _tried(judge: Judge, one: Asked, part: rubrics.Part, pause: float, tries: int) -> tuple[Values, str]:
    """A call, again after 1, 2, 4 … times `pause` seconds if it fails. `Down` when all tries have."""
    for trial in range(tries):
        if trial:
            time.sleep(pause * 2 ** (trial - 1))
        try:
            reply = judge.ask(part.prompt(one))
            try:
                return rubrics.parse(reply, part.limits(one)), reply
            except ValueError as error:
                raise Down(str(error)) from error
        except Down as error:
            last = error
    raise Down(f"{last}; {tries} tries")


def _append(file: Any, judge: str, one: Asked, part: str, values: Values, reply: str) -> None:
    cell, sample, turn = one.key
    facts = dict(cell=cell, sample=sample, turn=turn, task=one.task, judge=judge, part=part, values=values, reply=reply)
    file.write(json.dumps(facts) + "\n")
    file.flush()
    os.fsync(file.fileno())


# ---- the command -----------------------------------------------------------------------------------------------------


def add_parser(commands: Any) -> None:
    """The subcommand, on argparse's sub-parsers. Loads no torch."""
    parser = commands.add_parser(
        "judge", help="have a model score answers; the same command resumes", allow_abbrev=False
    )
    parser.add_argument("dir", metavar="DIR", help="of a run; judgements go to DIR/judgements")
    parser.add_argument(
        "--endpoint", metavar="URL", help="an OpenAI-compatible server; without one, what waits is told"
    )
    parser.add_argument("--judge-model", default="gpt-4o-2024-05-13", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument(
        "--key-env", default="OPENAI_API_KEY", metavar="VAR", help="variable that holds the key (default: %(default)s)"
    )
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="of a call (default: 120)")
    parser.set_defaults(body=body, parser=parser)


def body(arguments: argparse.Namespace) -> int:
    """Judge what waits, say what there is. ValueError for what cannot be."""
    from kvledger.tasks.helmet import JUDGED

    directory = Path(arguments.dir)
    if not (directory / "records").is_dir():
        raise ValueError(
            f"no records in {directory}: expected {directory / 'records'}/*.jsonl, as kvledger run writes them"
        )
    if not arguments.timeout > 0:
        raise ValueError(f"--timeout {arguments.timeout} must be more than 0 seconds")
    records, damaged = read(directory)
    for line in damaged:
        _warn(line)
    asked = waiting(records, JUDGED)
    if not asked:
        raise ValueError(f"no record in {directory} is of a task that a judge scores: {', '.join(JUDGED)}")
    path = path_of(directory, arguments.judge_model)
    if arguments.endpoint:
        key = os.environ.get(arguments.key_env, "")
        ask_all(Endpoint(arguments.endpoint, arguments.judge_model, key, arguments.timeout), asked, path, _warn)
    return _summary(records, asked, scores(asked, judgements(path)), arguments.judge_model)


def _summary(records: list[Record], asked: list[Asked], found: dict[Key, float], judge: str) -> int:
    recipes = {(record.cell, record.sample, record.turn): record.recipe for record in records}
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in asked:
        if one.key in found:
            groups[one.task, recipes[one.key]].append(found[one.key])
    for (task, recipe), values in sorted(groups.items()):
        print(f"{task}  {recipe}  {judge}: {sum(values) / len(values):.3f} over {len(values)} answers")
    left = len(asked) - len(found)
    print(f"{len(found)} of {len(asked)} answers judged by {judge}" + (f"; {left} pending" if left else ""))
    if left:
        print("kvledger: give --endpoint, or the same command again once the judge answers", file=sys.stderr)
    return 1 if left else 0


def _warn(line: str) -> None:
    print(f"kvledger: {line}", file=sys.stderr)
