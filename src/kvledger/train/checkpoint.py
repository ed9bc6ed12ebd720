"""What a training run leaves on disk beside its gates: a state to go on from (kilobytes), a log, and trained weights.

`OUT.state.safetensors` holds gates, multipliers, Adam's moments and, with trained weights, those; its metadata holds step and
options as JSON. The data position is the step's: a step always takes `batch` sequences.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kvledger import __version__
from kvledger.train.saved import Saved


class Files:
    """The files of a run, named after what it makes: gates.json -> gates.log.jsonl, gates.state.safetensors, gates.model/."""

    def __init__(self, out: Path, rank: int = 0):
        self.gates = out
        base = out.with_suffix("") if out.suffix in (".json", ".safetensors") else out
        self.log = Path(f"{base}.log.jsonl")
        self.state = Path(f"{base}.state{f'.rank{rank}' if rank else ''}.safetensors")
        self.model = Path(f"{base}.model")

    def forget(self) -> None:
        """Begin anew: state and log go. Gates stay until new ones replace them."""
        self.state.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)

    def cut_log(self, steps: int) -> float:
        """Keep the first `steps` steps of the log (later ones are done again); returns the seconds that they took."""
        if not self.log.exists():
            return 0.0
        lines = [line for line in self.log.read_text(encoding="utf-8").splitlines() if _step_of(line) < steps]
        _replace(self.log, "".join(line + "\n" for line in lines))
        return float(json.loads(lines[-1]).get("seconds", 0.0)) if lines else 0.0

    def append(self, record: dict[str, Any]) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut short by a crash


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def save_state(
    path: Path,
    step: int,
    options: Saved,
    parameters: dict[str, nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
) -> None:
    """Write the state in one atomic replacement. Sharded tensors are written as this process holds them."""
    tensors = {f"value/{name}": _local(p) for name, p in parameters.items()}
    for i, optimizer in enumerate(optimizers):
        for n, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"moment/{i}/{n}/{key}": _local(x) for key, x in moments.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    copies = {name: x.detach().cpu().clone().contiguous() for name, x in tensors.items()}
    save_file(copies, draft, metadata={"step": str(step), "options": options.to_json(), "version": __version__})
    os.replace(draft, path)


def load_state(
    path: Path, options: Saved, parameters: dict[str, nn.Parameter], optimizers: list[torch.optim.Optimizer]
) -> int:
    """Fill parameters and optimisers from a state; returns how many steps are done (0 if there is no state).

    ValueError if the state was made with other options, for another model, or is not readable.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, saved = int(about["step"]), about["options"]
        different = options.differences(saved)
    except Exception as error:  # safetensors raises its own kinds
        raise ValueError(f"{path} is not a training state ({error}); --fresh begins anew") from None
    if different:
        raise ValueError(f"{path} was made with other options ({'; '.join(different)}); --fresh begins anew")
    shapes = {f"value/{name}": _local(p).shape for name, p in parameters.items()}
    if {name: x.shape for name, x in tensors.items() if name.startswith("value/")} != shapes:
        raise ValueError(f"{path} is of a model of another shape; --fresh begins anew")
    _fill(tensors, parameters, optimizers)
    return step


@torch.no_grad()
def _fill(
    tensors: dict[str, Tensor], parameters: dict[str, nn.Parameter], optimizers: list[torch.optim.Optimizer]
) -> None:
    for name, p in parameters.items():
        _local(p).copy_(tensors[f"value/{name}"])
    for i, optimizer in enumerate(optimizers):
        flat = [p for group in optimizer.param_groups for p in group["params"]]
        for name, x in tensors.items():
            kind, *where = name.split("/")
            if kind == "moment" and int(where[0]) == i:
                p = flat[int(where[1])]
                optimizer.state[p][where[2]] = x if where[2] == "step" else _like(x, p)


def _like(x: Tensor, p: Tensor) -> Tensor:
    """A moment as its parameter lies: on its device, and sharded as it is."""
    if isinstance(p, DTensor):
        return DTensor.from_local(x.to(p.device), p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
    return x.to(p.device)


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x
