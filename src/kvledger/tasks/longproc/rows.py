"""Row F1 of HTML to TSV: LongProc's rules (arXiv 2501.05414; code Apache-2.0, none of it copied) and a right one.

Both read the TSV out of the answer as LongProc does: between the first ```tsv and the last ```; names of columns are not
compared, only their number; a last row of another width is dropped, others become "N/A" throughout; cells lose case,
punctuation, articles and blanks.  LongProc's precision and recall ask whether a row is among the other side's, so a row
that is written twice counts twice; the right score counts each gold row once.  What LongProc's code raises on scores 0.
"""

from __future__ import annotations

import csv
import re
import string
from collections import Counter

from kvledger.tasks.scorers import Golds

READ = 300_000  # characters of an answer; the longest gold has some 40,000
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
Row = tuple[str, ...]


def body(prediction: str) -> str:
    """The TSV of an answer: between its fences, after an open one, or all of it."""
    before, fence, after = prediction[:READ].partition("```tsv")
    if not fence:
        return before.strip()
    return (after.rpartition("```")[0] if "```" in after else after).strip()


def table(text: str) -> list[Row] | None:
    """The rows below the header, normalised; None where there are none or the text is no table."""
    try:
        header, *rows = csv.reader(text.strip().split("\n"), delimiter="\t")
    except (csv.Error, ValueError):
        return None
    if rows and len(rows[-1]) != len(header):
        rows.pop()
    return [tuple(map(normal, row if len(row) == len(header) else ["N/A"] * len(header))) for row in rows] or None


def normal(cell: str) -> str:
    return "".join(ARTICLES.sub(" ", cell.lower().translate(PUNCTUATION)).split())


def _tables(prediction: str, golds: Golds) -> tuple[list[Row], list[Row]] | None:
    said, meant = table(body(prediction)), table(golds[0])
    return (said, meant) if said and meant and len(said[0]) == len(meant[0]) else None


def row_f1(prediction: str, golds: Golds) -> float:
    """F1 between the rows of the answer and those of golds[0] (a TSV with its header), each counted as often as it occurs."""
    tables = _tables(prediction, golds)
    if tables is None:
        return 0.0
    said, meant = tables
    return 2 * sum((Counter(said) & Counter(meant)).values()) / (len(said) + len(meant))


def longproc_f1(prediction: str, golds: Golds) -> float:
    """LongProc's F1, on which arXiv 2506.17121 reports."""
    tables = _tables(prediction, golds)
    if tables is None:
        return 0.0
    said, meant = tables
    precision = sum(map(set(meant).__contains__, said)) / len(said)
    recall = sum(map(set(said).__contains__, meant)) / len(meant)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
