"""The CUDA reader in an arena's life: its work list, appending, in the place of the CPU's reader; and that it compiles."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ragged import DEVICE, SCALE, arena_of, close, draw, written_out
from torch import Tensor

from kvledger.cache import kernels, native
from kvledger.cache.arena import Arena
from kvledger.cache.attend import attend, reference
from kvledger.cache.kernels import append as append_module
from kvledger.cache.kernels import read as read_module
from kvledger.cache.kernels.append import append
from kvledger.cache.kernels.plan import plan_for
from kvledger.cache.kernels.read import over_rows, read
from kvledger.hf.load import attach

# ---- the work list, appending -------------------------------------------------------------------------------------------


def filled(lengths: list[list[int]], T: int) -> tuple[Arena, Arena, Tensor, Tensor]:
    """An arena, a copy of it, and new rows for both."""
    both = [arena_of(lengths, slack=2 * T + 8) for _ in range(2)]
    for arena in both:
        arena.position = torch.zeros(arena.k.shape[0], dtype=torch.int16, device=DEVICE)
        arena.open_tally()
        assert arena.tally is not None
        arena.tally.fill_(7.0)
    k, v = (draw(len(lengths), T, len(lengths[0]), 16, seed=seed).transpose(1, 2) for seed in (50, 51))
    return both[0], both[1], k, v


def advance(arena: Arena, T: int) -> None:
    arena.length, arena.seen = [n + T for n in arena.length], [n + T for n in arena.seen]


@pytest.mark.parametrize("T", [1, 21])
def test_append_writes_what_the_arena_writes(T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "usable", lambda x: False)  # the arena's own way, on a GPU too
    ours, theirs, k, v = filled([[0, 140], [30, 3]], T)
    for _ in range(2):  # the second by the list of the first
        append(ours, k, v)
        advance(ours, T)
        theirs.append(k, v)
    assert (ours.length, ours.seen) == (theirs.length, theirs.seen)
    for name in ("k", "v", "position", "tally"):
        assert torch.equal(getattr(ours, name).nan_to_num(9.0), getattr(theirs, name).nan_to_num(9.0)), name


def test_the_list_serves_until_lengths_part() -> None:
    arena = arena_of([[300, 20], [5, 40]], slack=4)
    q = draw(2, 4, 1, 16, seed=2)
    read(q, arena, 0, SCALE)
    plan, gained = plan_for(arena, 0, 2, None, 1)
    for step in range(3):
        append(arena, *(draw(2, 2, 1, 16, seed=60 + step + i) for i in range(2)))
        advance(arena, 1)
        close(read(q, arena, 0, SCALE), written_out(q, arena))
    again, gained = plan_for(arena, 0, 2, None, 1)
    assert again is plan
    assert gained == 3
    arena.length = [n - 1 if s == 1 else n for s, n in enumerate(arena.length)]
    assert plan_for(arena, 0, 2, None, 1)[0] is not plan
    close(read(q, arena, 0, SCALE), written_out(q, arena))


def test_lengths_may_grow_on_the_device() -> None:
    """As in a captured step: the host's numbers stand still, the counter on the device moves."""
    arena = arena_of([[130, 20]], slack=4)
    q = draw(1, 4, 1, 16, seed=2)
    plan, _ = plan_for(arena, 0, 1, None, 1)
    for step in range(3):
        k, v = (draw(1, 2, 1, 16, seed=60 + step + i) for i in range(2))
        append(arena, k, v)
        plan.grown += 1
        got = over_rows(q, arena.k, arena.v, plan, 0, SCALE)
    advance(arena, 3)
    close(got, written_out(q, arena))


def test_a_hopper_gpu_would_take_them() -> None:
    """Compiled to its machine code, within the 227 KB of shared memory that a program may have there."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = [sys.executable, str(Path(__file__).with_name("compile_kernels.py"))]
    done = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout)
    assert len(made) == 9
    assert max(made.values()) <= 227 * 1024, made


# ---- in the place of the CPU's reader ---------------------------------------------------------------------------------------


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels take over wherever they are asked; says which were."""
    names: list[str] = []

    def spy(module: Any, name: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (names.append(name), real(*a, **k))[1])

    for module, name in ((append_module, "append"), (read_module, "read")):
        spy(module, name)
    monkeypatch.setattr(kernels, "usable", lambda x: True)
    monkeypatch.setattr(native, "usable", lambda *x: False)
    return names


def test_an_arenas_life(called: list[str]) -> None:
    """Read, drop, decode past the slack, branch, go back: each time the reference's answer."""
    arena = Arena(1, 2)

    def forward(arena: Arena, T: int, seed: int) -> None:
        q, k, v = (draw(1, heads, T, 16, seed=seed + heads) for heads in (4, 2, 2))
        arena.append(k, v)
        torch.testing.assert_close(attend(q, k, v, arena, SCALE)[0], reference(q, arena, SCALE), rtol=1e-4, atol=1e-4)

    forward(arena, 150, 0)
    dice = torch.rand(2, 150, generator=torch.Generator().manual_seed(0))
    arena.keep([dice < torch.tensor([[0.1], [0.9]])])
    forward(arena, 20, 10)
    for i in range(18):
        forward(arena, 1, 20 + i)
    twin, mark = arena.fork(), arena.mark()
    forward(twin, 1, 50)
    forward(arena, 5, 51)
    arena.rollback(mark)
    forward(arena, 1, 52)
    assert arena.positions(0)[-1] == arena.seen[0] - 1
    assert called.count("append") == called.count("read") == 23


@pytest.mark.parametrize("pads", [[0, 0], [0, 3]])
def test_a_model_answers_as_with_the_cpus_reader(
    called: list[str], pads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = "snapkv(keep=0.4, window=4) + headgate(path='random:0', sink=2, window=8)"
    made = copy.deepcopy(tiny.model(num_hidden_layers=2)).to(DEVICE)
    prompt = tiny.ids(24, batch=2).to(DEVICE)
    mask = (torch.arange(24)[None] >= torch.tensor(pads)[:, None]).long().to(DEVICE)
    answers = []
    for use in (True, False):
        monkeypatch.setattr(kernels, "usable", lambda x, use=use: use)
        with attach(made, recipe) as attached, torch.inference_mode():
            answers.append(tiny.generated(made, prompt, 3, mask))
        assert attached.ledger.footprint < 1.0
    assert answers[0] == answers[1]
    assert "read" in called
