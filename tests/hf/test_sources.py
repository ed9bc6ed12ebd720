"""Sessions with a source: what is read, what is booked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from sourced import QUESTION, SECOND, TEXT, opened, store, told

import kvledger as kv
from kvledger.run.readings import Readings

# ---- shorter texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_a_shorter_context_is_read_and_nothing_else_is_touched(template: bool, known: bool) -> None:
    session = opened("selfinfo(keep=0.5)", template=template)
    ids = session.prompt(TEXT, QUESTION if known else None)
    before, after = session.chat.opening(TEXT, QUESTION)
    words = [session.chat.tokenizer.convert_ids_to_tokens(i) for i in ids]
    tail = after if known else []
    assert ids[len(ids) - len(tail) :] == tail
    assert session.run.ledger.skipped == len(before) + len(tail) - len(ids) == 30
    around = words[: 2 if template else 1]
    assert around == session.chat.tokenizer.convert_ids_to_tokens(before[: len(around)])
    rest = iter(TEXT.split())
    assert all(word in rest for word in words[len(around) : len(ids) - len(tail)])
    assert session.prompt(TEXT, QUESTION if known else None) == ids
    assert session.context_hash == opened("full", template=template).hash_of(TEXT)


def test_the_full_cache_is_that_of_the_whole_context() -> None:
    for chunk in (0, 7):
        short, full = opened("selfinfo(keep=0.5)", chunk), opened("full", chunk)
        short.read(TEXT)
        full.read(TEXT)
        n, N = short.tokens, full.tokens
        assert (n, N) == (31, 61)
        assert short.ledger.footprint == pytest.approx(n * (n + 1) / (N * (N + 1)))
        assert short.ledger.prefill_work == pytest.approx(n * (n + 1) / (N * (N + 1)))
        assert short.ledger.full_bytes == full.ledger.full_bytes == short.ledger.full_peak_bytes
        assert short.ledger.stored_bytes * N == full.ledger.stored_bytes * n
        assert short.ledger.peak == pytest.approx(n / N)
        assert short.turn(QUESTION, 1).full_bytes == full.turn(QUESTION, 1).full_bytes
        assert short.ledger.full_bytes == full.ledger.full_bytes


@pytest.mark.parametrize("recipe", ["", " + snapkv(keep=0.5, window=4)", " + int8"])
def test_keeping_all_is_as_without(recipe: str) -> None:
    with_it, without = opened(f"selfinfo(keep=1.0){recipe}"), opened(recipe.removeprefix(" + ") or "full")
    assert told(with_it) == told(without)
    assert with_it.ledger.footprint == without.ledger.footprint
    assert with_it.ledger.skipped == 0


def test_protected_spans_are_read_and_stay() -> None:
    at = TEXT.index(" ", 40) + 1
    span = at, TEXT.index(" ", at + 20)
    words = TEXT[slice(*span)].split()
    session = opened("selfinfo(keep=0.5) + snapkv(keep=0.4, window=4)")
    session.read(TEXT, protect=[span])
    ids = session.prompt(TEXT, protect=[span])
    pinned = sorted(session.run.pinned)
    assert session.chat.tokenizer.convert_ids_to_tokens([ids[i] for i in pinned]) == words
    assert all(set(pinned) <= kept for layer in tiny.alive(session.cache) for kept in layer)


def test_a_source_works_once_for_all_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvledger.hf import prompting

    asked: list[int] = []
    true = prompting.surprise
    monkeypatch.setattr(prompting, "surprise", lambda *given: (asked.append(1), true(*given))[1])
    recipe = "selfinfo(keep=0.5)"
    readings = Readings(tiny.model(), tiny.tokenizer(), (recipe,))
    parsed = opened(recipe).recipe
    seconds = []
    for question in (None, QUESTION, SECOND):
        session = readings.read(parsed, 8, TEXT, question, lambda one: ())
        alone = opened(recipe, 8)
        alone.chat = readings.chat
        alone.read(TEXT, question)
        assert alone.ledger.curve() == session.ledger.curve()
        assert alone.ledger.footprint == session.ledger.footprint
        assert torch.equal(store(alone, 31)[0], store(session, 31)[0])
        seconds.append((session.made_seconds, session.reading_seconds))
    assert len(asked) == 1
    assert len({made for made, _ in seconds}) == 1
    assert all(0 < made < reading for made, reading in seconds)  # each request is charged with it, once


# ---- elsewhere -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["selfinfo(keep=0.5)", "cacheblend(chunk=16)", "cacheblend(chunk=16) + int8"])
def test_kept_and_saved_as_any_session(recipe: str, tmp_path: Path) -> None:
    made, words = tiny.model(), tiny.tokenizer()
    session = opened(recipe, 8)
    session.read(TEXT)
    wanted = session.fork().ask(QUESTION, 6)
    prefixes = kv.Prefixes(made, words, recipe, chunk=8)
    for _ in range(2):
        found = prefixes.session(TEXT)
        assert (found.ledger.footprint, found.ledger.full_bytes) == (
            session.ledger.footprint,
            session.ledger.full_bytes,
        )
        assert found.ask(QUESTION, 6) == wanted
    assert prefixes.hits == 1
    session.save(tmp_path / "it.kv")
    again = kv.reopen(made, words, tmp_path / "it.kv", context=TEXT)
    assert again.ledger.footprint == session.ledger.footprint
    assert again.ask(QUESTION, 6) == wanted


def test_ids_alone_are_refused() -> None:
    made = tiny.model()
    for recipe, name in (("selfinfo", "selfinfo"), ("cacheblend", "cacheblend")):
        with (
            pytest.raises(ValueError, match=f"{name} works on a context, and here are tokens only"),
            kv.attach(made, recipe),
        ):
            tiny.generated(made, tiny.ids(9), 2)


def test_models_that_a_source_cannot_serve_are_refused() -> None:
    with pytest.raises(ValueError, match="layer=3 of cacheblend: the model has 3 layers"):
        opened("cacheblend(layer=3)")
    session = opened("cacheblend(chunk=16)", made=tiny.model("gemma3_text"))
    with pytest.raises(ValueError, match="every layer must be a full-attention layer"):
        session.read(TEXT)


def test_an_empty_context_is_refused_as_ever() -> None:
    for recipe in ("selfinfo", "cacheblend"):
        made = opened(recipe)
        made.chat.tokenizer = NoSpecial(made.chat.tokenizer)
        with pytest.raises(ValueError, match="the context is empty"):
            made.read("")


class NoSpecial:
    """A tokenizer that adds nothing of its own."""

    def __init__(self, words: Any):
        self.words = words

    def __call__(self, text: str, **options: Any) -> Any:
        return self.words(text, **{**options, "add_special_tokens": False}) if text.strip() else {"input_ids": []}
