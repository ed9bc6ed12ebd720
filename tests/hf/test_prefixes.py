"""A session from the store is what reading afresh gives: rows, answers, books; and the store keeps to its bytes."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import kvledger as kv
from kvledger.hf import cache as caches
from kvledger.hf.prefixes import Begun

CHUNK, QUESTION = 16, tiny.text(7, seed=1)
ROOM = 1 << 30
SNAP = "snapkv(keep=0.4, window=4)"
BETWEEN = [  # model, recipe, dense: those that go on from a part of a context
    ("llama", "full", False),
    ("llama", SNAP, True),
    ("llama", "adakv(keep=0.3, when='chunk', window=4)", False),
    ("llama", "snapkv(keep=0.4, window=4, heads='query')", True),
    ("llama", "headgate(path='random:0', keep=0.5, sink=2, window=8)", False),
    ("llama", "headgate(path='random:0', keep=0.5, sink=2, window=8) + knorm(keep=0.5)", True),
    ("llama", "h2o(keep=0.5, every=3)", True),
    ("llama", "h2o(keep=0.5, when='chunk')", False),
    ("llama", "h2o(rows=12, when='chunk', every=3)", False),
    ("llama", "knorm(rows=20, when='decode', every=2)", False),
    ("llama", "expected_attention(keep=0.5, sinks=2, when='chunk')", False),
    ("llama", "dms(keep=0.5, delay=4, when='chunk')", False),
    ("llama", "random(keep=0.5, when='chunk') + protect(sinks=2, recent=3)", False),
    ("llama", "kvzip(keep=0.5, chunk=20)", True),
    ("llama", "kvzip(keep=0.5, chunk=20, when='chunk')", False),
    ("gemma3_text", SNAP, True),
    ("gemma3_text", "full", False),
]
ONLY_LAST = {  # rows go that were judged before, so that earlier states are no part of later ones
    "headgate(path='random:0', keep=0.5, sink=2, window=8)",
    "headgate(path='random:0', keep=0.5, sink=2, window=8) + knorm(keep=0.5)",
    "h2o(rows=12, when='chunk', every=3)",
    "dms(keep=0.5, delay=4, when='chunk')",
}
WHOLE = [("llama", SNAP, False), ("llama", "kvzip(keep=0.5, chunk=20) + protect(sinks=2)", False)]


def text(*pieces: int, more: int = 0) -> str:
    """Pieces of two chunks each, then `more` words that no other context has."""
    return " ".join([*(tiny.text(2 * CHUNK, seed=10 + piece) for piece in pieces), tiny.text(more, seed=99)]).strip()


def rows(session: Any) -> list[torch.Tensor]:
    """All that is stored: keys, values and token indices of each segment, and what other layers hold."""
    found = []
    for layer in session.cache.layers:
        arena = getattr(layer, "arena", None)
        if arena is None:
            found += [layer.keys, layer.values]
            continue
        for s in range(len(arena.length)):
            found += [arena.k[arena.segment(s)], arena.v[arena.segment(s)], arena.positions(s)]
    return found


def books(session: Any) -> list[Any]:
    ledger = session.ledger
    sums = [ledger.footprint, ledger.byte_footprint, ledger.peak_bytes, ledger.full_bytes, ledger.dropped]
    return [*sums, ledger.curve(), session.context_hash, session.tokens, session.run.since, session._held]


def told(session: Any) -> list[Any]:
    """An answer, and the books after it; the session is used up."""
    return [session.ask(QUESTION, 4), *books(session)]


@cache
def afresh(kind: str, recipe: str, context: str) -> tuple[list[torch.Tensor], list[Any], list[Any]]:
    session = kv.open(tiny.model(kind), tiny.tokenizer(), recipe, chunk=CHUNK)
    session.read(context)
    held = [x.clone() for x in rows(session)]
    return held, books(session), told(session.fork())  # a fork, since those move their rows when they write


def store(kind: str, recipe: str, dense: bool = False, **more: Any) -> Any:
    return kv.Prefixes(
        tiny.model(kind), tiny.tokenizer(), recipe, **{"chunk": CHUNK, "bytes": ROOM, **more}, dense=dense
    )


def same(session: Any, kind: str, recipe: str, context: str, ask: bool = True) -> None:
    held, known, said = afresh(kind, recipe, context)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(rows(session), held, strict=True))
    assert books(session) == known
    assert not ask or told(session) == said


@pytest.mark.parametrize("kind, recipe, dense", BETWEEN)
def test_what_follows_a_common_beginning_is_as_read_afresh(kind: str, recipe: str, dense: bool) -> None:
    held = store(kind, recipe, dense)
    for context in (text(0, 1, more=3), text(0, 1, 2, more=5), text(0, 3), text(0, 1, 2, more=5), text(0, 1, more=3)):
        same(held.session(context), kind, recipe, context)
    assert (held.misses, held.continued, held.hits) == ((2, 1, 2) if recipe in ONLY_LAST else (1, 2, 2))
    states = [state for state in held._states.values() if isinstance(state, Begun)]
    assert held.bytes >= max(caches.run_of(state.cache).ledger.stored_bytes for state in states)


@pytest.mark.parametrize("kind, recipe, dense", [*BETWEEN[::3], *WHOLE])
def test_any_order_of_requests_under_any_budget(kind: str, recipe: str, dense: bool) -> None:
    draw = random.Random(f"{kind} {recipe} {dense}")
    contexts = [text(*draw.choices(range(2), k=draw.randint(1, 3)), more=draw.choice((0, 5))) for _ in range(4)]
    least = max(one_bytes(kind, recipe, dense, context) for context in set(contexts))
    tight = store(kind, recipe, dense, bytes=draw.randint(least, 2 * least))
    asked = draw.choices(contexts, k=7)
    for i, context in enumerate([*asked, asked[-1]]):
        same(tight.session(context), kind, recipe, context, ask=i % 3 == 2)
        assert tight.bytes <= tight.budget
    assert tight.hits > 0
    assert tight.hits + tight.continued + tight.misses == 8


@cache
def one_bytes(kind: str, recipe: str, dense: bool, context: str) -> int:
    """The smallest budget that the store takes for one context, found as a user finds it: by what the refusal says."""
    budget = 1
    while True:
        try:
            store(kind, recipe, dense, bytes=budget).session(context)
            return budget
        except ValueError as error:
            budget = int(str(error).split("raise bytes= to ")[1].split(" ")[0].replace(",", ""))


@pytest.mark.parametrize("kind, recipe, dense", WHOLE)
def test_after_the_prompt_only_whole_contexts_are_shared(kind: str, recipe: str, dense: bool) -> None:
    held = store(kind, recipe, dense)
    for context in (text(0, 1), text(0, 1, 2), text(0, 1)):
        same(held.session(context), kind, recipe, context)
    assert (held.misses, held.continued, held.hits) == (2, 0, 1)


def test_tokens_are_read_once() -> None:
    held, seen = store("llama", "full"), []
    handle = tiny.model("llama").register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    held.session(text(0, 1))  # 65 tokens: <s> comes first
    assert seen == [16, 16, 16, 16, 1]
    seen.clear()
    held.session(text(0, 1, more=3))
    held.session(text(0, 1, more=3))
    held.session(text(0, 2))
    handle.remove()
    assert seen == [4, 16, 16, 1]
    assert held.reused == 64 + 68 + 32


def test_states_of_one_context_share_its_buffers() -> None:
    for recipe in ("full", "adakv(keep=0.3, when='chunk', window=4)", "random(keep=0.5, when='chunk')"):
        held = store("llama", recipe)
        session = held.session(text(0, 1, 2, 3))
        assert len(held._states) == 9
        assert held.bytes == session.ledger.stored_bytes


def test_a_new_beginning_outlives_the_context_it_came_from() -> None:
    """The younger context takes the common states over, so that the older one's buffers can go."""
    held = store("llama", "full", bytes=one_bytes("llama", "full", False, text(0, 1, 2, 3)))
    for context in (text(0, 1), text(0, 2, 3, 1), text(0, 2, 3, 1), text(0, 2, 0)):
        same(held.session(context), "llama", "full", context)
        assert held.bytes <= held.budget
    assert (held.misses, held.continued, held.hits) == (1, 2, 1)


