"""A player without a model, quick to start in another process: it answers each turn from the cell alone. It can fail, and it
can die in the middle of a job, as many times as there are files to take away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

from kvledger.records import Cell, Record
from kvledger.run.engine import Left
from kvledger.run.jobs import Bundle, Job


@dataclass
class Pretender:
    """`deaths`: a folder; whoever can take a file of it dies after the second record of a job. `errors`: sample -> what is
    wrong with it ("bye": dies without a word). `begins`: dies while it starts. `meet`: a folder in which two players must
    have signed before any plays."""

    identity: str = "v1"
    deaths: Path | None = None
    errors: tuple[tuple[int, str], ...] = ()
    begins: bool = True
    meet: Path | None = None

    def __post_init__(self) -> None:
        if not self.begins:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.identity == "own":
            self.identity = str(os.getpid())

    def resolve(self, cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
        return tuple(replace(cell, weights="w") for cell in cells)

    def play(self, bundle: Bundle) -> Iterator[Record | Left]:
        for job in bundle.jobs:
            yield from self._play(job)

    def _play(self, job: Job) -> Iterator[Record | Left]:
        self._meet()
        if said := dict(self.errors).get(job.index):
            if said.startswith("bad row"):
                yield Left(said)
                return
            if said == "bye":
                os._exit(3)
            raise (ValueError if said.startswith("mend") else KeyError)(said)
        told = 0
        for cell in job.cells:
            for turn in sorted(set(range(cell.turns)) - job.done.get(cell.key, frozenset())):
                if told == 2:
                    self._die()
                yield record(cell, job.index, turn)
                told += 1

    def _meet(self) -> None:
        if self.meet:
            (self.meet / str(os.getpid())).touch()
            until = time.monotonic() + 60
            while len(list(self.meet.iterdir())) < 2 and time.monotonic() < until:
                time.sleep(0.01)

    def _die(self) -> None:
        for path in sorted(self.deaths.iterdir()) if self.deaths else ():
            try:
                path.unlink()
            except FileNotFoundError:  # another was quicker
                continue
            os.kill(os.getpid(), signal.SIGKILL)


def record(cell: Cell, sample: int, turn: int) -> Record:
    blank = {f.name: "" if f.type == "str" else 0 for f in fields(Record) if f.default is MISSING}
    shared = {f.name: getattr(cell, f.name) for f in fields(Record) if hasattr(cell, f.name)}
    own = {"cell": cell.key, "sample": sample, "turn": turn, "curve": (), "score": float(sample * 10 + turn)}
    return Record(**{**blank, **shared, **own})  # type: ignore[arg-type]
