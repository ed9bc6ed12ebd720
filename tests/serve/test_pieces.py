"""The pieces of a conversation are what `Session.read` and `Session.ask` read, and joined they are what the template says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny

import kvledger as kv
from kvledger.hf.chat import Chat
from kvledger.serve.pieces import Rendered
from kvledger.serve.request import Message, Refused

CONTEXT, FIRST, SECOND = "w5 w6 w7", " w8 w9", "w10"
TRIMS = tiny.TEMPLATE.replace("m.content", "m.content | trim")
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.TEMPLATE
FORGETS = "{% for m in messages[-1:] %}<user> {{ m.content }} <end> <bot> {% endfor %}"


def tokenizer(template: str | None) -> Any:
    made = copy.deepcopy(tiny.tokenizer())
    made.chat_template = template
    return made


def user(*parts: str) -> Message:
    return Message("user", parts)


@pytest.mark.parametrize("template", [tiny.TEMPLATE, TRIMS, None], ids=["template", "trims", "plain"])
def test_the_tokens_of_a_conversation_are_those_that_a_session_reads(template: str | None) -> None:
    words = tokenizer(template)
    rendered, chat = Rendered(words), Chat(words)
    pieces = rendered.pieces([user(CONTEXT, FIRST + " "), Message("assistant", (" w11 ",)), user(SECOND)])
    context, question = chat.opening(CONTEXT, FIRST + " ")
    assert rendered.opening(pieces.context, "")[0] == context
    assert rendered.opening("", pieces.asks[0])[1] == question
    assert rendered.answer(pieces.answers[0]) == chat.answer(" w11 ")
    assert rendered.follow_up(pieces.asks[1]) == chat.follow_up(SECOND)
    assert rendered.opening("", "") == chat.opening("", "")


def test_all_of_them_joined_are_what_the_template_renders() -> None:
    words = kv.load("zoo")[1]
    turns = [("system", "be brief"), ("user", "the key?"), ("assistant", "kolu"), ("user", "sure?")]
    pieces = Rendered(words).pieces([Message(role, (text,)) for role, text in turns])
    texts = [pieces.context, pieces.asks[0], pieces.answers[0], pieces.asks[1]]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert "".join(texts) == words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert pieces.context.endswith("<|end|><|user|>")


@pytest.mark.parametrize("template", [tiny.TEMPLATE, None], ids=["template", "plain"])
def test_a_message_alone_is_the_context_and_nothing_is_asked_of_it(template: str | None) -> None:
    words = tokenizer(template)
    pieces = Rendered(words).pieces([user(CONTEXT)])
    before, after = Chat(words).opening(CONTEXT, "")
    assert Rendered(words).opening(pieces.context, "")[0] == before
    assert Rendered(words).opening("", pieces.asks[0])[1] == after


def test_a_system_message_is_the_context_of_the_first_question() -> None:
    words = tokenizer(tiny.TEMPLATE.replace("m.role == 'user'", "m.role != 'assistant'"))
    pieces = Rendered(words).pieces([Message("system", (CONTEXT,)), user("w8")])
    assert CONTEXT in pieces.context
    assert pieces.asks[0].startswith("w8")
    plain = Rendered(tiny.tokenizer()).pieces([Message("system", (CONTEXT,)), user("w8")])
    assert (plain.context, plain.asks) == (CONTEXT + "\n\n", ("w8\n",))


@pytest.mark.parametrize(
    "template, words", [(STRICT, "no system role"), (FORGETS, "drops or repeats"), ("{{ nothing.at.all }}", "refuses")]
)
def test_what_a_template_cannot_render_is_refused(template: str, words: str) -> None:
    messages = [Message("system", ("w5",)), user("w6"), Message("assistant", ("w7",)), user("w8")]
    with pytest.raises(Refused, match=words) as found:
        Rendered(tokenizer(template)).pieces(messages)
    assert found.value.status == 400


def test_a_message_cannot_forge_a_seam() -> None:
    with pytest.raises(Refused, match="marks seams"):
        Rendered(tiny.tokenizer()).pieces([user("w5 \u2402seam\u2403 w6")])


def test_a_conversation_is_known_by_all_that_was_said_but_blanks_around_answers() -> None:
    def key(context: str = "w5", ask: str = "w6", answer: str = "w7") -> str:
        turns = [user(context, ask), Message("assistant", (answer,)), user("w8")]
        return Rendered(tiny.tokenizer(template=True)).pieces(turns).key(1)

    assert key() == key(answer=" w7\n")
    assert len({key(), key(context="w9"), key(ask="w9"), key(answer="w9")}) == 4


def test_the_template_that_stands_before_the_context_can_be_protected() -> None:
    words = kv.load("zoo")[1]
    rendered = Rendered(words)
    context = rendered.pieces([user("the key is kolu", "which?")]).context
    assert rendered.places(context, [], system=True) == Chat(words).places("the key is kolu", [], system=True) == {0, 1}
