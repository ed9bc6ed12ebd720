"""An arena of rows in fewer bits, each of which stands for itself (`formats.py`): codes, scales and zeros are further buffers
with a place for each row, so that they are dropped, moved and shared as all others are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kvledger.cache.arena import Arena, Region
from kvledger.cache.formats import TYPES, RowFormat, Stored

PARTS = ("k", "k_scale", "k_zero", "v", "v_scale", "v_zero")


class PackedArena(Arena):
    """`k` and `v` [rows, bytes] hold codes of the given format. New rows are packed when they are stored: in the forward that
    brings them a chunk still sees its own rows exactly, every later one, and a single token, as they are stored."""

    names = (*PARTS, "position", "tally")
    k_scale: Tensor | None = None
    k_zero: Tensor | None = None
    v_scale: Tensor | None = None
    v_zero: Tensor | None = None

    def __init__(
        self, form: RowFormat, batch: int, heads: int, watch: Callable[[int], None] = lambda held: None
    ) -> None:
        super().__init__(batch, heads, watch)
        self.form, self.dtype = form, torch.float32

    def _form(self, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        if not self.rows:
            check_type(k)
            self.form.check(k.shape[-1])
            self.form.check(v.shape[-1])
            self.dtype = k.dtype
        packed = {"k": self.form.pack(k), "v": self.form.pack(v)}
        return {name if what == "data" else f"{name}_{what}": x for name in packed for what, x in packed[name].items()}

    @property
    def regions(self) -> list[Region]:
        return [Region(self._stored("k"), self._stored("v"), self.start, self.length)]

    def _stored(self, name: str) -> Stored:
        held = {
            "data": getattr(self, name),
            "scale": getattr(self, f"{name}_scale"),
            "zero": getattr(self, f"{name}_zero"),
        }
        return self.form.stored({what: x for what, x in held.items() if x is not None}, self.dtype)

    def dump(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        facts, held = super().dump()
        return facts | {"dtype": type_name(self.dtype)}, held

    def load(self, facts: dict[str, Any], held: dict[str, Tensor]) -> None:
        super().load(facts, held)
        self.dtype = type_of(facts["dtype"])


def check_type(x: Tensor) -> None:
    """ValueError for numbers of a type that no format knows."""
    if x.dtype not in TYPES:
        known = ", ".join(type_name(dtype) for dtype in TYPES)
        raise ValueError(
            f"keys of {type_name(x.dtype)} cannot be stored in fewer bits: load the model in one of {known}"
        )


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def type_of(name: str) -> torch.dtype:
    """The dtype that `type_name` has named."""
    return next(dtype for dtype in TYPES if type_name(dtype) == name)
