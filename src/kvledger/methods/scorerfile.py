"""Learned scorers as a file: for each layer a small network that says what a row will be worth, made by `kvledger train`.

A `.safetensors` file. Tensors, for each layer i from 0: `layers.i.weight` [H, W] and, of two layers, `layers.i.inner` [W, I]
(one layer: W is I); `layers.i.bias` [H] and `layers.i.inner_bias` [W], if there are such. H KV heads, I the input's width.
Metadata, all texts: `format`, `kind` ("kvzap" reads the layer's input, "locret" queries, keys and values), and of the training
`model`, `data`, `steps`, `seed`, `version`. Between two layers stands GELU (kvzap) or SiLU (locret).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, linear, silu

from kvledger.recipe import nearest

FORMAT = 1
ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {"kvzap": gelu, "locret": silu}
EMBEDDED, RANDOM = "zoo/", "random:"
PARTS = ("weight", "bias", "inner", "inner_bias")


@dataclass(frozen=True, eq=False)
class Net:
    """The scorer of one layer: weight [H, W], bias [H], inner [W, I] and inner_bias [W], of which only the first must be."""

    weight: Tensor
    bias: Tensor | None = None
    inner: Tensor | None = None
    inner_bias: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """KV heads and width of the input."""
        return len(self.weight), (self.weight if self.inner is None else self.inner).shape[1]

    def tensors(self) -> dict[str, Tensor]:
        return {name: x for name in PARTS if (x := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Facts:
    """What a scorer is and where it comes from."""

    kind: str
    model: str = ""
    data: str = ""
    steps: int = 0
    seed: int = 0
    version: str = ""


@dataclass(frozen=True, eq=False)
class Scorer:
    """Networks of all compressible layers. ValueError for layers that do not match."""

    facts: Facts
    nets: tuple[Net, ...]

    def __post_init__(self) -> None:
        if self.facts.kind not in ACTIVATION:
            raise ValueError(f"kind {self.facts.kind!r} is not one of {', '.join(ACTIVATION)}")
        if not self.nets:
            raise ValueError("it has no layers")
        for i, net in enumerate(self.nets):
            _check(net, f"layer {i}")
            if net.shape != self.nets[0].shape:
                raise ValueError(f"layer {i} is of {net.shape} (KV heads, inputs) and layer 0 of {self.nets[0].shape}")

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        """Scores [H, T] float32 of rows whose inputs are `x` [T, I]."""
        net, x = self.nets[layer], x.float()
        if net.inner is not None:
            x = ACTIVATION[self.facts.kind](linear(x, net.inner, net.inner_bias))
        return linear(x, net.weight, net.bias).mT

    def to(self, device: torch.device) -> Scorer:
        """The same in float32 on `device`."""
        nets = [{name: x.to(device, torch.float32) for name, x in net.tensors().items()} for net in self.nets]
        return Scorer(self.facts, tuple(Net(**parts) for parts in nets))

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the file; an older one is replaced in one step."""
        write_layers(Path(path), [net.tensors() for net in self.nets], asdict(self.facts), dtype)


def write_layers(path: Path, layers: list[dict[str, Tensor]], about: dict[str, Any], dtype: torch.dtype) -> None:
    """Write the tensors of all layers and what is to be said of them; an older file is replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"layers.{i}.{name}": x.detach().to("cpu", dtype).contiguous()
        for i, parts in enumerate(layers)
        for name, x in parts.items()
    }
    draft = path.with_name(f".{path.name}.part")
    save_file(tensors, draft, metadata={"format": str(FORMAT), **{name: str(value) for name, value in about.items()}})
    os.chmod(draft, 0o644)
    os.replace(draft, path)


def _check(net: Net, where: str) -> None:
    sizes = {name: tuple(x.shape) for name, x in net.tensors().items()}
    H, W = sizes["weight"] if len(sizes["weight"]) == 2 else (0, 0)
    inner = sizes.get("inner", (W, 1))
    good = H and len(inner) == 2 and inner[0] == W and sizes.get("bias", (H,)) == (H,)
    if not good or sizes.get("inner_bias", (W,)) != (W,):
        raise ValueError(f"{where} has tensors that do not fit together: {sizes}")
    if not all(bool(x.isfinite().all()) for x in net.tensors().values()):
        raise ValueError(f"{where} holds numbers that are not finite")


def read_scorer(path: str | Path) -> Scorer:
    """The scorer in a file, or of "zoo/NAME", embedded here. ValueError names the file and what is wrong with it."""
    file = _file(str(path))
    try:
        with safe_open(str(file), framework="pt") as opened:
            about = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return Scorer(facts_of(about), tuple(Net(**parts) for parts in layered(tensors, PARTS, ("weight",))))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"cannot read the scorer {str(path)!r}: {error}; `kvledger train kvzap|locret --out FILE.safetensors` makes one"
        ) from None


def facts_of(about: dict[str, str]) -> Facts:
    """What a file's metadata say. ValueError for those of no such file, or of a newer one."""
    number = about.get("format", "")
    if "kind" not in about or not number.isdecimal():
        raise ValueError("it is a safetensors file, but not a scorer")
    if int(number) > FORMAT:
        raise ValueError(f"its format is {number} and {FORMAT} is the newest known here; a newer kvledger may read it")
    values = {f.name: about.get(f.name, "") for f in fields(Facts)}
    counts = {name: int(values[name] or 0) for name in ("steps", "seed")}
    return Facts(values["kind"], values["model"], values["data"], counts["steps"], counts["seed"], values["version"])


