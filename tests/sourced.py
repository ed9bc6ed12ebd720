"""A conversation over a context that a source has changed, and the rows it leaves."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from torch import Tensor

import kvledger as kv
from kvledger.hf.blend import rows_of
from kvledger.hf.cache import arenas
from kvledger.hf.session import Session

TEXT, QUESTION, SECOND, GOLD = tiny.text(60), tiny.text(4, seed=1), tiny.text(3, seed=2), tiny.text(5, seed=3)


def opened(recipe: str, chunk: int = 0, made: Any = None, template: bool = False) -> Session:
    return kv.open(made or tiny.model(), tiny.tokenizer(template), recipe, chunk)


def told(session: Session, known: bool = False) -> list[str]:
    """What is answered in a conversation with a branch, the first answer replaced by the gold one."""
    session.read(TEXT, QUESTION if known else None)
    first = session.answer(6, GOLD) if known else session.turn(QUESTION, 6, GOLD)
    branch = session.fork().ask(SECOND, 6)
    return [first.text, branch, session.ask(SECOND, 6), session.ask(QUESTION, 6)]


def store(session: Session, n: int) -> tuple[Tensor, Tensor]:
    """The first rows of all layers, [L, H, n, D]."""
    k, v = zip(*[rows_of(layer.arena, n, layer.copies) for layer in arenas(session.cache) if layer.arena is not None])
    return torch.stack(k), torch.stack(v)
