"""A saved session, opened again, answers as the live one does; a file that is damaged or another's is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import kvledger as kv
from kvledger.hf import saved

TEXT, QUESTION, NEXT = tiny.text(60), tiny.text(7, seed=1), tiny.text(9, seed=2)
SNAP = "snapkv(keep=0.4, window=4)"
RECIPES = [
    ("llama", "full"),
    ("llama", SNAP),
    ("llama", "adakv(keep=0.3, when='chunk', window=4)"),
    ("llama", "snapkv(keep=0.4, window=4, heads='query')"),
    ("llama", "headgate(path='random:0', keep=0.5, sink=2, window=8) + knorm(keep=0.5)"),
    ("llama", "h2o(keep=0.5, every=3)"),
    ("llama", "criticalkv(keep=0.5, window=4, every=3)"),
    ("llama", "expected_attention(rows=20, sinks=2, every=3)"),
    ("llama", "kvzip(keep=0.5, chunk=20) + protect(sinks=2)"),
    ("gemma3_text", SNAP),
    ("gpt_oss", SNAP),
]


def told(session: Any) -> list[Any]:
    answers = [
        session.ask(QUESTION, 8),
        session.fork().ask(NEXT, 5),
        session.ask(NEXT, 5, gold="w1 w2"),
        session.ask("w9", 5),
    ]
    return [*answers, session.ledger.footprint, session.ledger.full_bytes, session.ledger.dropped]


@pytest.mark.parametrize("kind, recipe", RECIPES)
def test_a_reopened_session_goes_on_as_the_live_one(kind: str, recipe: str, tmp_path: Path) -> None:
    made, path = tiny.model(kind), tmp_path / "context.kv"
    live = kv.open(made, tiny.tokenizer(), recipe, chunk=20)
    live.read(TEXT)
    live.ask(QUESTION, 6)
    assert live.save(path) == path.stat().st_size
    again = kv.reopen(tiny.model(kind), tiny.tokenizer(), path, recipe=recipe, context=TEXT)
    assert tiny.alive(again.cache) == tiny.alive(live.cache)
    assert again.ledger.stored_bytes <= live.ledger.stored_bytes  # no slack is written
    assert again.ledger.peak_bytes == live.ledger.peak_bytes
    assert told(again) == told(live)


def test_another_process_answers_the_same(tmp_path: Path) -> None:
    model, tokenizer = kv.load("zoo")
    live = kv.open(model, tokenizer, "snapkv(keep=0.5)", chunk=128)
    live.read('JSON data: {"ba": "ko", "du": "mi", "fe": "ra"} ' * 8)
    live.save(tmp_path / "s.kv")
    ask = 'Key: "du"\nThe value: '
    script = (
        "import sys, kvledger as kv; m, t = kv.load('zoo'); s = kv.reopen(m, t, sys.argv[1]); "
        "print(repr(s.ask(sys.argv[2], 8)), s.ledger.footprint)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "s.kv"), ask]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{live.ask(ask, 8)!r} {live.ledger.footprint}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    session = kv.open(tiny.model(), tiny.tokenizer(), SNAP, chunk=20)
    session.read(TEXT)
    session.save(tmp_path / "s.kv")
    return tmp_path / "s.kv"


def reopened(path: Path, made: Any = None, tokenizer: Any = None, **more: Any) -> Any:
    return kv.reopen(made or tiny.model(), tokenizer or tiny.tokenizer(), path, **more)


@pytest.mark.parametrize("cut", [0, 5, 100, 0.5, -1])
def test_a_file_cut_short_is_refused(file: Path, cut: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(cut * len(content)) if 0 < cut < 1 else int(cut)])
    with pytest.raises(ValueError, match="not a whole saved session"):
        reopened(file)


def test_a_changed_number_is_refused(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="was changed after it had been saved"):
        reopened(file)


def test_a_changed_manifest_is_refused(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata())
    manifest = json.loads(metadata["manifest"])
    manifest["session"]["tokens"] += 1
    save_file(load_file(file), file, metadata=metadata | {"manifest": json.dumps(manifest)})
    with pytest.raises(ValueError, match="was changed after it had been saved"):
        reopened(file)


def test_a_file_of_something_else_is_refused(file: Path) -> None:
    save_file(load_file(file), file, metadata={"manifest": "{}"})
    with pytest.raises(ValueError, match="not a saved session of this version"):
        reopened(file)
    with pytest.raises(ValueError, match="no saved session at"):
        reopened(file.with_name("none.kv"))


def test_another_model_tokenizer_recipe_or_context_is_refused(file: Path) -> None:
    for more, what in [
        ({"made": tiny.model(num_hidden_layers=2)}, "another model"),
        ({"made": tiny.model("llama", torch.float64)}, "another model|another dtype"),
        ({"tokenizer": tiny.tokenizer(True)}, "another tokenizer"),
        ({"recipe": "snapkv(keep=0.5, window=4)"}, "was made under"),
        ({"context": tiny.text(60, seed=5)}, "another context"),
    ]:
        with pytest.raises(ValueError, match=what):
            reopened(file, **more)


def test_nothing_read_and_a_waiting_question_are_not_saved(tmp_path: Path) -> None:
    session = kv.open(tiny.model(), tiny.tokenizer(), SNAP)
    with pytest.raises(ValueError, match="nothing to save"):
        session.save(tmp_path / "s.kv")
    session.read(TEXT, QUESTION)
    with pytest.raises(ValueError, match="waits for its answer"):
        session.save(tmp_path / "s.kv")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved, "save_file", full)
    session = kv.open(tiny.model(), tiny.tokenizer(), "full")
    session.read(TEXT)
    with pytest.raises(OSError, match="No space left"):
        session.save(file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]
