"""Engines on a tiny model, servers in front of them, and what they are asked. Shared by the tests of serving."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import tiny

import kvledger as kv
from kvledger.serve.command import listen
from kvledger.serve.engine import Done, Engine
from kvledger.serve.request import parse

CONTEXT = tiny.text(60, seed=1)
QUESTIONS = [tiny.text(4, seed=20 + i) for i in range(5)]
SNAP = "snapkv(keep=0.4, window=4)"
NEW = 5
PATH = "/v1/chat/completions"


@contextlib.contextmanager
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


# ---- over HTTP ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(engine: Engine, name: str = "m", key: str = "") -> Iterator[int]:
    """The port of a running server, which closes `engine` at its end."""
    import uvicorn

    from kvledger.serve.app import build

    place = listen("127.0.0.1", 0, "")
    running = uvicorn.Server(uvicorn.Config(build(engine, name, key), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        yield place.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join(30)
        place.close()


def small(**options: Any) -> Engine:
    return Engine(tiny.model(), tiny.tokenizer(True), SNAP, **{"chunk": 16, "answer": NEW, "share": 1, **options})


def body(**fields: Any) -> bytes:
    content = [{"type": "text", "text": text} for text in (CONTEXT, QUESTIONS[0])]
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}], **fields}).encode()


def post(port: int, data: bytes, path: str = PATH, method: str = "POST", **headers: str) -> tuple[int, Any, Any]:
    """(status, body, headers)"""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    line.request(method, path, data or None, {"Content-Type": "application/json", **headers})
    reply = line.getresponse()
    text = reply.read()
    line.close()
    return (
        reply.status,
        json.loads(text) if reply.headers["content-type"] == "application/json" else text,
        reply.headers,
    )


def health(port: int) -> Any:
    return post(port, b"", "/health", "GET")[1]


def idle(port: int, engine: Engine) -> bool:
    """Whether the server has nothing to do any more, within a few seconds."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if not engine.waiting and engine._now is None:
            return True
        time.sleep(0.02)
    return False


@contextlib.contextmanager
def slow(seconds: float) -> Iterator[None]:
    """Every forward of the model takes so much longer."""
    handle = tiny.model().register_forward_pre_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        handle.remove()
