"""Every causal type of transformers under the ledger: a tiny random model of each is compared with plain transformers, and the
page docs/models.md says what was found. `python tests/hf/test_models.py docs/models.md` writes the page anew."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import models
import pytest
import tiny
import torch
import transformers
from torch import Tensor

from kvledger.hf.attention import use
from kvledger.hf.cache import arenas, check_supported, fork, new_cache, other_bytes, run_of
from kvledger.hf.hybrid import states
from kvledger.hf.reading import Reading
from kvledger.hf.session import open_session

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TOKENS, PADDING, CUTS = 26, 7, (17, 25, 26)
TOLERANCE = 3e-5  # of the largest logit, in float32: a row that is lost or seen wrongly shows above 1e-2
SNAP = "snapkv(keep=0.5, window=4)"
LEFT = {"DynamicSlidingWindowLayer": "sliding", "LinearAttentionLayer": "recurrent", "DummyLayer": "no attention"}
OURS = ("ArenaLayer", "HybridLayer")
EQUAL, REFUSED, SKIPPED = "equal", "refused", "not tried"


@dataclass(frozen=True)
class Row:
    """What is found of a type: verdict; layers that are ours and those left to transformers; then one word a question."""

    kind: str
    verdict: str
    ours: str = ""
    left: str = ""
    chunks: str = ""
    batch: str = ""
    bytes: str = ""
    fork: str = ""
    reason: str = ""


def word(holds: bool) -> str:
    return "yes" if holds else "**no**"


class Reader:
    """One model, the same padded prompts, read in one way or another."""

    def __init__(self, kind: str):
        self.model = models.model(kind)
        self.ids = torch.randint(5, models.VOCAB - 1, (2, TOKENS), generator=torch.Generator().manual_seed(0))
        self.mask = torch.ones_like(self.ids)
        self.mask[1, :PADDING] = 0
        self.places = "position_ids" in inspect.signature(self.model.forward).parameters
        self.dense = self.forward(2, 0, TOKENS, use_cache=False)

    @torch.inference_mode()
    def forward(self, rows: int, start: int, stop: int, ids: Tensor | None = None, **more: Any) -> Tensor:
        """Logits [rows, stop − start, V] of the tokens start … stop."""
        if self.places:
            more["position_ids"] = (self.mask[:rows, :stop].cumsum(-1) - 1).clamp_min(0)[:, start:]
        ids = self.ids if ids is None else ids
        return self.model(ids[:rows, start:stop], attention_mask=self.mask[:rows, :stop], **more).logits

    def read(self, rows: int, cuts: tuple[int, ...], kept: Any) -> Tensor:
        ends = zip((0, *cuts), cuts)
        return torch.cat([self.forward(rows, a, b, past_key_values=kept, use_cache=True) for a, b in ends], dim=1)

    def agrees(self, rows: slice, cuts: tuple[int, ...]) -> bool:
        """Whether what is read into a cache of ours has the logits of plain attention at every token that is not padding."""
        found = self.read(rows.stop, cuts, new_cache(self.model, "full"))[rows]
        real, dense = self.mask[rows].bool(), self.dense[rows]
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
    kept = new_cache(reader.model, SNAP)
    kinds = Counter(type(layer).__name__ for layer in kept.layers)
    left = ", ".join(f"{LEFT.get(name, name)} {n}" for name, n in sorted(kinds.items()) if name not in OURS)
    ours = f"{len(arenas(kept))} of {len(kept.layers)}"
    alone = reader.agrees(slice(0, 1), (TOKENS,))
    chunks = reader.agrees(slice(0, 1), CUTS)
    batch = reader.agrees(slice(0, 2), CUTS if chunks else (TOKENS,))
    booked, forked = compressed(reader, kept)
    verdict = EQUAL if alone else "differs"
    return Row(kind, verdict, ours, left, word(chunks), word(batch), word(booked), word(forked))


def compressed(reader: Reader, kept: Any) -> tuple[bool, bool]:
    """Under a method that drops rows: whether the books say what the tensors hold, and a fork leaves its origin alone."""
    reader.read(2, (TOKENS - 2, TOKENS - 1), kept)
    books = run_of(kept).ledger
    books.hold_other(other_bytes(kept))
    booked = books.dropped > 0 and books.stored_bytes == walk(kept.layers)
    twin = fork(kept)
    there, here = (reader.forward(2, TOKENS - 1, TOKENS, past_key_values=one, use_cache=True) for one in (twin, kept))
    return booked, bool(torch.equal(there, here))


def walk(things: Any, seen: set[int] | None = None) -> int:
    """Bytes of all tensors below the layers of a cache, each memory once; what they refer to but do not hold is left out."""
    seen = set() if seen is None else seen
    if isinstance(things, Tensor):
        place = things.untyped_storage().data_ptr()
        known = place in seen
        seen.add(place)
        return 0 if known else things.untyped_storage().nbytes()
    if id(things) in seen or things is None or isinstance(things, (str, int, float, torch.dtype, torch.device)):
        return 0
    if isinstance(things, dict):
        return sum(walk(x, seen) for x in things.values())
    if isinstance(things, (list, tuple)):
        return sum(walk(x, seen) for x in things)
    below = getattr(things, "__dict__", {})
    return sum(walk(x, seen) for name, x in below.items() if name not in ("run", "output", "hidden", "_told"))


def said(kind: str, message: str) -> str:
    """The reason of a refusal, without the type that every message names."""
    assert f"'{kind}'" in message
    return (
        message.replace(f"model type '{kind}' is not supported: ", "").replace(f"'{kind}' has", "has").splitlines()[0]
    )


# ---- the page --------------------------------------------------------------------------------------------------------

HEAD = """# Models

