"""kvledger's tasks as one of inspect_ai's: a context that is read once, and its questions asked in one conversation.

    inspect eval kvledger/shared_context -T name=scbench/kv -T context=2048 --model kvledger/zoo -M recipe="snapkv(keep=0.3)"

Any provider can run it; kvledger's own keeps the cache between the questions.  inspect_ai's messages know nothing of where a
context ends, so the first question is read with it and every method sees it: what hides it is kvledger's own runner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from kvledger import tasks, zoo
from kvledger.hf.chat import count
from kvledger.tasks.hub import Data


@task
def shared_context(
    name: str = "scbench/kv",
    context: int = 2048,
    samples: int = 10,
    turns: int = 0,
    seed: int = 0,
    form: str = "small",
    tokenizer: str = "zoo",
    data: str = "",
) -> Task:
    """`name` as `kvledger tasks` lists it, `turns` questions a context (0: the task's own), lengths in tokens of `tokenizer`
    ("zoo", "zoo-wide", a folder or a hub id); `data` is "hub" or a folder for published data. ValueError for what there is
    not."""
    (row,) = tasks.suite(name, bool(data))
    counter, many = _counter(tokenizer), turns or row.turns
    made = [_made(row, seed, index, context, counter, many, form, data) for index in range(samples)]
    return Task(dataset=[sample for sample in made if sample], solver=conversation(), scorer=turn_scores())


def _made(
    row: tasks.Task,
    seed: int,
    index: int,
    context: int,
    counter: Callable[[str], int],
    turns: int,
    form: Any,
    data: str,
) -> Sample | None:
    """One of inspect_ai's samples; None for a row that does not fit."""
    try:
        made = row.sample(seed, index, context, counter, turns, "real" if data else form, Data(data) if data else None)
    except tasks.Unfit:
        return None
    asked = [{"question": t.question, "golds": list(t.golds), "limit": t.max_new_tokens} for t in made.turns]
    return Sample(
        id=f"{row.name}-{index}",
        input=[ChatMessageUser(content=made.text + made.turns[0].question)],
        target=[turn.gold for turn in made.turns],
        metadata={"task": row.name, "turns": asked, "answers": []},
    )


def _counter(tokenizer: str) -> Callable[[str], int]:
    from transformers import AutoTokenizer

    held = AutoTokenizer.from_pretrained(
        zoo.path(tokenizer) if tokenizer in zoo.MODELS else tokenizer, trust_remote_code=False
    )
    return lambda text: count(held, text)


@solver
def conversation() -> Solver:
    """Asks the questions one after the other; the history is what the model answered."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        for number, turn in enumerate(state.metadata["turns"]):
            if number:
                state.messages.append(ChatMessageUser(content=turn["question"]))
            state = await generate(state, max_tokens=turn["limit"])
            state.metadata["answers"].append(state.output.completion)
        return state

    return solve


@scorer(metrics=[mean(), stderr()])
def turn_scores() -> Scorer:
    """The mean of the turns' scores; each of them, and the benchmark's own, beside it."""

    async def score(state: TaskState, target: Target) -> Score:
        row, pairs = (
            tasks.get(state.metadata["task"]),
            zip(state.metadata["answers"], state.metadata["turns"], strict=True),
        )
        said = [(answer, tuple(turn["golds"])) for answer, turn in pairs]
        own = [row.score(answer, golds) for answer, golds in said]
        legacy = [row.legacy(answer, golds) for answer, golds in said]
        return Score(value=sum(own) / len(own), metadata={"scores": own, "legacy_scores": legacy})

    return score
