"""Training on several processes: data parallelism, Ulysses sequence parallelism and FSDP2, so that the sum over all ranks
is what one process would have computed.

Sources: DeepSpeed-Ulysses (arXiv 2309.14509, §3), an all-to-all around attention that trades a slice of the tokens of all
heads for all tokens of a slice of the heads; PyTorch's `fully_shard`.  Deviation from PruLong (arXiv 2506.17121), whose code
gathers the sampled gates of a sequence's ranks with an `all_gather` that has no backward: nothing about gates is gathered here.

The convention that makes one process and many equal: a rank's backward adds that rank's *share* of the loss's gradient, and
`add_gradients` sums the shares.  So a loss over tokens is divided by the label count of all ranks (`total`), and a term that
every rank computes alike, such as a penalty on the gates, is divided by `world` before its backward.  Noise must be drawn
alike on every rank, and a decision that ends the run (a loss that is not finite) must be taken on a `total`, or the other
ranks wait for ever.

Ranks of one sequence are neighbours: rank = group · sequence + place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor


class _Exchange(torch.autograd.Function):
    """All-to-all: dimension `split` is cut into one piece per rank, the pieces that arrive are joined along `join`.

    Its transpose, and so its backward, is the exchange with the two dimensions swapped.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: dist.ProcessGroup, split: int, join: int) -> Tensor:
        ctx.ranks, ctx.split, ctx.join = ranks, split, join
        return _exchange(x, ranks, split, join)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _exchange(grad, ctx.ranks, ctx.join, ctx.split), None, None, None


def _exchange(x: Tensor, ranks: dist.ProcessGroup, split: int, join: int) -> Tensor:
    pieces = torch.stack(x.chunk(ranks.size(), split))
    arrived = torch.empty_like(pieces)
    dist.all_to_all_single(arrived, pieces, group=ranks)
    return torch.cat(arrived.unbind(), join)


