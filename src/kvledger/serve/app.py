"""The endpoint: OpenAI's chat completions over HTTP (starlette), in front of an `Engine`.

POST /v1/chat/completions · GET /v1/models · GET /health.  A client that leaves, while it waits or is answered, gives its place
back.  Bodies have to be declared as JSON, so that a page in a browser cannot post to a server on its machine unasked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kvledger.serve.engine import Done, Engine, Event, Job
from kvledger.serve.request import Refused, parse

BODY_SECONDS = 30.0  # for a body to arrive
LEFT = 499  # what proxies write down for a client that did not wait


class Gate:
    """The routes of one engine. `name` is the model's, `key` the secret that requests must carry ("" for none)."""

    def __init__(self, engine: Engine, name: str, key: str = "", largest: int = 1 << 23):
        self.engine, self.name, self.key, self.largest = engine, name, key, largest
        self.started = int(time.time())

    async def health(self, request: Request) -> Response:
        facts = {"status": "ok", "waiting": self.engine.waiting, **asdict(self.engine.state)}
        return JSONResponse(facts)

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        card = {"id": self.name, "object": "model", "created": self.started, "owned_by": "kvledger"}
        return JSONResponse({"object": "list", "data": [card]})

    async def completions(self, request: Request) -> Response:
        self._check_key(request)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refused(415, "send the body as Content-Type: application/json")
        self.engine.check_room()
        asked = parse(await self._body(request))
        if asked.model != self.name:
            raise Refused(
                404, f"the model {asked.model!r} is not here: this is {self.name!r}", "model_not_found", "model"
            )
        exchange = Exchange(self.engine, self.name, asked.usage)
        job = self.engine.submit(asked, exchange.tell)
        watcher = asyncio.create_task(self._watch(request, job, exchange))
        if asked.stream:
            return await exchange.stream(job, watcher)
        return await exchange.whole(job, watcher)

    async def _body(self, request: Request) -> bytes:
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    if size > self.largest:
                        raise Refused(413, f"the body has more than the {self.largest:,} bytes that are read here")
                    parts.append(part)
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
        return b"".join(parts)

    async def _watch(self, request: Request, job: Job, exchange: Exchange) -> None:
        """Until the client has left; then nobody works for it any more."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.engine.cancel(job)
        exchange.events.put_nowait(None)

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self.key and not hmac.compare_digest(given, self.key.encode()):
            raise Refused(401, "the key is missing or wrong: send it as Authorization: Bearer …", "invalid_api_key")


class Exchange:
    """One answer on its way from the worker's thread to its client."""

    def __init__(self, engine: Engine, model: str, usage: bool):
        self.engine, self.usage = engine, usage
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()  # None: the client has left
        self._loop = asyncio.get_running_loop()
        self.facts = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def tell(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    async def whole(self, job: Job, watcher: asyncio.Task[None]) -> Response:
        async with self._ending(job, watcher):
            while not isinstance(event := await self.events.get(), Done | Refused | None):
                pass
            if event is None:
                return Response(status_code=LEFT)
            if isinstance(event, Refused):
                raise event
            choice = {"index": 0, "message": {"role": "assistant", "content": event.text}, "logprobs": None}
            return JSONResponse(
                {**self.facts, "object": "chat.completion", "usage": usage(event)}
                | {"choices": [{**choice, "finish_reason": event.reason}]}
            )

    async def stream(self, job: Job, watcher: asyncio.Task[None]) -> Response:
        """Its status is known once the first event is: a request that is refused gets an error, not a stream."""
        first = await self.events.get()
        if first is None or isinstance(first, Refused):
            watcher.cancel()
            if first is None:
                return Response(status_code=LEFT)
            raise first
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._lines(first, job, watcher), media_type="text/event-stream", headers=headers)

    async def _lines(self, event: Event | None, job: Job, watcher: asyncio.Task[None]) -> AsyncIterator[str]:
        async with self._ending(job, watcher):
            yield self._chunk({"role": "assistant", "content": ""})
            while isinstance(event, str):
                yield self._chunk({"content": event})
                event = await self.events.get()
            if event is None:
                return
            if isinstance(event, Refused):
                yield f"data: {json.dumps(event.body())}\n\n"
                return
            yield self._chunk({}, event.reason)
            if self.usage:
                last = {**self.facts, "object": "chat.completion.chunk", "choices": [], "usage": usage(event)}
                yield f"data: {json.dumps(last)}\n\n"
            yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return f"data: {json.dumps({**self.facts, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

    @contextlib.asynccontextmanager
    async def _ending(self, job: Job, watcher: asyncio.Task[None]) -> AsyncIterator[None]:
        """However it ends, nobody works or watches for it afterwards."""
        try:
            yield
        finally:
            watcher.cancel()
            self.engine.cancel(job)


def usage(done: Done) -> dict[str, Any]:
    """OpenAI's figures, and ours: bytes of keys and values that the conversation holds, and that a full cache would."""
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.new_tokens,
        "total_tokens": done.prompt_tokens + done.new_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
        "kv_bytes": done.kv_bytes,
        "full_kv_bytes": done.full_kv_bytes,
    }


def build(engine: Engine, name: str, key: str = "") -> Starlette:
    """The ASGI application; `engine` is closed when it shuts down."""
    positions = engine.contexts.positions or 1 << 20
    gate = Gate(engine, name, key, largest=max(1 << 20, 16 * positions))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    handlers: dict[Any, Callable[[Request, Any], Any]] = {
        Refused: _refused,
        HTTPException: _http,
        ClientDisconnect: lambda request, error: Response(status_code=LEFT),
    }
    routes = [
        Route("/v1/chat/completions", gate.completions, methods=["POST"]),
        Route("/v1/models", gate.models),
        Route("/health", gate.health),
    ]
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


def _refused(request: Request, error: Refused) -> Response:
    headers = {"Retry-After": str(error.retry)} if error.retry else None
    return JSONResponse(error.body(), error.status, headers)


def _http(request: Request, error: HTTPException) -> Response:
    reason = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(Refused(error.status_code, reason).body(), error.status_code, error.headers)
