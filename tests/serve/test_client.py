"""The endpoint as OpenAI's own client sees it: conversations, streams that are left, mistakes, a flood."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import tiny
from serving import NEW, QUESTIONS, SNAP, first, health, idle, server, session, slow, small

import kvledger as kv
from kvledger.serve.engine import Engine
from kvledger.tasks import get

openai = pytest.importorskip("openai", reason="needs OpenAI's client: pip install openai")
pytest.importorskip("uvicorn", reason="serving needs the extra: pip install 'kvledger[serve]'")
pytest.importorskip("starlette", reason="serving needs the extra: pip install 'kvledger[serve]'")

MEMORY = 16 << 20


def client(port: int) -> Any:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


def ask(to: Any, messages: list[Any], text: Any, stream: bool) -> Any:
    """One more turn; returns its usage."""
    messages.append({"role": "user", "content": text})
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    reply = to.chat.completions.create(model="zoo", messages=messages, max_tokens=8, **options)
    if stream:
        chunks = list(reply)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        usage = chunks[-1].usage
    else:
        said, usage = reply.choices[0].message.content, reply.usage
    messages.append({"role": "assistant", "content": said})
    return usage


@pytest.mark.parametrize("recipe, tokens, clients", [("full", 400, 2), ("snapkv(keep=0.3)", 400, 8)])
def test_the_stock_client_holds_conversations_of_five_turns_over_one_context(
    recipe: str, tokens: int, clients: int
) -> None:
    model, tokenizer = kv.load("zoo")

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    sample = get("scbench/kv").make(seed=1, index=0, tokens=tokens, count=count, turns=5, form="small")
    session = kv.open(model, tokenizer, recipe, chunk=256)
    session.read(sample.text)
    wanted = [session.ask(turn.question, 8) for turn in sample.turns]

    def converse(stream: bool) -> tuple[list[str], list[Any]]:
        texts: list[Any] = [turn.question for turn in sample.turns]
        texts[0] = [{"type": "text", "text": text} for text in (sample.text, texts[0])]
        messages: list[Any] = []
        usages = [ask(client(port), messages, text, stream) for text in texts]
        return [message["content"] for message in messages[1::2]], usages

    engine = Engine(model, tokenizer, recipe, chunk=256, memory=MEMORY)
    with server(engine, "zoo") as port, ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(converse, [i % 2 == 1 for i in range(clients)]))
        state = health(port)
    assert [texts for texts, _ in found] == [wanted] * clients
    assert (state["contexts_read"], state["context_hits"]) == (1, clients - 1)
    assert 0 < state["context_bytes"] + state["conversation_bytes"] <= MEMORY
    for _, usages in found:
        for before, usage in pairwise(usages):
            assert usage.prompt_tokens_details.cached_tokens >= before.prompt_tokens
            assert usage.kv_bytes > 0


def test_a_prompt_past_the_limit_is_an_error_of_the_clients_own_kind() -> None:
    with server(small()) as port:
        with pytest.raises(openai.BadRequestError, match="512 positions") as past:
            client(port).chat.completions.create(model="m", messages=first(QUESTIONS[0], tiny.text(600)))
        assert past.value.code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError, match="'gpt'"):
            client(port).chat.completions.create(model="gpt", messages=first(QUESTIONS[0]))
        assert [model.id for model in client(port).models.list()] == ["m"]


def test_a_stream_that_is_left_is_not_worked_for() -> None:
    engine, calls = small(), [0]
    handle = tiny.model().register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    with server(engine) as port:
        with slow(0.01):
            stream = client(port).chat.completions.create(
                model="m", messages=first(QUESTIONS[0]), stream=True, max_tokens=400
            )
            next(iter(stream))
            stream.close()
            assert idle(port, engine)
        handle.remove()
        assert calls[0] < 100
        reply = client(port).chat.completions.create(model="m", messages=first(QUESTIONS[0]))
    assert reply.choices[0].message.content == session(SNAP).ask(QUESTIONS[0], NEW)


def test_a_flood_is_answered_or_a_rate_limit_error() -> None:
    waits = []
    with server(small(places=2)) as port, slow(0.005), ThreadPoolExecutor(20) as pool:
        shared = client(port)

        def one(_: int) -> str:
            try:
                reply = shared.chat.completions.create(model="m", messages=first(QUESTIONS[0]))
            except openai.RateLimitError as error:
                waits.append(int(error.response.headers["Retry-After"]))
                return "told to wait"
            return str(reply.choices[0].message.content)

        found = Counter(pool.map(one, range(60)))
    assert set(found) == {session(SNAP).ask(QUESTIONS[0], NEW), "told to wait"}
    assert min(waits) >= 1
