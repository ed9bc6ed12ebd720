"""Loading by name: a folder, and errors that say what can be given."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

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
    with pytest.raises(ValueError, match="choices: 'zoo', 'zoo-wide', a folder, a hub id"):
        kv.load(str(tmp_path / "nothing"))


def sharded(folder: Path) -> list[Path]:
    """The parts of a checkpoint in pieces."""
    tiny.model().save_pretrained(folder, max_shard_size="100KB")
    tiny.tokenizer().save_pretrained(folder)
    return sorted(folder.glob("model-*.safetensors"))


def test_a_checkpoint_with_a_part_missing_or_cut_short_is_refused(tmp_path: Path) -> None:
    parts = sharded(tmp_path)
    assert len(parts) > 3
    kv.load(str(tmp_path), device="cpu")
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"cannot load the model '{tmp_path}'"):
        kv.load(str(tmp_path), device="cpu")
    parts[1].unlink()
    with pytest.raises(ValueError, match=parts[1].name):
        kv.load(str(tmp_path), device="cpu")


def test_weights_that_would_be_drawn_at_random_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    lost = [name for name in places["weight_map"] if "layers.1.mlp" in name]
    for name in lost:
        del places["weight_map"][name]
    index.write_text(json.dumps(places))
    for part in tmp_path.glob("model-*.safetensors"):
        save_file({n: x for n, x in load_file(part).items() if n not in lost}, part, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights model\.layers\.1\.mlp\.down_proj\.weight"):
        kv.load(str(tmp_path), device="cpu")


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    config = json.loads((tmp_path / "config.json").read_text())
    for kind, refused in (("llama", False), ("mystery", True)):  # transformers' own code serves, where it has some
        config |= {"model_type": kind, "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
        with pytest.raises(ValueError, match="which kvledger does not run") if refused else contextlib.nullcontext():
            kv.load(str(tmp_path), device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("recipe", ["full", "snapkv(keep=0.4, window=4)", "adakv(keep=0.4, window=4)"])
def test_half_precision_runs(recipe: str) -> None:
    session = kv.open(tiny.model("llama", torch.bfloat16), tiny.tokenizer(), recipe, 9)
    session.read(tiny.text(30))
    assert session.ask(tiny.text(3), 4)
    assert session.ledger.full_bytes == (31 + 3 + 3) * 3 * 2 * 2 * 16 * 2