Every causal type that transformers {version} lists, as a tiny random model under the ledger. The page is written by
`python tests/hf/test_models.py docs/models.md`, and the tests compare it with what they find.

- **equal**: with the full cache, the logits are those of plain transformers (eager attention), in float32, at every token.
- **ours**: layers whose keys and values kvledger holds and compresses, of those of the tiny model, which has a layer of each
  kind of its type. The others are left to transformers as they are: sliding (and chunked) windows, recurrent states. Layers
  with attention and a state side by side are ours, and their state is left as it is.
- **chunks**: read in chunks and then token by token, a prompt gives the same logits. Where it does not, the model itself
  restarts its state when several tokens arrive (plain transformers does the same): a session then reads the context in one
  shot and questions token by token, and refuses `chunk`.
- **batch**: two prompts padded on the left give the logits of each alone.
- **bytes**: under `{recipe}` the ledger says what a walk over all tensors of the cache finds,
  other layers included.
- **fork**: a fork that goes on leaves its origin as it was.

Encoders that transformers lists as causal are run as decoders (`is_decoder`). **refused**: `open` and `attach` raise a
ValueError that says why; nothing runs dense behind the user's back. **not tried**: more than a language model.

"""
COLUMNS = ("type", "verdict", "ours", "left to transformers", "chunks", "batch", "bytes", "fork")


def page(rows: list[Row]) -> str:
    counts = Counter(row.verdict for row in rows)
    text = HEAD.format(version=transformers.__version__, recipe=SNAP)
    text += f"{counts[EQUAL]} of {len(rows)} equal, {counts[REFUSED]} refused, {counts[SKIPPED]} not tried.\n\n"
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(astuple(row)[:-1]) + " |" for row in rows if row.verdict == EQUAL]
    lines += ["", "| type | verdict | reason |", "|---|---|---|"]
    lines += [f"| {row.kind} | {row.verdict} | {row.reason} |" for row in rows if row.verdict != EQUAL]
    return text + "\n".join(lines) + "\n"


@cache
def committed() -> dict[str, tuple[str, ...]]:
    """The cells of each type's line on the page."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return {line[0]: line[1:] for line in cells if line[0] != "type"}


@pytest.mark.parametrize("kind", models.types())
def test_the_page_says_what_a_type_does(kind: str) -> None:
    if kind not in committed() or transformers.__version__ not in PAGE.read_text():
        pytest.skip("the page is of another transformers")
    row = measure(kind)
    assert row.verdict in (EQUAL, REFUSED, SKIPPED)
    if row.verdict == EQUAL:
        assert astuple(row)[1:-1] == committed()[kind]
    else:
        assert row.verdict == committed()[kind][0]


def test_ninety_types_are_equal() -> None:
    assert sum(cells[0] == EQUAL for cells in committed().values()) >= 90


def test_the_comparison_notices_one_lost_token() -> None:
    reader = Reader("llama")
    use(reader.model)
    assert reader.agrees(slice(0, 1), CUTS)
    reader.dense = reader.dense.clone()
    lost = reader.mask.clone()
    lost[0, 3] = 0
    mask, reader.mask = reader.mask, lost
    reader.dense = reader.forward(2, 0, TOKENS, use_cache=False)
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
def test_what_a_state_forbids_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="second reading"):
        opened(kind, "kvzip(keep=0.5)").read(tiny.text(20))
    with pytest.raises(ValueError, match="patched"):
        opened(kind, SNAP).read(tiny.text(20), "w5", patched=True)
    session = opened(kind)
    session.read(tiny.text(20))
    with pytest.raises(ValueError, match="not saved yet"):
        session.save(tmp_path / "saved")


def held(session: Any) -> list[Tensor]:
    return [x.clone() for layer in session.cache.layers for x in states(layer)]


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    Path(sys.argv[1]).write_text(page([measure(kind) for kind in models.types()]))
