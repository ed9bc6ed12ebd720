"""Run by test_harnesses.py: a stock data set of inspect_ai and a conversation of two turns, on the embedded model."""

from __future__ import annotations

import json
import logging
from typing import Any

from inspect_ai import Task
from inspect_ai import eval as run
from inspect_ai.dataset import example_dataset
from inspect_ai.model import ChatMessageUser, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import Generate, TaskState, generate, solver

import kvledger as kv
from kvledger.harness import inspect as provider
from kvledger.harness.inspect_tasks import shared_context
from kvledger.tasks import get

logging.disable(logging.WARNING)
SNAP = "snapkv(keep=0.4, window=8)"


@solver
def again() -> Any:
    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state.messages.append(ChatMessageUser(content="Are you sure?"))
        return await generate(state)

    return solve


def outputs(recipe: str) -> tuple[list[str], list[Any]]:
    task = Task(dataset=example_dataset("theory_of_mind")[:3], solver=[generate(), again()], scorer=includes())
    model = get_model("kvledger/zoo", recipe=recipe, memoize=False)
    log = run(task, model=model, max_tokens=10, display="none", log_format="json", max_samples=1)[0]
    assert log.status == "success", log.error
    assert log.samples is not None
    said = [m.text for sample in log.samples for m in sample.messages if m.role == "assistant"]
    return said, [sample.output for sample in log.samples]


def text_of(sample: Any) -> str:
    return sample.input if isinstance(sample.input, str) else provider.conversation(sample.input)[0]


def refused() -> bool:
    try:
        provider.conversation([])
    except ValueError:
        return True
    return False


def ours() -> None:
    """One of kvledger's tasks, its questions in one conversation: what a session answers, and the task's own scores."""
    task = shared_context("scbench/kv", context=400, samples=2, turns=2)
    model = get_model("kvledger/zoo", recipe="full", memoize=False)
    log = run(task, model=model, display="none", log_format="json", max_samples=1)[0]
    assert log.status == "success", log.error
    assert log.samples is not None
    assert len(log.samples) == 2
    for sample in log.samples:
        first, second = sample.metadata["turns"]
        session = kv.open(*kv.load("zoo"), "full")
        session.read("", text_of(sample))
        said = [session.answer(first["limit"]).text, session.ask(second["question"], second["limit"])]
        assert sample.metadata["answers"] == said
        scores = [get("scbench/kv").score(*pair) for pair in zip(said, map(golds_of, (first, second)), strict=True)]
        assert sample.scores is not None
        assert sample.scores["turn_scores"].value == sum(scores) / 2
        assert sample.output.usage is not None
        assert sample.output.usage.input_tokens_cache_read


def golds_of(turn: dict[str, Any]) -> tuple[str, ...]:
    return tuple(turn["golds"])


assert (
    get_model("kvledger/zoo", recipe=SNAP.split(","), memoize=False).api.recipe == SNAP
)  # as the command line gives it
ours()
full, _ = outputs("full")
snap, outs = outputs(SNAP)
plain = []
for sample in example_dataset("theory_of_mind")[:3]:
    session = kv.open(*kv.load("zoo"), "full")
    session.read("", text_of(sample))
    plain += [session.answer(10).text, session.ask("Are you sure?", 10)]
reused = [out.usage.input_tokens_cache_read for out in outs]
assert all(reused), reused
print(
    json.dumps(
        {
            "own": plain, "full": full, "compressed": snap, "requests": len(outs), "refused": refused(),
            "footprint": max(out.metadata["kv_footprint"] for out in outs),
        }
    )
)  # fmt: skip
