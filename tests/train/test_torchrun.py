"""The command itself under torchrun: two processes that share each sequence, and the weights, end where one ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvledger.cli import main
from kvledger.methods.gatefile import Gates

COMMAND = (
    "train prulong --model zoo --data {0}/text --seq-len 128 --sink 4 --window 32 --steps 3 --batch 2 --spread 1 "
    "--sparsity 0.5 --device cpu --out {0}/{1}.json"
)
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2 -m kvledger.cli"


def command(folder: Path, name: str, *more: str) -> list[str]:
    (folder / "text").mkdir(exist_ok=True)
    (folder / "text" / "words.txt").write_text(" ".join(f"word {i} of {i % 7}" for i in range(2000)))
    return [*COMMAND.format(folder, name).split(), *more]


def test_two_processes_write_the_gates_of_one(tmp_path: Path) -> None:
    here = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    both = command(tmp_path, "two", "--sequence-parallel", "2", "--fsdp")
    done = subprocess.run(
        [sys.executable, *TORCHRUN.split(), *both], env=here, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("two.json") == 1  # one process speaks
    assert main(command(tmp_path, "one")) == 0
    one, two = (Gates.load(tmp_path / f"{name}.json") for name in ("one", "two"))
    assert sum(two.scores, ()) == pytest.approx(sum(one.scores, ()), abs=1e-6)
    assert (two.target, two.steps, two.sink, two.window) == (0.5, 3, 4, 32)
    logs = [(tmp_path / f"{name}.log.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert [len(log) for log in logs] == [3, 3]
    for here, there in zip(*(map(json.loads, log) for log in logs)):
        for name in ("loss", "expected", "lambda1", "lambda2"):
            assert here[name] == pytest.approx(there[name], rel=1e-5), name


def test_a_shared_sequence_needs_several_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main(command(tmp_path, "gates", "--sequence-parallel", "2")) == 2
    assert "sequence-parallel size 2 does not divide the 1 process(es)" in capsys.readouterr().err
    assert not list(tmp_path.glob("gates*"))
