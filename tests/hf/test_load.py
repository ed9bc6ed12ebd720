"""Loading by name: a folder, and errors that say what can be given."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

import kvledger as kv


def test_a_folder_is_loaded_and_ready(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model, tokenizer = kv.load(str(tmp_path), device="cpu")
    assert model.config._attn_implementation == "kvledger"
    assert not model.training
    session = kv.open(model, tokenizer, "full")
    session.read(tiny.text(20))
    expected = kv.open(tiny.model(), tiny.tokenizer(), "full")
    expected.read(tiny.text(20))
    assert session.ask(tiny.text(2), 4) == expected.ask(tiny.text(2), 4)
    assert kv.load(str(tmp_path), dtype="bfloat16", device="cpu")[0].dtype == torch.bfloat16


def test_a_name_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choices: 'zoo', a folder, a hub id"):
        kv.load(str(tmp_path / "nothing"))


@pytest.mark.parametrize("recipe", ["full", "snapkv(keep=0.4, window=4)", "adakv(keep=0.4, window=4)"])
def test_half_precision_runs(recipe: str) -> None:
    session = kv.open(tiny.model("llama", torch.bfloat16), tiny.tokenizer(), recipe, 9)
    session.read(tiny.text(30))
    assert session.ask(tiny.text(3), 4)
    assert session.ledger.full_bytes == (31 + 3 + 3) * 3 * 2 * 2 * 16 * 2
