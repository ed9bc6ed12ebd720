"""Scorer files: what is written is read, and what is no scorer, or another model's, is refused with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from scorers import opened, scorer

from kvledger.methods.scorerfile import read_scorer
from kvledger.recipe import parse

TOKENS = 60


@pytest.mark.parametrize("kind", ["kvzap", "locret"])
@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scorer_and_its_file_are_one(kind: str, hidden: int, dtype: torch.dtype, tmp_path: Path) -> None:
    made = scorer(kind, hidden=hidden)
    made.save(tmp_path / "deep" / "s.safetensors", dtype)
    read = read_scorer(tmp_path / "deep" / "s.safetensors")
    assert read.facts == made.facts
    for ours, theirs in zip(made.nets, read.nets):
        assert ours.tensors().keys() == theirs.tensors().keys()
        for name, x in ours.tensors().items():
            assert torch.equal(x.to(dtype).float(), theirs.tensors()[name])
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["s.safetensors"]


def test_records_of_another_file_are_not_mixed_in(files: dict[str, str]) -> None:
    method = parse(f"kvzap(path={files['kvzap']!r})").method
    first = method.fingerprint
    assert len(first) == 12
    scorer("kvzap").save(files["kvzap"])
    os.utime(files["kvzap"], ns=(1, 1))
    assert method.fingerprint == first
    scorer("kvzap", seed=1).save(files["kvzap"])
    assert method.fingerprint != first
    assert parse("locret(path='random:3')").method.fingerprint == ""
    assert parse("dms").method.fingerprint == ""


def test_a_file_that_was_trained_anew_is_read_anew(files: dict[str, str]) -> None:
    kept = []
    for seed in (0, 5):
        scorer("kvzap", seed=seed).save(files["kvzap"])
        session = opened(f"kvzap(path={files['kvzap']!r}, keep=0.3, delay=2)")
        session.read(tiny.text(TOKENS))
        kept.append(tiny.alive(session.cache))
    assert kept[0] != kept[1]


def damaged(path: str, what: str) -> None:
    """Make a file of another sort out of a good one."""
    tensors, about = load_file(path), {"format": "1", "kind": "kvzap"}
    if what == "newer":
        about["format"] = "2"
    elif what == "weights":
        about = {}
    elif what == "kind":
        about["kind"] = "oracle"
    elif what == "layer":
        tensors = {name: x for name, x in tensors.items() if not name.startswith("layers.1.")}
    elif what == "tensor":
        tensors["layers.0.extra"] = torch.zeros(2)
    elif what == "shape":
        tensors["layers.1.weight"] = torch.zeros(2, 5)
    elif what == "heads":
        tensors |= {"layers.2.weight": torch.zeros(3, 8), "layers.2.bias": torch.zeros(3)}
    elif what == "numbers":
        tensors["layers.0.bias"] = torch.tensor([0.0, float("nan")])
    save_file(tensors, path, metadata=about)
    if what == "short":
        Path(path).write_bytes(Path(path).read_bytes()[:-40])
    if what == "text":
        Path(path).write_text("no scorer at all")


@pytest.mark.parametrize(
    "what, message",
    [
        ("newer", "its format is 2 and 1 is the newest known here"),
        ("weights", "it is a safetensors file, but not a scorer"),
        ("kind", "kind 'oracle' is not one of kvzap, locret"),
        ("layer", "layers are missing in it"),
        ("tensor", "the tensor 'layers.0.extra' .* has no place in it"),
        ("shape", "layer 1 has tensors that do not fit together"),
        ("heads", "layer 2 is of .* and layer 0 of"),
        ("numbers", "layer 0 holds numbers that are not finite"),
        ("short", "cannot read the scorer '.*kvzap.safetensors': "),
        ("text", "cannot read the scorer '.*kvzap.safetensors': "),
    ],
)
def test_files_that_are_no_scorers_are_refused(what: str, message: str, files: dict[str, str]) -> None:
    damaged(files["kvzap"], what)
    with pytest.raises(ValueError, match=message):
        read_scorer(files["kvzap"])
    with pytest.raises(ValueError, match=message):
        opened(f"kvzap(path={files['kvzap']!r})")


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("kvzap(path='{locret}')", "is of the kind 'locret' where 'kvzap' is needed"),
        ("locret(path='{kvzap}')", "is of the kind 'kvzap' where 'locret' is needed"),
        ("dms(path='{locret}')", "is of the kind 'locret' where 'kvzap' is needed"),
        (
            "kvzap(path='{wide}')",
            "for 3 layers of 2 KV heads with 32 inputs, and this model has 3 of 2 with 64: train one",
        ),
        ("kvzap(path='{deep}')", "for 4 layers of 2 KV heads with 64 inputs, and this model has 3 of 2 with 64"),
        ("kvzap(path='{many}')", "for 3 layers of 4 KV heads with 64 inputs, and this model has 3 of 2 with 64"),
        ("kvzap(path='nowhere.safetensors')", "cannot read the scorer 'nowhere.safetensors'"),
        ("kvzap(path='zoo/nothing')", "no embedded scorer 'zoo/nothing'"),
    ],
)
def test_scorers_of_other_models_are_refused_before_anything_is_read(
    recipe: str, message: str, files: dict[str, str], tmp_path: Path
) -> None:
    for name, shape in (("wide", {"inputs": 32}), ("deep", {"layers": 4}), ("many", {"heads": 4})):
        files[name] = str(tmp_path / f"{name}.safetensors")
        scorer("kvzap", **shape).save(files[name])
    with pytest.raises(ValueError, match=message):
        opened(recipe.format(**files))


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("kvzap(path='')", "path='' names no scorer"),
        ("kvzap(path='random:x')", "path='random:x': an untrained scorer is named by its seed"),
        ("locret(path='random:')", "an untrained scorer is named by its seed"),
        ("dms(delay=-1)", "delay=-1 is negative"),
        ("dms(threshold=1.5)", "threshold=1.5 must be negative"),
        ("kvzap(threshold=4)", "threshold=4.0 must be negative"),
        ("locret(stabilizers=-2)", "stabilizers=-2 is negative"),
    ],
)
def test_bad_options_are_named(recipe: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(recipe)
