"""The page of all methods, written from the rows that `kvledger methods` prints and from each file's own words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

HEAD = """# Methods

Written by `kvledger methods --markdown` from the registry; do not edit. Every compression method takes `keep`, `rows` or
`bytes` (how much), `when` and `every` (when), `allocator` (who gets it) and `heads`; what is said below is what it adds. A
recipe may have one part of each role, `headgate(keep=0.5) + snapkv(keep=0.3) + protect(instruction=True)`.
"""


@dataclass(frozen=True)
class Entry:
    """One method: its row, its options with defaults, and the docstrings of its file and of its class."""

    name: str
    stage: str
    scope: str
    needs: str
    paper: str
    summary: str
    options: str
    about: str
    explained: str


def page(entries: Sequence[Entry]) -> str:
    """The Markdown page: a table, then what each method is, where it differs from its paper, and its options."""
    lines = [HEAD, "| method | stage | decides by | looks at | keeps | paper |", "|---|---|---|---|---|---|"]
    lines += [
        f"| [`{e.name}`](#{e.name}) | {e.stage} | {e.scope} | {e.needs} | {e.summary} | {_link(e.paper)} |"
        for e in entries
    ]
    for e in entries:
        lines += ["", f"## {e.name}", f"`{e.name}({e.options})`", "", e.about.strip()]
        if e.explained.strip():
            lines += ["", e.explained.strip()]
    return "\n".join(lines) + "\n"


def _link(paper: str) -> str:
    number = re.fullmatch(r"arXiv (\d{4}\.\d{5})", paper)
    return f"[{number[1]}](https://arxiv.org/abs/{number[1]})" if number else paper