@dataclass(frozen=True)
class Peers:
    """This process among those that train together; `Peers()` is a process alone, for which every method is the identity.

    rank, world: this process, of how many. sequence: how many ranks share one sequence; `near` is their process group, if
    there are several.
    """

    rank: int = 0
    world: int = 1
    sequence: int = 1
    near: dist.ProcessGroup | None = None

    @classmethod
    def start(cls, sequence: int = 1) -> Peers:
        """Join the ranks that `torchrun` started (its environment: RANK, WORLD_SIZE, LOCAL_RANK); alone without it.

        Gloo between CPUs, NCCL between GPUs; each process takes the GPU of its local rank as "cuda".  `close` it at the end.
        ValueError if `sequence` does not divide the number of processes, or if there are GPUs but too few.
        """
        world = int(os.environ.get("WORLD_SIZE", 1))
        if sequence < 1 or world % sequence:
            raise ValueError(
                f"sequence-parallel size {sequence} does not divide the {world} process(es): "
                f"choose one of {_divisors(world)}, or start more with `torchrun --nproc-per-node`"
            )
        if world == 1:
            return cls()
        if torch.cuda.is_available():
            _take_gpu(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        near = dist.new_subgroups(sequence)[0] if sequence > 1 else None
        return cls(dist.get_rank(), world, sequence, near)

    def close(self) -> None:
        """Leave the process group. Collective: call it on every rank, once."""
        if self.world > 1:
            dist.destroy_process_group()

    @property
    def main(self) -> bool:
        """Whether this is the rank that prints and writes files."""
        return self.rank == 0

    @property
    def group(self) -> int:
        """Which data-parallel group this rank is in: ranks of one group read the same sequences."""
        return self.rank // self.sequence

    @property
    def groups(self) -> int:
        return self.world // self.sequence

    @property
    def place(self) -> int:
        """Which slice of its sequence's tokens, and of the heads, is this rank's."""
        return self.rank % self.sequence

    def check(self, heads: int, seq_len: int) -> None:
        """ValueError unless every rank of a sequence gets as many of the KV `heads` and of the `seq_len` tokens."""
        if heads % self.sequence:
            raise ValueError(
                f"sequence-parallel size {self.sequence} does not divide the model's {heads} KV heads: "
                f"choose one of {_divisors(heads)}"
            )
        if seq_len % self.sequence:
            raise ValueError(
                f"a sequence of {seq_len} tokens does not split over {self.sequence} ranks: "
                f"choose a multiple of {self.sequence}, such as {seq_len + -seq_len % self.sequence}"
            )

    def heads_first(self, x: Tensor) -> Tensor:
        """All tokens of this rank's heads: [B, h, T/P, D] -> [B, h/P, T, D], differentiable. h: query or KV heads."""
        return x if self.near is None else _Exchange.apply(x, self.near, 1, 2)

    def tokens_first(self, x: Tensor) -> Tensor:
        """The inverse: [B, h/P, T, D] -> [B, h, T/P, D], differentiable."""
        return x if self.near is None else _Exchange.apply(x, self.near, 2, 1)

    def own_heads(self, per_head: Tensor) -> Tensor:
        """[h] -> [h/P]: of the heads that this rank attends with after `heads_first`. A differentiable slice."""
        return self.own_tokens(per_head, 0)

    def own_tokens(self, x: Tensor, dim: int) -> Tensor:
        """This rank's slice of a whole sequence along `dim`. Shift labels before, not after: the cut hides a neighbour."""
        return x.chunk(self.sequence, dim)[self.place]

    def total(self, x: Tensor) -> Tensor:
        """Sum over all ranks, without a gradient."""
        summed = x.detach().clone()
        if self.world > 1:
            dist.all_reduce(summed)
        return summed

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum `.grad` over all ranks, in place; a gradient that is None counts as zero.

        Frozen parameters are passed over, and so are those that `shard` split up: FSDP has summed theirs already.
        """
        for parameter in parameters if self.world > 1 else ():
            if not parameter.requires_grad or isinstance(parameter, DTensor):
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], most: float) -> Tensor:
        """Shorten the gradients of `parameters`, together, to the norm `most` (0: leave them); returns what the norm was.

        After `add_gradients`.  As `clip_grad_norm_`, which refuses a mixture of whole and of split-up parameters.
        """
        grads = [p.grad for p in parameters if p.grad is not None]
        parts = [g.to_local() if isinstance(g, DTensor) else g for g in grads]
        squares = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64).square() for part in parts])
        split = torch.tensor([isinstance(g, DTensor) for g in grads], device=squares.device)
        norm = (squares[~split].sum() + self.total(squares[split].sum())).sqrt()
        for part in parts if most else ():
            part.mul_((most / (norm + 1e-6)).clamp(max=1).to(part.dtype))
        return norm

    def shard(self, model: nn.Module) -> None:
        """Split each decoder layer's parameters over all ranks (FSDP2); a layer is whole only while it is computed.

        Parameters may be frozen and trainable in any mixture, but freeze them before the first forward: FSDP then fixes who
        has a gradient.  Gradients are summed, as `add_gradients` does, not averaged.
        Embeddings and head stay whole on every rank, so that a head may be applied to blocks of tokens, outside of the
        model's forward, and may share its weights with the embeddings.  Load the model in CPU memory: it is moved to the
        GPU layer by layer.  ValueError if the model's decoder layers cannot be told.
        """
        if self.world == 1:
            return
        device = "cuda" if torch.cuda.is_available() else "cpu"
        mesh = init_device_mesh(device, (self.world,))
        layers = decoder_layers(model)
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        model.to(device)
        decoder = getattr(model, "base_model", model)
        whole = {p for p in decoder.parameters() if not isinstance(p, DTensor)}
        fully_shard(decoder, mesh=mesh, ignored_params=whole)  # the root: layers prefetch each other
        for layer in layers:
            assert isinstance(layer, FSDPModule)
            layer.set_gradient_divide_factor(1.0)
            layer.set_force_sum_reduction_for_comms(True)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformers model, by the class names that it says must not be split."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    if not found:
        raise ValueError(
            f"{type(model).__name__} names no decoder layers (`_no_split_modules`), so it cannot be sharded"
        )
    return found


def _take_gpu(rank: int) -> None:
    if rank >= (gpus := torch.cuda.device_count()):
        raise ValueError(
            f"the process of local rank {rank} has no GPU of its own, there are {gpus}: start with --nproc-per-node {gpus}, "
            'or with CUDA_VISIBLE_DEVICES="" to train on CPUs'
        )
    torch.cuda.set_device(rank)


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
