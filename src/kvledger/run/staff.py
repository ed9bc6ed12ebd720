"""Who plays a sweep: which engine, how many workers with how many devices, and which share of the work.  (no torch)"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Any

from kvledger.recipe import nearest
from kvledger.run.engine import Engine, Here, Make

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Staff:
    """`workers`: None for one per device (on a CPU: one, in this process). `devices`: of each worker; with more than one, a
    model is spread over them. `shard`: "i/n", the i-th of n shares, for schedulers that start n commands; "" for all."""

    engine: str = "local"
    workers: int | None = None
    devices: int = 1
    shard: str = ""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"unknown engine {self.engine!r}{nearest(self.engine, ENGINES)}")
        if self.engine == "ray" and importlib.util.find_spec("ray") is None:
            raise ValueError("engine 'ray' needs Ray, which is not installed: pip install 'kvledger[ray]'")
        for name, value in (("workers", self.workers), ("devices", self.devices)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        _ = self.share

    @property
    def share(self) -> tuple[int, int]:
        """(i, n) of the shard, 1 ≤ i ≤ n; (1, 1) without one."""
        if not self.shard:
            return 1, 1
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"shard {self.shard!r}: i/n with i from 1 to n, like 1/4 to 4/4")
        return int(found[1]), int(found[2])

    def log(self, worker: int, size: int) -> str:
        """Name of the file in which a worker's records go."""
        i, n = self.share
        shard = f"-{i}of{n}" if self.shard else ""
        return f"turns{shard}" if size == 1 and self.engine == "local" else f"turns{shard}-{self.engine}{worker}"

    def cards(self) -> list[str]:
        """This machine's GPUs, for the local engine. ValueError if a worker needs more."""
        from kvledger.run.engine_local import cards

        found = cards()
        if self.engine == "local" and self.devices > max(1, len(found)):
            raise ValueError(f"devices={self.devices}: this machine has {len(found)} GPUs")
        return found

    def hire(self, make: Make) -> Engine:
        """The engine. ValueError for one that is not there, or has too few devices."""
        if self.engine == "ray":
            from kvledger.run.engine_ray import Ray

            return Ray(make, self.workers or 0, self.devices)
        from kvledger.run.engine_local import Local

        found = self.cards()
        size = self.workers or max(1, len(found) // self.devices)
        local: Any = Here(make) if size == 1 else Local(make, size, found, self.devices)
        return local  # type: ignore[no-any-return]
