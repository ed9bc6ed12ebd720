"""Every type with a state, in conversation: each forward of a session, of its fork, after a gold answer and of the session
opened again from a file has the logits of the whole text read at once by plain transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import models_page
import pytest
import tiny
import torch
import transformers

import kvledger as kv
from kvledger.hf.cache import run_of
from kvledger.hf.hybrid import states
from kvledger.hf.recurrent import restarts

PAGE = models_page.expected(transformers.__version__)
BESIDE = ("falcon_h1", "zaya")  # attention and a state in one layer: the page calls it ours
KINDS = sorted({kind for kind, cells in PAGE.items() if len(cells) > 2 and "recurrent" in cells[2]} | {*BESIDE})
TOLERANCE = 3e-5  # of the largest logit, as in test_models.py
READ, GOLD = 21, "w5 w6"  # tokens of the context, the first one before all texts among them


@contextlib.contextmanager
def heard(model: Any) -> Iterator[list[tuple[list[int], torch.Tensor]]]:
    """The forwards of a model: the ids that were read, and the logits of the last."""
    found: list[tuple[list[int], torch.Tensor]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        found.append((kwargs["input_ids"][0].tolist(), out.logits[0, -1].clone()))

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def turn(session: Any, text: list[int], seed: int, gold: str | None = None) -> list[int]:
    """One more question to a session that has read `text`: what it has read now."""
    with heard(session.model) as forwards:
        session.turn(tiny.text(4, seed=seed), 4, gold)
    ends = []
    for ids, _ in forwards:
        text = text + ids
        ends.append(len(text) - 1)
    with torch.inference_mode():
        dense = session.model(torch.tensor([text]), use_cache=False).logits[0, ends]
    off = (torch.stack([logits for _, logits in forwards]) - dense).abs().max()
    assert off <= TOLERANCE * dense.abs().max()
    return text[: session.tokens]


def opened(kind: str) -> tuple[Any, list[int]]:
    """A session that has read its context, and what that was."""
    session = kv.open(models.model(kind), tiny.tokenizer(), "full")
    restarts(session.model)  # it tries that out once; not while forwards are heard
    with heard(session.model) as forwards:
        session.read(tiny.text(20))
    ids = [token for part, _ in forwards for token in part]
    assert len(ids) == session.tokens == READ
    return session, ids


@pytest.mark.parametrize("kind", KINDS)
def test_turns_forks_and_gold_answers_continue_the_text(kind: str) -> None:
    session, text = opened(kind)
    twin, there = session.fork(), list(text)
    text = turn(session, text, 1)
    text = turn(session, text, 2, GOLD)
    assert session.run is run_of(session.cache)
    there = turn(twin, there, 3, GOLD)
    turn(twin, there, 1)
    turn(session, text, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_with_a_state_is_saved_and_goes_on(kind: str, tmp_path: Path) -> None:
    session, text = opened(kind)
    text = turn(session, text, 1)
    session.save(tmp_path / "s.kv")
    again = kv.reopen(session.model, tiny.tokenizer(), tmp_path / "s.kv")
    held, mine = ([x for layer in one.cache.layers for x in states(layer)] for one in (again, session))
    assert len(held) == len(mine) > 0
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(held, mine, strict=True))
    assert again.ledger.stored_bytes <= session.ledger.stored_bytes  # no slack is written
    turn(again, turn(again, list(text), 2, GOLD), 3)
    turn(session, text, 2)


def test_the_comparison_notices_a_state_that_was_lost() -> None:
    session, text = opened("mamba2")
    with torch.inference_mode():
        for layer in session.cache.layers:
            for x in states(layer):
                x.zero_()
    with pytest.raises(AssertionError):
        turn(session, text, 1)
