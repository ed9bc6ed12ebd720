"""One cell: its samples are read, asked, scored and recorded.

multi-turn: one conversation, each turn sees the earlier ones. multi-request: each question branches off the same context.
hidden: the context is compressed before any question is known. visible: the (first) question is in the prompt when rows
are dropped. patched: as visible, and each chunk is judged by the prompt's last queries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from kvledger.hf.chat import count
from kvledger.hf.memory import load_of
from kvledger.hf.session import Answer, Session, check_chunk, check_length
from kvledger.hf.together import Step, together
from kvledger.recipe import Recipe, parse
from kvledger.records import Cell, Record
from kvledger.run.readings import BYTES_HELD, Readings
from kvledger.tasks import get
from kvledger.tasks.base import Form, Sample
from kvledger.tasks.hub import Data

BESIDE = 4  # characters: the tokens next to the evidence belong to it, for heads that copy look at what follows a match
SAMPLES_HELD = 64  # contexts are megabytes at most, and all recipes ask for one before the next comes


@dataclass(frozen=True)
class Host:
    """What a worker holds between cells: the model, its tokenizer, and the versions it reports."""

    model: Any
    tokenizer: Any
    versions: str
    samples: dict[tuple[object, ...], Sample] = field(default_factory=dict)
    data: str = ""  # where published data are: "hub", a folder, or "" for generated samples
    weights: str = ""  # fingerprint of the model's parameters

    @property
    def identity(self) -> str:
        """What all workers of a run must have in common."""
        return f"{self.versions}, weights {self.weights}"

    @cached_property
    def readings(self) -> Readings:
        """What has been read of the present sample."""
        return Readings(self.model, self.tokenizer)

    def count(self, text: str) -> int:
        return count(self.tokenizer, text)


def check(cell: Cell) -> None:
    """ValueError for what this cell can never do. Called for all cells before any work."""
    recipe = parse(cell.recipe)
    check_chunk(recipe, cell.chunk)
    method = recipe.method
    if cell.visibility == "patched":
        if cell.mode == "multi-turn" and cell.turns > 1:
            raise ValueError(
                f"patched eviction judges the context by one question, so multi-turn with {cell.turns} turns is impossible; "
                "use --turns 1, multi-request, or another visibility"
            )
        if method.drops and method.when != "chunk":
            raise ValueError(f"patched eviction happens after each chunk: add when='chunk' to {cell.recipe}")
        if not cell.chunk:
            raise ValueError("patched eviction needs chunks: give --chunk")


def sample_of(cell: Cell, host: Host, index: int) -> Sample:
    """Sample `index` of a cell's task; the recipes that are compared on it share one."""
    key = _key(cell, index)
    if key not in host.samples:
        if len(host.samples) >= SAMPLES_HELD:
            host.samples.clear()
        data = Data(host.data) if cell.form == "real" else None
        host.samples[key] = get(cell.task).sample(
            cell.seed, index, cell.context, host.count, cell.turns, cast(Form, cell.form), data
        )
    return host.samples[key]


@dataclass(frozen=True)
class Unplayed:
    """Why a cell's sample, or one question of it, cannot be played."""

    cell: Cell
    index: int
    error: ValueError


@dataclass(frozen=True)
class Case:
    """A cell on one of its samples, by a model."""

    cell: Cell
    host: Host
    index: int
    sample: Sample

    @cached_property
    def recipe(self) -> Recipe:
        return parse(self.cell.recipe)


Work = Generator[Step | Record | Unplayed]


