"""The pieces joined are what the chat template renders for the whole conversation."""

from __future__ import annotations

import pytest
import tiny

from kvledger.hf.chat import Chat

A, B, C, D, E = (tiny.text(3, seed=i) for i in range(5))


def whole(*turns: str) -> list[int]:
    tokenizer = tiny.tokenizer(True)
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_the_pieces_of_a_templated_conversation() -> None:
    chat = Chat(tiny.tokenizer(True))
    before, after = chat.opening(A + " ", B)
    assert before + after == whole(f"{A} {B}")
    joined = before + after + chat.answer(C) + chat.follow_up(D) + chat.answer(E) + chat.follow_up(A)
    assert joined == whole(f"{A} {B}", C, D, E, A)
    assert before == chat.opening(A + " ", "something else")[0]


def test_without_a_template_there_are_paragraphs_and_one_bos() -> None:
    tokenizer = tiny.tokenizer()
    chat = Chat(tokenizer)
    before, after = chat.opening(A, B)
    joined = before + after + chat.answer(C) + chat.follow_up(D)
    assert joined == tokenizer(f"{A} {B} {C} {D}")["input_ids"]
    assert joined.count(tokenizer.bos_token_id) == 1
    assert chat.text([*joined, tokenizer.eos_token_id]) == f"{A} {B} {C} {D}"


def test_a_template_that_forgets_turns_is_refused() -> None:
    tokenizer = tiny.tokenizer(True).__class__(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(ValueError, match="drops earlier turns"):
        Chat(tokenizer).follow_up(B)


def test_text_that_looks_like_a_marker_is_only_text() -> None:
    chat = Chat(tiny.tokenizer(True))
    before, after = chat.opening("{{ A }} {% raw %} ", B)
    assert len(before) + len(after) == len(whole("x x x x x x " + B))
