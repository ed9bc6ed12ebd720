"""The endpoint as clients see it: OpenAI's own, and ones that misbehave. A real server on a port of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import tiny

import kvledger as kv
from kvledger.serve.command import listen
from kvledger.serve.engine import Engine
from kvledger.tasks import get

uvicorn = pytest.importorskip("uvicorn", reason="serving needs the extra: pip install 'kvledger[serve]'")
pytest.importorskip("starlette", reason="serving needs the extra: pip install 'kvledger[serve]'")

CONTEXT = tiny.text(60, seed=1)
QUESTION = tiny.text(4, seed=20)
PATH = "/v1/chat/completions"


@contextlib.contextmanager
def server(engine: Engine, name: str = "m", key: str = "") -> Iterator[int]:
    """The port of a running server."""
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
    return Engine(
        tiny.model(),
        tiny.tokenizer(True),
        "snapkv(keep=0.4, window=4)",
        **{"chunk": 16, "answer": 5, "share": 1, **options},
    )


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server(small()) as port:
        yield port


def body(**fields: Any) -> bytes:
    content = [{"type": "text", "text": text} for text in (CONTEXT, QUESTION)]
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


def answer() -> str:
    session = kv.open(tiny.model(), tiny.tokenizer(True), "snapkv(keep=0.4, window=4)", chunk=16)
    session.read(CONTEXT)
    return str(session.ask(QUESTION, 5))


# ---- well-behaved clients ----------------------------------------------------------------------------------------


def test_an_answer_has_the_shape_of_a_chat_completion(port: int) -> None:
    status, reply, _ = post(port, body())
    assert status == 200
    assert reply["object"] == "chat.completion"
    assert reply["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": answer()}, "logprobs": None, "finish_reason": "length"}
    ]
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == 5
    assert 0 < usage["kv_bytes"] < usage["full_kv_bytes"]


def test_a_stream_is_the_same_answer_in_pieces(port: int) -> None:
    status, text, headers = post(port, body(stream=True, stream_options={"include_usage": True}))
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    lines = text.decode().strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    deltas = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
    assert len(deltas) > 3
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == answer()
    assert [delta["finish_reason"] for delta in deltas[-2:]] == [None, "length"]


def test_models_and_health(port: int) -> None:
    assert post(port, b"", "/v1/models", "GET")[1]["data"][0]["id"] == "m"
    before = health(port)
    post(port, body())
    assert health(port)["requests"] == before["requests"] + 1
    assert before["status"] == "ok"


def ask(client: Any, messages: list[Any], text: Any, stream: bool) -> Any:
    """One more turn; returns its usage."""
    messages.append({"role": "user", "content": text})
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    reply = client.chat.completions.create(model="zoo", messages=messages, max_tokens=8, **options)
    if stream:
        chunks = list(reply)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        usage = chunks[-1].usage
    else:
        said, usage = reply.choices[0].message.content, reply.usage
    messages.append({"role": "assistant", "content": said})
    return usage


@pytest.mark.parametrize("recipe, tokens, clients", [("full", 400, 3), ("snapkv(keep=0.3)", 400, 2)])
def test_the_stock_client_holds_conversations_of_five_turns_over_one_context(
    recipe: str, tokens: int, clients: int
) -> None:
    openai = pytest.importorskip("openai", reason="needs OpenAI's client: pip install openai")
    model, tokenizer = kv.load("zoo")

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    sample = get("scbench/kv").make(seed=1, index=0, tokens=tokens, count=count, turns=5, form="small")
    session = kv.open(model, tokenizer, recipe, chunk=256)
    session.read(sample.text)
    wanted = [session.ask(turn.question, 8) for turn in sample.turns]

    def converse(stream: bool) -> tuple[list[str], list[Any]]:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        texts: list[Any] = [turn.question for turn in sample.turns]
        texts[0] = [{"type": "text", "text": text} for text in (sample.text, texts[0])]
        messages: list[Any] = []
        usages = [ask(client, messages, text, stream) for text in texts]
        return [message["content"] for message in messages[1::2]], usages

    with server(Engine(model, tokenizer, recipe, chunk=256), "zoo") as port, ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(converse, [i % 2 == 1 for i in range(clients)]))
        state = health(port)
    assert [texts for texts, _ in found] == [wanted] * clients
    assert (state["contexts_read"], state["context_hits"]) == (1, clients - 1)
    for _, usages in found:
        for before, usage in pairwise(usages):
            assert usage.prompt_tokens_details.cached_tokens >= before.prompt_tokens
            assert usage.kv_bytes > 0


# ---- others ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, path, method, headers, status, words",
    [
        (b"{", PATH, "POST", {}, 400, "not JSON"),
        (body(n=2), PATH, "POST", {}, 400, "n=2 is not served"),
        (body(model="gpt"), PATH, "POST", {}, 404, "'gpt'"),
        (body(max_tokens=600), PATH, "POST", {}, 400, "512 positions"),
        (body(max_tokens=600, stream=True), PATH, "POST", {}, 400, "512 positions"),
        (body(), PATH, "POST", {"Content-Type": "text/plain"}, 415, "application/json"),
        (b" " * (1 << 20) + b"{}", PATH, "POST", {}, 413, "1,048,576 bytes"),
        (b"", PATH, "GET", {}, 405, "Method Not Allowed"),
        (body(), "/v1/nowhere", "POST", {}, 404, "/v1/nowhere"),
    ],
)
def test_a_mistake_is_answered_with_its_status_and_reason(
    port: int, data: bytes, path: str, method: str, headers: dict[str, str], status: int, words: str
) -> None:
    found, reply, _ = post(port, data, path, method, **headers)
    assert found == status
    assert words in reply["error"]["message"]
    assert set(reply["error"]) == {"message", "type", "param", "code"}


def test_a_key_is_asked_for_where_one_is_set() -> None:
    with server(small(), key="secret") as port:
        assert post(port, body())[0] == 401
        assert post(port, body(), Authorization="Bearer wrong")[0] == 401
        assert post(port, body(), Authorization="Bearer secret")[0] == 200
        assert post(port, b"", "/v1/models", "GET")[0] == 401
        assert health(port)["status"] == "ok"


@contextlib.contextmanager
def slow(seconds: float) -> Iterator[None]:
    handle = tiny.model().register_forward_pre_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        handle.remove()


def leave(port: int, data: bytes, read: int = 0) -> None:
    """Send a request, read some of the answer and hang up."""
    with socket.create_connection(("127.0.0.1", port)) as line:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        line.sendall(head.encode() + data)
        if read:
            line.recv(read)


def idle(port: int, engine: Engine) -> bool:
    """Whether the server has nothing to do any more, within a few seconds."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if not engine.waiting and engine._now is None:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_are_not_worked_for(stream: bool) -> None:
    engine, calls = small(), [0]
    handle = tiny.model().register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    with server(engine) as port:
        for _ in range(6):
            with slow(0.01):
                leave(port, body(stream=stream, max_tokens=400), read=64 if stream else 0)
            assert idle(port, engine)
        handle.remove()
        assert calls[0] < 6 * 100
        assert post(port, body())[1]["choices"][0]["message"]["content"] == answer()


def test_a_client_that_leaves_while_it_sends_is_no_trouble(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as line:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        line.sendall(head.encode() + b"{")
    assert post(port, body())[0] == 200


def test_a_flood_is_answered_or_told_when_to_come_back() -> None:
    engine = small(places=4)
    with server(engine) as port:
        with slow(0.005), ThreadPoolExecutor(50) as pool:
            replies = list(pool.map(lambda _: post(port, body()), range(200)))
        assert idle(port, engine)
        last = post(port, body())
    wanted, statuses = answer(), [status for status, _, _ in replies]
    assert set(statuses) == {200, 429}
    assert statuses.count(429) > 50
    for status, reply, headers in [*replies, last]:
        if status == 200:
            assert reply["choices"][0]["message"]["content"] == wanted
        else:
            assert int(headers["Retry-After"]) >= 1
            assert reply["error"]["code"] == "queue_full"
    assert last[0] == 200
