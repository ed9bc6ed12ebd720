"""Recipes that read together end where each would have ended alone: rows, answers and books."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
from books import same
from small import small

import kvledger as kv
from kvledger.hf.reading import Reading, shares
from kvledger.hf.session import Session
from kvledger.recipe import Recipe, parse, registry
from kvledger.run.readings import Readings

CHUNK = 16
TEXT, QUESTIONS = tiny.text(70), (None, tiny.text(9, seed=1))
NAMES = sorted(
    name for name, cls in registry().items() if cls.role == "compression" and cls.__module__.startswith("kv")
)


def recipe(name: str, **options: Any) -> Recipe:
    cls = registry()[name]
    return Recipe((cls(**{"keep": 0.5, **small(name), **options}),)) if name != "full" else parse("full")


def alone(made: Any, tokenizer: Any, one: Recipe, question: str | None, chunk: int = CHUNK) -> Session:
    session = kv.open(made, tokenizer, one, chunk=chunk)
    session.read(TEXT, question)
    return session


def check(made: Any, recipes: list[Recipe], chunk: int = CHUNK) -> None:
    tokenizer = tiny.tokenizer()
    readings = Readings(made, tokenizer, tuple(map(str, recipes)))
    readings.turn_to("sample")
    for question in QUESTIONS:
        for one in recipes:
            shared = readings.read(one, chunk, TEXT, question, lambda _: ())
            solo = alone(made, tokenizer, one, question, chunk)
            same(shared, solo)
            for session in (shared, solo):
                answers = [session.answer(3).text] if question else []
                session.told = [*answers, session.ask("w1 w2 w3 w4", 4)]  # type: ignore[attr-defined]
            assert shared.told == solo.told  # type: ignore[attr-defined]
            same(shared, solo)
    assert not readings.apart


@pytest.mark.parametrize("chunk", [CHUNK, 0])
def test_all_methods_reading_together_end_as_each_alone(chunk: int) -> None:
    recipes = [recipe(name) for name in NAMES if shares(recipe(name))]
    assert len(recipes) > 15
    check(
        tiny.model(),
        [*recipes, recipe("snapkv", keep=0.25), recipe("h2o", keep=0.25), recipe("kvzip", keep=0.2)],
        chunk,
    )


@pytest.mark.parametrize("name", ["snapkv", "random", "h2o", "knorm", "headkv", "criticalkv", "kvzip"])
def test_recipes_that_drop_while_reading_share_the_beginning_of_their_prompts(name: str) -> None:
    check(tiny.model(), [recipe(name, when="chunk")])


def test_heads_that_forget_and_rows_that_go_while_decoding_share_too() -> None:
    gates = parse("headgate(path='random:0', keep=0.5, sink=2, window=8)")
    pinned = parse("snapkv(keep=0.5, window=4) + protect(sinks=4)")
    assert not shares(gates)
    check(tiny.model(), [gates, pinned, recipe("tova", when="chunk", rows=20, every=4), recipe("knorm", every=4)])


def test_layers_that_keep_no_arena_are_handed_on() -> None:
    check(tiny.model("gemma3_text"), [recipe("knorm"), recipe("full"), recipe("snapkv")])


def test_one_that_cannot_does_not_spoil_it_for_the_others() -> None:
    made = tiny.model()
    recipes = [recipe("knorm"), parse("snapkv(keep=0.1, window=4) + protect(system=True)")]
    readings = Readings(made, tiny.tokenizer(), tuple(map(str, recipes)))

    def spans(one: Recipe) -> list[tuple[int, int]]:
        return [(0, len(TEXT))] if one.protection else []

    assert readings.read(recipes[0], CHUNK, TEXT, None, spans).tokens
    assert readings.apart
    with pytest.raises(ValueError, match="protected rows do not fit"):
        readings.read(recipes[1], CHUNK, TEXT, None, spans)


def test_another_sample_lets_go_of_the_last() -> None:
    readings = Readings(tiny.model(), tiny.tokenizer(), ("full",))
    readings.turn_to(1)
    readings.read(parse("full"), CHUNK, TEXT, None, lambda _: ())
    readings.turn_to(1)
    assert readings.done
    readings.turn_to(2)
    assert not readings.done
    assert not readings.begun


def test_only_a_full_cache_leads() -> None:
    made, tokenizer = tiny.model(), tiny.tokenizer()
    sessions = [kv.open(made, tokenizer, one, chunk=CHUNK) for one in ("knorm", "full", "knorm(when='chunk')")]
    with pytest.raises(ValueError, match="led by a full cache"):
        Reading(sessions[0], [sessions[1]])
    with pytest.raises(ValueError, match="drop nothing before its end"):
        Reading(sessions[1], [sessions[2]])


def test_time_is_charged_to_each_as_if_it_had_read_alone() -> None:
    made, tokenizer = tiny.model(), tiny.tokenizer()
    lead = kv.open(made, tokenizer, "full", chunk=CHUNK)
    others = [kv.open(made, tokenizer, recipe(name), chunk=CHUNK) for name in ("kvzip", "knorm")]
    reading = Reading(lead, others)
    ids = [one.prompt(TEXT) for one in reading.sessions].pop()
    reading.advance(ids, len(ids))
    reading.end()
    assert 0 < lead.reading_seconds < others[1].reading_seconds < others[0].reading_seconds
    assert replace(lead.run).spent == 0
