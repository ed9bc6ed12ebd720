"""How much each query head matters, as a file: what `kvledger probe` writes and HeadKV reads. JSON, one row per layer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

FORMAT = 1
FACTS: dict[str, type] = {"model": str, "task": str, "samples": int, "tokens": int, "seed": int, "version": str}


@dataclass(frozen=True)
class Importance:
    """scores: [slots][query heads], each 0 or more; slots are the model's full-attention layers in order. The rest says where
    they come from: model, probed task, samples of so many tokens, seed, and this package's version."""

    scores: tuple[tuple[float, ...], ...]
    model: str = ""
    task: str = ""
    samples: int = 0
    tokens: int = 0
    seed: int = 0
    version: str = ""

    def __post_init__(self) -> None:
        if not self.scores or not self.scores[0] or any(len(row) != len(self.scores[0]) for row in self.scores):
            raise ValueError("scores is not a table, [layers][query heads]")
        if wrong := [x for row in self.scores for x in row if not 0 <= x < float("inf")]:
            raise ValueError(f"the score {wrong[0]} is not a number of 0 or more")

    def save(self, path: str | Path) -> None:
        """Write the file; its folder is made."""
        facts = {"format": FORMAT, **asdict(self)}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items() if name != "scores"]
        rows = ",\n    ".join(json.dumps(row) for row in self.scores)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(
            "{\n  " + ",\n  ".join([*lines, f'"scores": [\n    {rows}\n  ]']) + "\n}\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, path: str | Path) -> Importance:
        """From a file, or "zoo", the embedded model's. ValueError names the file and what is wrong with it."""
        file = embedded() if path == "zoo" else Path(path)
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            return cls(**_checked(facts))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(
                f"cannot read the head importance {str(path)!r}: {error}; `kvledger probe headkv --model … --out FILE` makes it"
            ) from None


def embedded() -> Path:
    """The file that comes with the embedded model."""
    return Path(str(resources.files("kvledger"))) / "zoo" / "importance.json"


def _checked(facts: Any) -> dict[str, Any]:
    if not isinstance(facts, dict) or facts.pop("format", None) != FORMAT:
        raise ValueError(f"it is not an importance file of format {FORMAT}")
    table = facts.pop("scores", None)
    for name, value in facts.items():
        if name not in FACTS or type(value) is not FACTS[name]:
            raise ValueError(f"{name}={value!r} is not known there (known: {', '.join(FACTS)})")
    numbers = isinstance(table, list) and all(
        isinstance(row, list) and all(type(x) in (int, float) for x in row) for row in table
    )
    if not numbers:
        raise ValueError("scores is not a table of numbers, [layers][query heads]")
    return {**facts, "scores": tuple(tuple(float(x) for x in row) for row in table)}  # type: ignore[union-attr]
