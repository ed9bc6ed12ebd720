"""Training NSA's branches: what is compared, that it is learned, and that a run can be cut off and taken up again."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from kvledger.cache.sparse import read
from kvledger.cli import main
from kvledger.hf.session import open_session
from kvledger.methods import nsafile
from kvledger.methods.nsa import NSA, compressed
from kvledger.methods.nsafile import Trained, digest, read_trained
from kvledger.methods.pattern import Look
from kvledger.train.data import Packed, Stream
from kvledger.train.nsa import Lesson, NSAStep, NSATrainer, divergence, examine, train_nsa
from kvledger.train.nsa_options import NSAOptions

T = 96


def packed(seed: int) -> Packed:
    return Packed(tuple(tiny.ids(T, seed=seed)[0].tolist()), (0,), tuple(i > 0 for i in range(T)))


STREAM = Stream("numbers", lambda start: map(packed, count(start)))
OPTIONS = NSAOptions(
    model="tiny", data="numbers", compress=8, stride=4, block=8, select=4, window=8, hidden=4, queries=24, steps=8,
    updates=8, seq_len=T, lr=3e-3, save_every=4,
)  # fmt: skip


def run(o: NSAOptions, out: Path, **more: Any) -> tuple[Trained, list[NSAStep]]:
    seen: list[NSAStep] = []
    return train_nsa(o, tiny.model(), STREAM, out, seen.append, **more), seen


def lessons(trainer: NSATrainer, at: list[int]) -> list[Lesson]:
    return trainer._read(packed(3), 0, T, at)


def test_what_is_trained_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a layer, from the attention that a session computes with the same weights."""
    made, _ = run(replace(OPTIONS, steps=3), tmp_path / "nsa.safetensors")
    monkeypatch.setattr(nsafile, "trained", lambda path, device: made)
    trainer = NSATrainer(OPTIONS, tiny.model())
    pattern = replace(trainer.pattern, path="made")
    for i, lesson in enumerate(lessons(trainer, list(range(T)))):
        off = of = held = 0.0
        for h in range(len(lesson.keys)):
            q, k, v = lesson.queries[h], lesson.keys[h], lesson.values[h]
            G = len(q)
            heads = range(h * G, h * G + G)
            look = Look(i, heads, q, k, lesson.scale, None, True, None, v, lesson.at, lesson.hidden, lesson.rope)
            out, _, _ = read(q, k, v, pattern.choose(look), lesson.scale)
            off, of = off + float(((out - lesson.wanted[h]) ** 2).sum()), of + float((lesson.wanted[h] ** 2).sum())
        error, focus, held = examine(trainer.pattern, made.layers[i], lesson)
        assert float(error) == pytest.approx(off / of, rel=1e-3)
        assert 0 < float(held) < 1
        assert float(focus) > 0


def test_divergence_is_none_where_importance_is_the_mass_of_attention() -> None:
    lesson = lessons(NSATrainer(OPTIONS, tiny.model()), [40, 70, 95])[0]
    mass = lesson.weights.mean(1).unflatten(-1, (-1, 8)).sum(-1)
    pattern = NSA(compress=8, stride=4, block=8)
    assert float(divergence(pattern, mass * 3, lesson)) == pytest.approx(0, abs=1e-5)
    assert float(divergence(pattern, mass.flip(-1), lesson)) > 0.1


def test_runs_are_alike_wherever_they_stand() -> None:
    """A run's key at another place is the same key, turned there."""
    lesson = lessons(NSATrainer(OPTIONS, tiny.model()), [1])[0]
    net = nsafile.fresh(8, 16, 4, 8, 64, torch.Generator().manual_seed(0))
    net = replace(net, key_weight=torch.randn(17, 4))
    rows, values, at = lesson.keys[:1, :8], lesson.values[:1, :8], torch.arange(8)[None]
    here, _ = compressed(net, rows, values, at, lesson.rope)
    there, _ = compressed(net, lesson.rope.shift(rows, torch.full((1, 8), 30)), values, at + 30, lesson.rope)
    torch.testing.assert_close(there, lesson.rope.shift(here, torch.tensor([30])), rtol=1e-3, atol=1e-4)


