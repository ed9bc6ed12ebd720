"""Natural text as token ids: the standard library, folders of files, JSONL, and data sets of the Hugging Face hub."""

from __future__ import annotations

import json
import os
import random
import sysconfig
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

PROSE = (".txt", ".md", ".rst", ".html", ".htm", ".tex", ".org", ".log", ".csv", ".xml", ".yaml", ".toml")
CODE = (".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".java", ".js", ".ts", ".go", ".rs", ".rb", ".sh", ".sql", ".ipynb")
SUFFIXES = PROSE + CODE
APART = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
CACHED = 1 << 26  # tokens held in memory (4 bytes each); documents beyond are tokenised again in the next epoch
SHUFFLED = 256  # documents of a streamed data set among which the next one is drawn


class Documents(Protocol):
    """Token ids of documents, each once an epoch."""

    def epoch(self, number: int) -> Iterator[array[int]]: ...


def encode(tokenizer: Any, text: str) -> array[int]:
    """Ids of a text, without special tokens, and without the warning that it is longer than the model reads at once."""
    return array("i", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@dataclass
class Shelf:
    """Documents that can be fetched by number. Each epoch has its own order, from the seed."""

    read: Callable[[int], str]
    count: int
    tokenizer: Any
    seed: int
    _known: dict[int, array[int]] = field(default_factory=dict)
    _held: int = 0

    def ids(self, number: int) -> array[int]:
        """Token ids of a document, tokenised when first asked for."""
        if number in self._known:
            return self._known[number]
        ids = encode(self.tokenizer, self.read(number))
        if self._held + len(ids) <= CACHED:
            self._known[number] = ids
            self._held += len(ids)
        return ids

    def order(self, epoch: int) -> list[int]:
        order = list(range(self.count))
        random.Random(f"{self.seed} epoch {epoch}").shuffle(order)
        return order

    def epoch(self, number: int) -> Iterator[array[int]]:
        return map(self.ids, self.order(number))


def standard_library(tokenizer: Any, seed: int) -> Shelf:
    """Modules of the running interpreter's standard library: real text, on every machine. Tests are left out."""
    return _shelf_of_files(_walk(Path(sysconfig.get_path("stdlib")), (".py",), APART), tokenizer, seed)


def files(path: Path, tokenizer: Any, seed: int) -> Shelf:
    """A text file, or the text files of a folder and of those in it; what begins with a dot is left out."""
    found = _walk(path, SUFFIXES, set()) if path.is_dir() else [path]
    if not found:
        raise ValueError(f"the folder {path} holds no text files (looked for: {' '.join(SUFFIXES)})")
    return _shelf_of_files(found, tokenizer, seed)


def _walk(root: Path, suffixes: tuple[str, ...], apart: set[str]) -> list[Path]:
    found = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if name not in apart and not name.startswith("."))
        found += [Path(folder, n) for n in sorted(names) if n.lower().endswith(suffixes) and not n.startswith(".")]
    return found


def _shelf_of_files(paths: list[Path], tokenizer: Any, seed: int) -> Shelf:
    return Shelf(lambda i: paths[i].read_text(encoding="utf-8", errors="replace"), len(paths), tokenizer, seed)


def lines(path: Path, tokenizer: Any, seed: int) -> Shelf:
    """A JSONL file: field "text" of each line, or where there is none the longest text of the line.

    ValueError names the lines that are no JSON object or hold no text; all are looked at before anything is trained.
    """
    offsets, bad = [], []
    with path.open("rb") as file:
        offset = 0
        for number, line in enumerate(file, start=1):
            if line.strip():
                if _text_of(line) is None:
                    bad.append(number)
                offsets.append(offset)
            offset += len(line)
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise ValueError(f"{path}: not a JSON object with a text in it: line {shown}; mend or remove them")
    if not offsets:
        raise ValueError(f"{path} is empty")

    def read(number: int) -> str:
        with path.open("rb") as file:
            file.seek(offsets[number])
            return _text_of(file.readline()) or ""

    return Shelf(read, len(offsets), tokenizer, seed)


def _text_of(line: bytes) -> str | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return _text_field(row, "") if isinstance(row, dict) else None


def _text_field(row: dict[str, Any], name: str) -> str | None:
    """The named field; without a name "text", else the longest text. None if there is no such text."""
    if isinstance(row.get(name or "text"), str):
        return str(row[name or "text"])
    texts = [] if name else [value for value in row.values() if isinstance(value, str)]
    return max(texts, key=len, default=None)


@dataclass(frozen=True)
class Hub:
    """A data set of the hub, streamed: NAME[:SPLIT[:FIELD]]; NAME may be OWNER/NAME/CONFIGURATION.

    Each epoch draws the next document among the `SHUFFLED` that lie ahead. Resuming reads the stream again from its
    beginning, since nothing of it is stored.
    """

    address: str
    tokenizer: Any
    seed: int

    def epoch(self, number: int) -> Iterator[array[int]]:
        name, _, rest = self.address.partition(":")
        split, _, wanted = rest.partition(":")
        parts = name.split("/")
        rows = _datasets().load_dataset("/".join(parts[:2]), *parts[2:], split=split or "train", streaming=True)
        for row in rows.shuffle(seed=self.seed + number, buffer_size=SHUFFLED):
            text = _text_field(row, wanted)
            if text is None:
                raise ValueError(f"hub:{self.address}: no text in field {wanted!r}; a row has {', '.join(sorted(row))}")
            yield encode(self.tokenizer, text)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError("data from the hub needs the package `datasets`: pip install 'kvledger[hub]'") from None
    return datasets
