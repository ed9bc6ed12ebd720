"""What a search will cost at most, before it starts: counted on the first sample of each task, which it needs in any case."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

from kvledger.records import Record
from kvledger.run.search import FULL, Field, Quest, Search

NAIVE = (9, 19)  # points of the paper's grid, and of one twice as fine


@dataclass(frozen=True)
class Price:
    """Of conversations: tokens of their prompts, forward passes, seconds."""

    prompt: float = 0.0
    passes: float = 0.0
    seconds: float = 0.0

    def times(self, count: float) -> Price:
        return Price(self.prompt * count, self.passes * count, self.seconds * count)

    def __add__(self, other: Price) -> Price:
        return Price(self.prompt + other.prompt, self.passes + other.passes, self.seconds + other.seconds)


@dataclass(frozen=True)
class Plan:
    """The search at most, and grids of so many budgets with as many samples at each."""

    most: Price
    grids: dict[int, Price]

    def __str__(self) -> str:
        most = self.most
        saved = "; ".join(
            f"a grid of {points} budgets: {grid.prompt:,.0f} prompt tokens, {grid.seconds / 60:.1f} min, "
            f"{grid.prompt / most.prompt:.1f} times as much"
            for points, grid in self.grids.items()
        )
        return (
            f"at most {most.prompt:,.0f} prompt tokens, {most.passes:,.0f} forward passes, about {most.seconds / 60:.1f} min "
            f"(by the speed of the first reading; records that are there cost nothing)\n{saved}"
        )


def conversation(turns: Iterable[Record]) -> tuple[int, int, int]:
    """(prompt tokens, generated tokens, tokens of the shared context) of the records of one sample, its context counted once:
    in multi-request its questions branch off one reading."""
    found = list(turns)
    new = sum(r.new_tokens for r in found)
    prompts = [r.prompt_tokens for r in found]
    shared = min([found[0].context, *prompts])
    if found[0].mode == "multi-turn":
        return max(prompts), new, shared
    return shared + sum(prompt - shared for prompt in prompts), new, shared


def price(turns: Iterable[Record]) -> Price:
    """Of one conversation on record. A chunk is a forward pass, and so are a question and each new token."""
    found = list(turns)
    prompt, new, shared = conversation(found)
    chunks = ceil(shared / (found[0].chunk or shared))
    return Price(prompt, chunks + len(found) + new, sum(r.seconds for r in found))


def plan(search: Search, goals: list[Quest], known: Field, watch: Callable[[Record], None]) -> Plan:
    """Plays the full cache on the first sample of each task, where that is not on record, and multiplies. ValueError if a task
    has no sample that can be played."""
    tasks = dict.fromkeys(task for goal in goals for task in goal.tasks)
    known.learn(((known.cells[FULL, task], 0) for task in tasks), watch)
    prices = {task: price(known.records(FULL, task, 1)) for task in tasks if known.records(FULL, task, 1)}
    if len(prices) < len(tasks):
        raise ValueError(
            f"the first sample of {', '.join(task for task in tasks if task not in prices)} cannot be played"
        )
    aim = search.aim

    def at(points: Callable[[Quest], float]) -> Price:
        total = sum((prices[task].times(aim.samples) for task in tasks), Price())  # the full cache
        return sum((prices[task].times(points(goal)) for goal in goals for task in goal.tasks), total)

    grids = {points: at(lambda goal, points=points: points * aim.samples) for points in NAIVE}  # type: ignore[misc]
    return Plan(at(lambda goal: min(aim.budget or float("inf"), len(goal.ladder) * aim.samples)), grids)
