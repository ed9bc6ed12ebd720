"""The worker: answers are those of `Session.ask`, and are drawn, cut and told as they were asked for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import models
import pytest
import tiny
import torch
from serving import CONTEXT, NEW, QUESTIONS, SNAP, answered, conversation, engine, first, request, session

import kvledger as kv
from kvledger.serve.engine import Engine
from kvledger.serve.talk import Stopped, Voice, picker

# ---- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize(
    "recipe",
    ["full", SNAP, "h2o(keep=0.5, every=3)", "headgate(path='random:0', keep=0.5, sink=2, window=8)",
     "kvzip(keep=0.5, chunk=20)", "adakv(keep=0.3, when='chunk', window=4) + protect(question=True, sinks=2)"],
)  # fmt: skip
def test_five_turns_are_answered_as_a_session_answers_them(recipe: str, template: bool) -> None:
    alone = session(recipe, template)
    wanted = [alone.turn(question, NEW) for question in QUESTIONS]
    with engine(recipe, template) as made:
        found = conversation(made, QUESTIONS)
    assert [done.text for done in found] == [answer.text for answer in wanted]
    assert len({done.text for done in found}) > 1
    assert [done.prompt_tokens for done in found] == [answer.prompt_tokens for answer in wanted]
    assert [done.new_tokens for done in found] == [answer.new_tokens for answer in wanted]
    assert found[0].cached_tokens == 0
    assert all(done.cached_tokens >= before.prompt_tokens for before, done in pairwise(found))
    assert found[-1].full_kv_bytes == alone.ledger.full_bytes


def test_conversations_over_one_context_read_it_once_and_do_not_touch_each_other() -> None:
    wanted = []
    for i in range(4):
        alone = session(SNAP)
        wanted.append([alone.ask(question, NEW) for question in (QUESTIONS[i], QUESTIONS[0])])
    with engine() as made:
        messages = [first(QUESTIONS[i]) for i in range(4)]
        found: list[list[Any]] = [[] for _ in range(4)]
        for _ in range(2):  # turn by turn, so that they are interleaved
            for mine, dones in zip(messages, found):
                dones.append(answered(made, mine)[0])
                mine += [{"role": "assistant", "content": dones[-1].text}, {"role": "user", "content": QUESTIONS[0]}]
        state = made.state
    assert [[done.text for done in dones] for dones in found] == wanted
    assert (state.contexts_read, state.context_hits) == (1, 3)
    assert all(dones[0].cached_tokens > 60 for dones in found[1:])


def test_a_turn_that_is_asked_again_goes_on_from_the_same_place() -> None:
    with engine() as made:
        before = conversation(made, QUESTIONS[:2])
        again, _ = answered(
            made,
            [
                *first(QUESTIONS[0]),
                {"role": "assistant", "content": before[0].text},
                {"role": "user", "content": QUESTIONS[1]},
            ],
        )
    assert again == before[1]


def test_turns_that_no_cache_holds_are_read_as_history() -> None:
    alone = session(SNAP)
    alone.ask(QUESTIONS[0], NEW, gold="w7 w8")
    wanted = alone.ask(QUESTIONS[1], NEW)
    messages = [
        *first(QUESTIONS[0]),
        {"role": "assistant", "content": "w7 w8"},
        {"role": "user", "content": QUESTIONS[1]},
    ]
    with engine() as made:
        done, _ = answered(made, messages)
    assert done.text == wanted
    assert done.cached_tokens == 0


def test_a_stop_string_ends_the_answer_and_is_not_told() -> None:
    with engine() as made:
        whole, _ = answered(made, first(QUESTIONS[0]))
        words = whole.text.split(" ")
        done, told = answered(made, first(QUESTIONS[0]), stop=[words[2] + " " + words[3], "never"])
        after, _ = answered(made, first(QUESTIONS[0]))
    assert done.text == "".join(told) == " ".join(words[:2]) + " "
    assert (done.reason, done.prompt_tokens) == ("stop", whole.prompt_tokens)
    assert 4 <= done.new_tokens <= whole.new_tokens
    assert after.text == whole.text


def test_an_answer_ends_where_it_is_told_to_or_by_itself() -> None:
    with engine() as made:
        cut, _ = answered(made, first(QUESTIONS[1]), max_tokens=2)
        assert (cut.reason, cut.new_tokens) == ("length", 2)
        ends = tiny.tokenizer().convert_tokens_to_ids(cut.text.split()[1])
        tiny.model().generation_config.eos_token_id = ends
        try:
            done, _ = answered(made, first(QUESTIONS[1]))
        finally:
            tiny.model().generation_config.eos_token_id = None
    assert (done.reason, done.text) == ("stop", cut.text.split()[0])


# ---- drawing -----------------------------------------------------------------------------------------------------


def test_drawing_repeats_with_a_seed_and_follows_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    pick = picker(request([{"role": "user", "content": "x"}], temperature=1, seed=3))
    counts = torch.bincount(torch.tensor([pick(logits) for _ in range(2000)]), minlength=4) / 2000
    assert torch.allclose(counts, logits.exp(), atol=0.05)
    nucleus = picker(request([{"role": "user", "content": "x"}], temperature=1, top_p=0.7, seed=3))
    assert {nucleus(logits) for _ in range(200)} == {0, 1}
    with engine() as made:
        drawn = [answered(made, first(QUESTIONS[0]), temperature=2, seed=seed)[0].text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_voice_holds_back_half_characters_and_half_stop_strings() -> None:
    pieces = {1: b"a", 2: "é".encode()[:1], 3: "é".encode()[1:], 4: b"<st", 5: b"op>", 6: b"b"}

    class Bytes:
        @staticmethod
        def text(ids: list[int]) -> str:
            return b"".join(pieces[i] for i in ids).decode(errors="replace")

    told: list[str] = []
    voice = Voice(Bytes(), (), told.append)  # type: ignore[arg-type]
    for token in (1, 2, 3, 6):
        voice.hear(token)
    voice.end("aéb")
    assert told == ["a", "é", "b"]
    told.clear()
    voice = Voice(Bytes(), ("<stop>",), told.append)  # type: ignore[arg-type]
    for token in (1, 4, 6, 1, 1, 1, 1, 4):
        voice.hear(token)
    with pytest.raises(Stopped, match="stop string") as stopped:
        voice.hear(5)
    assert "".join(told) == stopped.value.text == "a<stbaaaa"


@pytest.mark.parametrize("kind, chunk", [("mamba2", 16), ("bamba", 16), ("qwen3_next", 16), ("jamba", 0)])
def test_models_with_a_state_hold_conversations(kind: str, chunk: int) -> None:
    """A state takes the same bytes whatever is said, so that no row says how long an answer may be."""
    model = models.model(kind)
    alone = kv.open(model, tiny.tokenizer(True), "full", chunk)
    alone.read(CONTEXT)
    made = Engine(model, tiny.tokenizer(True), "full", chunk=chunk, answer=NEW, share=1)
    try:
        found, again = conversation(made, QUESTIONS[:3]), conversation(made, QUESTIONS[:1])
    finally:
        made.close()
    assert [done.text for done in found] == [alone.ask(question, NEW) for question in QUESTIONS[:3]]
    assert again[0].text == found[0].text
    assert again[0].cached_tokens > 60


def test_chunks_that_a_model_would_forget_are_refused_when_it_is_served() -> None:
    with pytest.raises(ValueError, match="chunk=0"):
        Engine(models.model("jamba"), tiny.tokenizer(True), "full", chunk=16)
