"""What each part of a composed recipe saved, from the first turn of each request.  (no torch)"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from kvledger.records import Record

from . import units

_MOST = 40  # recipes
_NOTHING = 5e-4


@dataclass(frozen=True)
class Savings:
    """Of one recipe, means over requests. `prompt`: tokens of the prompt that a source left out; `pairs`: query-key pairs of
    reading that were not computed; `rows`: rows dropped, of those read; all three are shares. `row`: bytes that a stored row
    takes, index included, as a share of a full row's. `read`: the share of what is stored that a decode step reads. `stored`:
    bytes, as a share of the full cache's."""

    recipe: str
    prompt: float
    pairs: float
    rows: float
    row: float
    read: float
    stored: float

    def cells(self) -> list[str]:
        """As a table shows them; what saved nothing is a dash."""
        saved = [_saved(value) for value in (self.prompt, self.pairs, self.rows)]
        return [*saved, units.percent(self.row), units.percent(self.read), units.percent(self.stored)]


def savings(facts: Sequence[Record]) -> list[Savings]:
    """One for each recipe of several parts whose memory over time is known, in the order of the records."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in facts:
        if " + " in record.recipe and record.turn == 1 and record.curve and record.full_bytes:
            groups[record.recipe].append(record)
    return [_of(recipe, [_one(record) for record in group]) for recipe, group in groups.items()][:_MOST]


def _of(recipe: str, each: Sequence[tuple[float, ...]]) -> Savings:
    return Savings(recipe, *map(fmean, zip(*each, strict=True)))


def _one(record: Record) -> tuple[float, ...]:
    left = record.left_out / max(1, record.left_out + record.prompt_tokens)
    seen, alive = _when_read(record)
    kept, stored = alive / max(1, seen), record.stored_bytes / record.full_bytes
    whole = record.left_out + seen  # tokens of the full cache then
    row = stored * whole / alive if alive else 1.0
    read = (
        record.bytes_read_per_step / record.full_read_per_step / stored if record.full_read_per_step and stored else 1.0
    )
    return left, 1 - record.prefill_work, 1 - kept, row, min(1.0, read), stored


def _when_read(record: Record) -> tuple[int, float]:
    """Tokens read and entries alive once the prompt had been read, when the bytes were noted."""
    points = [(seen, alive) for seen, alive, event in record.curve if event in ("read", "evict")]
    return points[-1] if points else record.curve[0][:2]


def _saved(share: float) -> str:
    return units.NONE if abs(share) < _NOTHING else units.percent(share)
