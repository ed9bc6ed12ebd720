"""Sessions that answer together: the same rows, answers and books as alone, whatever their recipes."""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import models
import pytest
import tiny
import torch
from books import books, same

import kvledger as kv
from kvledger.hf.latent import ranks
from kvledger.hf.session import Answer, Session
from kvledger.hf.together import Step, _Asked, _batches, alone, joinable, together
from kvledger.methods.gatefile import Gates

CHUNK, NEW = 16, 7
NEAR = 1e-9  # in float64
TEXT = tiny.text(60)
QUESTIONS = (tiny.text(4, seed=1), tiny.text(9, seed=2), tiny.text(5, seed=3))
RECIPES = (
    "full",
    "snapkv(keep=0.4, window=6)",
    "adakv(keep=0.5, window=6, when='chunk')",
    "streaming(keep=0.4, when='chunk')",
    "tova(rows=20, every=1)",
    "h2o(keep=0.5, when='chunk')",
    "headgate(path='{gates}', keep=0.5)",
    "snapkv(keep=0.5, window=6, heads='query')",
    "full + int8()",
    "full + kivi(bits=4, group=8, residual=16)",
    "full + quest(pages=3, size=4, dense=1)",
    "full + ashape(sinks=4, window=12)",
    "protect(question=True) + snapkv(keep=0.5, window=6)",
)


@pytest.fixture
def gates(tmp_path: Path) -> str:
    Gates(((0.9, 0.1), (0.2, 0.3), (0.6, 0.5)), 3, 9).save(tmp_path / "gates.json")
    return str(tmp_path / "gates.json")


def read(recipe: str, kind: str = "llama") -> Session:
    session = kv.open(tiny.model(kind, torch.float64), tiny.tokenizer(), recipe, CHUNK)
    session.read(TEXT)
    return session


def conversation(session: Session, gold: str | None = None, questions: Sequence[str] = QUESTIONS) -> Generator[Any]:
    """Steps, and at the end the session with its answers."""
    said: list[Answer] = []
    for question in questions:
        answer = yield from session.turn_steps(question, NEW, gold)
        said.append(answer)
    yield session, said


def told(answers: list[Answer]) -> list[tuple[object, ...]]:
    return [(a.text, a.new_tokens, a.prompt_tokens, a.stored_bytes, a.full_bytes) for a in answers]


@pytest.mark.parametrize("gold", [None, tiny.text(6, seed=9)], ids=["model", "gold"])
def test_all_recipes_together_are_each_as_alone(gold: str | None, gates: str) -> None:
    recipes = [recipe.format(gates=gates) for recipe in RECIPES]
    lone = [read(recipe) for recipe in recipes]
    expected = [[alone(one.turn_steps(question, NEW, gold)) for question in QUESTIONS] for one in lone]
    shared = [read(recipe) for recipe in recipes]
    ended = dict(together((conversation(one, gold) for one in shared), len(shared)))
    for one, other, answers in zip(lone, shared, expected, strict=True):
        assert told(ended[other]) == told(answers), other.recipe
        same(one, other, NEAR)


