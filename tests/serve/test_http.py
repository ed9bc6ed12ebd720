"""The endpoint as HTTP has it: shapes, mistakes, clients that leave, a flood. A real server on a port of its own."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
from serving import NEW, PATH, QUESTIONS, SNAP, body, health, idle, post, server, session, slow, small

pytest.importorskip("uvicorn", reason="serving needs the extra: pip install 'kvledger[serve]'")
pytest.importorskip("starlette", reason="serving needs the extra: pip install 'kvledger[serve]'")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server(small()) as port:
        yield port


def answer() -> str:
    return str(session(SNAP).ask(QUESTIONS[0], NEW))


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


def leave(port: int, data: bytes, read: int = 0) -> None:
    """Send a request, read some of the answer and hang up."""
    with socket.create_connection(("127.0.0.1", port)) as line:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        line.sendall(head.encode() + data)
        if read:
            line.recv(read)


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
