"""Many ranks compute what one process computes: in fp64 on 2 and on 4 CPU ranks over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import log
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from train import ranks, runs

from kvledger.methods.gatefile import Gates
from kvledger.train.parallel import Peers

WORLDS = [(world, case) for world, cases in ranks.CASES.items() for case in cases]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all ranks of all worlds have left what they computed."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    here = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ranks.__file__, str(folder)],
        env=here,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[int, list[dict[str, Tensor]]]:
    """What each rank of each world wrote down."""
    return {world: [load_file(folder / f"{world}_{rank}.safetensors") for rank in range(world)] for world in (2, 4)}


@pytest.mark.parametrize("world, case", WORLDS, ids=lambda x: x.name if isinstance(x, ranks.Case) else str(x))
def test_a_step_equals_that_of_one_process(found, world: int, case: ranks.Case) -> None:
    alone = ranks.step(Peers(), case.alone())
    weights = {name for name in alone if name.startswith("weight.")}
    assert len(weights) == (7 if case.more else 8 if case.weights else 0)
    for rank in found[world]:
        for name, expected in alone.items():
            torch.testing.assert_close(rank[f"{case.sequence}/{case.name}/{name}"], expected, atol=1e-12, rtol=1e-8)
    assert alone["gates"].abs().min() > 1e-6  # every gate has something to be compared


@pytest.mark.parametrize("run", runs.RUNS, ids=lambda run: run.name)
def test_a_whole_run_equals_that_of_one_process(folder: Path, run: runs.Run, tmp_path: Path) -> None:
    """Also where the ranks were stopped and began again, and the one process was not."""
    runs.whole(Peers(), run, tmp_path, stop=False)
    got, alone = (torch.tensor(Gates.load(at / f"{run.name}.json").scores) for at in (folder, tmp_path))
    torch.testing.assert_close(got, alone, atol=1e-6, rtol=0)
    assert alone.std() > 1e-3
    logs = [(at / f"{run.name}.log.jsonl").read_text().splitlines() for at in (folder, tmp_path)]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert len(losses[1]) == runs.STEPS
    if run.weights:
        here, there = (load_file(at / f"{run.name}.model" / "model.safetensors") for at in (folder, tmp_path))
        torch.testing.assert_close(here, there, atol=1e-9, rtol=1e-9)
        name = "model.layers.1.mlp.down_proj.weight"
        assert (there[name] - runs.fresh_model().state_dict()[name]).abs().max() > 1e-4


def test_the_penalty_reaches_every_gate_once_and_the_multipliers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference itself, by hand: without a loss over tokens the gradients are those of the closed form."""
    case = ranks.Case(kv_heads=4)
    nothing = torch.zeros((), dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(ranks, "token_loss", lambda *arguments: nothing.clone())
    got, alpha = ranks.step(Peers(), case), ranks.start(case, ranks.LAYERS).gate.detach()
    opened = (alpha - 2 / 3 * log(0.1 / 1.1)).sigmoid()
    excess = 1 - opened.mean() - 0.5 * 7 / 8
    torch.testing.assert_close(got["gates"], -(0.3 + 2 * 0.7 * excess) * opened * (1 - opened) / 12)
    torch.testing.assert_close(got["multipliers"], torch.stack([excess, excess**2]))


@pytest.mark.parametrize("kind", ["float64", "bfloat16"])
@pytest.mark.parametrize("world, sequence", [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
def test_the_exchange_trades_tokens_for_heads_and_back(found, world: int, sequence: int, kind: str) -> None:
    x, weight, after = (
        torch.randn(2, 4, 12, 3, generator=torch.Generator().manual_seed(i)).to(getattr(torch, kind)) for i in range(3)
    )
    heads, tokens = 4 // sequence, 12 // sequence
    for rank, got in enumerate(found[world]):
        h, t = (slice(n * (rank % sequence), n * (rank % sequence + 1)) for n in (heads, tokens))
        at = f"{sequence}/exchange.{kind}/"
        assert torch.equal(got[at + "heads"], x[:, h])
        assert torch.equal(got[at + "back"], (x * weight)[:, :, t])
        assert torch.equal(got[at + "grad"], (after * weight)[:, :, t])


@pytest.mark.parametrize("world, sequence", [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
def test_sums_go_over_all_ranks_and_each_rank_knows_its_place(found, world: int, sequence: int) -> None:
    everyone = world * (world + 1) / 2
    for rank, got in enumerate(found[world]):
        at = f"{sequence}/ledger/"
        place = [rank, rank // sequence, world // sequence, rank % sequence, int(rank == 0)]
        assert got[at + "places"].tolist() == place
        assert got[at + "total"].item() == everyone
        assert got[at + "some"].tolist() == [everyone] * 2
        assert got[at + "none"].tolist() == [0, 0]


# ---- alone -----------------------------------------------------------------------------------------------------------


def test_a_process_alone_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    peers, x = Peers.start(), torch.randn(2, 4, 6, 3)
    assert peers == Peers()
    assert (peers.rank, peers.world, peers.group, peers.groups, peers.place, peers.main) == (0, 1, 0, 1, 0, True)
    for same in (
        peers.heads_first(x),
        peers.tokens_first(x),
        peers.own_heads(x),
        peers.own_tokens(x, 2),
        peers.total(x),
    ):
        assert torch.equal(same, x)
    layer = torch.nn.Linear(2, 2)
    peers.add_gradients(layer.parameters())
    peers.shard(layer)
    peers.barrier()
    peers.close()
    assert layer.weight.grad is None
    assert type(layer) is torch.nn.Linear
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("most", [0.0, 0.5, 1e3])
def test_clipping_is_that_of_torch(most: float) -> None:
    ours, theirs = ([torch.nn.Parameter(torch.zeros(n)) for n in (3, 5, 2)] for _ in range(2))
    for a, b in zip(ours[:2], theirs):  # the third has no gradient
        a.grad = torch.randn_like(a) * 2
        b.grad = a.grad.clone()
    norm = Peers().clip(ours, most)
    torch.testing.assert_close(norm.float(), torch.nn.utils.clip_grad_norm_(theirs, most or float("inf")))
    torch.testing.assert_close([a.grad for a in ours[:2]], [b.grad for b in theirs[:2]])
    assert (torch.stack([a.grad.norm() for a in ours[:2]]).norm() > 0.6) == (most != 0.5)


def test_a_total_carries_no_gradient() -> None:
    x = torch.ones(2, requires_grad=True)
    assert not Peers().total(x).requires_grad


@pytest.mark.parametrize("world, sequence", [("6", 4), ("6", 0), ("6", -2), ("6", 12)])
def test_a_size_that_does_not_divide_the_processes_is_refused(
    world: str, sequence: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(
        ValueError, match=rf"size {sequence} .* the 6 process\(es\): choose one of 1, 2, 3, 6, or start"
    ):
        Peers.start(sequence)


def test_sequence_parallelism_without_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="start more with `torchrun"):
        Peers.start(2)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ValueError, match=r"local rank 1 has no GPU of its own, there are 1: start with --nproc-per-node 1"
    ):
        Peers.start()


def test_heads_and_tokens_must_split_evenly() -> None:
    peers = Peers(rank=1, world=8, sequence=4)
    peers.check(8, 4096)
    with pytest.raises(ValueError, match="size 4 does not divide the model's 6 KV heads: choose one of 1, 2, 3, 6"):
        peers.check(6, 4096)
    with pytest.raises(
        ValueError, match="4097 tokens does not split over 4 ranks: choose a multiple of 4, such as 4100"
    ):
        peers.check(8, 4097)


def test_a_model_that_names_no_layers_is_not_sharded() -> None:
    from kvledger.train.parallel import decoder_layers

    with pytest.raises(ValueError, match="Linear names no decoder layers"):
        decoder_layers(torch.nn.Linear(2, 2))
    assert len(decoder_layers(ranks.prepared(ranks.Case()))) == ranks.LAYERS
