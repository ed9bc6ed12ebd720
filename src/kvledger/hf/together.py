"""Several sessions on the same forwards: what they read next goes through the model as one batch, each row attending to the
cache of its own session.

A forward reads the model's weights and walks through its modules whatever the number of tokens in it; an answer written alone
pays for that at each token.  Here a request is a generator of `Step`s: it says what it wants read and goes on when that has
been done.  `alone` drives one of them, `together` many, in batches of those that wait.  Each session keeps its own rows, method
and books, so any recipes go together, and all figures are those of sessions that answer alone; logits differ by the rounding
of a larger matrix product.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from kvledger.hf import cache as caches
from kvledger.hf.attention import use
from kvledger.hf.joint import JOINTS, joint
from kvledger.hf.memory import explained
from kvledger.hf.place import home
from kvledger.recipe import parse

if TYPE_CHECKING:
    from kvledger.hf.session import Answer, Session

R = TypeVar("R")
PADDED = 1.5  # times the tokens of a batch that its rows may take, filled up to the longest
NEXT = ([2, 1], [1])  # tokens of the trial
NEAR, ROUGHLY = 1e-3, 0.1  # of the logits' spread, in float32 and below: what differs by more is not the same forward


@dataclass(frozen=True)
class Step:
    """Tokens that `session` wants read now; `kind` as in the ledger."""

    session: Session
    ids: list[int]
    kind: str


Steps = Generator[Step, None, R]


def alone(work: Steps[R]) -> R:
    """Do all that `work` asks for, one step after the other; what it returns."""
    while True:
        try:
            step = next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        step.session.forward(step.ids, step.kind)


def answers(session: Session, questions: Sequence[str], max_new_tokens: int, at_once: int) -> list[Answer]:
    """To questions that know nothing of each other, each on a fork of `session`."""
    if at_once < 1:
        raise ValueError(f"at_once={at_once} must be at least 1")

    def work(number: int) -> Generator[Step | tuple[int, Answer]]:
        answer = yield from session.fork().turn_steps(questions[number], max_new_tokens)
        yield number, answer

    told = dict(together((work(number) for number in range(len(questions))), at_once))
    return [told[number] for number in range(len(questions))]


def together(works: Iterable[Generator[Step | R]], most: int) -> Iterator[R]:
    """Do what all `works` ask for, at most `most` of them at a time, and yield what else they yield. A ValueError is thrown
    into those whose forward met it."""
    left = iter(works)
    waiting: dict[Generator[Step | R], _Asked] = {}
    while True:
        while len(waiting) < most and (work := next(left, None)) is not None:
            yield from _advance(work, waiting)
        if not waiting:
            return
        now, waiting = waiting, {}
        for batch in _batches(list(now.values())):
            _do(batch)
        for work, one in now.items():
            yield from _advance(work, waiting, one)


@dataclass
class _Asked:
    """A step and the moment since when it waits; once done, what its session is charged for it, or the error it met."""

    step: Step
    since: float
    charge: float = 0.0
    error: ValueError | None = None


def _advance(
    work: Generator[Step | R], waiting: dict[Generator[Step | R], _Asked], done: _Asked | None = None
) -> Iterator[R]:
    """Let `work` go on to its next step, if it has one; what it yields on the way."""
    if done is not None:
        done.step.session.absent += time.perf_counter() - done.since - done.charge
    try:
        told = next(work) if done is None or done.error is None else work.throw(done.error)
        while not isinstance(told, Step):
            yield told
            told = next(work)
    except StopIteration:
        return
    waiting[work] = _Asked(told, time.perf_counter())


def _batches(asked: list[_Asked]) -> Iterator[list[_Asked]]:
    """Single tokens together; longer ones with others of about their length; what cannot share a forward, alone."""
    joint: list[_Asked] = []
    for one in asked:
        if joinable(one.step.session):
            joint.append(one)
        else:
            yield [one]
    joint.sort(key=lambda one: len(one.step.ids))
    batch: list[_Asked] = []
    tokens = 0
    for one in joint:
        longest = len(one.step.ids)
        single = bool(batch) and len(batch[0].step.ids) == 1
        if batch and (single != (longest == 1) or longest * (len(batch) + 1) > PADDED * (tokens + longest)):
            yield batch
            batch, tokens = [], 0
        batch.append(one)
        tokens += longest
    if batch:
        yield batch


def _do(batch: list[_Asked]) -> None:
    """One forward. Each session is charged its own part of the seconds and an equal share of the rest."""
    steps, started = [one.step for one in batch], time.perf_counter()
    own = [0.0] * len(steps)
    try:
        if len(steps) > 1:
            own = _forward(steps)
        else:
            steps[0].session.forward(steps[0].ids, steps[0].kind)
    except ValueError as error:
        for one in batch:
            one.error = error
    common = (time.perf_counter() - started - sum(own)) / len(batch)
    for one, spent in zip(batch, own, strict=True):
        one.charge = common + spent


@torch.inference_mode()
def _forward(steps: Sequence[Step]) -> list[float]:
    """Read the tokens of all steps in one forward, shorter ones filled up in front; the seconds of each session's own part."""
    sessions, longest = [step.session for step in steps], max(len(step.ids) for step in steps)
    first = sessions[0]
    use(first.model)
    tokens = [len(step.ids) for step in steps]
    layers = [joint(list(row), tokens) for row in zip(*(one.cache.layers for one in sessions), strict=True)]
    ids = torch.zeros(len(steps), longest, dtype=torch.long)
    places = torch.zeros_like(ids)
    for b, (step, one) in enumerate(zip(steps, sessions, strict=True)):
        one.run.ledger.kind = step.kind
        ids[b, longest - len(step.ids) :] = torch.tensor(step.ids)
        places[b, longest - len(step.ids) :] = torch.arange(len(step.ids)) + one.cache.get_seq_length()
    device = home(first.model)
    given: dict[str, Any] = {first.argument: Cache(layers=layers), "position_ids": places.to(device)}  # type: ignore[arg-type]
    try:
        with explained(first, max(one.tokens for one in sessions) + longest):
            logits = first.model(input_ids=ids.to(device), use_cache=True, **given, **first.short_logits).logits[:, -1]
    except RuntimeError as error:
        if first.cache.layers:
            raise
        for one in sessions:  # out of memory: the others let go as well, since some of their layers have the tokens
            one.cache.layers.clear()
        fewer = f"{len(sessions)} answers were written at once: fewer may fit (--together 1)"
        raise RuntimeError(f"{error}; {fewer}") from error
    for b, (step, one) in enumerate(zip(steps, sessions, strict=True)):
        one.logits = logits[b]
        caches.account(one.cache, one.run, len(step.ids))
        one.tokens += len(step.ids)
    return [sum(layer.seconds[b] for layer in layers) for b in range(len(steps))]