def test_rows_of_different_lengths_fill_up_in_front(forwards: list[tuple[int, int]]) -> None:
    orders = [QUESTIONS, QUESTIONS[::-1], QUESTIONS[1:], QUESTIONS[:1]]
    context = read("snapkv(keep=0.4, window=6)")
    lone, shared = ([context.fork() for _ in orders] for _ in range(2))
    expected = [[alone(one.turn_steps(question, NEW)) for question in order] for one, order in zip(lone, orders)]
    forwards.clear()
    ended = dict(together((conversation(one, None, order) for one, order in zip(shared, orders)), 4))
    for one, other, answers in zip(lone, shared, expected, strict=True):
        assert told(ended[other]) == told(answers)
        same(one, other, NEAR)
    assert any(rows > 1 and tokens > 1 for rows, tokens in forwards), "no questions shared a forward"
    assert max(forwards) == (4, 1), "no four answers shared a forward"


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes [rows, tokens] of what goes through the model."""
    made, seen = tiny.model("llama", torch.float64), list[tuple[int, int]]()
    forward = made.forward

    def watched(input_ids: Any, position_ids: Any = None, logits_to_keep: int = 0, **more: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, position_ids=position_ids, logits_to_keep=logits_to_keep, **more)

    monkeypatch.setattr(made, "forward", watched)
    return seen


def test_questions_side_by_side_are_answered_as_on_forks(forwards: list[tuple[int, int]]) -> None:
    context = read("snapkv(keep=0.4, window=6)")
    before, tokens = books(context), context.tokens
    expected = [context.fork().ask(question, NEW) for question in QUESTIONS]
    forwards.clear()
    assert context.ask_each(QUESTIONS, NEW) == expected
    assert max(rows for rows, _ in forwards) == 3
    assert context.ask_each(QUESTIONS, NEW, at_once=2) == expected
    assert context.ask_each([], NEW) == []
    assert (books(context), context.tokens) == (before, tokens)
    with pytest.raises(ValueError, match="at_once=0"):
        context.ask_each(QUESTIONS, NEW, at_once=0)
    with pytest.raises(ValueError, match="512 positions"):
        context.ask_each(QUESTIONS, 600)


def test_no_more_at_a_time_than_asked_for(forwards: list[tuple[int, int]]) -> None:
    context = read("full")
    forwards.clear()
    assert len(list(together((conversation(context.fork()) for _ in range(7)), 3))) == 7
    assert max(rows for rows, _ in forwards) == 3
    forwards.clear()
    list(together((conversation(context.fork()) for _ in range(3)), 1))
    assert max(rows for rows, _ in forwards) == 1


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "gpt_oss", "qwen3", "mistral", "phi3", "glm4", "olmo2"])
@pytest.mark.parametrize("recipe", ["full", "snapkv(keep=0.4, window=6)"])
def test_families_answer_together(kind: str, recipe: str) -> None:
    """Gemma and gpt-oss have sliding windows (of 16 here), soft caps and sinks."""
    orders = [QUESTIONS, QUESTIONS[::-1], QUESTIONS[1:]]
    made = tiny.model(kind, torch.float32 if kind == "gpt_oss" else torch.float64)  # its experts know no float64
    context = kv.open(made, tiny.tokenizer(), recipe, CHUNK)
    context.read(TEXT)
    assert joinable(context)
    short = kv.open(made, tiny.tokenizer(), recipe, CHUNK)
    short.read(tiny.text(9, seed=5))
    lone, shared = ([context.fork(), short.fork(), context.fork()] for _ in range(2))
    expected = [[alone(one.turn_steps(question, NEW)) for question in order] for one, order in zip(lone, orders)]
    ended = dict(together((conversation(one, None, order) for one, order in zip(shared, orders)), 3))
    for one, other, answers in zip(lone, shared, expected, strict=True):
        assert told(ended[other]) == told(answers)
        same(one, other, NEAR if made.dtype == torch.float64 else 1e-4)


def test_latents_answer_one_by_one() -> None:
    made = models.model("deepseek_v3")
    if not ranks(made):
        pytest.skip("this transformers caches expanded keys")
    lone, shared = ([kv.open(made, tiny.tokenizer(), "full", CHUNK) for _ in range(2)] for _ in range(2))
    for one in (*lone, *shared):
        one.read(TEXT)
    assert not joinable(shared[0])
    expected = [[alone(one.turn_steps(question, NEW)) for question in QUESTIONS] for one in lone]
    ended = dict(together((conversation(one) for one in shared), 2))
    assert [told(ended[one]) for one in shared] == [told(answers) for answers in expected]


def test_a_model_that_does_not_listen_to_positions_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = copy.deepcopy(tiny.model())
    vars(deaf).pop("_kvledger_joins", None)
    forward = deaf.forward
    monkeypatch.setattr(
        deaf, "forward", lambda input_ids, position_ids=None, **more: forward(input_ids=input_ids, **more)
    )
    session = kv.open(deaf, tiny.tokenizer(), "full", CHUNK)
    session.read(TEXT)
    assert not joinable(session)
    listening = kv.open(tiny.model(), tiny.tokenizer(), "full", CHUNK)
    listening.read(TEXT)
    assert joinable(listening)


def test_batches_hold_each_step_once_and_waste_little() -> None:
    context = read("full")
    lengths = [1, 30, 1, 4, 5, 29, 1, 6, 300]
    asked = [_Asked(Step(context.fork(), [5] * n, "ask"), 0.0) for n in lengths]
    batches = [[len(one.step.ids) for one in batch] for batch in _batches(asked)]
    assert sorted(n for batch in batches for n in batch) == sorted(lengths)
    assert batches[0] == [1, 1, 1]
    for batch in batches:
        assert max(batch) * len(batch) <= 1.5 * sum(batch)
    assert len(batches) == 4


def test_an_error_ends_whom_it_concerns_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(session: Session) -> Generator[Any]:
        try:
            yield Step(session, [5] * 200, "ask")  # alone, since it is long
        except ValueError as error:
            yield str(error)

    good, bad = read("full"), read("full")
    monkeypatch.setattr(
        bad, "forward", lambda ids, kind: (_ for _ in ()).throw(ValueError("protected rows do not fit"))
    )
    ended = list(together([failing(bad), conversation(good)], 2))
    assert ended[0] == "protected rows do not fit"
    assert ended[1][0] is good
    assert len(ended[1][1]) == len(QUESTIONS)


def test_seconds_add_up_to_what_was_spent() -> None:
    context = read("full")
    context.reading_seconds = 0.0  # or each would be charged with it
    works = [conversation(context.fork()) for _ in range(6)]
    started = time.perf_counter()
    ended = list(together(works, 6))
    spent = time.perf_counter() - started
    told = [answer for _, answers in ended for answer in answers]
    assert all(0 < answer.ttft_seconds <= answer.seconds for answer in told)
    assert 0.5 * spent < sum(answer.seconds for answer in told) <= spent


def test_out_of_memory_lets_go_of_all_that_took_part(monkeypatch: pytest.MonkeyPatch) -> None:
    context = read("full")
    assert joinable(context)
    pair = [context.fork() for _ in range(2)]
    layer = context.model.model.layers[1]

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")

    monkeypatch.setattr(layer, "forward", full)
    with pytest.raises(RuntimeError, match=r"out of memory on cpu.*2 answers were written at once.*--together 1"):
        list(together((conversation(one) for one in pair), 2))
    assert all(not one.cache.layers for one in pair)
