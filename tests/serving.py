"""Engines on a tiny model, and what they are asked. Shared by the tests of serving."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tiny

import kvledger as kv
from kvledger.serve.engine import Done, Engine
from kvledger.serve.request import parse

CONTEXT = tiny.text(60, seed=1)
QUESTIONS = [tiny.text(4, seed=20 + i) for i in range(5)]
SNAP = "snapkv(keep=0.4, window=4)"
NEW = 5


@contextmanager
def engine(recipe: str = SNAP, template: bool = True, **options: Any) -> Iterator[Engine]:
    made = Engine(tiny.model(), tiny.tokenizer(template), recipe, **{"chunk": 16, "answer": NEW, "share": 1, **options})
    try:
        yield made
    finally:
        made.close()


def request(messages: list[dict[str, Any]], **fields: Any) -> Any:
    return parse(json.dumps({"model": "m", "messages": messages, **fields}).encode())


def first(question: str, context: str = CONTEXT) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text} for text in (context, question)]}]


def answered(made: Engine, messages: list[dict[str, Any]], **fields: Any) -> tuple[Any, list[str]]:
    """The last event, and the stretches before it."""
    events: queue.Queue[Any] = queue.Queue()
    made.submit(request(messages, **fields), events.put)
    told = []
    while isinstance(event := events.get(timeout=60), str):
        told.append(event)
    return event, told


def conversation(made: Engine, questions: list[str], context: str = CONTEXT) -> list[Done]:
    messages, found = first(questions[0], context), []
    for i in range(len(questions)):
        done, told = answered(made, messages)
        assert isinstance(done, Done), done
        assert "".join(told) == done.text
        found.append(done)
        messages += [{"role": "assistant", "content": done.text}]
        messages += [{"role": "user", "content": question} for question in questions[i + 1 : i + 2]]
    return found


def session(recipe: str, template: bool = True, context: str = CONTEXT) -> Any:
    made = kv.open(tiny.model(), tiny.tokenizer(template), recipe, chunk=16)
    made.read(context)
    return made
