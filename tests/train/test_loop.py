"""Runs as a whole: resuming, what is written, what is refused, and what happens when the loss is no number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from kvledger.methods.gatefile import Gates
from kvledger.train.checkpoint import Files
from kvledger.train.data import Packed, Stream
from kvledger.train.loop import train
from kvledger.train.options import Options, changed, preset
from kvledger.train.parallel import Peers
from kvledger.train.trainer import Step

T = 40
SMALL: dict[str, Any] = dict(
    sink=2, window=8, seq_len=T, batch=4, steps=6, sparsity=0.5, save_every=2, spread=1.0, block=32
)


def options(objective: str = "prulong", **more: Any) -> Options:
    base = preset(objective, more.pop("preset", "recommended"))
    return changed(base, {**SMALL, **({"init": 0.9, "spread": 0.0} if objective == "duo" else {}), **more})


def sequences(start: int) -> Iterator[Packed]:
    for n in count(start):
        learn = tuple(i not in (0, 17) and (i + n) % 3 > 0 for i in range(T))
        yield Packed(tuple(tiny.ids(T, seed=n)[0].tolist()), (0, 17), learn)


STREAM = Stream("numbers", sequences)


def run(o: Options, out: Path, **more: Any) -> tuple[Gates, list[Step]]:
    seen: list[Step] = []
    return train(o, tiny.model(), tiny.tokenizer(), STREAM, Peers(), out, seen.append, **more), seen


class Stopped(Exception):
    pass


def stop_at(step: int):
    def watch(now: Step) -> None:
        if now.step == step:
            raise Stopped

    return watch


@pytest.mark.parametrize("objective", ["prulong", "duo"])
@pytest.mark.parametrize("step", [2, 4])
def test_a_run_that_was_stopped_ends_with_the_very_same_gates(objective: str, step: int, tmp_path: Path) -> None:
    o = options(objective)
    whole, _ = run(o, tmp_path / "whole.json")
    out = tmp_path / "parts.json"
    with pytest.raises(Stopped):
        train(o, tiny.model(), None, STREAM, Peers(), out, stop_at(step))
    assert Gates.load(out).steps == step
    parts, seen = run(o, out)
    assert parts == whole
    assert [now.step for now in seen] == list(range(step, 6))  # steps after the checkpoint are done again
    whole_log, parts_log = (
        [json.loads(line) for line in Files(path).log.read_text().splitlines()]
        for path in (tmp_path / "whole.json", out)
    )
    assert all(a["seconds"] < b["seconds"] for a, b in pairwise(parts_log))  # across the stop
    timed = ("seconds", "tokens_per_second")
    assert [{k: v for k, v in line.items() if k not in timed} for line in parts_log] == [
        {k: v for k, v in line.items() if k not in timed} for line in whole_log
    ]


def test_what_is_written(tmp_path: Path) -> None:
    gates, seen = run(options(), tmp_path / "gates.json")
    assert Gates.load(tmp_path / "gates.json") == gates
    assert (gates.sink, gates.window, gates.objective, gates.target, gates.data) == (2, 8, "prulong", 0.5, "numbers")
    assert (gates.model, gates.seed, gates.steps) == ("zoo", 0, 6)
    assert len(gates.scores) == 3
    assert len(gates.scores[0]) == 2
    lines = [json.loads(line) for line in (tmp_path / "gates.log.jsonl").read_text().splitlines()]
    assert lines == [asdict(step) for step in seen]
    assert list(lines[0]) == [f.name for f in fields(Step)]
    assert [line["step"] for line in lines] == list(range(6))
    assert lines[0]["target"] == 0
    assert lines[-1]["target"] == 0.5
    assert lines[0]["lambda2"] != 0
    assert (tmp_path / "gates.state.safetensors").stat().st_size < 4096
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "gates.json",
        "gates.log.jsonl",
        "gates.state.safetensors",
    ]


def test_a_finished_run_is_not_run_again_and_fresh_begins_anew(tmp_path: Path) -> None:
    first, _ = run(options(), tmp_path / "gates.json")
    again, seen = run(options(), tmp_path / "gates.json")
    assert again == first
    assert seen == []
    fresh, seen = run(options(seed=1), tmp_path / "gates.json", fresh=True)
    assert len(seen) == 6
    assert fresh.scores != first.scores
    assert len((tmp_path / "gates.log.jsonl").read_text().splitlines()) == 6


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    run(options(steps=2), tmp_path / "gates.json")
    run(options(steps=2, save_every=1), tmp_path / "gates.json")  # this decides nothing
    with pytest.raises(ValueError, match=r"other options \(lr was 0.2 and is 0.3; seed was 0 and is 7\); --fresh"):
        run(options(steps=2, seed=7, lr=0.3), tmp_path / "gates.json")
    (tmp_path / "gates.state.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a training state"):
        run(options(steps=2), tmp_path / "gates.json")


@pytest.mark.parametrize("objective", ["prulong", "duo"])
def test_sequences_together_or_one_by_one_are_the_same_step(objective: str, tmp_path: Path) -> None:
    one, four = (run(options(objective, micro=micro), tmp_path / f"{micro}.json")[0] for micro in (1, 4))
    for a, b in zip(one.scores, four.scores):
        assert a == pytest.approx(b, abs=2e-3)


@pytest.mark.parametrize("name", ["paper", "code"])
def test_presets_run(name: str, tmp_path: Path) -> None:
    gates, _ = run(options(preset=name, steps=2), tmp_path / "gates.json")
    assert gates.steps == 2


def poison(monkeypatch: pytest.MonkeyPatch, step: int, where: str) -> None:
    from kvledger.train import trainer

    real, calls = trainer.next_token_loss, count()

    def loss(head, hidden, *more):
        out = real(head, hidden, *more)
        if next(calls) < 4 * step:
            return out
        return out + (hidden.sum() * torch.nan if where == "loss" else _NotFiniteBackward.apply(hidden.sum()))

    monkeypatch.setattr(trainer, "next_token_loss", loss)


class _NotFiniteBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 0

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.inf


@pytest.mark.parametrize("where, what", [("loss", "the loss is nan"), ("gradient", "a gradient is not finite")])
def test_what_is_no_number_stops_the_run_and_keeps_the_last_good_gates(where, what, tmp_path, monkeypatch) -> None:
    good, _ = run(options(save_every=1), tmp_path / "good.json")
    assert good.steps == 6
    with pytest.raises(Stopped):
        train(options(save_every=1), tiny.model(), None, STREAM, Peers(), tmp_path / "three.json", stop_at(3))
    three = Gates.load(
        tmp_path / "three.json"
    )  # the watch of step 3 comes before its checkpoint: three steps are saved
    poison(monkeypatch, 3, where)
    with pytest.raises(RuntimeError, match=f"{what} in step 3; the gates before it are in .*bad.json"):
        run(options(save_every=100), tmp_path / "bad.json")
    kept = Gates.load(tmp_path / "bad.json")
    assert kept.steps == 3
    assert kept.scores == three.scores


def test_trained_weights_are_saved_and_resumed(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    o = options(train_weights=True, lr_weights=1e-2)
    before = {name: p.clone() for name, p in tiny.model().state_dict().items()}

    def restore() -> None:
        tiny.model().load_state_dict(before)

    try:
        whole, _ = run(o, tmp_path / "whole.json")
        moved = {name: p.clone() for name, p in tiny.model().state_dict().items()}
        restore()
        with pytest.raises(Stopped):
            train(o, tiny.model(), tiny.tokenizer(), STREAM, Peers(), tmp_path / "parts.json", stop_at(3))
        restore()
        parts, _ = run(o, tmp_path / "parts.json")
        assert parts == whole
        assert all(torch.equal(p, moved[name]) for name, p in tiny.model().state_dict().items())
        assert any(not torch.equal(p, before[name]) for name, p in moved.items())
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "parts.model").state_dict()
        assert all(torch.equal(saved[name], p) for name, p in moved.items())
    finally:
        restore()
        tiny.model().requires_grad_(True)


def test_frozen_weights_stay_as_they_are(tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in tiny.model().state_dict().items()}
    run(options(), tmp_path / "gates.json")
    assert all(torch.equal(p, before[name]) for name, p in tiny.model().state_dict().items())


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"sparsity": 1.0}, r"sparsity=1.0 is outside \[0, 1\)"),
        ({"sparsity": -0.1}, r"sparsity=-0.1 is outside \[0, 1\)"),
        ({"sparsity": 0.95}, r"sparsity 0.95 leaves none of the 6 KV heads full; the most is 0.9167"),
        ({"sink": 0}, "sink=0 must be at least 1"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"window": 38}, r"seq_len=40 is not longer than sink \+ window = 40"),
        ({"micro": 3}, "micro=3 does not divide batch=4"),
        ({"lr": float("nan")}, "lr=nan is not a number"),
        ({"lr": -1.0}, "lr=-1.0 must be above 0"),
        ({"warmup": 1.5}, r"warmup=1.5 is outside \[0, 1\]"),
        ({"decay": "steps"}, "decay='steps' is not one of linear, cosine, ends"),
        ({"low": 0.1}, "low=0.1"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        run(options(**changes), tmp_path / "gates.json")
    assert list(tmp_path.iterdir()) == []


def test_presets_are_named() -> None:
    with pytest.raises(ValueError, match="preset='code' is not one of recommended"):
        preset("duo", "code")
    with pytest.raises(ValueError, match="objective='kl' is not one of prulong, duo"):
        preset("kl")
