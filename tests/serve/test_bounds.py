"""The worker's bounds: memory, positions, places in the queue; no client can hurt another, and nothing of one is left."""

from __future__ import annotations

import gc
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import tiny
from serving import NEW, QUESTIONS, SNAP, answered, conversation, engine, first, request, session

from kvledger.hf.cache import arenas
from kvledger.serve.engine import Done, Engine
from kvledger.serve.request import Refused


def test_memory_keeps_to_its_bound_and_what_was_used_last_stays() -> None:
    with engine("full") as made:
        one = conversation(made, QUESTIONS[:1])[0].kv_bytes
    with engine("full", memory=8 * one) as made:
        for i in range(12):
            conversation(made, QUESTIONS[:2], context=tiny.text(60, seed=100 + i))
            assert made.contexts.bytes <= 4 * one
            assert made.talks.bytes <= 4 * one
        assert len(made.talks) >= 2
        done = conversation(made, QUESTIONS[:1], context=tiny.text(60, seed=111))[0]
        assert done.cached_tokens > 60


def test_short_contexts_are_read_anew_and_not_kept() -> None:
    with engine(share=100) as made:
        found = [conversation(made, QUESTIONS[:2]) for _ in range(2)]
        assert (made.contexts.bytes, made.state.contexts_read) == (0, 0)
    alone = session(SNAP)
    assert [done.text for done in found[0]] == [alone.ask(question, NEW) for question in QUESTIONS[:2]]
    assert found[0][0] == found[1][0]
    assert found[1][0].cached_tokens == 0


def test_what_is_held_is_what_is_counted() -> None:
    with engine("full") as made:
        conversation(made, QUESTIONS[:3])
        talks = list(made.talks._talks.values())
        assert len(talks) == 3
        assert made.talks.bytes == sum(talk.ledger.stored_bytes for talk in talks)
        made.talks.make_room(made.talks.budget)
        assert (len(made.talks), made.talks.bytes) == (0, 0)


def test_a_conversation_that_cannot_fit_is_told_the_figures() -> None:
    with engine("full", memory=2 * 120_000) as made:
        done, _ = answered(made, first(QUESTIONS[0]), max_tokens=2)
        assert isinstance(done, Done)
        refused, _ = answered(made, first(QUESTIONS[0]), max_tokens=200)
        assert isinstance(refused, Refused)
        assert (refused.status, refused.code) == (400, "memory_limit")
        assert "120,000" in str(refused)
        big, _ = answered(made, first(QUESTIONS[0], context=tiny.text(300)), max_tokens=2)
        assert "the store may hold 120,000" in str(big)
        assert answered(made, first(QUESTIONS[0]), max_tokens=2)[0].text == done.text


def test_a_prompt_past_the_models_positions_is_told_the_figures_before_it_is_read() -> None:
    with engine() as made:
        refused, _ = answered(made, first(QUESTIONS[0], context=tiny.text(600)))
        assert (refused.status, refused.code) == (400, "context_length_exceeded")
        assert "512 positions" in str(refused)
        asked, _ = answered(made, first(QUESTIONS[0]), max_tokens=500)
        assert "512 positions" in str(asked)
        assert "500 of the answer" in str(asked)
        assert made.state.contexts_read == 0
        tight, _ = answered(made, first(QUESTIONS[0], context=tiny.text(500)), stop=["never"])
        assert (tight.reason, tight.new_tokens) == ("length", 512 - tight.prompt_tokens)


class Held:
    """Keeps the model's first forward waiting until it is let go."""

    def __init__(self) -> None:
        self.started, self.go = threading.Event(), threading.Event()

    def __enter__(self) -> Held:
        self._handle = tiny.model().register_forward_pre_hook(self._wait)
        return self

    def __exit__(self, *error: Any) -> None:
        self.go.set()
        self._handle.remove()

    def _wait(self, module: Any, inputs: Any) -> None:
        self.started.set()
        assert self.go.wait(30)


