"""Workers that play jobs: in this process (`Here`), in others (`engine_local.py`), on a cluster (`engine_ray.py`).  (no torch)

An engine hires workers and waits for their news.  A `Crew` gives it jobs, longest first as they come, and yields what the
workers tell.  Workers hold a model and no file: whoever runs the crew writes, so a cluster needs no common disk.  The job of
a worker that was lost goes to its successor, less what it had told.
"""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvledger.records import Cell, Record
from kvledger.run.jobs import PIECES, Bundle, Job, bundled

TRIES = 3  # workers that one job may take down without telling anything, or that may die in a row while they start


Order = Bundle | tuple[Cell, ...]  # play it; or: say what these cells are with your model


@dataclass(frozen=True)
class Ready:
    """The model is loaded. `identity`: versions and weights, which must be the same everywhere."""

    identity: str


@dataclass(frozen=True)
class Resolved:
    """The cells that were asked for, with all that their keys need."""

    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Left:
    """A sample that cannot be played, and why."""

    text: str


@dataclass(frozen=True)
class Over:
    """The order has been carried out."""


@dataclass(frozen=True)
class Failed:
    """An error that another worker would meet as well. `mendable`: by the user, a ValueError."""

    mendable: bool
    text: str


Message = Ready | Resolved | Record | Left | Over | Failed


class Player(Protocol):
    """Whoever has the model."""

    identity: str

    def resolve(self, cells: tuple[Cell, ...]) -> tuple[Cell, ...]: ...

    def play(self, bundle: Bundle) -> Iterator[Record | Left]: ...


Make = Callable[[], Player]  # travels to the worker, so it must pickle


class Lost(Exception):
    """A worker is gone, and with it what it has not told."""


class Hand(Protocol):
    """One worker, seen from here. Its first message is Ready; the last one of each order is Over."""

    def give(self, order: Order) -> None: ...

    def hear(self) -> Message:
        """The next message. Raises Lost."""
        ...

    def dismiss(self) -> None: ...


class Engine(Protocol):
    """Where workers come from. `size`: how many there shall be."""

    size: int

    def hire(self, number: int) -> Any:
        """Worker `number` (0 to size − 1), or its successor."""
        ...

    def wait(self, hands: Sequence[Any]) -> Sequence[Any]:
        """Those of `hands` that have news or are lost; at least one."""
        ...

    def close(self) -> None: ...


class Service:
    """What runs in a worker of another process: a player whose errors are told, not raised."""

    def __init__(self, make: Make):
        self.make = make

    def begin(self) -> Iterator[Message]:
        yield from _told(self._begin())

    def obey(self, order: Order) -> Iterator[Message]:
        yield from _told(answers(self.player, order))

    def _begin(self) -> Iterator[Message]:
        self.player = self.make()
        yield Ready(self.player.identity)


def answers(player: Player, order: Order) -> Iterator[Message]:
    """What a player has to say to an order."""
    if isinstance(order, Bundle):
        yield from player.play(order)
    else:
        yield Resolved(player.resolve(order))
    yield Over()


def _told(messages: Iterator[Message]) -> Iterator[Message]:
    try:
        yield from messages
    except ValueError as error:
        yield Failed(True, str(error))
    except RuntimeError as error:
        yield Failed(False, str(error))
    except Exception as error:  # a defect: where it happened is told on the worker's stderr, and the run ends
        traceback.print_exc(file=sys.stderr)
        yield Failed(False, f"{type(error).__name__}: {error}")


class Here:
    """The engine without processes: one player, in this one. Its errors are raised as they are."""

    size = 1

    def __init__(self, make: Make):
        self.make = make

    def hire(self, number: int) -> Mine:
        return Mine(self.make())

    def wait(self, hands: Sequence[Mine]) -> Sequence[Mine]:
        return hands

    def close(self) -> None:
        pass


class Mine:
    """The hand of `Here`."""

    def __init__(self, player: Player):
        self.player = player
        self.news: Iterator[Message] = iter([Ready(player.identity)])

    def give(self, order: Order) -> None:
        self.news = answers(self.player, order)

    def hear(self) -> Message:
        return next(self.news)

    def dismiss(self) -> None:
        self.news = iter(())


