"""Cells, Records and the append-only files that hold them.  (no torch)

A `Cell` is the unit of work: one recipe on one task in one mode.  A `Record` is what one answered turn left behind.
Records are appended facts: one JSON object a line, flushed at once; running the same command again skips what is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Literal

Mode = Literal["multi-turn", "multi-request"]
Visibility = Literal["hidden", "visible", "patched"]
History = Literal["gold", "model"]
MODES: tuple[str, ...] = ("multi-turn", "multi-request")
VISIBILITIES: tuple[str, ...] = ("hidden", "visible", "patched")
HISTORIES: tuple[str, ...] = ("gold", "model")


@dataclass(frozen=True)
class Cell:
    """One unit of work and of resuming. `chunk` 0 reads in one shot. Lengths are in tokens of the model's tokenizer."""

    model: str
    recipe: str
    task: str
    mode: str
    visibility: str
    context: int
    chunk: int
    turns: int
    samples: int
    seed: int
    history: str = "gold"
    form: str = "small"
    weights: str = ""  # fingerprint of the model's parameters
    version: str = ""  # of this package: its tasks and methods
    files: str = ""  # fingerprint of the files that the recipe reads: gates, importance, scorers
    data: str = ""  # fingerprint of the files that the samples come from; "" where they are generated
    rule: str = ""  # how many samples and which: the tier's rule

    @property
    def key(self) -> str:
        """Hash of everything that decides the answers of one sample (so `samples` and its `rule` are left out: more can be
        added)."""
        facts = asdict(self)
        del facts["samples"], facts["rule"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """One answered turn. Footprints are fractions of the full cache's; bytes are of KV and its metadata.

    `curve` is the memory over the life of the request up to this turn: `[tokens seen, entries alive, event]` points with
    entries as the mean over layers and KV heads; event is one of read, evict, ask, decode.
    """

    cell: str
    model: str
    recipe: str
    method: str
    keep: float
    task: str
    mode: str
    visibility: str
    history: str
    context: int
    chunk: int
    seed: int
    sample: int
    turn: int
    depth: float
    prompt_tokens: int
    new_tokens: int
    prediction: str
    gold: str
    score: float
    legacy_score: float
    footprint: float
    byte_footprint: float
    floor: float
    peak: float
    peak_bytes: int
    stored_bytes: int
    full_bytes: int
    full_peak_bytes: int
    bytes_read_per_step: int
    full_read_per_step: int
    ttft_seconds: float
    seconds: float
    curve: tuple[tuple[int, float, str], ...]
    versions: str
    question: str = ""  # what was asked, and all answers that would do; older records lack them
    golds: tuple[str, ...] = ()
    left_out: int = 0  # tokens of the context that a source took out; prompt_tokens are those that were read
    prefill_work: float = 1.0  # attention's query-key pairs while reading, as a fraction of the full cache's

    def line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


_NAMES = {field.name for field in fields(Record)}
_NEEDED = {field.name for field in fields(Record) if field.default is MISSING}


def parse(line: str) -> Record:
    """A Record from its line. Raises ValueError for a damaged one, naming what is wrong."""
    facts = json.loads(line)
    got = set(facts) if isinstance(facts, dict) else set()
    if not _NEEDED <= got <= _NAMES:
        raise ValueError(f"not a record: missing {sorted(_NEEDED - got)}, unknown {sorted(got - _NAMES)}")
    facts["curve"] = tuple((int(t), float(alive), str(event)) for t, alive, event in facts["curve"])
    facts["golds"] = tuple(facts.get("golds", ()))
    return Record(**facts)


def read(directory: Path) -> tuple[list[Record], list[str]]:
    """All records under `directory/records`, each (cell, sample, turn) once, and a line about each damaged one."""
    records: dict[tuple[str, int, int], Record] = {}
    damaged = []
    for path in sorted((directory / "records").glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                record = parse(line)
            except (ValueError, TypeError) as error:
                damaged.append(f"{path}:{number}: damaged record skipped ({str(error)[:80]})")
                continue
            records.setdefault((record.cell, record.sample, record.turn), record)
    return list(records.values()), damaged


def claim(directory: Path, identity: str) -> None:
    """The first to write into a run says there with what versions and weights; ValueError for whoever has others later, but
    for Python's own version. (Runs from before this was kept have no such file, and get one.)"""
    path = directory / "records" / "made_with.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    draft.write_text(identity + "\n", encoding="utf-8")
    try:
        os.link(draft, path)  # whole and at once, or not at all if there is one: this needs no lock
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            path.write_text(identity + "\n", encoding="utf-8")
    finally:
        draft.unlink()
    said = path.read_text(encoding="utf-8").strip()
    if _facts(said) != _facts(identity):
        raise ValueError(
            f"the records in {directory} are made with {said}; here is {identity}: take another --out, or the same versions "
            f"and weights (or remove {path}, if they shall stand together all the same)"
        )


def _facts(identity: str) -> list[str]:
    return [fact for fact in identity.split(", ") if not fact.startswith("Python ")]


class Log:
    """Appends records, one line each, out of the process before the next turn starts (a kill loses none) and on disk a second
    later. Nobody rewrites. Whoever writes at the same time as others has a file of its own, so none needs a lock: `name` it."""

    def __init__(self, directory: Path, name: str = "turns"):
        self.path = directory / "records" / f"{name}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n")
        # what a model writes need not be text: a half of a surrogate pair becomes its escape, which JSON reads back
        self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace")
        self._synced = 0.0
        if torn:  # a killed run left half a line: end it, so that it damages no other
            self._file.write("\n")

    def append(self, record: Record) -> None:
        self._file.write(record.line() + "\n")
        self._file.flush()
        if time.monotonic() - self._synced > 1.0:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        self._sync()
        self._file.close()