def play(wanted: Mapping[tuple[Cell, int], Container[int]], host: Host, most: int = 1) -> Iterator[Record | Unplayed]:
    """Records of the turns that are wanted: of a cell's sample, all that are not done (cell, sample -> turns that are). Up to
    `most` answers are written at once (`hf.together`), fewer where caches are large; what is of one sample should stand
    together, since it is read once.

    A conversation broken off in the middle is replayed up to there, since its cache has to be rebuilt; what was recorded is
    not recorded again."""
    row = load_of(host.model).row
    peers: dict[object, dict[str, None]] = defaultdict(dict)
    for cell, index in wanted:
        most = max(1, min(most, BYTES_HELD // (row * cell.context)))
        peers[_key(cell, index)][cell.recipe] = None
    works = (
        work
        for (cell, index), done in wanted.items()
        for work in _works(cell, host, index, done, tuple(peers[_key(cell, index)]))
    )
    return together(works, most)


def _works(cell: Cell, host: Host, index: int, done: Container[int], peers: tuple[str, ...]) -> Iterator[Work]:
    """A conversation, or requests that do not know of each other. `peers`: recipes that want the same sample.

    Each work reads its context before its first step, so what has been read of the sample is there as long as it is needed."""
    try:
        sample = sample_of(cell, host, index)
        host.readings.turn_to(_key(cell, index), peers)
        check_length(host.model, room(host, sample))
    except ValueError as error:
        yield _tell(Unplayed(cell, index, error))
        return
    todo = [number for number in range(len(sample.turns)) if number not in done]
    case = Case(cell, host, index, sample)
    if todo and cell.mode == "multi-turn":
        yield _guarded(case, _conversation(case, done))
    elif todo:
        yield from (_guarded(case, _request(case, number)) for number in todo)


def _tell(told: Unplayed) -> Work:
    yield told


def _key(cell: Cell, index: int) -> tuple[object, ...]:
    """What makes a sample."""
    return cell.task, cell.seed, index, cell.context, cell.turns, cell.form, cell.data


def _guarded(case: Case, work: Generator[Step | Record]) -> Work:
    """`work`, which ends with the first ValueError that it meets."""
    try:
        yield from work
    except ValueError as error:
        yield Unplayed(case.cell, case.index, error)


def _spans(recipe: Recipe, sample: Sample) -> list[tuple[int, int]]:
    """Character spans of the sample's text that the recipe protects: by their role, or as evidence."""
    spans: list[tuple[int, int]] = []
    if recipe.protection is None:
        return spans
    at = 0
    for segment in sample.segments:
        if recipe.protection.instruction and segment.role == "instruction":
            spans.append((at, at + len(segment.text)))
        at += len(segment.text)
    if recipe.protection.evidence:
        spans += [(max(0, a - BESIDE), b + BESIDE) for turn in sample.turns for a, b in turn.evidence]
    return spans


def room(host: Host, sample: Sample) -> int:
    """Tokens of the whole conversation, which must fit the model's positions, so that no turn is cut off later."""
    turns = sum(host.count(turn.question) + host.count(turn.gold) + turn.max_new_tokens for turn in sample.turns)
    return host.count(sample.text) + turns


def _conversation(case: Case, done: Container[int]) -> Generator[Step | Record]:
    cell, session = case.cell, None
    for number, turn in enumerate(case.sample.turns):
        gold = turn.gold if cell.history == "gold" else None
        if session is None and cell.visibility != "hidden":
            session = reader(cell, case.host, case.recipe, case.sample, turn.question)
            answer = yield from session.answer_steps(turn.max_new_tokens, gold)
        else:
            session = session or reader(cell, case.host, case.recipe, case.sample, None)
            answer = yield from session.turn_steps(turn.question, turn.max_new_tokens, gold)
        if number not in done:
            yield _record(case, number, answer, session)


def _request(case: Case, number: int) -> Generator[Step | Record]:
    cell, turn = case.cell, case.sample.turns[number]
    hidden = cell.visibility == "hidden"
    session = reader(cell, case.host, case.recipe, case.sample, None if hidden else turn.question)
    if hidden:
        answer = yield from session.turn_steps(turn.question, turn.max_new_tokens)
    else:
        answer = yield from session.answer_steps(turn.max_new_tokens)
    yield _record(case, number, answer, session)


def reader(cell: Cell, host: Host, recipe: Recipe, sample: Sample, question: str | None) -> Session:
    """A session that has read the context, and the question if there is one."""
    if cell.visibility != "patched":
        return host.readings.read(recipe, cell.chunk, sample.text, question, lambda one: _spans(one, sample))
    session = Session(host.model, host.tokenizer, recipe, cell.chunk)
    session.read(sample.text, question, True, _spans(recipe, sample))
    return session


def _check_effect(case: Case, session: Session) -> None:
    """RuntimeError for a recipe that had to drop something, and dropped nothing."""
    cell, recipe, ledger = case.cell, case.recipe, session.ledger
    if recipe.method.must_drop and not ledger.dropped:
        raise RuntimeError(f"{cell.recipe} dropped nothing on {cell.task}: its score would be the full cache's")
    if getattr(recipe.source, "must_drop", False) and not ledger.skipped:
        raise RuntimeError(f"{cell.recipe} left out nothing of {cell.task}: its score would be the whole context's")


def _record(case: Case, number: int, answer: Answer, session: Session) -> Record:
    cell, recipe, turn = case.cell, case.recipe, case.sample.turns[number]
    task, ledger = get(cell.task), session.ledger
    _check_effect(case, session)
    return Record(
        cell=cell.key,
        model=cell.model,
        recipe=cell.recipe,
        method=recipe.name,
        keep=recipe.keep,
        task=cell.task,
        mode=cell.mode,
        visibility=cell.visibility,
        history=cell.history,
        context=cell.context,
        chunk=cell.chunk,
        seed=cell.seed,
        sample=case.index,
        turn=number,
        depth=turn.depth,
        prompt_tokens=answer.prompt_tokens,
        new_tokens=answer.new_tokens,
        prediction=answer.text,
        gold=turn.gold,
        score=task.score(answer.text, turn.golds),
        legacy_score=task.legacy(answer.text, turn.golds),
        footprint=ledger.footprint,
        byte_footprint=ledger.byte_footprint,
        floor=ledger.floor,
        peak=ledger.peak,
        peak_bytes=ledger.peak_bytes,
        stored_bytes=answer.stored_bytes,
        full_bytes=answer.full_bytes,
        full_peak_bytes=ledger.full_peak_bytes,
        bytes_read_per_step=ledger.bytes_read_per_step[0],
        full_read_per_step=ledger.bytes_read_per_step[1],
        ttft_seconds=answer.ttft_seconds,
        seconds=answer.seconds,
        curve=ledger.curve(),
        versions=case.host.versions,
        question=turn.question,
        golds=turn.golds,
        prefill_work=ledger.prefill_work,
        left_out=ledger.skipped,
    )