@dataclass
class Post:
    """A worker's place: who holds it, what for, and what has been told of that."""

    number: int
    hand: Hand
    ready: bool = False
    order: Order | None = None
    tries: int = 0
    told: list[Record] = field(default_factory=list)


class Crew:
    """The workers of `engine`. A context: they are dismissed at its end. `warn` hears of each that is lost."""

    def __init__(self, engine: Engine, warn: Callable[[str], None]):
        self.engine, self.warn = engine, warn
        self.posts: list[Post] = []
        self.identity = ""
        self.stillborn = 0
        self.given_up: list[str] = []

    def __enter__(self) -> Crew:
        self.posts = [Post(number, self.engine.hire(number)) for number in range(self.engine.size)]
        return self

    def __exit__(self, *error: object) -> None:
        for post in self.posts:
            post.hand.dismiss()
        self.engine.close()

    def resolve(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells as the first worker that is there sees them. ValueError for what cannot be."""
        for _, message in list(self._work([tuple(cells)])):
            if isinstance(message, Resolved):
                return list(message.cells)
        raise RuntimeError(f"no worker could look at the cells: {'; '.join(self.given_up)}")

    def play(self, jobs: Sequence[Job], answers: int = 1) -> Iterator[tuple[int, Record | Left]]:
        """(worker, what it tells) until all jobs are over, bundled so that up to `answers` can be written at once. RuntimeError
        at the end if some took down each worker they met."""
        most = len(jobs) // (PIECES * len(self.posts)) if len(self.posts) > 1 else len(jobs)
        for number, message in self._work(bundled(jobs, answers, max(1, most))):
            if isinstance(message, Record | Left):
                yield number, message
        if self.given_up:
            raise RuntimeError(
                f"{len(self.given_up)} jobs took {TRIES} workers down and are not played; the same command tries them again: "
                + "; ".join(self.given_up)
            )

    def _work(self, orders: Iterable[Order]) -> Iterator[tuple[int, Message]]:
        waiting: deque[tuple[Order, int]] = deque((order, 0) for order in orders)
        while waiting or any(post.order is not None for post in self.posts):
            for post in self.posts:
                if waiting and post.ready and post.order is None:
                    self._give(post, *waiting.popleft(), waiting)
            expected = {id(p.hand): p for p in self.posts if p.order is not None or (waiting and not p.ready)}
            for hand in self.engine.wait([post.hand for post in expected.values()]) if expected else ():
                post = expected[id(hand)]
                try:
                    message = hand.hear()
                except Lost as lost:
                    self._replace(post, lost, waiting)
                else:
                    self._take(post, message)
                    yield post.number, message

    def _give(self, post: Post, order: Order, tries: int, waiting: deque[tuple[Order, int]]) -> None:
        post.order, post.tries, post.told = order, tries, []
        try:
            post.hand.give(order)
        except Lost as lost:
            post.tries -= 1  # it was gone before: not this order's fault
            self._replace(post, lost, waiting)

    def _take(self, post: Post, message: Message) -> None:
        if isinstance(message, Ready):
            post.ready, self.stillborn = True, 0
            self.identity = self.identity or message.identity
            if message.identity != self.identity:
                raise ValueError(
                    f"worker {post.number} has {message.identity}; the others have {self.identity}: "
                    "all workers of a run need the same versions and the same weights"
                )
        elif isinstance(message, Failed):
            raise (ValueError if message.mendable else RuntimeError)(message.text)
        elif isinstance(message, Over):
            post.order = None
        elif isinstance(message, Record):
            post.told.append(message)

    def _replace(self, post: Post, lost: Lost, waiting: deque[tuple[Order, int]]) -> None:
        """A successor, and what is left of the order back to the head of the queue."""
        self.warn(f"worker {post.number} was lost ({lost}); another takes its place")
        order, tries = post.order, 0 if post.told else post.tries + 1
        if not post.ready:
            self.stillborn += 1
            if self.stillborn >= TRIES:
                raise RuntimeError(f"{TRIES} workers in a row were lost before they could play: {lost}")
        if order is not None and tries >= TRIES:
            self.given_up.append(f"{order if isinstance(order, Bundle) else 'the cells'} ({lost})")
        elif order is not None:
            waiting.appendleft((order.less(post.told) if isinstance(order, Bundle) else order, tries))
        post.hand.dismiss()
        post.hand, post.ready, post.order = self.engine.hire(post.number), False, None
