"""The C reader of several tokens against the contract written out: lengths, windows, dtypes, threads, and weights summed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvledger.cache import attend as readers
from kvledger.cache import chunks
from kvledger.cache.arena import Arena
from kvledger.cache.mass import add_mass

pytestmark = pytest.mark.skipif(chunks._library() is None, reason="no C compiler here")


def filled(lengths: list[int], T: int, D: int, dtype: torch.dtype, batch: int = 1) -> tuple[Arena, Tensor]:
    """An arena of `batch` sequences whose heads hold `lengths` old rows and T new ones, and queries of two heads a KV head."""
    generator = torch.Generator().manual_seed(len(lengths) + T + D)
    arena, heads, most = Arena(batch, len(lengths)), len(lengths), max(lengths)

    def draw(heads: int, rows: int) -> Tensor:
        return torch.randn(batch, heads, rows, D, generator=generator).to(dtype)

    if most:
        arena.append(draw(heads, most), draw(heads, most))
        keep = [torch.ones(most, dtype=torch.bool) for _ in lengths]
        for mask, n in zip(keep, lengths):
            mask[torch.randperm(most, generator=generator)[: most - n]] = False
        arena.keep([keep] * batch)
    arena.append(draw(heads, T), draw(heads, T))
    return arena, draw(2 * heads, T)


def plainly(
    q: Tensor, arena: Arena, scale: float, windows: chunks.Windows | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp and what each row of the buffers receives, in double precision, with every mask written out."""
    B, Hq, T, D = q.shape
    out, lse, mass = (
        torch.zeros(B, Hq, T, D).double(),
        torch.zeros(B, Hq, T).double(),
        torch.zeros(len(arena.k)).double(),
    )
    for b in range(B):
        for head in range(Hq):
            s, window = b * arena.heads + head // 2, windows[head // 2] if windows else None
            k, v = (x.double() for x in arena.plain(s))
            at, now = arena.positions(s)[None], torch.arange(arena.seen[b] - T, arena.seen[b])[:, None]
            seen = at <= now
            if window is not None:
                seen &= (at < window[0]) | (now - at < window[1])
            logits = (q[b, head].double() @ k.T * scale).masked_fill(~seen, -torch.inf)
            out[b, head], lse[b, head] = logits.softmax(-1) @ v, logits.logsumexp(-1)
            mass[arena.segment(s)] += logits.softmax(-1).sum(0) / 2
    return out, lse, mass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "lengths, T", [([0, 0], 7), ([130, 3, 64], 1), ([1, 200], 65), ([300], 193), ([63, 64, 65, 0], 2)]
)
@pytest.mark.parametrize("D", [16, 80])
def test_reads_as_the_contract_says(lengths: list[int], T: int, D: int, dtype: torch.dtype) -> None:
    arena, q = filled(lengths, T, D, dtype, batch=2)
    out, lse, mass = chunks.read(q, arena, 0.2, weigh=True)
    wanted, wanted_lse, wanted_mass = plainly(q, arena, 0.2)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(),
        wanted,
        rtol=1e-5 if dtype == torch.float32 else 1e-2,
        atol=1e-5 if dtype == torch.float32 else 1e-2,
    )
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=1e-5, atol=1e-5)
    assert mass is not None
    torch.testing.assert_close(mass.double(), wanted_mass, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [(0, 1), (4, 1), (4, 70), (70, 3), (3, 1000)])
@pytest.mark.parametrize("T", [1, 5, 200])
def test_heads_with_a_window_see_their_first_and_last_tokens(window: tuple[int, int], T: int) -> None:
    arena, q = filled([230, 230, 230], T, 32, torch.float32)
    windows = (None, window, (2, 33))
    out, lse, mass = chunks.read(q, arena, 0.3, windows, weigh=True)
    wanted, wanted_lse, wanted_mass = plainly(q, arena, 0.3, windows)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=1e-5, atol=1e-5)
    assert mass is not None
    torch.testing.assert_close(mass.double(), wanted_mass, rtol=1e-5, atol=1e-5)


def test_rows_that_a_window_has_left_behind_may_be_gone() -> None:
    arena, q = filled([230], 40, 32, torch.float32)
    wanted = plainly(q, arena, 0.3, ((4, 50),))[0]
    at = arena.positions(0)
    arena.keep([[(at < 4) | (at >= 230 - 49)]])
    torch.testing.assert_close(chunks.read(q, arena, 0.3, ((4, 50),))[0].double(), wanted, rtol=1e-5, atol=1e-5)


def test_one_sequence_of_several_is_read_alone() -> None:
    arena, q = filled([40, 9], 6, 32, torch.float32, batch=3)
    whole = chunks.read(q, arena, 0.3)[0]
    assert torch.equal(chunks.read(q[1:2], arena, 0.3, first=1)[0], whole[1:2])


def test_threads_change_nothing() -> None:
    arena, q = filled([900, 400], 300, 64, torch.float32)
    one = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(chunks.read(q, arena, 0.3, weigh=True))
    finally:
        torch.set_num_threads(one)
    for other in found[1:]:
        assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(found[0], other))


def test_shares_are_those_of_a_second_look() -> None:
    arena, q = filled([500, 20], 100, 32, torch.float32)
    _, lse, mass = chunks.read(q, arena, 0.3, weigh=True)
    arena.open_tally()
    add_mass(q, arena, lse, 0.3, [0, 1])
    assert mass is not None
    torch.testing.assert_close(mass, arena.tally, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_window_of_queries_looks_at(dtype: torch.dtype) -> None:
    k, q, counts = torch.randn(3, 150, 32).to(dtype), torch.randn(3, 2, 9, 32).to(dtype), [150, 9, 77]
    found = chunks.window_mass(q, k, counts, 0.3)
    for h, n in enumerate(counts):
        logits = q[h].double() @ k[h, 150 - n :].double().T * 0.3
        later = torch.ones(9, n, dtype=torch.bool).triu(n - 9 + 1)
        wanted = logits.masked_fill(later, -torch.inf).softmax(-1).sum(-2)
        torch.testing.assert_close(found[h, :, 150 - n :].double(), wanted, rtol=1e-5, atol=1e-5)
        assert not found[h, :, : 150 - n].any()


def test_large_logits_and_rows_of_no_weight() -> None:
    arena, q = filled([100], 70, 16, torch.float32)
    arena.k[:50] *= 200
    out, lse, mass = chunks.read(q, arena, 1.0, weigh=True)
    wanted, wanted_lse, wanted_mass = plainly(q, arena, 1.0)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=1e-5, atol=1e-3)
    assert mass is not None
    torch.testing.assert_close(mass.double(), wanted_mass, rtol=1e-3, atol=1e-3)


def test_what_it_does_not_know_is_left_to_pytorch() -> None:
    arena, q = filled([10], 4, 32, torch.float32)
    assert chunks.usable(q, arena)
    assert not chunks.usable(q, arena, softcap=30.0)
    assert not chunks.usable(q.double(), arena)
    assert not chunks.usable(q.requires_grad_(), arena)
    narrow, few = filled([10], 4, 24, torch.float32)
    assert not chunks.usable(few, narrow)
    k = v = torch.zeros(1, 1, 4, 24)
    torch.testing.assert_close(readers.attend(few, k, v, narrow, 0.2)[0].shape, few.shape)