def joinable(session: Session) -> bool:
    """Whether this session's steps can be a row of a batch: all its layers have rows, which stay where they are, and no state,
    and the model takes tokens for standing where it is told. Found out once a model, by a few tokens."""
    model = session.model
    if session.run.reader is not None and session.run.reader.host:
        return False
    if any(type(layer) not in JOINTS for layer in session.cache.layers):
        return False
    if not hasattr(model, "_kvledger_joins"):
        model._kvledger_joins = _joins(session)
    return bool(model._kvledger_joins)


def _joins(session: Session) -> bool:
    """Whether two prompts of different lengths go on in one forward as each does in its own."""
    model = session.model
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    pair = [type(session)(model, session.chat.tokenizer, parse("full"), 0) for _ in range(2)]
    for one, prompt in zip(pair, ([0, 1, 2], [3]), strict=True):
        one.forward(prompt, "ask")
    twins = [one.fork() for one in pair]
    for one, ids in zip(pair, NEXT, strict=True):
        one.forward(ids, "ask")
    _forward([Step(one, ids, "ask") for one, ids in zip(twins, NEXT, strict=True)])
    near = NEAR if model.dtype.itemsize >= 4 else ROUGHLY
    return all(_same(one.logits, twin.logits, near) for one, twin in zip(pair, twins, strict=True))


def _same(a: Tensor | None, b: Tensor | None, near: float) -> bool:
    assert a is not None
    assert b is not None
    return bool((a - b).abs().max() <= near * a.float().std())
