"""The worker: one thread that owns the model and answers requests one after the other, from a queue of bounded length.

A request goes on from the conversation that it extends, if that is still held; else from its context, which is read once for
all conversations over it (`kvledger.Prefixes`); earlier turns that no cache holds are read as history.  Requests are not
batched: what is measured of a recipe is what is served.

Memory: half of `memory` for contexts, half for conversations, each letting go of what was used least recently, and counted from
the tensors. Beside it stands what one request needs while it is worked on: its context is read in a cache of its own.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from kvledger.hf.prefixes import Prefixes
from kvledger.hf.recurrent import forgets_between_chunks
from kvledger.hf.session import Answer, Session, check_length
from kvledger.serve.pieces import Pieces, Rendered
from kvledger.serve.request import Refused, Request
from kvledger.serve.store import Talks, release
from kvledger.serve.talk import Stopped, Talk, Voice, picker

COLLECT = 32  # requests


class Gone(Exception):
    """The client that asked has left."""


@dataclass(frozen=True)
class Done:
    """The end of an answer. `reason`: "stop", or "length" where `max_tokens` cut it. cached_tokens: of the prompt, those that
    were not read again. kv_bytes: what the conversation holds now; full_kv_bytes: what a full cache would hold."""

    text: str
    reason: str
    prompt_tokens: int
    new_tokens: int
    cached_tokens: int
    kv_bytes: int
    full_kv_bytes: int


@dataclass(frozen=True)
class State:
    """What the server holds and has done, as of the last request. context_hits: contexts that were there as a whole."""

    requests: int = 0
    conversations: int = 0
    conversation_bytes: int = 0
    contexts_read: int = 0
    context_hits: int = 0
    context_bytes: int = 0


Event = str | Done | Refused  # a stretch of the answer; its end; why there is none
Tell = Callable[[Event], object]


class Job:
    """A request on its way; `tell` is called in the worker's thread."""

    def __init__(self, request: Request, tell: Tell):
        self.request, self.tell = request, tell
        self.gone = False


class Contexts(Prefixes):
    """A store of contexts that have been rendered already. Those of fewer than `share` tokens are read anew each time, which
    costs less than looking after as many of them as there would be."""

    def __init__(self, model: Any, tokenizer: Any, recipe: Any, chunk: int, bytes: int, share: int):
        super().__init__(model, tokenizer, recipe, chunk, bytes)
        self._blank.chat = self.chat = Rendered(tokenizer)
        self.share = share

    def session(self, context: str, protect: Sequence[tuple[int, int]] = ()) -> Session:
        if len(self.chat.opening(context, "")[0]) >= self.share:
            return super().session(context, protect)
        fresh = self._open()
        fresh.read(context, protect=protect)
        return fresh

    @property
    def positions(self) -> int | None:
        """Tokens that the model has positions for, if it says so."""
        return getattr(self._blank.model.config.get_text_config(decoder=True), "max_position_embeddings", None)


