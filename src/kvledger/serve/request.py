"""What a chat completion request says, checked; and the errors of the endpoint. No torch.

The shape is that of OpenAI's chat completions (platform.openai.com/docs/api-reference/chat). As there, fields that are not
known are ignored.  Fields that would change the answer and that are not served are refused by name.

Deviation: an absent `temperature` is 0 (the likeliest token), so that a request is answered as `Session.ask` answers it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant")
UNSERVED: dict[str, tuple[Any, ...]] = {  # field -> values that change nothing
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}


class Refused(Exception):
    """An answer that is an error: HTTP `status`, the reason, OpenAI's `code` and `param`, seconds after which to try again."""

    def __init__(self, status: int, reason: str, code: str = "", param: str = "", retry: int = 0):
        super().__init__(reason)
        self.status, self.code, self.param, self.retry = status, code, param, retry

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        facts = {"message": str(self), "type": kind, "param": self.param or None, "code": self.code or None}
        return {"error": facts}


@dataclass(frozen=True)
class Message:
    """Who says what. `parts` are joined; the last part of the first user message is what is asked of those before it."""

    role: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """A checked request. `max_tokens` 0: not said. `usage`: whether a stream ends with its usage."""

    messages: tuple[Message, ...]
    model: str
    stream: bool = False
    usage: bool = False
    max_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


def parse(body: bytes) -> Request:
    """A Request from the body of a POST. `Refused` (400) names the field, its value and what it may be."""
    try:
        facts = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {str(error)[:120]}", "invalid_json") from None
    if not isinstance(facts, dict):
        raise Refused(400, "the body is not a JSON object", "invalid_json")
    facts = {name: value for name, value in facts.items() if value is not None}
    for name, harmless in UNSERVED.items():
        if name in facts and facts[name] not in harmless:
            shown = json.dumps(facts[name])[:60]
            raise Refused(400, f"{name}={shown} is not served here: leave it out", "unsupported_parameter", name)
    options = facts.get("stream_options", {})
    if not isinstance(options, dict):
        raise _wrong("stream_options", options, "an object")
    return Request(
        messages=_messages(facts.get("messages")),
        model=_text("model", facts.get("model")),
        stream=_flag("stream", facts.get("stream", False)),
        usage=_flag("include_usage", options.get("include_usage") or False),
        max_tokens=_limit(facts),
        temperature=_number("temperature", facts.get("temperature", 0), 0, 2),
        top_p=_number("top_p", facts.get("top_p", 1), 0, 1),
        seed=_seed(facts.get("seed")),
        stop=_stops(facts.get("stop", [])),
    )


def _wrong(name: str, value: Any, wanted: str) -> Refused:
    return Refused(400, f"{name}={json.dumps(value)[:60]} is not {wanted}", "invalid_value", name)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "a text")
    if any(
        "\ud800" <= letter <= "\udfff" for letter in value
    ):  # JSON can say half a character; no tokenizer can read it
        raise Refused(400, f"{name} holds half of a surrogate pair, which is no character", "invalid_value", name)
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _wrong(name, value, f"a number from {low} to {high}")
    return float(value)


def _limit(facts: dict[str, Any]) -> int:
    name = "max_completion_tokens" if "max_completion_tokens" in facts else "max_tokens"
    value = facts.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or (name in facts and value < 1):
        raise _wrong(name, value, "a whole number of at least 1")
    return value


def _seed(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= abs(value) < 2**63):
        raise _wrong("seed", value, "a whole number of 64 bits")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > 4 or not all(isinstance(text, str) and text for text in texts):
        raise _wrong("stop", value, "a text, or a list of up to 4")
    return tuple(texts)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _wrong("messages", value, "a list of at least one message")
    messages = tuple(_message(i, item) for i, item in enumerate(value))
    spoken = [message.role for message in messages if message.role in ("user", "assistant")]
    if not spoken or spoken[0] != "user" or messages[-1].role != "user":
        raise Refused(
            400, "a conversation begins with the user and ends with the user's question", "invalid_value", "messages"
        )
    return messages


def _message(i: int, item: Any) -> Message:
    name = f"messages[{i}]"
    if not isinstance(item, dict):
        raise _wrong(name, item, "an object with role and content")
    if item.get("role") not in ROLES:
        raise _wrong(f"{name}.role", item.get("role"), f"one of {', '.join(ROLES)}")
    if item.get("tool_calls"):
        raise Refused(400, f"{name}.tool_calls: tools are not served here", "unsupported_parameter", "messages")
    content = item.get("content")
    pieces = content if isinstance(content, list) and content else [{"type": "text", "text": content}]
    return Message(item["role"], tuple(_part(f"{name}.content", piece) for piece in pieces))


def _part(name: str, piece: Any) -> str:
    if not isinstance(piece, dict) or piece.get("type") != "text":
        kind = piece.get("type") if isinstance(piece, dict) else piece
        raise Refused(400, f"{name}: only parts of type 'text' are served, not {kind!r}", "invalid_value", "messages")
    return _text(name, piece.get("text"))


def bytes_of(text: str) -> int:
    """Bytes of "500MB", "2GiB" or a plain number. ValueError for anything else."""
    units = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    number = text.strip().rstrip("BbGgIiKkMm ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        value = math.nan
    if not value >= 1 or math.isinf(value):
        raise ValueError(f"{text!r} is no size: write it like 500MB or 2GiB")
    return int(value)
