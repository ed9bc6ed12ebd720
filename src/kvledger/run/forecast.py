"""What a sweep will take, before it is begun: devices for each worker, and hours on one or several.

One conversation of each task and context length is played and timed; it is kept as a record, so nothing is wasted.  Hours are
an upper bound: recipes that share a reading are counted as if each read alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch

from kvledger.records import Log, Record, claim
from kvledger.run.host import Player
from kvledger.run.jobs import Bundle, Job, jobs_of, longest_first, share, undone
from kvledger.run.staff import Staff
from kvledger.run.sweep import Grid, known

Kind = tuple[str, int]  # task and context length
WORKERS = (1, 2, 4, 8)
SPARE = 1.2  # a card's memory over weights and cache: activations, and what the allocator cannot use


@dataclass(frozen=True)
class Forecast:
    """`turns` to play and `reused` on record; `seconds` by the number of workers; bytes of a worker's weights and of its
    largest cache; `cards` of `card_bytes` on this machine."""

    turns: int
    reused: int
    seconds: Mapping[int, float]
    weights: int
    cache: int
    cards: int
    card_bytes: int

    @property
    def devices(self) -> int:
        """Of one worker, by memory; 0 where there is none."""
        return ceil(SPARE * (self.weights + self.cache) / self.card_bytes) if self.cards else 0

    def __str__(self) -> str:
        hours = ", ".join(f"{seconds / 3600:.2f} h with {n}" for n, seconds in self.seconds.items())
        needs = f"a worker holds {self.weights / 1e9:.2f} GB of weights and up to {self.cache / 1e9:.2f} GB of cache"
        if self.cards:
            needs += f": {self.devices} of {self.cards} GPUs here with {self.card_bytes / 1e9:.0f} GB"
            needs += f" (--devices {self.devices})" if self.devices > 1 else ""
        else:
            needs += "; there is no GPU here"
        return f"{self.turns} turns to play, {self.reused} on record\n{needs}\nworkers, at most: {hours}"


def forecast(grid: Grid, out: Path, staff: Staff, warn: Callable[[str], None]) -> Forecast:
    """Of the staff's share of `grid`. Plays and records one conversation of each task and context length that has any left.
    ValueError for what cannot be played."""
    cells = grid.cells()
    player = Player(grid, staff.devices > 1)
    mine = share(jobs_of(player.resolve(tuple(cells))), *staff.share)
    done = known(out, warn)
    timed: dict[Kind, float] = {}
    cache = 0
    for kind, job in reversed({_kind(job): job for job in reversed(undone(mine, done))}.items()):
        began = time.perf_counter()
        records = _sample(player, job, out, staff)
        timed[kind] = time.perf_counter() - began
        cache = max(cache, *(r.full_peak_bytes for r in records))
        for record in records:
            done[record.cell, record.sample].add(record.turn)
    jobs, cards = undone(mine, done), torch.cuda.device_count()
    turns = sum(job.turns - job.reused for job in jobs)
    hours = seconds(jobs, timed, _workers(staff, cards))
    card = torch.cuda.get_device_properties(0).total_memory if cards else 0
    reused = sum(job.turns for job in mine) - turns
    return Forecast(turns, reused, hours, _weights(player.host.model), cache, cards, card)


def seconds(jobs: Sequence[Job], timed: Mapping[Kind, float], workers: Sequence[int]) -> dict[int, float]:
    """Of all jobs, by the number of workers: each takes the dearest that is left. `timed`: seconds of one conversation."""
    found = {}
    for count in workers:
        load = [0.0] * count
        for job in longest_first(jobs, count):
            load[load.index(min(load))] += timed[_kind(job)] * len(job.cells)
        found[count] = max(load)
    return found


def _kind(job: Job) -> Kind:
    return job.cells[0].task, job.cells[0].context


def _sample(player: Player, job: Job, out: Path, staff: Staff) -> list[Record]:
    """Plays and records the first conversation of a job. ValueError if it cannot be played."""
    told = list(player.play(Bundle((Job(job.cells[:1], job.index, job.done),))))
    records = [message for message in told if isinstance(message, Record)]
    if not records:
        raise ValueError(f"nothing can be measured on {job}: {told}")
    claim(out, player.identity)
    log = Log(out, f"{staff.log(0, 1)}-plan")
    for record in records:
        log.append(record)
    log.close()
    return records


def _workers(staff: Staff, cards: int) -> list[int]:
    here = staff.workers or max(1, cards // staff.devices)
    return sorted({*WORKERS, here})


def _weights(model: Any) -> int:
    return sum(x.nbytes for x in [*model.parameters(), *model.buffers()])
