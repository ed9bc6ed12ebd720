"""The pieces joined are what the chat template renders for the whole conversation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kvledger import zoo
from kvledger.hf.chat import Chat, count
from kvledger.tasks import TASKS

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


BYTES = {"<|bos|>": 0, "<|end|>": 1, "<|user|>": 2, "<|assistant|>": 3, "<|system|>": 4}
HEADED = "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
TEMPLATES = {
    "llama 3: trimmed contents, line breaks after headers": (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n\n' + m['content'] | trim + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n\n' }}{% endif %}"
    ),
    "qwen 2: a system text of its own where none is given": (
        "{% if messages[0]['role'] != 'system' %}{{ '<|system|>\nBe helpful.<|end|>\n' }}{% endif %}"
        "{% for m in messages %}"
        + HEADED
        + "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "gemma: no system role, strict turns": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}"
        "{% endif %}" + HEADED + "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "mistral: no header before answers": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] + '<|assistant|>' }}"
        "{% else %}{{ m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    ),
}


def byte_tokenizer(template: str | None, adds_bos: bool = True) -> Any:
    """Every byte a token, so that nothing is joined over the borders of pieces; it puts a BOS of its own before texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({**BYTES, **{c: i + len(BYTES) for i, c in enumerate(alphabet)}}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|bos|>", eos_token="<|end|>", additional_special_tokens=list(BYTES)[2:]
    )
    made.chat_template = template
    return made


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("task", ["scbench/kv", "scbench/qa_eng_alike", "scbench/vt"])
def test_a_conversation_grown_by_turns_is_the_one_rendered_whole(template: str, task: str) -> None:
    """With gold answers as history, and with others, as a model would have given them."""
    tokenizer = byte_tokenizer(template)
    chat, sample = Chat(tokenizer), TASKS[task].sample(0, 0, 2500, len, 4, "small")
    for answers in ([turn.gold for turn in sample.turns], ["I do not know", " perhaps: (B)\n", "12", "x"]):
        before, after = chat.opening(sample.text, sample.turns[0].question)
        ids, messages = before + after, [{"role": "user", "content": sample.text + sample.turns[0].question}]
        for turn, answer in zip(sample.turns[1:], answers):
            ids += chat.answer(answer) + chat.follow_up(turn.question)
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn.question}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        whole = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert ids == whole
        assert ids.count(tokenizer.bos_token_id) == whole.count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_single_bos_with_a_template_and_without(adds_bos: bool) -> None:
    for template in (None, *TEMPLATES.values()):
        tokenizer = byte_tokenizer(template, adds_bos)
        chat = Chat(tokenizer)
        before, after = chat.opening("The text. ", "What?")
        ids = (
            before
            + after
            + chat.answer("This.")
            + chat.follow_up("And?")
            + chat.answer("That.")
            + chat.follow_up("So?")
        )
        wanted = adds_bos if template is None else "bos_token" in template
        assert ids.count(tokenizer.bos_token_id) == wanted
        assert not wanted or ids[0] == tokenizer.bos_token_id


def test_counting_is_tokenising() -> None:
    for words in (tiny.tokenizer(), tiny.tokenizer(True), AutoTokenizer.from_pretrained(str(zoo.path()))):
        for text in ("", "w7", tiny.text(30), " w7\n\nw8 <s> é 文 42 KO</s>"):
            assert count(words, text) == len(words(text, add_special_tokens=False)["input_ids"])
    words = copy.deepcopy(tiny.tokenizer())
    words.backend_tokenizer.enable_truncation(3)
    assert count(words, tiny.text(30)) == 30