def test_what_was_asked_for_longest_ago_goes_first() -> None:
    a, b, c = text(0), text(1), text(2)
    held = store("llama", "full", bytes=2 * one_bytes("llama", "full", False, a))
    for context, hits in [(a, 0), (b, 0), (a, 1), (c, 1), (a, 2), (b, 2), (c, 2), (b, 3)]:
        held.session(context)
        assert held.hits == hits


def test_a_session_that_was_handed_out_changes_nothing_in_the_store() -> None:
    held = store("llama", "h2o(keep=0.5, every=3)", True)
    first = held.session(text(0, 1))
    first.ask(QUESTION, 9)
    for _ in range(2):
        same(held.session(text(0, 1)), "llama", "h2o(keep=0.5, every=3)", text(0, 1))


def test_what_is_protected_parts_contexts() -> None:
    recipe, context = "random(keep=0.4, when='chunk')", text(0, 1)
    held = store("llama", recipe)
    spans = [(0, 12), (100, 112)]
    held.session(context)
    mine = held.session(context, protect=spans)
    alone = kv.open(tiny.model(), tiny.tokenizer(), recipe, chunk=CHUNK)
    alone.read(context, protect=spans)
    assert tiny.alive(mine.cache) == tiny.alive(alone.cache) != tiny.alive(held.session(context).cache)
    assert (held.misses, held.hits) == (2, 1)


