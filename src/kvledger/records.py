"""Cells, Records and the append-only files that hold them.  (no torch)

A `Cell` is the unit of work: one recipe on one task in one mode.  A `Record` is what one answered turn left behind.
Records are appended facts: one JSON object a line, flushed at once; running the same command again skips what is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
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

    @property
    def key(self) -> str:
        """Hash of everything that decides the answers of one sample (so `samples` is left out: more can be added)."""
        facts = asdict(self)
        del facts["samples"]
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

    def line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


_NAMES = {field.name for field in fields(Record)}


def parse(line: str) -> Record:
    """A Record from its line. Raises ValueError for a damaged one, naming what is wrong."""
    facts = json.loads(line)
    if not isinstance(facts, dict) or set(facts) != _NAMES:
        got = set(facts) if isinstance(facts, dict) else set()
        raise ValueError(f"not a record: missing {sorted(_NAMES - got)}, unknown {sorted(got - _NAMES)}")
    facts["curve"] = tuple((int(t), float(alive), str(event)) for t, alive, event in facts["curve"])
    return Record(**facts)


def read(directory: Path) -> tuple[list[Record], list[str]]:
    """All records under `directory/records`, each (cell, sample, turn) once, and a line about each damaged one."""
    records: dict[tuple[str, int, int], Record] = {}
    damaged = []
    for path in sorted((directory / "records").glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                record = parse(line)
            except (ValueError, TypeError) as error:
                damaged.append(f"{path}:{number}: damaged record skipped ({str(error)[:80]})")
                continue
            records.setdefault((record.cell, record.sample, record.turn), record)
    return list(records.values()), damaged


class Log:
    """Appends records, one line each, on disk before the next turn starts. Nobody rewrites."""

    def __init__(self, directory: Path):
        self.path = directory / "records" / "turns.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n")
        self._file = self.path.open("a", encoding="utf-8")
        if torn:  # a killed run left half a line: end it, so that it damages no other
            self._file.write("\n")

    def append(self, record: Record) -> None:
        self._file.write(record.line() + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
