"""`kvledger train kvzap|locret` as a user types it, at tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvledger.cli import main
from kvledger.hf.load import load
from kvledger.hf.session import open_session
from kvledger.methods.scorerfile import digest, read_scorer
from kvledger.train.command import describe
from kvledger.train.scorer_options import ScorerOptions
from kvledger.train.scorers import ScorerStep

SMALL = "--data {text} --seq-len 64 --steps 2 --updates 2 --hidden 8 --device cpu"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("What is worth keeping is what somebody will ask for again. " * 60)
    return folder


def command(text: Path, out: Path, more: str = "", objective: str = "kvzap") -> int:
    return main(["train", objective, *SMALL.format(text=text).split(), *more.split(), "--out", str(out)])


@pytest.mark.parametrize("objective", ["kvzap", "locret"])
def test_a_small_run_and_the_same_command_again(objective: str, text: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "made" / "scorer.safetensors"
    assert command(text, out, objective=objective) == 0
    assert f"scorer: {out}" in capsys.readouterr().out
    made = read_scorer(out)
    assert (made.facts.kind, made.facts.model, made.facts.steps) == (objective, "zoo", 2)
    assert [net.shape for net in made.nets] == [(4, {"kvzap": 256, "locret": 512}[objective])] * 6
    before = digest(str(out))
    assert command(text, out, objective=objective) == 0
    assert digest(str(out)) == before
    assert len((tmp_path / "made" / "scorer.log.jsonl").read_text().splitlines()) == 2
    session = open_session(*load("zoo", device="cpu"), f"{objective}(path={str(out)!r}, keep=0.5)")
    session.read("One two three four five six seven. " * 9)
    assert session.ledger.dropped > 0


@pytest.mark.parametrize(
    "more, reason",
    [
        ("--sparsity 0.5", "--sparsity has no place in training kvzap"),
        ("--no-first-order", "--first-order has no place in training kvzap"),
        ("--preset code", "preset='code' is not one of recommended (of kvzap)"),
        ("--fsdp", "kvzap trains in one process"),
        ("--sequence-parallel 2", "kvzap trains in one process"),
        ("--steps 0", "steps=0 must be at least 1"),
        ("--updates 0", "updates=0 must be at least 1"),
        ("--hidden -2", "hidden=-2 must be at least -1"),
        ("--lr 0", "lr=0.0 must be above 0"),
        ("--lr nan", "lr=nan is not a number to train with"),
        ("--warmup 2", "warmup=2.0 is outside [0, 1]"),
        ("--decay ends", "decay='ends' is not one of linear, cosine"),
        ("--seq-len 100000", "fewer than the 100000 of one sequence"),
        ("--data nowhere", "there is no data 'nowhere'"),
        ("--dtype int8", "dtype='int8' is not one of auto, float32"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(more: str, reason: str, text: Path, tmp_path: Path, capsys) -> None:
    assert command(text, tmp_path / "scorer.safetensors", more) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kvledger: ")]
    assert len(error) == 1
    assert reason in error[0]
    assert list(tmp_path.iterdir()) == []


def test_each_kind_has_its_own_file_and_its_own_options(text: Path, tmp_path: Path, capsys) -> None:
    assert command(text, tmp_path / "scorer.json") == 2
    assert "must end in .safetensors" in capsys.readouterr().err
    assert main(["train", "duo", "--updates", "3", "--out", str(tmp_path / "gates.json")]) == 2
    assert "--updates has no place in training duo" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_constant_is_an_option_with_a_help(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name in ScorerOptions.__dataclass_fields__:
        assert name == "objective" or f"--{name.replace('_', '-')}" in shown
    assert "learning rate of the gates (0.2; duo: 0.02; scorers: 0.0005; nsa: 0.002)" in shown


def test_the_live_line_fits_a_terminal() -> None:
    assert (
        describe(ScorerStep(9, 2.3456, 0.5678, 5e-4, 1234.5, 9.0)) == "loss 2.35 rank correlation 0.57 1,234 tokens/s"
    )
