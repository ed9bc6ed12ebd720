"""HELMET's published files: where they are, which of them a context length takes, and how rows are sampled and checked.

The hub has one tarball, `princeton-nlp/HELMET/data.tar.gz` (11.3 GB; no licence is stated, so nothing of it is shipped).
A folder may hold the tarball or what is in it.  What a length needs is unpacked once, in a folder beside the tarball.
Sampling is HELMET's with seed 42 for our seed 0, 43 for 1, and so on; HELMET keeps file order where we shuffle, so that
the first few samples of a sparing run are spread over questions and depths.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kvledger.tasks import hub
from kvledger.tasks.base import Unfit
from kvledger.tasks.hub import Data

REPO, TAR, REVISION = "princeton-nlp/HELMET", "data.tar.gz", "dddb209d03e38f1f0faf76d6d05ef4ccf96240ee"
SHA256 = {  # of files in the tarball's `data`, as others have published them
    "kilt/nq-train-multikilt_1000_k3_dep6.jsonl": "78ce24e766fa40bb7aa784e41393d67cdf8efef088668c0818554c2da9614bae",
    "kilt/hotpotqa-train-multikilt_1000_k3_dep3.jsonl": "52bab6190ea5aca655e2816fbbc2388205e8e2a0a6b2ba86551d882bc016cdcc",
    "msmarco/test_reranking_data_k10_dep3.jsonl": "05e872b2ad2c8fdfb36e82665d1724cbc130ce992d99d765145df76dc2d6ac1f",
    "kilt/nq-dev-multikilt_1000_k1000_dep6.jsonl": "d39073c4915041e4319d313aa558d9a6cee1571dabdf84a53155abb9fedd342a",
    "kilt/hotpotqa-dev-multikilt_1000_k1000_dep3.jsonl": "10cfc8abf743a1b9683b6244db7978fbe0af307d88ee0e5f0a8cec2efad92a7d",
    "msmarco/test_reranking_data_k1000_dep3.jsonl": "2697bac97ad4bdfad5b837824eafaf5df5c92d99341ddb41d766bbb31c26b025",
}
SEED = 42
TIERS = (4096, 8192, 16384, 32768, 65536, 131072)
SIZES = {  # pairs or passages of a context, by tier
    "json_kv": (50, 105, 220, 440, 900, 1800),
    "kilt": (20, 50, 105, 220, 440, 1000),
    "msmarco": (14, 50, 130, 285, 600, 1000),
}
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One row, and where it stands, for messages."""

    facts: dict[str, Any]
    where: str

    def get(self, name: str, kind: type[T], *others: str) -> T:
        """The column `name`, or the first of `others` that is there. ValueError if none is, or of another type."""
        for column in (name, *others):
            value = self.facts.get(column)
            if value is None:
                continue
            if isinstance(value, kind):
                return value
            raise ValueError(f"{self.where}: column {column!r} must be {kind.__name__}, not {type(value).__name__}")
        raise ValueError(f"{self.where}: column {name!r} is missing; it has {', '.join(self.facts)}")

    def strings(self, name: str, *others: str) -> tuple[str, ...]:
        """A column of strings: a string alone, or a list of them, not empty."""
        value = self.get(name, object, *others)
        found = value if isinstance(value, list) else [value]
        if not found or not all(isinstance(one, str) for one in found):
            raise ValueError(f"{self.where}: {name} must be a string or a list of strings, not {value!r:.60}")
        return tuple(found)

    def rows(self, name: str) -> list[Row]:
        """A column of objects."""
        found = self.get(name, list)
        if not all(isinstance(one, dict) for one in found):
            raise ValueError(f"{self.where}: {name} must be a list of objects")
        return [Row(one, f"{self.where}, {name} {i + 1}") for i, one in enumerate(found)]


def tier(tokens: int) -> int:
    """Which of `TIERS` a context of at most `tokens` tokens takes: the longest that is not longer. ValueError below 4K."""
    found = bisect_right(TIERS, tokens) - 1
    if found < 0:
        raise ValueError(f"HELMET has no contexts of {tokens} tokens; its lengths are {', '.join(map(str, TIERS))}")
    return found


def names(which: int) -> list[str]:
    """The tarball's files of a tier, all tasks, with their demonstrations."""
    kv, kilt, ms = (SIZES[kind][which] for kind in ("json_kv", "kilt", "msmarco"))
    return [
        f"data/json_kv/test_k{kv}_dep6.jsonl",
        "data/multi_lexsum/multi_lexsum_val.jsonl",
        *(
            f"data/ruler/niah_{name}/validation_{TIERS[which]}.jsonl"
            for name in ("multikey_2", "multikey_3", "multivalue")
        ),
        *(kilt_file(name, k, k == 3) for name in KILT for k in (kilt, 3)),
        *(f"data/msmarco/test_reranking_data_k{k}_dep3.jsonl" for k in (ms, 10)),
    ]


KILT = {"nq": 6, "triviaqa": 6, "hotpotqa": 3, "popqa": 6}  # and at how many depths the gold passage lies


def kilt_file(name: str, passages: int, demos: bool = False) -> str:
    if name == "popqa":
        return f"data/kilt/popqa_test_1000_k{passages}_dep6.jsonl"
    return f"data/kilt/{name}-{'train' if demos else 'dev'}-multikilt_1000_k{passages}_dep{KILT[name]}.jsonl"


def table(data: Data, file: str, tokens: int) -> hub.Table:
    """The rows of a file of the tarball. ValueError if it is in neither the folder nor the tarball, or is empty."""
    found = hub.table(_path(data, file, tokens))
    if not len(found):
        raise ValueError(f"{found.path} has no rows")
    return found


def _path(data: Data, file: str, tokens: int) -> Path:
    if data.root != "hub" and (Path(data.root) / REPO / file).is_file():
        return data.path(REPO, file, REVISION, SHA256.get(file.removeprefix("data/"), ""))
    try:
        tar = data.path(REPO, TAR, REVISION)
    except ValueError as error:
        raise ValueError(f"{error}; {file} of HELMET is looked for there, and in {TAR}") from error
    unpacked = tar.parent / "unpacked" / file
    if not unpacked.is_file():
        _unpack(tar, {file, *names(tier(tokens))})
    if not unpacked.is_file():
        raise ValueError(f"{tar} holds no {file}: it is another edition than revision {REVISION[:7]}")
    return unpacked


def _unpack(tar: Path, wanted: set[str]) -> None:
    """Write the wanted regular files of a tarball beside it, in one pass; a file is there whole or not at all."""
    try:
        with tarfile.open(tar, "r|*") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                target = tar.parent / "unpacked" / name
                content = archive.extractfile(member) if member.isfile() and name in wanted else None
                if content is None or target.exists():
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f"{target.name}.{os.getpid()}")
                with partial.open("wb") as out:
                    while block := content.read(1 << 20):
                        out.write(block)
                partial.replace(target)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{tar} cannot be unpacked: {error}") from error


def permutation(seed: int, count: int) -> list[int]:
    """The order of `datasets`' `shuffle(seed)`: NumPy's default generator."""
    import numpy as np

    return [int(i) for i in np.random.default_rng(seed).permutation(count)]


def own_seed(text: str, plus: int = 0) -> int:
    """HELMET's seed of an item: its text or id, hashed."""
    return (int(hashlib.sha256(text.encode()).hexdigest(), 16) + plus) % 2**31


def pick(task: str, places: Sequence[T], index: int) -> T:
    """Sample `index`; `Unfit` if there are not as many."""
    if index >= len(places):
        raise Unfit(f"{task}: the data have {len(places)} samples, there is no sample {index}")
    return places[index]
