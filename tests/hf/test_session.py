"""Sessions: read once, ask, branch, go back; and every misuse is refused."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

import kvledger as kv
from kvledger.hf.cache import arenas
from kvledger.hf.session import Session
from kvledger.recipe import parse

SNAP = "snapkv(keep=0.4, window=6)"
CONTEXT, QUESTION, SECOND, GOLD = tiny.text(40), tiny.text(4, seed=1), tiny.text(3, seed=2), tiny.text(5, seed=3)
NEW = 6


def opened(recipe: str = "full", chunk: int = 0, kind: str = "llama", template: bool = False) -> Session:
    made = tiny.model(kind) if kind != "llama" else tiny.model(kind, torch.float64)
    return kv.open(made, tiny.tokenizer(template), recipe, chunk)


def prompt(template: bool, *parts: str) -> list[int]:
    """Ids of a whole conversation: context, question, answer, question, …"""
    if not template:
        return tiny.tokenizer()(" ".join(parts))["input_ids"]
    first = [f"{parts[0]} {parts[1]}", *parts[2:]]
    messages = [{"role": ("user", "assistant")[i % 2], "content": part} for i, part in enumerate(first)]
    rendered = tiny.tokenizer(True).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tiny.tokenizer(True)(rendered, add_special_tokens=False)["input_ids"]


def plain(made: Any, ids: list[int], count: int = NEW) -> str:
    """What plain transformers answers to these ids: up to the stop token."""
    with tiny.implementation(made, "eager"):
        new = tiny.generated(made, torch.tensor([ids]), count)[0]
    stop = tiny.tokenizer().eos_token_id
    return tiny.tokenizer().decode(new[: new.index(stop)] if stop in new else new, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@pytest.mark.parametrize("template", [False, True])
@pytest.mark.parametrize("chunk", [0, 7])
@pytest.mark.parametrize("known", [False, True])
def test_full_answers_as_plain_transformers_does(kind: str, template: bool, chunk: int, known: bool) -> None:
    session = opened("full", chunk, kind, template)
    if known:
        session.read(CONTEXT + " ", QUESTION)
        answer = session.answer(NEW, gold=GOLD)
    else:
        session.read(CONTEXT + " ")
        answer = session.turn(QUESTION, NEW, gold=GOLD)
    ids = prompt(template, CONTEXT, QUESTION)
    assert answer.text == plain(session.model, ids)
    assert answer.prompt_tokens == len(ids) == session.tokens
    second = session.turn(SECOND, NEW)
    ids = prompt(template, CONTEXT, QUESTION, GOLD, SECOND)
    assert second.text == plain(session.model, ids)
    assert second.prompt_tokens == len(ids)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_gold_history_leaves_the_cache_of_a_fresh_run(kind: str) -> None:
    told, fresh = opened("full", 0, kind), opened("full", 0, kind)
    told.read(CONTEXT)
    told.ask(QUESTION, NEW, gold=GOLD)
    told.ask(SECOND, NEW, gold=GOLD)
    fresh.read(" ".join([CONTEXT, QUESTION, GOLD, SECOND]))
    assert told.tokens == fresh.tokens
    for ours, theirs in zip(told.cache.layers, fresh.cache.layers):
        assert ours.get_seq_length() == theirs.get_seq_length()
        if hasattr(ours, "arena"):
            assert ours.arena.length == theirs.arena.length
            for s in range(len(ours.arena.start)):
                one, two = ours.arena.k[ours.arena.segment(s)], theirs.arena.k[theirs.arena.segment(s)]
                torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(ours.keys, theirs.keys[..., -ours.keys.shape[-2] :, :], rtol=1e-4, atol=1e-4)
    books = [session.ledger for session in (told, fresh)]
    assert books[0].full_bytes - books[0].other_bytes == books[1].full_bytes - books[1].other_bytes


@pytest.mark.parametrize("template", [False, True])
def test_model_history_shows_the_models_own_answer(template: bool) -> None:
    session = opened("full", 0, template=template)
    session.read(CONTEXT + " ")
    first = session.ask(QUESTION, NEW)
    assert len(first.split()) == NEW
    second = session.ask(SECOND, NEW)
    assert second == plain(session.model, prompt(template, CONTEXT, QUESTION, first, SECOND))
    assert session.ledger.footprint == 1


def test_asking_without_reading_is_a_plain_question() -> None:
    session = opened()
    assert session.ask(QUESTION, NEW) == plain(session.model, prompt(False, QUESTION))


@pytest.mark.parametrize("chunk", [0, 9])
@pytest.mark.parametrize("when", ["prompt", "chunk"])
def test_hidden_questions_do_not_change_what_is_kept(chunk: int, when: str) -> None:
    recipe = f"snapkv(keep=0.4, window=6, when={when!r})"
    hidden, visible = opened(recipe, chunk), opened(recipe, chunk)
    hidden.read(CONTEXT)
    visible.read(CONTEXT, QUESTION)
    rows, seen = 41, 45
    kept = [0.4 * part for part in ([9] * 4 + [rows - 36] if chunk and when == "chunk" else [rows])]
    assert {n for layer in arenas(hidden.cache) for n in layer.arena.length} == {sum(int(n) for n in kept)}
    last = set(range(seen - 3, seen))
    assert all(rows >= last for layer in tiny.alive(visible.cache) for rows in layer)
    assert visible.tokens == seen
    assert hidden.ask(QUESTION, NEW).split()
    assert hidden.tokens == seen + NEW - 1


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_branch_is_a_branch(kind: str) -> None:
    trunk = opened(SNAP, kind=kind)
    trunk.read(CONTEXT)
    first, second = trunk.fork(), trunk.fork()
    one = first.ask(QUESTION, NEW)
    assert trunk.tokens == 41
    assert second.ask(QUESTION, NEW) == one
    again = first.ask(SECOND, NEW)
    assert second.fork().ask(SECOND, NEW) == again
    assert trunk.fork().ask(SECOND, NEW) == opened_and_read(SNAP, kind).ask(SECOND, NEW)
    assert trunk.ledger.full_bytes < first.ledger.full_bytes


def opened_and_read(recipe: str, kind: str) -> Session:
    session = opened(recipe, kind=kind)
    session.read(CONTEXT)
    return session


def test_an_answer_knows_its_figures() -> None:
    session = opened(SNAP)
    session.read(CONTEXT)
    held = session.ledger.stored_bytes, session.ledger.full_bytes
    answer = session.turn(QUESTION, NEW)
    assert (answer.stored_bytes, answer.full_bytes) == held
    assert held[0] < 0.42 * held[1]
    assert (answer.prompt_tokens, answer.new_tokens) == (45, NEW)
    assert 0 < answer.ttft_seconds <= answer.seconds
    later = session.turn(SECOND, NEW)
    assert later.full_bytes > answer.full_bytes


def test_generation_stops_at_the_stop_token() -> None:
    session = opened("full")
    session.read(CONTEXT)
    words = session.fork().ask(QUESTION, NEW).split()
    tokens = session.chat.tokenizer.convert_tokens_to_ids(words)
    before = session.model.generation_config.eos_token_id
    try:
        session.model.generation_config.eos_token_id = [tokens[2], 0]
        answer = session.turn(QUESTION, NEW)
    finally:
        session.model.generation_config.eos_token_id = before
    assert answer.text.split() == words[: tokens.index(tokens[2])]


@pytest.mark.parametrize(
    "recipe, chunk, message",
    [
        ("snapkv(window=8, when='chunk')", 7, "chunk=7 is smaller than the window .*8 queries"),
        ("snapkv(window=8)", 7, "chunk=7 is smaller than the window .*8 queries"),
        ("full", -1, "chunk=-1 is negative"),
        ("snapvk", 0, "did you mean 'snapkv'"),
    ],
)
def test_what_cannot_be_opened(recipe: str, chunk: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(recipe, chunk)


def test_the_last_queries_are_remembered_across_chunks() -> None:
    window = parse(SNAP).method.window
    session, once = opened(SNAP, window), opened(SNAP, 0)
    for each in (session, once):
        each.read(CONTEXT)
    assert session.tokens % window, "the last chunk is shorter than the window"
    assert tiny.alive(session.cache) == tiny.alive(once.cache)


def test_wrong_order_is_refused() -> None:
    session = opened()
    with pytest.raises(ValueError, match="no question waits"):
        session.answer()
    session.read(CONTEXT)
    with pytest.raises(ValueError, match="no question waits"):
        session.answer()
    with pytest.raises(ValueError, match="has read its context"):
        session.read(CONTEXT)
    session.ask(QUESTION, 2)
    with pytest.raises(ValueError, match="no question waits"):
        session.answer()
    visible = opened()
    visible.read(CONTEXT, QUESTION)
    with pytest.raises(ValueError, match="call `answer` first"):
        visible.ask(SECOND)


def test_nothing_to_read_is_refused() -> None:
    made = tiny.model("llama", torch.float64)
    bare = tiny.tokenizer().__class__(tokenizer_object=tiny.tokenizer().backend_tokenizer, eos_token="</s>")
    bare.backend_tokenizer.post_processor = None
    session = kv.open(made, bare, "full")
    with pytest.raises(ValueError, match="context is empty"):
        session.read("")
    with pytest.raises(ValueError, match="question is empty"):
        session.ask("")
    assert session.tokens == 0


def test_what_does_not_fit_is_refused_and_harms_nothing() -> None:
    session = opened()
    with pytest.raises(ValueError, match="601 tokens do not fit into the 512 positions of 'llama'"):
        session.read(tiny.text(600))
    session.read(tiny.text(500))
    with pytest.raises(ValueError, match="525 tokens do not fit"):
        session.ask(QUESTION, max_new_tokens=20)
    assert session.tokens == 501
    assert session.ask(QUESTION, max_new_tokens=7)
    visible = opened()
    visible.read(tiny.text(500), QUESTION)
    with pytest.raises(ValueError, match="525 tokens do not fit"):
        visible.answer(20)
