"""What every rank of the parallel tests runs. As a script, `python ranks.py FOLDER`, it forks 2 and then 4 ranks (so that
torch is imported once), each of which writes what it computed to FOLDER; the tests call the same functions alone."""

from __future__ import annotations

import copy
import os
import signal
import socket
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import ids, model
from torch import Tensor
from torch.distributed.tensor import DTensor
from train import runs

from kvledger.train.attention import Gating, full_layers
from kvledger.train.gates import Gates
from kvledger.train.objectives import Head, distillation_loss, head_of, next_token_loss, targets
from kvledger.train.options import Options, preset
from kvledger.train.parallel import Peers

SEQUENCES, TOKENS, LAYERS = 4, 48, 3
STARTS = (0, 19)  # of the two documents in each sequence
TRAINED = ("q_proj", "down_proj", "embed_tokens", "lm_head")  # of the mixed model; all else is frozen


@dataclass(frozen=True)
class Case:
    """One training step. `sequence`: ranks per sequence; `weights`: some of the model's are trained too."""

    sequence: int = 1
    kv_heads: int = 2
    shard: bool = False
    weights: bool = False
    checkpointing: bool = False
    objective: str = "prulong"
    kind: str = "llama"
    more: dict[str, Any] = field(default_factory=dict)  # of the model's configuration

    @property
    def name(self) -> str:
        switches = [name for name in ("shard", "weights", "checkpointing") if getattr(self, name)]
        return "-".join(
            [self.kind, self.objective, f"sequence{self.sequence}", f"heads{self.kv_heads}", *switches, *self.more]
        )

    def alone(self) -> Case:
        return replace(self, sequence=1, shard=False, checkpointing=False)

    def options(self) -> Options:
        small = dict(sink=2, window=8, seq_len=TOKENS, batch=SEQUENCES, steps=10, sparsity=0.5, block=16)
        start = dict(init=0.6) if self.objective == "duo" else dict(init=0.5, spread=1.0)
        return replace(preset(self.objective), **small, **start)


CASES = {
    2: [
        Case(),
        Case(sequence=2),
        Case(kv_heads=4, shard=True),
        Case(sequence=2, kv_heads=4, shard=True),
        Case(sequence=2, weights=True),
        Case(sequence=2, shard=True, checkpointing=True, weights=True),
        Case(shard=True, weights=True, more={"tie_word_embeddings": True}),
        Case(sequence=2, shard=True, objective="duo"),
        Case(sequence=2, shard=True, kind="gemma2"),  # sliding layers, soft-capped logits
        Case(sequence=2, shard=True, kind="gpt_oss"),  # a sink logit per query head, experts
    ],
    4: [Case(sequence=2, shard=True, weights=True), Case(sequence=4, kv_heads=4)],
}


def step(peers: Peers, case: Case) -> dict[str, Tensor]:
    """Loss and gradients of one step, which every rank must find alike: loss, gates, multipliers, norm, weight.NAME."""
    peers.check(case.kv_heads, TOKENS)
    made = prepared(case)
    gates = start(case, len(full_layers(made)))
    mine = range(peers.group, SEQUENCES, peers.groups)
    labels = int(peers.total(sum((peers.own_tokens(wanted(i), 0) >= 0).sum() for i in mine)))
    head, loss = head_of(made), torch.zeros((), dtype=torch.float64)
    with Gating(made, 2, 8, peers, train_weights=case.weights) as gating:
        freeze(made, case)
        if case.shard:
            shard(peers, made)
        for i in mine:
            part = token_loss(gating, head, case, i, gates.sample(7, SEQUENCES)[i], labels)
            part.backward()
            loss += part.detach()
        penalty = gates.regulariser(gates.sample(7, SEQUENCES), 7)
        (penalty / peers.world).backward()
        peers.add_gradients([*gates.parameters(), *made.parameters()])
        found = {"loss": peers.total(loss) + penalty.detach(), "gates": whole(gates.gate.grad)}
        if case.objective == "prulong":
            found["multipliers"] = whole(gates.lam.grad)
        trained = {name: p for name, p in made.named_parameters() if p.requires_grad}
        assert {name for name, p in made.named_parameters() if p.grad is not None} == set(trained)
        if trained:
            found["norm"] = peers.clip(trained.values(), 0.1)
        return found | {f"weight.{name}": whole(p.grad) for name, p in trained.items()}


def prepared(case: Case) -> Any:
    made = copy.deepcopy(model(case.kind, torch.float64, num_key_value_heads=case.kv_heads, **case.more))
    if case.kind == "gpt_oss":
        made.set_experts_implementation("eager")  # the grouped kernel has no float64
    if case.checkpointing:
        made.gradient_checkpointing_enable({"use_reentrant": False})
        made.train()
    return made


