"""Which cells a model can play: a recipe that compresses keys and values has no business with a model that holds none.
(no torch until a model is there)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvledger.recipe import parse
from kvledger.records import Cell


def fitting(model: Any, cells: Sequence[Cell]) -> list[Cell]:
    """The cells with fingerprints of the files that their recipes read, without those whose recipe would change nothing on
    this model (Mamba): their scores would be the full cache's. ValueError for a recipe that the model cannot follow, a
    chunk after which it would forget, and if nothing is left."""
    from kvledger.hf.cache import NothingToCompress, new_cache
    from kvledger.hf.recurrent import forgets_between_chunks

    files: dict[str, str] = {}
    reason = ""
    for recipe in dict.fromkeys(cell.recipe for cell in cells):
        try:
            new_cache(model, recipe)
            files[recipe] = parse(recipe).fingerprint
        except NothingToCompress as error:
            reason = reason or str(error)
    if not files:
        raise ValueError(reason)
    if any(0 < cell.chunk < cell.context for cell in cells):
        forgets_between_chunks(model)
    return [replace(cell, files=files[cell.recipe]) for cell in cells if cell.recipe in files]


def left_out(wanted: Sequence[Cell], played: Sequence[Cell]) -> list[str]:
    """A line about each recipe of `wanted` that is in none of the cells `played`."""
    there = {cell.recipe for cell in played}
    gone = dict.fromkeys(cell.recipe for cell in wanted if cell.recipe not in there)
    return [f"{recipe} is left out: the model holds no keys and values that it could change" for recipe in gone]
