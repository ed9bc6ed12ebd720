"""Where published data come from: a local folder, or the hub at a pinned revision. One code path for both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvledger.tasks import sums

BLOCK = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True)
class Data:
    """`root` is "hub", or a folder that holds `<owner>/<name>/<file>` for each data set, as the hub lays it out.

    `used` notes the hash of every file that was asked for, so that `fingerprint` says what a sample was made of.
    """

    root: str
    used: dict[str, str] = field(default_factory=dict, compare=False)

    def check(self) -> None:
        """ValueError if `root` is neither "hub" nor a folder."""
        if self.root != "hub" and not Path(self.root).is_dir():
            raise ValueError(f"the data folder {self.root!r} is not there; give --data hub, or a folder that exists")

    def path(self, repo: str, file: str, revision: str, sha256: str = "") -> Path:
        """The local path of `file` of the data set `repo`, downloaded where `root` is "hub". ValueError if it is not there,
        or if its hash is not the one given, or the one that is known of it (`sums`)."""
        self.check()
        found = _download(repo, file, revision) if self.root == "hub" else _local(Path(self.root), repo, file)
        stat = found.stat()
        have = hash_of(found, stat.st_size, stat.st_mtime_ns)
        if sha256 and have != sha256:
            raise ValueError(
                f"{found} is not the {file} of {repo} that this version was written for: its SHA-256 is {have[:16]}…, "
                f"not {sha256[:16]}…; fetch it again at revision {revision}"
            )
        self._compare(repo, file, found, have)
        self.used[f"{repo}/{file}"] = have
        return found

    def _compare(self, repo: str, file: str, found: Path, have: str) -> None:
        """ValueError if the hash is not the one that is listed; what comes from the hub for the first time is noted."""
        hub = self.root == "hub"
        listed = sums.of_hub(found, repo) if hub else Path(self.root) / repo / sums.NAME
        first = sums.known(listed).get(file) if listed else None
        if first is None and hub and listed:
            sums.note(listed, file, have)
        elif first is not None and first != have:
            raise ValueError(
                f"{found} is not the {file} of {repo} that {'was first read here' if hub else 'is listed'}: its SHA-256 is "
                f"{have[:16]}…, not {first[:16]}…; if it changed for a reason, take its line out of {listed}"
            )

    @property
    def fingerprint(self) -> str:
        """A short hash of all files used so far, the same for a folder and for the hub; "" if there was none."""
        if not self.used:
            return ""
        return hashlib.sha256(json.dumps(sorted(self.used.items())).encode()).hexdigest()[:12]


@lru_cache(maxsize=256)
def hash_of(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file; its size and time of change tell whether it was hashed before."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _local(root: Path, repo: str, file: str) -> Path:
    if not (root / repo / file).is_file():
        raise ValueError(
            f"{root} has no {repo}/{file}; lay the data out as on the hub: {root}/<owner>/<name>/<file> (`hf download "
            f"{repo} --repo-type dataset --local-dir {root}/{repo}`)"
        )
    return root / repo / file


def _download(repo: str, file: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"{file} of the data set {repo} at revision {revision}"
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
    except RevisionNotFoundError as error:
        raise ValueError(f"the hub has no revision {revision!r} of {repo}") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"the hub has no data set {repo!r}, or it is gated and you are not logged in") from error
    except (
        EntryNotFoundError
    ) as error:  # also where the file is neither on the hub nor in the cache of an offline machine
        raise ValueError(
            f"{where} cannot be had: {_first_line(error)}; without a network give --data DIR with a copy in it"
        ) from error
    except OSError as error:
        raise ValueError(f"{where} could not be downloaded: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class Table(Sequence[dict[str, Any]]):
    """The rows of a JSONL, JSON (a list) or parquet file, in order; of JSONL only the row asked for is parsed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held: list[dict[str, Any]] = []
        self.starts: list[int] = []  # of the lines that are not blank, in bytes
        self.numbers: list[int] = []  # of those lines in the file, from 1
        if path.suffix == ".parquet":
            self.held = list(_parquet(path))
        elif path.suffix == ".json":
            self.held = list(_listed(path, path.read_text(encoding="utf-8")))
        else:
            for number, start in _starts(path):
                self.numbers.append(number)
                self.starts.append(start)

    def __len__(self) -> int:
        return len(self.starts) or len(self.held)

    def __getitem__(self, index: Any) -> Any:
        if not self.starts:
            return self.held[index]
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            line = file.readline()
        return _object(line, f"{self.path}, line {self.numbers[index]}")

    def numbered(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each row with its line in the file, or its place where there are no lines."""
        for i in range(len(self)):
            yield (self.numbers[i] if self.numbers else i + 1), self[i]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


def table(path: Path) -> Table:
    """The rows of a file, read once a process. ValueError for what is no table, with the line."""
    stat = path.stat()
    return _table(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _table(path: Path, size: int, changed: int) -> Table:
    return Table(path)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL, JSON (a list) or parquet file, in order. ValueError, with the row, for what is none."""
    return iter(table(path))


def _starts(path: Path) -> Iterator[tuple[int, int]]:
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, at
            at += len(line)


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
    return row


def _listed(path: Path, text: str) -> Iterator[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError(f"{path}: expected a JSON list of objects")
    yield from found


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path.name} is a parquet file, which needs pyarrow: pip install pyarrow") from error
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=16):
        yield from batch.to_pylist()
