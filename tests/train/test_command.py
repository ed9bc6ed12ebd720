"""`kvledger train` as a user types it, at tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvledger.cli import main
from kvledger.methods.gatefile import Gates
from kvledger.train.command import describe
from kvledger.train.options import Options
from kvledger.train.trainer import Step

SMALL = "--data {text} --seq-len 96 --sink 2 --window 16 --batch 2 --steps 2 --sparsity 0.5 --device cpu"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("A head that must remember is full, and all others may forget. " * 60)
    return folder


def command(text: Path, out: Path, more: str = "", objective: str = "prulong") -> int:
    return main(
        ["train", objective, *SMALL.format(text=text).split(), *more.format(text=text).split(), "--out", str(out)]
    )


@pytest.mark.parametrize("objective", ["prulong", "duo"])
def test_a_small_run_and_the_same_command_again(objective: str, text: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "made" / "gates.json"
    assert command(text, out, objective=objective) == 0
    first = capsys.readouterr()
    gates = Gates.load(out)
    assert (gates.model, gates.steps, gates.objective, gates.target) == ("zoo", 2, objective, 0.5)
    assert len(gates.scores) == 6
    assert len(gates.scores[0]) == 4
    assert str(out) in first.out
    assert out.with_suffix(".html").exists()
    assert command(text, out, objective=objective) == 0
    assert Gates.load(out) == gates


@pytest.mark.parametrize(
    "more, reason",
    [
        ("--sparsity 1", "sparsity=1.0 is outside [0, 1)"),
        ("--sparsity 0.99", "leaves none of the 24 KV heads full"),
        ("--sparsity -0.5", "sparsity=-0.5 is outside"),
        ("--window 0", "window=0 must be at least 1"),
        ("--sink 0", "sink=0 must be at least 1"),
        ("--window 94", "seq_len=96 is not longer than sink + window = 96"),
        ("--seq-len 100000", "fewer than the 100000 of one sequence"),
        ("--sequence-parallel 2", "sequence-parallel size 2 does not divide the 1 process(es)"),
        ("--model {text}", "cannot load the model "),
        ("--data nowhere", "there is no data 'nowhere'"),
        ("--dtype int8", "dtype='int8' is not one of auto, float32"),
        ("--dtype bf16 --train-weights", "train weights with --dtype float32"),
        ("--preset code --decay no", "decay='no' is not one of"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(more: str, reason: str, text: Path, tmp_path: Path, capsys) -> None:
    assert command(text, tmp_path / "gates.json", more) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kvledger: ")]
    assert len(error) == 1
    assert reason in error[0]
    assert list(tmp_path.iterdir()) == []


def test_other_options_are_not_resumed_without_fresh(text: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "gates.json"
    assert command(text, out) == 0
    assert command(text, out, "--seed 1") == 2
    assert "other options (seed was 0 and is 1); --fresh begins anew" in capsys.readouterr().err
    assert command(text, out, "--seed 1 --fresh") == 0
    assert Gates.load(out).seed == 1


def test_every_constant_is_an_option_with_a_help(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name in Options.__dataclass_fields__:
        assert name == "objective" or f"--{name.replace('_', '-')}" in shown
    assert all(f.metadata["help"] for f in Options.__dataclass_fields__.values())


def test_the_live_line_fits_a_terminal() -> None:
    step = Step(99, 2.3456, 0.5, 0.51, 0.7, -12.3, 45.6, 0.1, 12345.6, 1.0)
    assert describe(step) == "loss 2.35 sparsity 0.50/0.51→0.70 λ -12.3 45.6 12,346 tokens/s"
    duo = Step(99, 2.3456, 0.5, 0.51, None, None, None, 0.1, 12345.6, 1.0)
    assert describe(duo) == "loss 2.35 sparsity 0.50/0.51 12,346 tokens/s"