def start(case: Case, slots: int) -> Gates:
    gates = Gates(slots, case.kv_heads, case.options())
    with torch.no_grad():
        gates.lam.copy_(torch.tensor([0.3, 0.7]))
    return gates


def freeze(made: Any, case: Case) -> None:
    for name, weight in made.named_parameters():
        weight.requires_grad_(case.weights and any(part in name for part in TRAINED))


def shard(peers: Peers, made: Any) -> None:
    peers.shard(made)
    split = made.base_model.layers[1].self_attn.q_proj.weight
    assert peers.world == 1 or split.to_local().numel() * peers.world == split.numel()


def wanted(i: int) -> Tensor:
    """Targets of sequence `i`. The first of each document do not count, and ever more of the later ones."""
    learn = torch.arange(TOKENS) >= 9 * i
    learn[list(STARTS)] = False
    return targets(ids(TOKENS, batch=SEQUENCES)[i], learn)


def token_loss(gating: Gating, head: Head, case: Case, i: int, z: Tensor, labels: int) -> Tensor:
    """This rank's share of the loss of sequence `i` under the gates `z` [L, H]."""
    tokens, own = ids(TOKENS, batch=SEQUENCES)[i], gating.peers.own_tokens(wanted(i), 0)
    if case.objective == "duo":
        with torch.no_grad():
            full = gating.hidden(tokens, STARTS, None)
        return distillation_loss(full, gating.hidden(tokens, STARTS, z), own, labels)
    return next_token_loss(head, gating.hidden(tokens, STARTS, z), own, labels, 16)


def whole(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad.full_tensor() if isinstance(grad, DTensor) else grad


def exchanges(peers: Peers, dtype: torch.dtype) -> dict[str, Tensor]:
    """`x` [B, h, T, D] cut by tokens, through `heads_first`, weighed, back through `tokens_first`; and what reaches `x`."""
    x, weight, after = (
        torch.randn(2, 4, 12, 3, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3)
    )
    own = peers.own_tokens(x, 2).clone().requires_grad_()
    heads = peers.heads_first(own)
    back = peers.tokens_first(heads * peers.own_heads(weight.transpose(0, 1)).transpose(0, 1))
    (back * peers.own_tokens(after, 2)).sum().backward()
    assert own.grad is not None
    return {"heads": heads.detach(), "back": back.detach(), "grad": own.grad}


def ledger_of(peers: Peers) -> dict[str, Tensor]:
    """Where this rank stands, and what the small collectives give."""
    none, some, frozen = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    some.grad, frozen.requires_grad = torch.full((2,), 1.0 + peers.rank), False
    peers.add_gradients([none, some, frozen])
    assert none.grad is not None
    assert frozen.grad is None
    share = torch.tensor(1.0 + peers.rank, requires_grad=True)
    peers.barrier()
    places = torch.tensor([peers.rank, peers.group, peers.groups, peers.place, int(peers.main)])
    return {"none": none.grad, "some": some.grad, "total": peers.total(share), "places": places}


# ---- the script ------------------------------------------------------------------------------------------------------


def everything(world: int, folder: Path) -> dict[str, Tensor]:
    """Run all cases of a world size, joining and leaving once per sequence-parallel size; on 2 ranks whole runs too."""
    found: dict[str, Tensor] = {}
    for sequence in (1, 2, 4)[: world // 2 + 1]:
        os.environ["MASTER_PORT"] = os.environ[f"PORT_{sequence}"]
        peers = Peers.start(sequence)
        parts = {f"exchange.{str(d)[6:]}": exchanges(peers, d) for d in (torch.float64, torch.bfloat16)}
        parts |= {"ledger": ledger_of(peers)}
        parts |= {case.name: step(peers, case) for case in CASES[world] if case.sequence == sequence}
        for run in runs.RUNS if world == 2 else ():
            if run.sequence == sequence:
                runs.whole(peers, run, folder, run.stopped)
        peers.close()
        assert not torch.distributed.is_initialized()
        found |= {f"{sequence}/{part}/{name}": x for part, made in parts.items() for name, x in made.items()}
    return {name: x.contiguous() for name, x in found.items()}


def fork(world: int, folder: Path) -> None:
    """Start `world` ranks as torchrun would, and wait. A rank that fails ends the script with an error."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = {f"PORT_{n}": str(s.getsockname()[1]) for n, s in zip((1, 2, 4), sockets)}
    for s in sockets:
        s.close()
    children = []
    for rank in range(world):
        if child := os.fork():
            children.append(child)
            continue
        os.environ.update(ports, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1")
        save_file(everything(world, folder), folder / f"{world}_{rank}.safetensors")
        sys.stderr.flush()
        os._exit(0)
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:  # they would wait for the one that failed
                os.kill(other, signal.SIGKILL)
            sys.exit(f"a rank of {world} failed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for size in CASES:
        fork(size, Path(sys.argv[1]))