def test_each_request_is_charged_with_its_own_wait() -> None:
    held = store("llama", "full")
    cold = held.session(text(0, 1, 2)).turn(QUESTION, 1)
    for state in held._states.values():
        if isinstance(state, kv.Session):
            state.reading_seconds = 1e6  # what it once cost is nobody's wait any more
    warm = held.session(text(0, 1, 2)).turn(QUESTION, 1)
    assert 0 < warm.ttft_seconds < 1e5
    assert (warm.text, warm.prompt_tokens, warm.stored_bytes) == (cold.text, cold.prompt_tokens, cold.stored_bytes)


def test_a_reading_that_fails_leaves_the_store_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    held = store("llama", "full", bytes=one_bytes("llama", "full", False, text(0, 1)))
    held.session(text(0, 1))
    before, states = held.bytes, dict(held._states)
    with pytest.raises(ValueError, match="raise bytes="):
        held.session(text(0, 1, 2, 3))
    assert held.bytes == before
    assert held._states == states
    same(held.session(text(0, 1)), "llama", "full", text(0, 1))
    assert held.hits == 1


def test_a_budget_smaller_than_a_context_is_said_with_both_figures() -> None:
    """68 tokens × 3 layers × 2 heads × (16 + 16) floats of 4 bytes; for a full cache known after the first chunk."""
    context = text(0, 1, more=3)
    with pytest.raises(ValueError, match=r"16 of the 68 tokens .* 12,288 bytes .* hold 10,000: raise bytes= to 52,224"):
        store("llama", "full", bytes=10_000).session(context)
    with pytest.raises(ValueError, match=r"68 of the 68 tokens .* hold 10,000: "):
        store("llama", SNAP, bytes=10_000).session(context)
    with pytest.raises(ValueError, match="with their dense prefix"):
        store("llama", SNAP, True, bytes=50_000).session(context)
    assert store("llama", "full", bytes=52_224).session(context).tokens == 68


@pytest.mark.parametrize("recipe", ["adakv(keep=0.3, when='chunk', window=4)", "headgate(path='random:0', keep=0.5)"])
def test_no_dense_prefix_of_what_drops_while_it_reads(recipe: str) -> None:
    with pytest.raises(ValueError, match="drops while it reads"):
        store("llama", recipe, True)


def test_what_cannot_be_opened_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="chunk=0 has none"):
        store("llama", SNAP, True, chunk=0)
    with pytest.raises(ValueError, match="smaller than the window"):
        store("llama", SNAP, chunk=2)
    with pytest.raises(ValueError, match="fit into the 512 positions"):
        store("llama", "full").session(tiny.text(600))


def test_all_at_once_shares_whole_contexts() -> None:
    held = store("llama", SNAP, chunk=0)
    for _ in range(2):
        mine, alone = held.session(text(0, 1)), kv.open(tiny.model(), tiny.tokenizer(), SNAP)
        alone.read(text(0, 1))
        assert told(mine) == told(alone)
    assert (held.misses, held.hits) == (1, 1)


def test_a_folder_is_shared_by_stores(tmp_path: Path) -> None:
    recipe = "adakv(keep=0.3, when='chunk', window=4)"
    store("llama", recipe, folder=tmp_path / "kv").session(text(0, 1))
    (file,) = (tmp_path / "kv").iterdir()
    other = store("llama", recipe, folder=tmp_path / "kv")
    held, _, said = afresh("llama", recipe, text(0, 1))
    mine = other.session(text(0, 1))
    assert all(torch.equal(a, b) for a, b in zip(rows(mine), held, strict=True))
    assert told(mine)[:2] == said[:2]  # answer and footprint; the file has no slack, so bytes differ
    assert (other.hits, other.misses) == (1, 0)
    store("llama", "full", folder=tmp_path / "kv").session(text(0, 1))
    assert len(list((tmp_path / "kv").iterdir())) == 2
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole saved session"):
        store("llama", recipe, folder=tmp_path / "kv").session(text(0, 1))
