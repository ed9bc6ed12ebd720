"""Every causal type of transformers under the ledger: a tiny random model of each is compared with plain transformers, and the
page docs/models.md says what was found. `python tests/hf/test_models.py docs/models.md` writes the page anew; under an older
transformers, what is different there."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from dataclasses import astuple
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import models
import models_page
import pytest
import tiny
import torch
import transformers
from models_page import EQUAL, REFUSED, SKIPPED, SNAP, Row
from torch import Tensor

from kvledger.hf.attention import use
from kvledger.hf.cache import arenas, argument, check_supported, fork, new_cache, other_bytes, run_of
from kvledger.hf.hybrid import states
from kvledger.hf.reading import Reading
from kvledger.hf.session import open_session

TOKENS, PADDING, CUTS = 26, 7, (17, 25, 26)
TOLERANCE = 3e-5  # of the largest logit, in float32: a row that is lost or seen wrongly shows above 1e-2
LEFT = {"DynamicSlidingWindowLayer": "sliding", "LinearAttentionLayer": "recurrent", "DummyLayer": "no attention"}
OURS = ("ArenaLayer", "HybridLayer", "LatentLayer")


def word(holds: bool) -> str:
    return "yes" if holds else "**no**"


class Reader:
    """One model, the same padded prompts, read in one way or another. Positions are told where there is padding; a prompt alone
    is read as a session reads it, without."""

    def __init__(self, kind: str):
        self.model = models.model(kind)
        self.ids = torch.randint(5, models.VOCAB - 1, (2, TOKENS), generator=torch.Generator().manual_seed(0))
        self.mask = torch.ones_like(self.ids)
        self.mask[1, :PADDING] = 0
        self.places = "position_ids" in inspect.signature(self.model.forward).parameters
        self.dense = {rows: self.forward(rows, 0, TOKENS, use_cache=False) for rows in (1, 2)}

    @torch.inference_mode()
    def forward(self, rows: int, start: int, stop: int, ids: Tensor | None = None, **more: Any) -> Tensor:
        """Logits [rows, stop − start, V] of the tokens start … stop."""
        if self.places and rows > 1:
            more["position_ids"] = (self.mask[:rows, :stop].cumsum(-1) - 1).clamp_min(0)[:, start:]
        ids = self.ids if ids is None else ids
        name = argument(self.model)
        if "kept" in more:
            more |= {name: more.pop("kept"), "use_cache": True}
        first = 0 if name == "past_key_values" else start  # Mamba takes the new tokens' mask alone
        return self.model(ids[:rows, start:stop], attention_mask=self.mask[:rows, first:stop], **more).logits

    def read(self, rows: int, cuts: tuple[int, ...], kept: Any) -> Tensor:
        ends = zip((0, *cuts), cuts)
        return torch.cat([self.forward(rows, a, b, kept=kept) for a, b in ends], dim=1)

    def agrees(self, rows: slice, cuts: tuple[int, ...]) -> bool:
        """Whether what is read into a cache of ours has the logits of plain attention at every token that is not padding."""
        found = self.read(rows.stop, cuts, new_cache(self.model, "full"))[rows]
        real, dense = self.mask[rows].bool(), self.dense[rows.stop][rows]
        return bool((found - dense)[real].abs().max() <= TOLERANCE * dense[real].abs().max())


def measure(kind: str) -> Row:
    """One row of the page."""
    if reason := models.skipped(kind):
        return Row(kind, SKIPPED, reason=reason)
    reader = Reader(kind)
    try:
        check_supported(reader.model)
    except ValueError as error:
        return Row(kind, REFUSED, reason=said(kind, str(error)))
    use(reader.model)
    kept = new_cache(reader.model, SNAP if arenas(new_cache(reader.model, "full")) else "full")
    kinds = Counter(type(layer).__name__ for layer in kept.layers)
    left = ", ".join(f"{LEFT.get(name, name)} {n}" for name, n in sorted(kinds.items()) if name not in OURS)
    ours = f"{len(arenas(kept))} of {len(kept.layers)}" + (" (latents)" if kinds["LatentLayer"] else "")
    alone = reader.agrees(slice(0, 1), (TOKENS,))
    chunks = reader.agrees(slice(0, 1), CUTS)
    batch = reader.agrees(slice(0, 2), CUTS if chunks else (TOKENS,))
    booked, forked = compressed(reader, kept)
    verdict = EQUAL if alone else "differs"
    return Row(kind, verdict, ours, left, word(chunks), word(batch), word(booked), word(forked))


def compressed(reader: Reader, kept: Any) -> tuple[bool, bool]:
    """Under a method that drops rows: whether the books say what the tensors hold, and a fork leaves its origin alone."""
    before = models.walk(models.strays(reader.model))
    reader.read(2, (TOKENS - 2, TOKENS - 1), kept)
    books = run_of(kept).ledger
    books.hold_other(other_bytes(kept))
    held = models.walk([kept.layers, models.strays(reader.model)]) - before
    booked = (books.dropped > 0) == bool(arenas(kept)) and books.stored_bytes == held
    twin = fork(kept)
    there, here = (reader.forward(2, TOKENS - 1, TOKENS, kept=one) for one in (twin, kept))
    return booked, bool(torch.equal(there, here))


def said(kind: str, message: str) -> str:
    """The reason of a refusal, without the type that every message names."""
    assert f"'{kind}'" in message
    return (
        message.replace(f"model type '{kind}' is not supported: ", "").replace(f"'{kind}' has", "has").splitlines()[0]
    )


@pytest.mark.parametrize("kind", models.types())
def test_the_page_says_what_a_type_does(kind: str) -> None:
    wanted = models_page.expected(transformers.__version__)
    if kind not in wanted:
        pytest.skip("the page is of another transformers")
    row = measure(kind)
    assert row.verdict in (EQUAL, REFUSED, SKIPPED)
    assert astuple(row)[1 : 1 + len(wanted[kind])] == wanted[kind]


def test_ninety_types_are_equal() -> None:
    for version in models_page.versions():
        assert sum(cells[0] == EQUAL for cells in models_page.expected(version).values()) >= 90


def test_the_comparison_notices_one_lost_token() -> None:
    reader = Reader("llama")
    use(reader.model)
    assert reader.agrees(slice(0, 1), CUTS)
    lost = reader.mask.clone()
    lost[0, 3] = 0
    mask, reader.mask = reader.mask, lost
    reader.dense[1] = reader.forward(1, 0, TOKENS, use_cache=False)
    reader.mask = mask
    assert not reader.agrees(slice(0, 1), CUTS)


def opened(kind: str, recipe: str = "full", chunk: int = 0) -> Any:
    return open_session(models.model(kind), tiny.tokenizer(), recipe, chunk)


@pytest.mark.parametrize("kind", ["jamba", "zamba"])
def test_a_model_that_restarts_its_state_is_read_in_one_shot(kind: str) -> None:
    context, question = tiny.text(20), tiny.text(5, seed=1)
    with pytest.raises(ValueError, match="one shot, chunk=0"):
        opened(kind, chunk=8).read(context)
    apart = opened(kind)
    apart.read(context)
    with tiny.Witness(apart.model) as witness:
        apart.turn(question, 1)
    assert [len(ids) for ids, _, _ in witness.steps[-5:]] == [1] * 5
    with torch.inference_mode():
        ids = [*apart.chat.opening(context, "")[0], *tiny.tokenizer().encode(question, add_special_tokens=False)]
        dense = apart.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    assert apart.tokens == len(ids)
    torch.testing.assert_close(witness.logits()[-1], dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["falcon_h1", "zaya", "zamba"])
def test_a_state_beside_attention_follows_forks_and_gold_answers(kind: str) -> None:
    session = opened(kind, "snapkv(keep=0.5, window=4)")
    session.read(tiny.text(20))
    twin, before = session.fork(), held(session)
    session.turn(tiny.text(3, seed=1), 5, gold="w5 w6")
    assert all(torch.equal(a, b) for a, b in zip(held(twin), before, strict=True))
    twin.turn(tiny.text(3, seed=1), 1, gold="w5 w6")  # one new token is not read, so that nothing is taken back
    assert all(torch.equal(a, b) for a, b in zip(held(session), held(twin), strict=True))
    assert session.ask(tiny.text(3, seed=2), 4) == twin.ask(tiny.text(3, seed=2), 4)


def test_a_shared_reading_hands_the_state_on() -> None:
    lead, other = opened("falcon_h1"), opened("falcon_h1", SNAP)
    ids = lead.prompt(tiny.text(20))
    reading = Reading(lead, [other])
    reading.advance(ids, len(ids))
    reading.end()
    assert held(other)
    assert all(torch.equal(a, b) for a, b in zip(held(lead), held(other), strict=True))
    alone = opened("falcon_h1", SNAP)
    alone.read(tiny.text(20))
    for session in (other, alone):
        session.begin_turns(False)
    assert other.ask(tiny.text(3, seed=1), 4) == alone.ask(tiny.text(3, seed=1), 4)


@pytest.mark.parametrize("kind", ["jamba", "falcon_h1"])
def test_what_a_state_forbids_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="second reading"):
        opened(kind, "kvzip(keep=0.5)").read(tiny.text(20))
    with pytest.raises(ValueError, match="patched"):
        opened(kind, SNAP).read(tiny.text(20), "w5", patched=True)


def held(session: Any) -> list[Tensor]:
    return [x.clone() for layer in session.cache.layers for x in states(layer)]


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    models_page.write(Path(sys.argv[1]), transformers.__version__, [measure(kind) for kind in models.types()])
