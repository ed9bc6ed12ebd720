"""Hashes of published files, in the format of sha256sum, so that a file that changes is refused and never mixed in.

What comes from the hub is noted at its first reading, in the hub's cache beside the data set; a data folder may hold a
`SHA256SUMS` for each set (`DIR/<owner>/<name>/SHA256SUMS`), which is read and never written.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

NAME = "SHA256SUMS"
NOTED = "kvledger.sha256"


def of_hub(found: Path, repo: str) -> Path | None:
    """Where the hashes of a data set of the hub are noted; None if `found` does not lie in the hub's cache."""
    folder = f"datasets--{repo.replace('/', '--')}"
    return next((parent / NOTED for parent in found.parents if parent.name == folder), None)


def known(sums: Path) -> dict[str, str]:
    """file -> hash; of a file that is listed twice the first. ValueError, with its number, for a line that is none."""
    found: dict[str, str] = {}
    if not sums.is_file():
        return found
    for number, line in enumerate(sums.read_text(encoding="utf-8").splitlines(), start=1):
        digest, _, file = line.partition("  ")
        if len(digest) != 64 or not file:
            raise ValueError(f"{sums}, line {number}: expected '<SHA-256>  <file>', not {line[:80]!r}")
        found.setdefault(file, digest.lower())
    return found


def note(sums: Path, file: str, digest: str) -> None:
    """Adds a line; a cache that nobody may write to stays without."""
    with suppress(OSError), sums.open("a", encoding="utf-8") as out:
        out.write(f"{digest}  {file}\n")
