"""Options of a training run as they are written beside its state, so that only the same run is resumed. (No torch.)"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

MEMORY_ONLY = ("save_every",)  # options that do not decide the result


def option(default: Any, text: str) -> Any:
    """A field with a default and what the command line prints of it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Saved:
    """Of gates (`Options`) and of scorers (`ScorerOptions`)."""

    def differences(self, saved: str) -> list[str]:
        """Options of a saved run (JSON) that are not these: "name was X and is Y"."""
        before, now = json.loads(saved), json.loads(self.to_json())
        names = sorted(name for name in before.keys() | now.keys() if name not in MEMORY_ONLY)
        return [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in names
            if before.get(name) != now.get(name)
        ]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)