def layered(tensors: dict[str, Tensor], parts: Sequence[str], needed: Sequence[str]) -> list[dict[str, Tensor]]:
    """The tensors `layers.i.PART` of a file by layer, float32. ValueError for others, and for layers without a `needed` one."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        root, number, part = [*name.split("."), "", ""][:3]
        if root != "layers" or not number.isdecimal() or part not in parts or not x.is_floating_point():
            raise ValueError(f"the tensor {name!r} ({x.dtype}) has no place in it")
        layers.setdefault(int(number), {})[part] = x.float()
    if sorted(layers) != list(range(len(layers))) or any(set(needed) - found.keys() for found in layers.values()):
        raise ValueError("layers are missing in it")
    return [layers[i] for i in range(len(layers))]


def fresh_net(kind: str, heads: int, inputs: int, hidden: int, draw: torch.Generator) -> Net:
    """An untrained network; `hidden` 0: of one layer. Locret has no biases in its inner layer."""

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=draw) * columns**-0.5

    bias = torch.zeros(heads)
    if not hidden:
        return Net(matrix(heads, inputs), bias)
    return Net(matrix(heads, hidden), bias, matrix(hidden, inputs), torch.zeros(hidden) if kind == "kvzap" else None)


def fitting(path: str, kind: str, layers: int, heads: int, inputs: int, device: torch.device) -> Scorer:
    """The scorer `path` for a model of so many compressible layers, KV heads and inputs, on `device`. "random:SEED" is an
    untrained one. ValueError for a scorer of another kind or model."""
    if path.startswith(RANDOM):
        return _random(path, kind, layers, heads, inputs, device)
    scorer = _loaded(path, stamp(path), device)
    if scorer.facts.kind != kind:
        raise ValueError(f"the scorer {path!r} is of the kind {scorer.facts.kind!r} where {kind!r} is needed")
    shape = len(scorer.nets), *scorer.nets[0].shape
    if shape != (layers, heads, inputs):
        raise ValueError(
            f"the scorer {path!r} is for {shape[0]} layers of {shape[1]} KV heads with {shape[2]} inputs, and this model has "
            f"{layers} of {heads} with {inputs}: train one with `kvledger train {kind} --model … --out FILE.safetensors`"
        )
    return scorer


def stamp(path: str) -> int:
    """Changes with the file, so that a new one is read."""
    try:
        return os.stat(_file(path)).st_mtime_ns
    except (OSError, ValueError):
        return 0


def digest(path: str) -> str:
    """Short hash of what the file holds; none of a random scorer, which its seed names."""
    if path.startswith(RANDOM):
        return ""
    scorer = _loaded(path, stamp(path), torch.device("cpu"))
    made = hashlib.sha256(scorer.facts.kind.encode())
    for net in scorer.nets:
        for name, x in net.tensors().items():
            made.update(name.encode() + x.numpy().tobytes())
    return made.hexdigest()[:12]


def check_path(path: str) -> None:
    """ValueError for a random scorer without a seed."""
    if path.startswith(RANDOM) and not path.removeprefix(RANDOM).isdecimal():
        raise ValueError(f"path={path!r}: an untrained scorer is named by its seed, like 'random:0'")


def embedded() -> dict[str, Path]:
    """The scorers inside this package, by name."""
    folder = Path(str(resources.files("kvledger"))) / "zoo" / "scorers"
    return {file.stem: file for file in sorted(folder.glob("*.safetensors"))}


def _file(path: str) -> Path:
    if not path.startswith(EMBEDDED):
        return Path(path)
    known = {EMBEDDED + name: file for name, file in embedded().items()}
    if path not in known:
        raise ValueError(f"there is no embedded scorer {path!r}{nearest(path, known) if known else ''}")
    return known[path]


@lru_cache(maxsize=8)
def _loaded(path: str, stamp: int, device: torch.device) -> Scorer:
    return read_scorer(path).to(device)


@lru_cache(maxsize=8)
def _random(path: str, kind: str, layers: int, heads: int, inputs: int, device: torch.device) -> Scorer:
    draw = torch.Generator().manual_seed(int(path.removeprefix(RANDOM)))
    nets = tuple(fresh_net(kind, heads, inputs, max(1, inputs // 8), draw) for _ in range(layers))
    return Scorer(Facts(kind), nets).to(device)
