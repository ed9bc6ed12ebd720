"""Which prefill pattern each query head follows, as a file: what `kvledger probe minference` writes and MInference reads.

JSON: {"format": 1, "heads": [[["vertical_slash", 512, 2048], …], …], "score": [[0.98, …], …], …}, one row per compressible
layer and one entry per query head: its pattern and two sizes, and the attention it kept in the search. The files of
microsoft/MInference, a list of {"0": ["vertical_and_slash", 1000, 6096, 0.9], …} for each layer, are read as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FORMAT = 1
THEIRS = {"vertical_and_slash": "vertical_slash", "stream_llm": "a_shape", "block_sparse": "block_sparse"}
KINDS = ("vertical_slash", "block_sparse", "a_shape")
FACTS: dict[str, type] = {"model": str, "task": str, "samples": int, "tokens": int, "seed": int, "version": str}
Scores = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class HeadPattern:
    """vertical_slash: columns and distances; block_sparse: blocks for each block of queries (`second` is 0); a_shape: first
    rows and last ones."""

    kind: str
    first: int
    second: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"the pattern {self.kind!r} is not one of {', '.join(KINDS)}")
        if type(self.first) is not int or type(self.second) is not int or min(self.first, self.second) < 0:
            raise ValueError(f"the sizes {self.first!r}, {self.second!r} of a {self.kind} head are not whole numbers")


Table = tuple[tuple[HeadPattern, ...], ...]


@dataclass(frozen=True)
class HeadPatterns:
    """heads: [layers][query heads]; score: the attention that each kept in the search; the rest says where it comes from."""

    heads: Table
    score: Scores = ()
    model: str = ""
    task: str = ""
    samples: int = 0
    tokens: int = 0
    seed: int = 0
    version: str = ""

    def __post_init__(self) -> None:
        if not self.heads or not self.heads[0] or any(len(row) != len(self.heads[0]) for row in self.heads):
            raise ValueError("heads is not a table, [layers][query heads]")

    def save(self, path: str | Path) -> None:
        """Write the file; its folder is made."""
        facts = {name: value for name, value in asdict(self).items() if name in FACTS}
        heads = [[[one.kind, one.first, one.second] for one in row] for row in self.heads]
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in {"format": FORMAT, **facts}.items()]
        for name, table in (("score", self.score), ("heads", heads)):
            lines.append(f'"{name}": [\n    ' + ",\n    ".join(json.dumps(row) for row in table) + "\n  ]")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("{\n  " + ",\n  ".join(lines) + "\n}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> HeadPatterns:
        """ValueError names the file and what is wrong with it."""
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(_theirs(facts)) if isinstance(facts, list) else cls(**_checked(facts))
        except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"cannot read the head patterns {str(path)!r}: {error}; `kvledger probe minference --model … --out FILE` makes "
                "them"
            ) from None


def _checked(facts: Any) -> dict[str, Any]:
    if not isinstance(facts, dict) or facts.pop("format", None) != FORMAT:
        raise ValueError(f"it is not a file of head patterns of format {FORMAT}")
    heads, score = facts.pop("heads"), facts.pop("score", [])
    for name, value in facts.items():
        if name not in FACTS or type(value) is not FACTS[name]:
            raise ValueError(f"{name}={value!r} is not known there (known: {', '.join(FACTS)})")
    table = tuple(tuple(HeadPattern(*one) for one in row) for row in heads)
    return {**facts, "heads": table, "score": tuple(tuple(float(x) for x in row) for row in score)}


def _theirs(layers: list[Any]) -> Table:
    """A file of microsoft/MInference; its block-sparse heads name the number of blocks."""
    rows = []
    for heads in layers:
        found = [heads[str(h)] for h in range(len(heads))]
        rows.append(tuple(HeadPattern(THEIRS[kind], first, second) for kind, first, second, *_ in found))
    return tuple(rows)


def patterns(path: str, layers: int = 0, heads: int = 0) -> Table:
    """The table of a file. ValueError for one of a model of another shape, if the shape is given."""
    table = _loaded(path, _stamp(path)).heads
    shape = len(table), len(table[0])
    if layers and shape != (layers, heads):
        raise ValueError(
            f"the head patterns {path!r} are for {shape[0]} layers of {shape[1]} query heads, and this model has {layers} of "
            f"{heads}: search for them with `kvledger probe minference --model … --out FILE`, path='FILE'"
        )
    return table


def digest(path: str) -> str:
    """Short hash of what the file says of the heads."""
    return hashlib.sha256(repr(patterns(path)).encode()).hexdigest()[:12]


def _stamp(path: str) -> int:
    """Changes with the file, so that a new one is read."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=8)
def _loaded(path: str, stamp: int) -> HeadPatterns:
    return HeadPatterns.load(path)