def test_training_lowers_the_error_and_leaves_the_model_alone(tmp_path: Path) -> None:
    before = {name: x.clone() for name, x in tiny.model().state_dict().items()}
    made, _ = run(OPTIONS, tmp_path / "nsa.safetensors")
    trainer = NSATrainer(OPTIONS, tiny.model())
    new = lessons(trainer, list(range(0, T, 3)))
    first, last = (
        sum(float(examine(trainer.pattern, net, x)[0].detach()) for net, x in zip(nets, new))
        for nets in (trainer.nets, made.layers)
    )
    assert last < 0.93 * first  # of sequences that were not learned from
    assert digest(str(tmp_path / "nsa.safetensors")) == digest(str(tmp_path / "nsa.safetensors"))
    assert read_trained(tmp_path / "nsa.safetensors").facts == made.facts
    assert all(torch.equal(x, before[name]) for name, x in tiny.model().state_dict().items())


class Stopped(Exception):
    pass


def test_a_run_that_was_cut_off_ends_with_the_very_same_numbers(tmp_path: Path) -> None:
    o = replace(OPTIONS, steps=6, save_every=2)
    whole, _ = run(o, tmp_path / "whole.safetensors")

    def watch(now: NSAStep) -> None:
        if now.step == 3:
            raise Stopped

    out = tmp_path / "cut.safetensors"
    with pytest.raises(Stopped):
        train_nsa(o, tiny.model(), STREAM, out, watch)
    made, steps = run(o, out)
    assert [step.step for step in steps] == [4, 5] or [step.step for step in steps] == [2, 3, 4, 5]
    for ours, theirs in zip(made.layers, whole.layers):
        assert all(torch.equal(x, theirs.tensors()[name]) for name, x in ours.tensors().items())
    assert [json.loads(line)["step"] for line in (tmp_path / "cut.log.jsonl").read_text().splitlines()] == [*range(6)]
    with pytest.raises(ValueError, match=r"other options \(lr was 0.003 and is 0.1\)"):
        run(replace(o, lr=0.1), out)


def test_what_cannot_be_learned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gpt_oss.* sink logits"):
        train_nsa(OPTIONS, tiny.model("gpt_oss"), STREAM, tmp_path / "nsa.safetensors")
    with pytest.raises(ValueError, match="no document longer than 300 tokens"):
        run(replace(OPTIONS, block=100, compress=100), tmp_path / "nsa.safetensors")
    with pytest.raises(ValueError, match="block=9 is no multiple of stride=4"):
        run(replace(OPTIONS, block=9), tmp_path / "nsa.safetensors")
    with pytest.raises(RuntimeError, match="in step 0; what was learned before it"):
        run(replace(OPTIONS, focus=1e308), tmp_path / "nsa.safetensors")


def test_the_command_and_what_it_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("What is worth keeping is what somebody will ask for again. " * 60)
    sizes = {"compress": 4, "stride": 2, "block": 4, "select": 3, "window": 8}
    small = [*(f"--{name}={n}" for name, n in sizes.items()), "--hidden=4", "--seq-len=64", "--steps=2", "--queries=8"]
    out = tmp_path / "nsa.safetensors"
    command = ["train", "nsa", "--data", str(tmp_path / "a.txt"), *small, "--device", "cpu", "--out"]
    assert main([*command, str(out)]) == 0
    assert f"nsa: {out}" in capsys.readouterr().out
    from kvledger.hf.load import load

    options = ", ".join(f"{name}={n}" for name, n in sizes.items())
    session = open_session(*load("zoo", device="cpu"), f"nsa({options}, path={str(out)!r})")
    session.read("One two three four five six seven. " * 9)
    assert session.ledger.prefill_work < 1
    assert main([*command, str(tmp_path / "nsa.json")]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
    assert main([*command, str(out), "--sparsity", "0.5"]) == 2
    assert "--sparsity has no place in training nsa" in capsys.readouterr().err
