"""Records -> rows: one row a recipe in one setting, with its score, its interval and its memory.  (no torch)"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from kvledger.records import HISTORIES, MODES, VISIBILITIES, Record

from .interval import Contrast, Estimate, by_place, contrast, mean

SampleKey = tuple[int, int]  # seed, sample


class Setting(NamedTuple):
    """What a comparison holds fixed. Rows of one setting answer the same questions about the same contexts."""

    model: str
    task: str
    mode: str
    visibility: str
    history: str
    context: int
    chunk: int


Scores = Mapping[SampleKey, Mapping[int, float]]
ScoreTable = Mapping[tuple[Setting, str], Scores]
Baselines = Mapping[Setting, Scores]


@dataclass(frozen=True)
class TurnScore:
    turn: int
    count: int
    score: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Memory:
    """Means over whole requests. Fractions are of the full cache's figure; times are seconds a turn."""

    footprint: float
    byte_footprint: float
    floor: float
    peak: float
    peak_bytes: float
    stored_bytes: float
    full_bytes: float
    full_peak_bytes: float
    read_per_step: float
    full_read_per_step: float
    ttft_first: float | None
    ttft_later: float | None
    seconds: float

    @property
    def stored(self) -> float:
        return self.stored_bytes / self.full_bytes if self.full_bytes else 0.0

    @property
    def read(self) -> float:
        return self.read_per_step / self.full_read_per_step if self.full_read_per_step else 0.0


@dataclass(frozen=True)
class Life:
    """Memory over the life of one request: the curve of the record that stands for the row."""

    seed: int
    sample: int
    turn: int
    peak: float
    curve: tuple[tuple[int, float, str], ...]


@dataclass(frozen=True)
class Row:
    """One recipe in one setting. `line` names the curve it belongs to: the same method at other keeps."""

    setting: Setting
    recipe: str
    method: str
    line: str
    keep: float
    full: bool
    turns: int
    samples: int
    score: Estimate
    against: Contrast | None
    by_turn: tuple[TurnScore, ...]
    first: float | None
    later: float | None
    memory: Memory
    life: Life | None

    @property
    def whiskers(self) -> tuple[float, float] | None:
        """95 % interval to draw around the score: of the paired difference where there is one, else of the mean."""
        if self.against is not None and not self.full:
            difference = self.against.difference
            if difference.low is not None and difference.high is not None:
                shift = self.score.mean - difference.mean
                return shift + difference.low, shift + difference.high
        if self.score.low is None or self.score.high is None:
            return None
        return self.score.low, self.score.high


def setting_of(record: Record) -> Setting:
    return Setting(*(getattr(record, name) for name in Setting._fields))


def is_full(record: Record) -> bool:
    """The uncompressed cache and nothing else: `full + kivi(bits=4)` is a recipe to be judged, not the measure."""
    return record.method == "full" and "+" not in record.recipe


def aggregate(facts: Sequence[Record]) -> list[Row]:
    """Rows of records without repeats, turns counted from 1. In the order of tables: by setting, the full cache first,
    then from the largest keep to the smallest."""
    return rows_of(facts, score_table(facts))


def rows_of(facts: Sequence[Record], scores: ScoreTable) -> list[Row]:
    """`aggregate`, where the scores have been sorted already."""
    groups: dict[tuple[Setting, str], list[Record]] = defaultdict(list)
    for record in facts:
        groups[setting_of(record), record.recipe].append(record)
    lines, full = line_names(facts), baselines_of(facts, scores)
    rows = [_row(s, group, scores[s, recipe], full, lines[recipe]) for (s, recipe), group in groups.items()]
    return sorted(rows, key=lambda row: (setting_order(row.setting), not row.full, -row.keep, row.line, row.recipe))


def setting_order(setting: Setting) -> tuple[object, ...]:
    """Sorts settings as a reader would: hidden before visible, short before long."""
    m, t, mode, visibility, history, context, chunk = setting
    return (m, t, _rank(MODES, mode), context, chunk, _rank(HISTORIES, history), _rank(VISIBILITIES, visibility))


def _rank(known: Sequence[str], name: str) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)