def test_the_queue_is_bounded_and_who_leaves_gives_the_place_back() -> None:
    with engine(places=2) as made, Held() as held:
        events: list[queue.Queue[Any]] = [queue.Queue() for _ in range(5)]
        running = made.submit(request(first(QUESTIONS[0])), events[0].put)
        assert held.started.wait(30)
        waits = [made.submit(request(first(QUESTIONS[0])), events[i].put) for i in (1, 2)]
        with pytest.raises(Refused, match="all 2 places") as full:
            made.submit(request(first(QUESTIONS[0])), events[3].put)
        assert full.value.status == 429
        assert full.value.retry >= 1
        made.cancel(waits[0])
        assert made.waiting == 1
        made.submit(request(first(QUESTIONS[1])), events[4].put)
        made.cancel(running)
        held.go.set()
        assert isinstance(events[0].get(timeout=30), Refused)
        for i, question in ((2, QUESTIONS[0]), (4, QUESTIONS[1])):
            while isinstance(event := events[i].get(timeout=30), str):
                pass
            assert event.text == session(SNAP).ask(question, NEW)
        assert events[1].empty()


def test_who_leaves_in_the_middle_of_an_answer_is_not_worked_for() -> None:
    with engine("full") as made:
        calls, events = [0], queue.Queue[Any]()
        handle = tiny.model().register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
        try:
            job: list[Any] = []
            ready = threading.Event()

            def tell(event: Any) -> None:
                ready.wait(30)
                made.cancel(job[0])
                events.put(event)

            job.append(made.submit(request(first(QUESTIONS[0]), max_tokens=300), tell))
            ready.set()
            while isinstance(events.get(timeout=30), str):
                pass
        finally:
            handle.remove()
        assert calls[0] < 10
        assert conversation(made, QUESTIONS[:1])[0].text == session("full").ask(QUESTIONS[0], NEW)


def broken(*_: Any) -> None:
    raise RuntimeError("no memory left on the device")


@pytest.mark.parametrize("where", ["forward", "tell"])
def test_a_request_that_breaks_does_not_end_the_worker(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    with engine() as made:
        if where == "forward":
            handle = tiny.model().register_forward_pre_hook(broken)
            refused, _ = answered(made, first(QUESTIONS[0]))
            handle.remove()
            assert refused.status == 500
            assert "no memory left" in capsys.readouterr().err
        else:
            made.submit(request(first(QUESTIONS[0])), broken)
        assert isinstance(answered(made, first(QUESTIONS[0]))[0], Done)


def test_closing_tells_who_waits_and_leaves_the_model_as_it_was() -> None:
    events: list[queue.Queue[Any]] = [queue.Queue(), queue.Queue()]
    hooks = len(tiny.model()._forward_pre_hooks)
    made = Engine(tiny.model(), tiny.tokenizer(), SNAP, 16)
    with Held() as held:
        for one in events:
            made.submit(request(first(QUESTIONS[0])), one.put)
        assert held.started.wait(30)
        closing = threading.Thread(target=made.close)
        closing.start()
        assert events[1].get(timeout=30).status == 503
        held.go.set()
        closing.join(30)
    assert events[0].get(timeout=30).status == 503
    assert len(tiny.model()._forward_pre_hooks) == hooks
    with pytest.raises(Refused, match="closing"):
        made.submit(request(first(QUESTIONS[0])), events[0].put)


def test_a_talk_that_is_let_go_gives_its_buffers_back_at_once() -> None:
    with engine("full") as made:
        conversation(made, QUESTIONS[:2])
        buffers = [weakref.ref(layer.arena.k) for talk in made.talks._talks.values() for layer in arenas(talk.cache)]
        assert all(buffer() is not None for buffer in buffers)
        gc.disable()
        try:
            made.talks.make_room(made.talks.budget)
            assert [buffer() for buffer in buffers] == [None] * len(buffers)
        finally:
            gc.enable()


def test_nothing_of_an_answered_request_is_held() -> None:
    with engine() as made:
        events: queue.Queue[Any] = queue.Queue()

        class Tell:
            def __call__(self, event: Any) -> None:
                events.put(event)

        tell: Callable[[Any], None] = Tell()
        made.submit(request(first(QUESTIONS[0])), tell)
        gone = weakref.ref(tell)
        del tell
        while isinstance(events.get(timeout=30), str):
            pass
        answered(made, first(QUESTIONS[1]))
        gc.collect()
        assert gone() is None
