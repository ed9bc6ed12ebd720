"""Models of four kinds and more through a whole run: attention and a state that restarts (Jamba), a state alone (Mamba-2),
windows beside attention (Gemma 3), a delta rule beside attention (Qwen3-Next). After every forward the books say what a walk
over all tensors finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import models_page
import pytest
import tiny
import torch
import transformers
from transformers import AutoModelForCausalLM

import kvledger as kv
from kvledger.hf.hybrid import states
from kvledger.hf.session import Session
from kvledger.records import Record, read
from kvledger.run.sweep import Grid, sweep

KINDS = {"jamba": 0, "mamba2": 64, "gemma3_text": 64, "qwen3_next": 64, "mamba": 0, "recurrent_gemma": 0}  # and chunk
BARE = ("mamba", "mamba2", "recurrent_gemma")
RECIPES = ("full", "snapkv(keep=0.3)", "h2o(keep=0.5)")


@pytest.fixture(autouse=True)
def _known(request: pytest.FixtureRequest) -> None:
    """Older versions of transformers do not have all of these types."""
    kind = getattr(request.node, "callspec", None) and request.node.callspec.params.get("kind", "")
    named = kind or ("recurrent_gemma" if "modules" in request.node.name else "")
    if models_page.expected(transformers.__version__).get(named, ("",))[0] == models_page.REFUSED:
        pytest.skip("this transformers gives the states no place in its cache")


def saved(kind: str, folder: Path) -> Path:
    """A random model of that kind on disk, with a tokenizer of bytes."""
    tokenizer, config = tiny.byte_tokenizer(), models.config(kind)
    config.vocab_size, config.max_position_embeddings, config.pad_token_id = len(tokenizer), 4096, 0
    config.bos_token_id, config.eos_token_id = 1, 2
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def audited(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compare the books with the tensors after each forward, and whenever a record's bytes are noted; the bytes found."""
    found: list[int] = []

    def check(session: Session) -> None:
        strays = models.strays(session.model)
        found.append(session.ledger.stored_bytes)
        assert found[-1] == models.walk([session.cache.layers, strays]) > 0

    def wrapped(name: str) -> Any:
        plain = getattr(Session, name)

        def call(self: Session, *args: Any) -> None:
            plain(self, *args)
            if self.tokens:
                check(self)

        return call

    for name in ("forward", "_note_bytes"):
        monkeypatch.setattr(Session, name, wrapped(name))
    return found


def play(folder: Path, out: Path, chunk: int, recipes: tuple[str, ...] = RECIPES) -> tuple[list[Record], list[str]]:
    grid = Grid(str(folder), recipes, ("scbench/kv",), ("multi-turn", "multi-request"), context=(300,), chunk=chunk,
                samples=1, turns=2)  # fmt: skip
    told: list[str] = []
    sweep(grid, out, lambda progress: None, told.append)
    return read(out)[0], told


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_run_in_both_modes_with_true_books(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = audited(monkeypatch)
    records, told = play(saved(kind, tmp_path / "model"), tmp_path, KINDS[kind])
    wanted = ("full",) if kind in BARE else RECIPES
    assert {r.recipe for r in records} == set(wanted)
    assert len(records) == 2 * 2 * len(wanted)
    assert len(found) > len(records)
    assert [line.split(" is left out")[0] for line in told] == [r for r in RECIPES if r not in wanted]
    for record in records:
        assert record.stored_bytes in found
        assert record.peak_bytes >= record.stored_bytes
        assert record.bytes_read_per_step > 0
        if record.recipe == "full":
            assert record.footprint == record.peak == 1.0
            assert record.byte_footprint == 1.0 if kind in BARE else 1.0 <= record.byte_footprint < 1.1
            assert record.stored_bytes >= record.full_bytes
        else:
            assert record.footprint < 1
            assert record.stored_bytes < record.full_bytes


def test_a_state_costs_the_same_after_any_number_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = audited(monkeypatch)
    records, _ = play(saved("mamba2", tmp_path / "model"), tmp_path, 64, ("full",))
    assert len(set(found)) == 1
    assert {(r.stored_bytes, r.full_bytes, r.bytes_read_per_step) for r in records} == {(found[0],) * 3}


def test_what_has_nothing_to_compress_is_refused_by_name(tmp_path: Path) -> None:
    folder = saved("mamba2", tmp_path / "model")
    model, tokenizer = kv.load(str(folder))
    for recipe in ("snapkv(keep=0.3)", "headgate(path='random:0', keep=0.5)"):
        with pytest.raises(ValueError, match=r"'mamba2' has no full-attention layer .* use full"):
            kv.open(model, tokenizer, recipe)
    with pytest.raises(ValueError, match="use full"):
        play(folder, tmp_path, 64, ("snapkv(keep=0.3)",))
    assert not (tmp_path / "records").exists()


def test_chunks_that_would_be_forgotten_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chunk=0"):
        play(saved("jamba", tmp_path / "model"), tmp_path, 64)
    assert not (tmp_path / "records").exists()


def test_a_state_in_modules_is_each_sessions_own() -> None:
    model, tokenizer = models.model("recurrent_gemma"), tiny.tokenizer()
    one, other = (kv.open(model, tokenizer, "full") for _ in range(2))
    alone = kv.open(model, tokenizer, "full")
    one.read(tiny.text(20))
    other.read(tiny.text(20, seed=1))
    one.ask("w7 w8", 3)
    alone.read(tiny.text(20))
    alone.ask("w7 w8", 3)
    mine, others, same = (
        [x for layer in session.cache.layers for x in states(layer)] for session in (one, other, alone)
    )
    assert len(mine) == 4
    assert all(torch.equal(a, b) for a, b in zip(mine, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(mine, others, strict=True))
    assert models.strays(model) == []


@pytest.mark.parametrize("kind", ["mamba2", "recurrent_gemma"])
def test_attach_follows_generate_on_a_state(kind: str) -> None:
    model = models.model(kind)
    prompt = tiny.ids(12)
    plain = tiny.generated(model, prompt, 6)
    with kv.attach(model, "full") as attached:
        assert tiny.generated(model, prompt, 6) == plain
    ledger = attached.ledger
    assert [step.kind for step in ledger.steps] == ["read"] + ["decode"] * 5
    assert ledger.stored_bytes == models.walk(attached.cache.layers) >= ledger.bytes_read_per_step[0] > 0