def line_names(facts: Iterable[Record]) -> dict[str, str]:
    """recipe -> name of its line: the method, or the recipe without its keep where a method has several variants."""
    points: dict[str, dict[float, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in facts:
        points[record.method][record.keep].add(record.recipe)
    names = {}
    for method, keeps in points.items():
        several = any(len(recipes) > 1 or any("+" in recipe for recipe in recipes) for recipes in keeps.values())
        names.update({r: family(r) if several else method for recipes in keeps.values() for r in recipes})
    return names


def family(recipe: str) -> str:
    """`snapkv(keep=0.3, window=64)` -> `snapkv(window=64)`."""
    return re.sub(r"\bkeep=[^,()]*(,\s*)?", "", recipe).replace(", )", ")").replace("()", "")


def score_table(facts: Iterable[Record]) -> ScoreTable:
    """(setting, recipe) -> sample -> turn -> score, samples and turns in their order."""
    table: dict[tuple[Setting, str], dict[SampleKey, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in sorted(facts, key=lambda r: (r.seed, r.sample, r.turn)):
        table[setting_of(record), record.recipe][record.seed, record.sample].setdefault(record.turn, record.score)
    return table


def baselines_of(facts: Iterable[Record], scores: ScoreTable) -> Baselines:
    return {(setting := setting_of(record)): scores[setting, record.recipe] for record in facts if is_full(record)}


def baseline_setting(setting: Setting, candidates: Iterable[Setting]) -> Setting | None:
    """The full cache's own setting, else the nearest one.

    Who sees the question, and the size of the chunks, decide what is evicted; a full cache evicts nothing, so its
    answers stand for every visibility and chunk. They do not stand for another model, task, mode, history or context.
    """
    free = {"visibility", "chunk"}

    def fits(other: Setting) -> bool:
        return all(getattr(other, name) == getattr(setting, name) for name in Setting._fields if name not in free)

    def distance(other: Setting) -> tuple[object, ...]:
        return other.visibility != setting.visibility, other.chunk != setting.chunk, setting_order(other)

    return min(filter(fits, candidates), key=distance, default=None)


def pairs(scores: Scores, full: Scores) -> dict[SampleKey, list[tuple[float, float]]]:
    """sample -> (score, full cache's score) of each turn that both answered; samples without such a turn left out."""
    return {
        sample: both
        for sample, turns in scores.items()
        if (both := [(score, full[sample][t]) for t, score in turns.items() if t in full.get(sample, {})])
    }


def _row(setting: Setting, group: list[Record], scores: Scores, baselines: Baselines, line: str) -> Row:
    head = group[0]
    chosen = baseline_setting(setting, baselines)
    by_turn = _by_turn(scores)
    later = [score for turns in scores.values() for turn, score in turns.items() if turn > 1]
    return Row(
        setting=setting,
        recipe=head.recipe,
        method=head.method,
        line=line,
        keep=head.keep,
        full=is_full(head),
        turns=len(group),
        samples=len(scores),
        score=mean({sample: list(turns.values()) for sample, turns in scores.items()}),
        against=None if chosen is None else contrast(pairs(scores, baselines[chosen])),
        by_turn=by_turn,
        first=next((point.score for point in by_turn if point.turn == 1), None),
        later=fmean(later) if later else None,
        memory=_memory(group),
        life=_life(group),
    )


def _by_turn(scores: Scores) -> tuple[TurnScore, ...]:
    found = by_place(list(scores.values())).items()
    return tuple(TurnScore(turn, count, score.mean, score.low, score.high) for turn, (count, score) in found)


def whole_requests(group: Sequence[Record]) -> list[Record]:
    """The records that close a request. In multi-turn a sample is one request, and its last turn tells its whole life;
    in multi-request every turn is a request of its own."""
    if group[0].mode != "multi-turn":
        return list(group)
    last: dict[SampleKey, Record] = {}
    for record in group:
        key = (record.seed, record.sample)
        if key not in last or record.turn > last[key].turn:
            last[key] = record
    return list(last.values())


def _memory(group: Sequence[Record]) -> Memory:
    requests = whole_requests(group)

    def over(pick: Callable[[Record], float], facts: Sequence[Record] = requests) -> float:
        return fmean(pick(record) for record in facts)

    return Memory(
        footprint=over(lambda r: r.footprint),
        byte_footprint=over(lambda r: r.byte_footprint),
        floor=over(lambda r: r.floor),
        peak=over(lambda r: r.peak),
        peak_bytes=over(lambda r: r.peak_bytes),
        stored_bytes=over(lambda r: r.stored_bytes),
        full_bytes=over(lambda r: r.full_bytes),
        full_peak_bytes=over(lambda r: r.full_peak_bytes),
        read_per_step=over(lambda r: r.bytes_read_per_step),
        full_read_per_step=over(lambda r: r.full_read_per_step),
        ttft_first=_mean_ttft(record for record in group if _opens(record)),
        ttft_later=_mean_ttft(record for record in group if not _opens(record)),
        seconds=over(lambda r: r.seconds, group),
    )


def _opens(record: Record) -> bool:
    """Whether a request begins with this turn, so that its time to the first token holds the reading of the context."""
    return record.turn == 1 or record.mode != "multi-turn"


def _mean_ttft(group: Iterable[Record]) -> float | None:
    times = [record.ttft_seconds for record in group]
    return fmean(times) if times else None


def _life(group: Sequence[Record]) -> Life | None:
    """The curve of the first sample: of its first request, or of its whole conversation."""
    curves = [record for record in group if record.curve]
    if not curves:
        return None
    chosen = min(curves, key=lambda r: (r.seed, r.sample, -r.turn if r.mode == "multi-turn" else r.turn))
    return Life(chosen.seed, chosen.sample, chosen.turn, chosen.peak, chosen.curve)
