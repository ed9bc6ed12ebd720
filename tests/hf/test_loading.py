"""Readers in a session: what a step reads is what it attends to and what is on the books, whatever else happens to the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from reads import Reads, check_index
from torch import Tensor

from kvledger.cache.arena import Arena
from kvledger.hf.cache import arenas
from kvledger.hf.load import attach
from kvledger.hf.loading import Loader
from kvledger.hf.reading import Reading, shares
from kvledger.hf.saved import reopen
from kvledger.hf.session import Session, open_session
from kvledger.methods.gatefile import Gates
from kvledger.recipe import parse

TOKENS, LAYERS = 45, 3
READERS = [
    "quest(pages=3, size=4, dense=1)",
    "retrieval_attention(k=3, sinks=2, window=4)",
    "twilight(p=0.6, pages=5, size=4, dense=0)",
]
BESIDE = [
    "",
    "snapkv(keep=0.5, window=4) + ",
    "knorm(keep=0.6, every=3) + ",
    "adakv(keep=0.5, window=4, when='chunk') + ",
]
ALL = ["quest(pages=99)", "retrieval_attention(k=999)", "twilight(p=1.0, pages=0)", "offload"]


def model(groups: int = 2, dtype: torch.dtype = torch.float64) -> Any:
    return tiny.model("llama", dtype, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4 // groups)


def life(recipe: str, chunk: int, made: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Session, Reads]:
    session = open_session(made, tiny.tokenizer(), recipe, chunk)
    with monkeypatch.context() as patch, Reads(made, patch) as witness:
        session.read(tiny.text(TOKENS - 1))
        session.ask(tiny.text(3, seed=1), max_new_tokens=9)
        session.ask(tiny.text(2, seed=2), max_new_tokens=6)
    return session, witness


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("groups, chunk, heads", [(1, 0, "kv"), (2, 13, "kv"), (4, 0, "kv"), (2, 13, "query")])
def test_a_step_attends_to_what_was_chosen(reader, beside, groups, chunk, heads, monkeypatch) -> None:
    if heads == "query":
        if not beside:
            pytest.skip("rows are stored for each query head by compression methods only")
        beside = beside.replace(")", ", heads='query')")
    session, witness = life(beside + reader, chunk, model(groups), monkeypatch)
    torch.testing.assert_close(witness.logits(), witness.dense(), rtol=1e-9, atol=1e-9)
    writing = [i for i, (ids, _, _) in enumerate(witness.steps) if len(ids) == 1]
    dense = session.recipe.reader.dense
    assert all(sorted(witness.reads[i]) == list(range(dense, LAYERS)) for i in writing)
    assert not any(witness.reads[i] for i in set(range(len(witness.steps))) - set(writing))
    check_books(session, witness, writing)


def check_books(session: Session, witness: Reads, writing: list[int]) -> None:
    layers, ledger = arenas(session.cache), session.ledger
    held = [layer.arena.nbytes + layer.loader.held for layer in layers]
    noted = sum(x.nbytes for layer in layers for x in layer.last_queries)
    assert ledger.stored_bytes == sum(held) + noted
    steps = [step for step in ledger.steps if step.kind == "decode"]
    assert len(steps) == len(writing)
    for step, i in zip(steps, writing):
        whole = set(range(LAYERS)) - set(witness.bytes[i])
        least = sum(witness.bytes[i].values())
        assert step.read_bytes == least if not whole else step.read_bytes > least
    if not session.recipe.reader.dense and not session.recipe.method.drops:
        assert ledger.bytes_read_per_step[0] == sum(sum(witness.bytes[i].values()) for i in writing) // len(writing)
        assert ledger.bytes_read_per_step[0] < ledger.bytes_read_per_step[1]
    for layer in layers:
        check_index(layer)


@pytest.mark.parametrize("reader", ALL)
@pytest.mark.parametrize("beside", ["", "snapkv(keep=0.5, window=4) + "])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reading_everything_changes_no_bit(reader: str, beside: str, dtype: torch.dtype) -> None:
    logits = []
    for recipe in (beside + reader, beside.removesuffix(" + ") or "full"):
        session = open_session(model(2, dtype), tiny.tokenizer(), recipe, 13)
        with tiny.Witness(session.model) as witness:
            session.read(tiny.text(TOKENS - 1))
            session.ask(tiny.text(3, seed=1), max_new_tokens=9)
        logits.append(witness.logits())
        read, full = session.ledger.bytes_read_per_step
        assert read == full or beside
    assert torch.equal(*logits)


@pytest.mark.parametrize("form", ["int8", "int4", "kivi(bits=4, group=16, residual=16)"])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("beside", BESIDE[:3])
def test_packed_rows_are_chosen_and_read_as_they_are(form: str, reader: str, beside: str, monkeypatch) -> None:
    made, everything = model(2, torch.float32), []
    session, witness = life(f"{beside}{form} + {reader}", 13, made, monkeypatch)
    assert torch.isfinite(witness.logits()).all()
    for layer in arenas(session.cache) if form.startswith("int") else ():  # kivi packs rows after they were looked at
        check_index(layer)
    dense = READERS[2].replace("p=0.6, pages=5", "p=1.0, pages=0")
    for recipe in (f"{beside}{form}", f"{beside}{form} + {dense}"):
        _, other = life(recipe, 13, made, monkeypatch)
        everything += [other.logits()]
    assert torch.equal(*everything)
    assert not torch.equal(everything[0], witness.logits())


@pytest.mark.parametrize("reader", READERS)
def test_heads_with_a_window_keep_to_it(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Gates(((0.9, 0.1), (0.2, 0.3), (0.6, 0.5)), 3, 9).save(tmp_path / "gates.json")
    path = str(tmp_path / "gates.json")
    reader = reader.replace("dense=1", "dense=0")
    session, witness = life(f"headgate(path={path!r}, keep=0.5) + {reader}", 13, model(), monkeypatch)
    full = [[0], [], [0, 1]]
    assert all(layer.full_heads == heads for layer, heads in zip(arenas(session.cache), full))
    for (ids, _, _), reads in zip(witness.steps, witness.reads):
        if len(ids) == 1:
            assert {slot: sorted(heads) for slot, heads in reads.items()} == {0: [0], 2: [0, 1]}
    assert torch.isfinite(witness.logits()).all()
    for layer in arenas(session.cache):
        check_index(layer)


def test_heads_with_a_window_and_all_pages_are_the_gates_alone(tmp_path: Path) -> None:
    Gates(((0.9, 0.1), (0.2, 0.3), (0.6, 0.5)), 3, 9).save(tmp_path / "gates.json")
    gates, logits = f"headgate(path={str(tmp_path / 'gates.json')!r}, keep=0.5)", []
    for more in ("", " + twilight(p=0.9999999999999, pages=0, size=4, dense=0)"):
        session = open_session(model(), tiny.tokenizer(), gates + more, 13)
        with tiny.Witness(session.model) as witness:
            session.read(tiny.text(TOKENS - 1))
            session.ask(tiny.text(3, seed=1), max_new_tokens=25)
        logits.append(witness.logits())
    torch.testing.assert_close(*logits, rtol=1e-8, atol=1e-8)


def contents(session: Session) -> list[Tensor]:
    rows = [
        x.clone()
        for layer in arenas(session.cache)
        for s in range(len(layer.arena.start))
        for x in layer.arena.plain(s)
    ]
    indices = [layer.loader.index for layer in arenas(session.cache) if layer.loader.index is not None]
    return rows + [
        table[i.start[s] : i.start[s] + i.count[s]].clone()
        for i in indices
        for s in range(len(i.count))
        for table in i.tables
    ]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("beside", BESIDE)
def test_branches_and_ways_back_leave_the_rest_alone(reader: str, beside: str) -> None:
    trunk = open_session(model(), tiny.tokenizer(), beside + reader, 13)
    trunk.read(tiny.text(TOKENS - 1))
    before, books = contents(trunk), (trunk.ledger.stored_bytes, trunk.ledger.footprint, len(trunk.ledger.steps))
    twin = trunk.fork()
    first = twin.ask(tiny.text(3, seed=1), max_new_tokens=11, gold=tiny.text(2, seed=3))
    for layer in arenas(twin.cache):
        check_index(layer)
    assert trunk.fork().ask(tiny.text(3, seed=1), max_new_tokens=11) == first
    second = twin.ask(tiny.text(2, seed=2), max_new_tokens=6)
    again = trunk.fork()
    again.ask(tiny.text(3, seed=1), max_new_tokens=1, gold=tiny.text(2, seed=3))
    assert again.ask(tiny.text(2, seed=2), max_new_tokens=6) == second or "every" in beside
    for old, new in zip(before, contents(trunk), strict=True):
        assert torch.equal(old, new)
    assert (trunk.ledger.stored_bytes, trunk.ledger.footprint, len(trunk.ledger.steps)) == books


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("beside", BESIDE[:3])
def test_a_batch_with_padding_writes_what_each_prompt_writes_alone(reader: str, beside: str) -> None:
    made, prompts = model(), [tiny.ids(n, seed=n) for n in (40, 17, 31)]
    ids = torch.cat([torch.cat([torch.zeros(1, 40 - p.shape[1], dtype=torch.long), p], 1) for p in prompts])
    mask = torch.cat([(torch.arange(40) >= 40 - p.shape[1]).long()[None] for p in prompts])
    with attach(made, beside + reader) as attached:
        together = tiny.generated(made, ids, 9, mask)
        for layer in arenas(attached.cache):
            check_index(layer)
        assert [tiny.generated(made, prompt, 9)[0] for prompt in prompts] == together


@pytest.mark.parametrize("reader", READERS)
def test_beams_carry_their_index(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, prompt = model(), tiny.ids(33)
    with attach(made, reader) as attached:
        ours = tiny.generated(made, prompt, 9, num_beams=3)
        for layer in arenas(attached.cache):
            check_index(layer)

        def anew(self: Loader, arena: Arena, sequences: list[int]) -> None:
            self.index = self.reader.open() if self.chooses else None

        monkeypatch.setattr(Loader, "select", anew)
        assert tiny.generated(made, prompt, 9, num_beams=3) == ours


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_soft_caps_and_sink_logits_take_part(kind: str) -> None:
    made, logits = tiny.model(kind), []
    for recipe in ("full", "twilight(p=0.9999999999999, pages=0, size=4, dense=0)", "quest(pages=2, size=4, dense=0)"):
        session = open_session(made, tiny.tokenizer(), recipe, 0)
        with tiny.Witness(made) as witness:
            session.read(tiny.text(TOKENS - 1))
            session.ask(tiny.text(3, seed=1), max_new_tokens=5)
        logits.append(witness.logits())
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits[2], logits[0], atol=1e-2)


@pytest.mark.parametrize("reader", READERS)
def test_a_saved_session_reads_on_as_the_live_one(reader: str, tmp_path: Path) -> None:
    session = open_session(model(), tiny.tokenizer(), "snapkv(keep=0.6, window=4) + " + reader, 13)
    session.read(tiny.text(TOKENS - 1))
    session.ask(tiny.text(3, seed=1), max_new_tokens=6)
    session.save(tmp_path / "session")
    again = reopen(session.model, tiny.tokenizer(), tmp_path / "session")
    for seed in (2, 3):
        assert again.ask(tiny.text(2, seed=seed), max_new_tokens=7) == session.ask(
            tiny.text(2, seed=seed), max_new_tokens=7
        )
    assert again.ledger.bytes_read_per_step == session.ledger.bytes_read_per_step


@pytest.mark.parametrize("reader", READERS)
def test_a_shared_reading_is_one_of_its_own(reader: str) -> None:
    made, recipe = model(), parse("snapkv(keep=0.6, window=4) + " + reader)
    assert shares(recipe)
    lead, other, alone = (Session(made, tiny.tokenizer(), one, 13) for one in (parse("full"), recipe, recipe))
    ids = lead.prompt(tiny.text(TOKENS))
    other.prompt(tiny.text(TOKENS))
    reading = Reading(lead, [other])
    reading.advance(ids, len(ids))
    reading.end()
    alone.read(tiny.text(TOKENS))
    other.begin_turns(False)
    for one in (other, alone):
        one.ask(tiny.text(3, seed=1), max_new_tokens=9)
    assert other.ledger.steps == alone.ledger.steps
    assert other.ledger.stored_bytes == alone.ledger.stored_bytes
    assert other.ledger.peak_bytes == alone.ledger.peak_bytes


def test_the_index_is_held_once_the_context_has_been_read() -> None:
    session = open_session(model(), tiny.tokenizer(), "quest(pages=3, size=4, dense=1)", 13)
    session.read(tiny.text(TOKENS - 1))
    rows = TOKENS * 2 * 16 * 2 * 8 * LAYERS
    pages = (LAYERS - 1) * 2 * (TOKENS // 4 + 4) * 2 * 16 * 8  # room for four more
    answer = session.turn(tiny.text(3, seed=1), max_new_tokens=2)
    assert (answer.stored_bytes, answer.full_bytes) == (rows + pages, rows)


def test_a_host_that_is_too_small_is_refused_with_the_figure() -> None:
    rows = TOKENS * 2 * 16 * 2 * 8 * LAYERS
    session = open_session(model(), tiny.tokenizer(), f"offload(limit={rows})", 13)
    session.read(tiny.text(TOKENS - 1))
    with pytest.raises(
        ValueError, match=rf"the rows take 7\d,\d{{3}} bytes, and offload\(limit={rows}\) allows no more"
    ):
        session.ask(tiny.text(3, seed=1))
    assert not shares(parse("offload"))
    with pytest.raises(ValueError, match="drop rows by a compression method"):
        open_session(model(), tiny.tokenizer(), f"offload(limit={rows - 1})", 13).read(tiny.text(TOKENS - 1))
    dropping = open_session(model(), tiny.tokenizer(), f"offload(limit={rows}) + knorm(keep=0.5, when='chunk')", 13)
    dropping.read(tiny.text(TOKENS - 1))
    assert dropping.ask(tiny.text(3, seed=1), max_new_tokens=3)
