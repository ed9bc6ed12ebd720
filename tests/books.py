"""What two sessions must have in common to be the same: rows, and what the ledger says. Shared by tests."""

from __future__ import annotations

from typing import Any

import tiny
import torch

from kvledger.hf import cache as caches
from kvledger.hf.session import Session


def books(session: Session) -> list[Any]:
    ledger = session.ledger
    return [
        ledger.footprint, ledger.byte_footprint, ledger.floor, ledger.peak, ledger.peak_bytes, ledger.stored_bytes,
        ledger.full_bytes, ledger.full_peak_bytes, ledger.dropped, ledger.bytes_read_per_step, ledger.curve(),
        ledger.footprint_by_head, ledger.prefill_work,
    ]  # fmt: skip


def same(one: Session, other: Session, near: float = 0.0) -> None:
    """Keys and values may differ by `near`, all else by nothing."""
    assert tiny.alive(one.cache) == tiny.alive(other.cache)
    assert books(one) == books(other)
    for a, b in zip(caches.arenas(one.cache), caches.arenas(other.cache), strict=True):
        assert a.arena is not None
        assert b.arena is not None
        for s in range(len(a.arena.start)):
            for x, y in zip(a.arena.plain(s), b.arena.plain(s), strict=True):
                assert torch.allclose(x, y, rtol=0, atol=near)
