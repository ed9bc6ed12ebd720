"""`kvledger report`: the records of a folder -> table, page, and on request figures and tables as files; or what two runs
differ in.  (no torch)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from kvledger.records import read

from . import compare
from .document import document
from .export import write_figures, write_tables
from .page import write_study
from .study import Study, collect
from .summary import usual_keep
from .terminal import print_study


def load(out: Path, kinds: Mapping[str, str]) -> Study:
    """The study of `out/records`. ValueError where there are none; damaged lines are told on stderr and left out."""
    if not (out / "records").is_dir():
        raise ValueError(
            f"no records in {out}: expected {out / 'records'}/*.jsonl, as written by kvledger run --out {out}"
        )
    records, damaged = read(out)
    for line in damaged:
        print(f"kvledger: {line}", file=sys.stderr)
    if not records:
        raise ValueError(f"{out / 'records'} holds no readable record")
    return collect(records, kinds)


def body(arguments: argparse.Namespace, kinds: Mapping[str, str]) -> None:
    """`kinds`: task -> kind, as tasks are pooled in the figures. ValueError for more than two folders."""
    if len(arguments.dir) > 2:
        raise ValueError(f"{len(arguments.dir)} folders: give one to report on, or two to compare")
    if len(arguments.dir) == 2:
        _compare(arguments, kinds)
        return
    out = Path(arguments.dir[0])
    study = load(out, kinds)
    page = write_study(study, out / "report.html")
    if arguments.json:
        print(json.dumps(document(study), ensure_ascii=False))
        return
    print_study(study)
    print(f"\npage: {page}")
    if arguments.figures:
        print(f"figures: {len(write_figures(study, arguments.figures, usual_keep(study.rows)))} in {arguments.figures}")
    if arguments.tables:
        print(f"tables: {len(write_tables(study, arguments.tables))} in {arguments.tables}")


def _compare(arguments: argparse.Namespace, kinds: Mapping[str, str]) -> None:
    before, after = (load(Path(folder), kinds) for folder in arguments.dir)
    found = compare.changes(before, after)
    if arguments.json:
        print(json.dumps(compare.document(found), ensure_ascii=False))
    else:
        compare.print_changes(found)


def show(out: Path, kinds: Mapping[str, str]) -> None:
    """The page, the table, and where the page is."""
    study = load(out, kinds)
    page = write_study(study, out / "report.html")
    print_study(study)
    print(f"\npage: {page}")
