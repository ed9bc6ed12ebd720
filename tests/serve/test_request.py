"""What a request may say, and how it is told what it may not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvledger.serve.request import Message, Refused, bytes_of, parse

HELLO = [{"role": "user", "content": "hello"}]


def asked(**fields: Any) -> Any:
    return parse(json.dumps({"model": "zoo", "messages": HELLO, **fields}).encode())


def test_a_request_is_read_with_its_defaults() -> None:
    request = asked()
    assert request.messages == (Message("user", ("hello",)),)
    assert (request.stream, request.usage, request.max_tokens, request.temperature, request.top_p) == (
        False,
        False,
        0,
        0,
        1,
    )
    assert (request.seed, request.stop) == (None, ())


def test_every_option_is_read() -> None:
    request = asked(
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=3,
        max_completion_tokens=4,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop="end",
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ],
    )
    assert [(m.role, m.parts) for m in request.messages][:2] == [("system", ("be brief",)), ("user", ("a", "b"))]
    assert (request.stream, request.usage, request.max_tokens, request.temperature, request.top_p) == (
        True,
        True,
        4,
        0.5,
        0.9,
    )
    assert (request.seed, request.stop) == (7, ("end",))


def test_what_is_unknown_or_changes_nothing_is_ignored() -> None:
    assert asked(user="me", metadata={"a": 1}, n=1, tools=[], logprobs=False, stop=None, top_p=None) == asked()


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"logit_bias": {"5": 1}},
        {"presence_penalty": 0.5},
        {"response_format": {"type": "json_object"}},
        {"modalities": ["audio"]},
    ],
)
def test_what_changes_the_answer_and_is_not_served_is_named(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=next(iter(fields))) as found:
        asked(**fields)
    assert (found.value.status, found.value.code, found.value.param) == (
        400,
        "unsupported_parameter",
        next(iter(fields)),
    )


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"model": 5}, "model=5"),
        ({"messages": []}, "at least one message"),
        ({"messages": "hello"}, 'messages="hello"'),
        ({"messages": ["hello"]}, r"messages\[0\]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "system, developer, user, assistant"),
        ({"messages": [{"role": "user"}]}, "not a text"),
        ({"messages": [{"role": "user", "content": []}]}, "not a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "'image_url'"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "ends with the user's"),
        ({"messages": [{"role": "assistant", "content": "x"}, *HELLO]}, "begins with the user"),
        ({"messages": [{"role": "system", "content": "x"}]}, "begins with the user"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [1]}, *HELLO]}, "tools are not served"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"temperature": 2.5}, "from 0 to 2"),
        ({"temperature": "hot"}, 'temperature="hot"'),
        ({"temperature": float("nan")}, "from 0 to 2"),
        ({"top_p": -1}, "from 0 to 1"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": True}, "max_tokens=true"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens=1.5"),
        ({"stream": "yes"}, 'stream="yes"'),
        ({"stream_options": 1}, "stream_options=1"),
        ({"seed": "x"}, 'seed="x"'),
        ({"stop": ["a"] * 5}, "up to 4"),
        ({"stop": [""]}, "stop="),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_could(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words) as found:
        asked(**fields)
    assert found.value.status == 400
    assert found.value.body()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(Refused, match="JSON") as found:
        parse(body)
    assert found.value.code == "invalid_json"


@pytest.mark.parametrize(
    "text, size", [("1", 1), ("500MB", 500_000_000), ("2GiB", 2 << 30), (" 1.5 kib ", 1536), ("3 gb", 3_000_000_000)]
)
def test_sizes(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "nan", "inf", "5 apples", "1MiMB", "1e400"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="500MB or 2GiB"):
        bytes_of(text)
