"""What the built-in sources of training data hold: the standard library, passkeys, conversations of the tasks."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from packs import embedded, sound, spans, turns_of

from kvledger.tasks import TASKS
from kvledger.train import corpus, dialogues
from kvledger.train.data import open_stream


def test_the_standard_library_is_without_tests_and_packages() -> None:
    shelf = corpus.standard_library(embedded(), 0)
    assert shelf.count > 300
    names = {str(path) for path in corpus._walk(Path(json.__file__).parents[1], (".py",), corpus.APART)}
    assert json.__file__ in names
    assert not [n for n in names if "site-packages" in n or "/test/" in n or "/tests/" in n]
    assert shelf.count == len(names)


@pytest.mark.parametrize("seq_len", [400, 1500])
def test_passkeys_are_hidden_in_the_text_and_asked_at_its_end(seq_len: int) -> None:
    tokenizer = embedded()
    stream = open_stream("passkeys:4", tokenizer, seq_len, 0)
    conversations, depths = [], []
    for packed in islice(stream.sequences(), 6):
        assert sound(packed, seq_len)
        answers = turns_of(packed, tokenizer)
        for span in spans(packed):
            text = tokenizer.decode(span)
            if text.startswith("<|bos|>"):
                own, answers = answers[:4], answers[4:]
                book, asked = text.split("The text ends here.")
                hidden = [book.index(f'": "{answer}"') / len(book) for answer in own]
                assert hidden == sorted(hidden)
                assert [asked.count(f"{answer}<|end|>") + asked.endswith(answer) for answer in own] == [1] * 4
                depths += hidden
                conversations.append(len(span))
        assert not answers
    assert min(depths) < 0.25
    assert max(depths) > 0.75
    assert len(set(conversations)) > 3 or seq_len == 400


def test_passkeys_for_a_large_vocabulary_are_words_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogues, "SMALL_VOCABULARY", 100)
    packed = next(open_stream("passkeys:2", embedded(), 1200, 0).sequences())
    first, second = turns_of(packed, embedded())[:2]
    assert len(first.split()) == len(second.split()) == 32
    text = embedded().decode(packed.ids)
    assert text.index("first passkey to the vault: " + first) < text.index("second passkey to the vault: " + second)
    assert text.count(first) == 2


@pytest.mark.parametrize("name", [*dialogues.FAR_BACK.split(","), "ruler/niah_multikey_2", "helmet/json_kv"])
def test_tasks_are_conversations_with_gold_answers(name: str) -> None:
    tokenizer, seq_len = embedded(), 700
    source = dialogues.Dialogues(tokenizer, dialogues.choose(name), seq_len, 5)
    for number in range(2):
        packed = source.sequence(number)
        assert sound(packed, seq_len)
        assert len(packed.starts) <= 2
        learned, room = turns_of(packed, tokenizer), len(packed.ids) - packed.starts[-1]
        assert len(packed.starts) == 1 or room <= seq_len // 8
        text = tokenizer.decode(packed.ids)
        assert all("<|assistant|>" + answer in text for answer in learned)
        assert all(answer.strip() for answer in learned)
        assert len(learned) == text.count("<|assistant|>")


def test_tasks_are_drawn_with_seeds_that_no_evaluation_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    make = TASKS["scbench/kv"].make

    def spy(seed: int, *arguments: Any, **options: Any) -> Any:
        seen.append((seed, options["form"]))
        return make(seed, *arguments, **options)

    monkeypatch.setitem(TASKS, "scbench/kv", replace(TASKS["scbench/kv"], make=spy))
    first = next(open_stream("tasks:scbench/kv", embedded(), 256, 7).sequences())
    assert set(seen) == {(1_000_007, "small")}
    monkeypatch.setattr(dialogues, "SMALL_VOCABULARY", 1024)
    seen.clear()
    assert next(open_stream("tasks:scbench/kv", embedded(), 1024, 7).sequences()) != first
    assert set(seen) == {(1_000_007, "full")}


def test_all_tasks_take_part_and_none_is_asked_the_same_twice() -> None:
    tokenizer = embedded()
    stream = open_stream("tasks", tokenizer, 512, 0)
    texts = [tokenizer.decode(packed.ids) for packed in islice(stream.sequences(), 24)]
    assert len({text.split("<|user|>")[1][:30] for text in texts}) == len(dialogues.FAR_BACK.split(","))
    for text in texts:
        questions = [part.split("<|assistant|>")[0][-60:] for part in text.split("<|user|>")[1:]]
        assert len(set(questions)) == len(questions)
