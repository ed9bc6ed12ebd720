"""What NSA learns of a model, as a file: compressors of keys and values, and the gates of its three branches.

A `.safetensors` file, made by `kvledger train nsa`. Tensors, for each full-attention layer i from 0, all heads of which share a
compressor: `layers.i.key_place` [l, Dk], `key_inner` [W, Dk], `key_weight` [Dk + 1, W]; the same of `value_` with Dv; `gate`
[3, Hq, E] and `gate_bias` [3, Hq], of the branches compressed, selected, window. l rows are compressed to one, E is the width
of the layer's input. Metadata: those of a learned scorer (`scorerfile.py`), of the kind "nsa", and `stride`.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import linear, silu

from kvledger.methods.scorerfile import Facts, facts_of, layered, write_layers

BRANCHES = 3


@dataclass(frozen=True, eq=False)
class Branches:
    """One layer's compressors and gates. ValueError for tensors that do not fit together."""

    key_place: Tensor
    key_inner: Tensor
    key_weight: Tensor
    value_place: Tensor
    value_inner: Tensor
    value_weight: Tensor
    gate: Tensor
    gate_bias: Tensor

    def __post_init__(self) -> None:
        sizes = {name: tuple(x.shape) for name, x in self.tensors().items()}
        good = sizes["gate_bias"] == sizes["gate"][:2] and sizes["gate"][0] == BRANCHES
        for what in ("key", "value"):
            place, inner, weight = (sizes[f"{what}_{name}"] for name in ("place", "inner", "weight"))
            good &= len(place) == 2 and inner == (weight[1], place[1]) and weight[0] == place[1] + 1
        if not good or len(self.key_place) != len(self.value_place):
            raise ValueError(f"it has tensors that do not fit together: {sizes}")
        if not all(bool(x.isfinite().all()) for x in self.tensors().values()):
            raise ValueError("it holds numbers that are not finite")

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def keys(self, blocks: Tensor) -> Tensor:
        """Rows [n, l, Dk], turned to where their block begins, as one each: [n, Dk]."""
        return _compressed(blocks, self.key_place, self.key_inner, self.key_weight)

    def values(self, blocks: Tensor) -> Tensor:
        """Rows [n, l, Dv] as one each: [n, Dv]."""
        return _compressed(blocks, self.value_place, self.value_inner, self.value_weight)

    def gates(self, hidden: Tensor, heads: slice) -> Tensor:
        """How much of each branch the query `heads` take at inputs [T, E]: [3, G, T], in (0, 1)."""
        told = torch.einsum("te,bge->bgt", hidden.to(self.gate.dtype), self.gate[:, heads])
        return torch.sigmoid(told + self.gate_bias[:, heads, None])


def _compressed(blocks: Tensor, place: Tensor, inner: Tensor, weight: Tensor) -> Tensor:
    """Rows [n, l, D] as one each. Two layers say of each row, with the encoding of its place added, what to add to it and, as
    the logit of a softmax over the run, how much it counts: [n, D]."""
    blocks = blocks.to(place.dtype)
    told = linear(silu(linear(blocks + place, inner)), weight)
    return (told[..., -1:].softmax(1) * (blocks + told[..., :-1])).sum(1)


@dataclass(frozen=True, eq=False)
class Trained:
    """Of all compressible layers. ValueError for layers that differ in shape."""

    facts: Facts
    stride: int
    layers: tuple[Branches, ...]

    def __post_init__(self) -> None:
        if self.facts.kind != "nsa":
            raise ValueError(f"it is of the kind {self.facts.kind!r}, not 'nsa'")
        if not self.layers or any(_shapes(one) != _shapes(self.layers[0]) for one in self.layers):
            raise ValueError("its layers differ in shape, or there are none")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Layers, query heads, width of their input, dimensions of a head's keys."""
        first = self.layers[0]
        return len(self.layers), *first.gate.shape[1:], first.key_place.shape[1]

    @property
    def compress(self) -> int:
        return len(self.layers[0].key_place)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the file; an older one is replaced in one step."""
        layers = [one.tensors() for one in self.layers]
        write_layers(Path(path), layers, {**asdict(self.facts), "stride": self.stride}, dtype)


def _shapes(one: Branches) -> list[torch.Size]:
    return [x.shape for x in one.tensors().values()]


def fresh(compress: int, dim: int, hidden: int, heads: int, width: int, draw: torch.Generator) -> Branches:
    """Untrained ones: blocks become their mean, and nine tenths of the selected branch are taken and a tenth of the others."""

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw) * size[-1] ** -0.5

    parts: dict[str, Tensor] = {}
    for what in ("key", "value"):
        parts |= {f"{what}_place": noise(compress, dim), f"{what}_inner": noise(hidden, dim)}
        parts[f"{what}_weight"] = torch.zeros(dim + 1, hidden)
    bias = torch.tensor([-2.2, 2.2, -2.2])[:, None].repeat(1, heads)
    return Branches(**parts, gate=torch.zeros(BRANCHES, heads, width), gate_bias=bias)


def read_trained(path: str | Path) -> Trained:
    """What a file holds. ValueError names it and what is wrong with it."""
    try:
        with safe_open(str(path), framework="pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        names = [f.name for f in fields(Branches)]
        layers = layered(tensors, names, names)
        return Trained(facts_of(about), int(about.get("stride", "0")), tuple(Branches(**parts) for parts in layers))
    except (OSError, SafetensorError, ValueError, IndexError) as error:
        raise ValueError(
            f"cannot read {str(path)!r}, which nsa is to go by: {error}; `kvledger train nsa --out FILE.safetensors` makes one"
        ) from None


def trained(path: str, device: torch.device) -> Trained:
    """`read_trained`, on `device`, read anew when the file has changed."""
    try:
        stamp = Path(path).stat().st_mtime_ns
    except OSError:
        stamp = 0
    return _loaded(path, stamp, device)


@lru_cache(maxsize=8)
def _loaded(path: str, stamp: int, device: torch.device) -> Trained:
    found = read_trained(path)
    layers = [Branches(**{name: x.to(device) for name, x in one.tensors().items()}) for one in found.layers]
    return Trained(found.facts, found.stride, tuple(layers))


def digest(path: str) -> str:
    """Short hash of what the file holds."""
    found = trained(path, torch.device("cpu"))
    made = hashlib.sha256(f"nsa {found.stride}".encode())
    for one in found.layers:
        for name, x in one.tensors().items():
            made.update(name.encode() + x.numpy().tobytes())
    return made.hexdigest()[:12]
