"""Readers of chosen rows, in arenas of every kind: against the softmax written out over the rows as they are unpacked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvledger.cache import native, spans
from kvledger.cache.arena import Arena
from kvledger.cache.formats import Fp8, Int4, Int8
from kvledger.cache.grouped import GroupedArena
from kvledger.cache.packed import PackedArena
from kvledger.cache.spans import decode_spans
from kvledger.cache.turboquant import TurboRows


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ragged(arena: Arena, old: int = 90, dim: int = 32, dtype: torch.dtype = torch.float32) -> Arena:
    """Two sequences; the first head of each keeps all rows, the second a third, the last none."""
    arena.append(*(draw(arena.batch, arena.heads, old, dim, seed=i).to(dtype) for i in (0, 1)))
    kept = torch.tensor([1.0, 0.3, 0.0])[:, None]
    dice = torch.rand(arena.batch, 3, old, generator=torch.Generator().manual_seed(2))
    arena.keep([dice[b] < kept for b in range(arena.batch)])
    return arena


def chosen(arena: Arena, seed: int) -> list[int]:
    """About half of the rows of each segment, in runs."""
    flat = []
    for s, n in enumerate(arena.length):
        on = torch.rand(n, generator=torch.Generator().manual_seed(seed + s)) < 0.5
        for i in on.nonzero().squeeze(-1).tolist():
            if flat and flat[-3] == s and flat[-2] + flat[-1] == arena.start[s] + i:
                flat[-1] += 1
            else:
                flat += [s, arena.start[s] + i, 1]
    return flat


def written_out(q: Tensor, arena: Arena, flat: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """In float64, from the list of each segment's rows."""
    grouped = q.reshape(len(arena.start), -1, q.shape[-1]).double()
    out, lse = torch.zeros_like(grouped), torch.full(grouped.shape[:2], -torch.inf).double()
    for s in range(len(arena.start)):
        rows = [
            torch.arange(a, a + n) - arena.start[s] for of, a, n in zip(flat[::3], flat[1::3], flat[2::3]) if of == s
        ]
        if rows:
            k, v = (x[torch.cat(rows)].double() for x in arena.plain(s))
            logits = grouped[s] @ k.T * scale
            out[s], lse[s] = logits.softmax(-1) @ v, logits.logsumexp(-1)
    return out.view(q.shape), lse.view(q.shape[:3])


@pytest.mark.parametrize("reader", ["C", "PyTorch", "small blocks"])
@pytest.mark.parametrize("groups", [1, 4])
def test_chosen_rows_are_read_and_no_others(reader: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if reader == "C" and native._library() is None:
        pytest.skip("no C compiler that makes the reader")
    if reader != "C":
        monkeypatch.setattr(native, "usable", lambda *x: False)
    if reader == "small blocks":
        monkeypatch.setattr(spans, "BLOCK", 7)
    arena = ragged(Arena(2, 3))
    q, flat = draw(2, 3 * groups, 1, 32, seed=5), chosen(arena, seed=6)
    for rows in (flat, torch.tensor(flat)):
        out, lse = decode_spans(q, arena, rows, 0.3)
        want, want_lse = written_out(q, arena, flat, 0.3)
        torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-5)
    assert not out[:, 2 * groups :].any()
    assert (lse[:, 2 * groups :] == -torch.inf).all()


def test_plain_rows_are_the_buffers_own() -> None:
    arena = ragged(Arena(1, 3))
    k, v = arena.plain(1, 5)
    assert torch.equal(k, arena.k[arena.segment(1, 5)])
    assert torch.equal(v, arena.v[arena.segment(1, 5)])
    assert k.untyped_storage().data_ptr() == arena.k.untyped_storage().data_ptr()
    assert torch.equal(arena.span(0, 10, 20)[0], arena.plain(0)[0][10:20])
    assert [len(x) for x in arena.plain(2)] == [0, 0]


CODED = {
    "int8": lambda: PackedArena(Int8(), 2, 3),
    "int4": lambda: PackedArena(Int4(), 2, 3),
    "fp8": lambda: PackedArena(Fp8(), 2, 3),
    "turboquant": lambda: PackedArena(TurboRows(4), 2, 3),
    "groups of 2 bits": lambda: GroupedArena(2, 16, 8, 2, 3),
    "groups of 4 bits": lambda: GroupedArena(4, 16, 8, 2, 3),
}


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("reader", ["C", "PyTorch"])
@pytest.mark.parametrize("dim, groups", [(128, 4), (128, 2), (64, 1), (32, 8), (80, 3)])
def test_codes_are_read_as_the_numbers_they_stand_for(
    kind: str, reader: str, dim: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = CODED[kind]()
    arena.append(draw(2, 3, 210, dim, seed=0) + 1, draw(2, 3, 210, dim, seed=1) - 2)
    arena.seal()
    q = draw(2, 3 * groups, 1, dim, seed=2)
    if reader == "PyTorch":
        monkeypatch.setattr(native, "usable", lambda *x: False)
    elif native._library() is not None:
        assert all(native.usable(q, r.k, r.v) for r in arena.regions) == (kind != "turboquant")
    whole = [x for s in range(6) for x in (s, arena.start[s], arena.length[s])]
    for flat in (chosen(arena, 3), whole):
        got, lse = decode_spans(q, arena, flat, 0.3)
        want, want_lse = written_out(q, arena, flat, 0.3)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-4, atol=1e-4)