class Engine:
    """Answers requests under `recipe`. memory: bytes for contexts and conversations. places: requests that may wait. answer:
    tokens of an answer where a request does not say. share: tokens of the shortest context that is kept for others.
    ValueError for what `kvledger.open` refuses."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        recipe: Any,
        chunk: int = 512,
        memory: int = 1 << 30,
        places: int = 32,
        answer: int = 512,
        share: int = 256,
    ):
        if chunk:
            forgets_between_chunks(model)
        self.model, self.places, self.answer = model, places, answer
        self.contexts = Contexts(model, tokenizer, recipe, chunk, memory // 2, share)
        self.talks = Talks(memory - memory // 2)
        self.state = State()
        self.pace = 1.0  # seconds a request takes, a moving mean
        self._queue: deque[Job] = deque()
        self._now: Job | None = None
        self._ready, self._open = threading.Condition(), True
        self._hook = model.register_forward_pre_hook(self._check)
        self._thread = threading.Thread(target=self._work, name="kvledger-serve", daemon=True)
        self._thread.start()

    # ---- from any thread -----------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def check_room(self) -> None:
        """`Refused` (429) if no place is free, with the seconds after which one may be."""
        if not self._open:
            raise Refused(503, "the server is closing")
        if len(self._queue) >= self.places:
            retry = max(1, ceil(self.pace * len(self._queue)))
            reason = f"all {self.places} places in the queue are taken: try again in {retry} s"
            raise Refused(429, reason, "queue_full", retry=retry)

    def submit(self, request: Request, tell: Tell) -> Job:
        """Put a request in the queue; its events go to `tell`. `Refused` as `check_room`."""
        job = Job(request, tell)
        with self._ready:
            self.check_room()
            self._queue.append(job)
            self._ready.notify()
        return job

    def cancel(self, job: Job) -> None:
        """The client has left: its place is free at once, or, if it is being answered, before the next forward."""
        job.gone = True
        with self._ready:
            if job in self._queue:
                self._queue.remove(job)

    def close(self) -> None:
        """Stop answering; who still waits is told so."""
        with self._ready:
            self._open = False
            left = list(self._queue)
            self._queue.clear()
            if self._now is not None:
                self._now.gone = True
            self._ready.notify()
        for job in left:
            job.tell(Refused(503, "the server is closing"))
        self._thread.join(timeout=60)
        self._hook.remove()

    # ---- in the worker's thread ----------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: bool(self._queue) or not self._open)
                if not self._open:
                    return
                job = self._now = self._queue.popleft()
            started = time.perf_counter()
            self._serve(job)
            self._now = None
            self.pace += 0.2 * (time.perf_counter() - started - self.pace)
            del job  # or the last request would be held until the next one comes

    def _serve(self, job: Job) -> None:
        """Answer, or say why not. Nothing that one request does may end the worker."""
        try:
            event: Event = self._reply(job)
        except Gone:
            event = Refused(503, "the server is closing")
        except Refused as error:
            event = error
        except ValueError as error:
            event = Refused(400, str(error), "context_length_exceeded" if "positions" in str(error) else "")
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            event = Refused(500, f"{type(error).__name__} in the server; its log says more")
        self._note()
        try:
            job.tell(event)
        except RuntimeError:  # the loop that would listen has ended
            job.gone = True

    def _reply(self, job: Job) -> Done:
        request = job.request
        pieces = self.contexts.chat.pieces(request.messages)
        talk, turns, cached = self._talk(pieces, request.max_tokens)
        try:
            return self._answer(job, pieces, talk, turns, cached)
        finally:
            if not self.talks.holds(talk):
                release(talk)

    def _answer(self, job: Job, pieces: Pieces, talk: Talk, turns: int, cached: int) -> Done:
        """Read what `talk` has not seen of the conversation, which has `turns` answers behind it, and answer."""
        request, chat = job.request, self.contexts.chat
        for ask, said in zip(pieces.asks[turns:-1], pieces.answers[turns:]):
            self.talks.make_room(talk.ledger.stored_bytes + talk.rows_left(talk.waiting(ask + said), 0))
            talk.turn(ask, 0, gold=said)
        ids = talk.waiting(pieces.asks[-1])
        limit = self._limit(request.max_tokens, talk.tokens + ids)
        if not request.max_tokens and (row := talk.rows_left(0, 1)):  # then what there is room for is what may be said
            room = self.talks.budget - talk.ledger.stored_bytes - talk.rows_left(ids, 0)
            limit = max(1, min(limit, room // row))
        self.talks.make_room(talk.ledger.stored_bytes + talk.rows_left(ids, limit))
        voice = Voice(chat, request.stop, job.tell)
        talk.picks, talk.hears = picker(request), voice.hear
        try:
            answer = talk.turn(pieces.asks[-1], limit)
        except Stopped as stopped:
            # The cache holds the stop string, and its client does not see it: nothing goes on from here.
            return self._done(talk, stopped.text, "stop", talk.tokens - stopped.tokens + 1, stopped.tokens, cached)
        voice.end(answer.text)
        self._keep(pieces, answer, talk)
        reason = "length" if answer.new_tokens == limit else "stop"
        return self._done(talk, voice.said, reason, answer.prompt_tokens, answer.new_tokens, cached)

    def _talk(self, pieces: Pieces, max_tokens: int) -> tuple[Talk, int, int]:
        """A talk to go on with, the answers that are behind it, and the tokens that it did not have to read."""
        found = self.talks.find(pieces)
        if found is not None:
            return *found, found[0].tokens
        chat, store = self.contexts.chat, self.contexts
        texts = [pieces.context, *pieces.asks, *pieces.answers]
        count = sum(len(chat.ids(text)) for text in texts)
        self._limit(max_tokens, count)
        before = store.reused
        talk = Talk.of(store.session(pieces.context))
        return talk, 0, store.reused - before

    def _limit(self, wanted: int, prompt: int) -> int:
        """Tokens that an answer may have behind `prompt` tokens. ValueError if the model has no positions for them."""
        most = self.contexts.positions
        if most is None:
            return wanted or self.answer
        if wanted or prompt >= most:
            try:
                check_length(self.model, prompt + max(wanted, 1))
            except ValueError as error:
                asked = f"{prompt:,} of the prompt and {max(wanted, 1):,} of the answer"
                raise ValueError(f"{error}: {asked}") from None
        return wanted or min(self.answer, most - prompt)

    def _keep(self, pieces: Pieces, answer: Answer, talk: Talk) -> None:
        said = Pieces(pieces.context, pieces.asks, (*pieces.answers, answer.text))
        del talk.picks, talk.hears  # they hold the request, and its client's connection
        self.talks.keep(said.key(len(said.answers)), talk)

    @staticmethod
    def _done(talk: Talk, text: str, reason: str, prompt: int, new: int, cached: int) -> Done:
        books = talk.ledger
        return Done(text, reason, prompt, new, min(cached, prompt), books.stored_bytes, books.full_bytes)

    def _check(self, module: Any, inputs: Any) -> None:
        """Before each forward in the worker's thread: go on only if somebody listens."""
        job = self._now
        if job is not None and job.gone and threading.current_thread() is self._thread:
            raise Gone

    def _note(self) -> None:
        store, talks, before = self.contexts, self.talks, self.state
        read = store.misses + store.continued
        if read > before.contexts_read or before.requests % COLLECT == 0:
            gc.collect()  # contexts that the store has let go, and what broke off: see `release`
        self.state = State(
            requests=before.requests + 1,
            conversations=len(talks),
            conversation_bytes=talks.bytes,
            contexts_read=read,
            context_hits=store.hits,
            context_bytes=store.bytes if read > before.contexts_read else before.context_bytes,
        )
