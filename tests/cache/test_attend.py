"""Readers over an arena against the ten-line reference and against dense attention written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvledger.cache import softmax
from kvledger.cache.arena import Arena
from kvledger.cache.attend import attend, equal_runs, reference
from kvledger.cache.softmax import merge, sdpa

DK, DV, SCALE = 8, 8, 0.4


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ragged(batch: int, heads: int, old: int, kept: list[float], seed: int, dv: int = DV) -> Arena:
    """`old` tokens; head `h` keeps about `kept[h]` of its rows, 0 for none."""
    arena = Arena(batch, heads)
    if not old:
        return arena
    arena.append(draw(batch, heads, old, DK, seed=seed), draw(batch, heads, old, dv, seed=seed + 1))
    dice = torch.rand(batch, heads, old, generator=torch.Generator().manual_seed(seed))
    arena.keep([dice[b] < torch.tensor(kept)[:, None] for b in range(batch)])
    return arena


def new(arena: Arena, T: int, groups: int, seed: int, dv: int = DV) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q = draw(arena.batch, arena.heads * groups, T, DK, seed=seed)
    return q, draw(arena.batch, arena.heads, T, DK, seed=seed + 1), draw(arena.batch, arena.heads, T, dv, seed=seed + 2)


@settings(max_examples=100)
@given(
    batch=st.integers(1, 2),
    kept=st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=1, max_size=4),
    groups=st.sampled_from([1, 2, 4, 8]),
    old=st.sampled_from([0, 1, 17]),
    T=st.sampled_from([1, 2, 9]),
    dv=st.sampled_from([DV, 5]),
    seed=st.integers(0, 1000),
)
def test_attention_is_the_references(
    batch: int, kept: list[float], groups: int, old: int, T: int, dv: int, seed: int
) -> None:
    arena = ragged(batch, len(kept), old, kept, seed, dv)
    q, k, v = new(arena, T, groups, seed + 7, dv)
    arena.append(k, v)
    torch.testing.assert_close(attend(q, k, v, arena, SCALE)[0], reference(q, arena, SCALE), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("T", [1, 6])
def test_slack_and_spare_rows_are_never_read(T: int) -> None:
    arena = ragged(1, 3, 12, [1.0, 1.0, 1.0], seed=0)
    for i in range(3):  # single tokens leave slack behind each segment
        _, k, v = new(arena, 1, 1, seed=20 + i)
        arena.append(k, v)
    q, k, v = new(arena, T, 2, seed=30)
    arena.append(k, v)
    spare = torch.ones(arena.k.shape[0], dtype=torch.bool)
    for s in range(3):
        spare[arena.segment(s)] = False
    assert spare.any()
    arena.k[spare] = arena.v[spare] = torch.nan
    torch.testing.assert_close(attend(q, k, v, arena, SCALE)[0], reference(q, arena, SCALE), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("pads", [[0, 0, 0], [0, 2, 4], [0, 3, 5]])
def test_padded_batches_equal_each_sequence_alone(T: int, pads: list[int]) -> None:
    arena = ragged(3, 2, 11, [0.5, 1.0], seed=3)
    q, k, v = new(arena, T, 2, seed=4)
    valid = torch.arange(T)[None] >= torch.tensor([min(p, T) for p in pads])[:, None]
    alone = []
    for b in range(3):
        one = Arena(1, 2)
        one.k, one.v, one.position = arena.k, arena.v, arena.position
        one.start, one.length, one.seen = (
            arena.start[2 * b : 2 * b + 2],
            arena.length[2 * b : 2 * b + 2],
            [arena.seen[b]],
        )
        one.capacity = list(one.length)
        real = k[b : b + 1, :, valid[b]], v[b : b + 1, :, valid[b]]
        one.append(*real)
        alone.append(reference(q[b : b + 1, :, valid[b]], one, SCALE)[0] if valid[b].any() else q.new_zeros(4, 0, DV))
    arena.append(k, v, valid)
    out, _ = attend(q, k, v, arena, SCALE, valid)
    for b in range(3):
        torch.testing.assert_close(out[b, :, valid[b]], alone[b], rtol=1e-9, atol=1e-9)
        assert not out[b, :, ~valid[b]].any()


def dense(q: torch.Tensor, arena: Arena, softcap: float | None, sinks: torch.Tensor | None) -> torch.Tensor:
    """One sequence, written out: logits, cap, causal mask by token index, a column for the sink, softmax."""
    _, Hq, T, _ = q.shape
    out = []
    for head in range(Hq):
        rows = arena.segment(s := head * arena.heads // Hq)
        logits = q[0, head] @ arena.k[rows].T * SCALE
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        now = torch.arange(arena.seen[0] - T, arena.seen[0])
        logits[arena.positions(s)[None] > now[:, None]] = -torch.inf
        if sinks is not None:
            logits = torch.cat([logits, sinks[head].expand(T, 1)], dim=1)
        out.append(logits.softmax(-1)[:, : arena.length[s]] @ arena.v[rows])
    return torch.stack(out)[None]


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("T", [1, 6])
@pytest.mark.parametrize("kept", [[1.0, 1.0], [0.3, 0.0]])
def test_sinks_and_softcap(softcap: float | None, sinks: bool, T: int, kept: list[float]) -> None:
    arena = ragged(1, 2, 13, kept, seed=5)
    q, k, v = new(arena, T, 4, seed=6)
    arena.append(k, v)
    sink = draw(8, seed=8) * 3 if sinks else None
    expected = dense(q * 3, arena, softcap, sink)
    torch.testing.assert_close(
        attend(q * 3, k, v, arena, SCALE, None, sink, softcap)[0], expected, rtol=1e-6, atol=1e-6
    )


def test_parts_merge_by_their_log_sum_exp() -> None:
    q, k, v = draw(2, 3, 4, DK, seed=0), draw(2, 3, 10, DK, seed=1), draw(2, 3, 10, DV, seed=2)
    out, lse = sdpa(q, k, v, SCALE)
    torch.testing.assert_close(lse, (q @ k.transpose(-1, -2) * SCALE).logsumexp(-1))
    parts = sdpa(q, k[:, :, :3], v[:, :, :3], SCALE), sdpa(q, k[:, :, 3:], v[:, :, 3:], SCALE)
    joined = merge(*parts[0], *parts[1])
    torch.testing.assert_close(joined[0], out, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(joined[1], lse, rtol=1e-9, atol=1e-9)
    nothing = sdpa(q, k[:, :, :0], v[:, :, :0], SCALE)
    torch.testing.assert_close(merge(out, lse, *nothing)[0], out)


@pytest.mark.parametrize("causal", [False, True])
def test_the_explicit_path_equals_the_fused_one(causal: bool) -> None:
    q, k, v = draw(2, 3, 5, DK, seed=0), draw(2, 3, 5, DK, seed=1), draw(2, 3, 5, DV, seed=2)
    for ours, fused in zip(
        softmax._explicit(q, k, v, SCALE, None, 0 if causal else None), sdpa(q, k, v, SCALE, None, causal)
    ):
        torch.testing.assert_close(ours, fused, rtol=1e-9, atol=1e-9)


def test_heads_of_equal_length_share_one_call() -> None:
    arena = ragged(1, 5, 10, [1.0] * 5, seed=0)
    assert equal_runs(arena, range(5)) == [range(0, 5)]
    mask = torch.ones(5, 10, dtype=torch.bool)
    mask[2, :4] = False
    arena.keep([mask])
    assert equal_runs(arena, range(5)) == [range(0, 2), range(2, 3), range(3, 5)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("T", [1, 7])
def test_low_precision_stays_close_and_keeps_its_dtype(dtype: torch.dtype, T: int) -> None:
    exact = ragged(1, 2, 20, [0.4, 0.8], seed=9)
    q, k, v = (x.to(dtype) for x in new(exact, T, 2, seed=10))
    arena = Arena(1, 2)
    arena.k, arena.v, arena.position = exact.k.to(dtype), exact.v.to(dtype), exact.position
    arena.start, arena.length, arena.capacity, arena.seen = exact.start, exact.length, exact.capacity, exact.seen
    arena.append(k, v)
    out, _ = attend(q, k, v, arena, SCALE)
    assert out.dtype == dtype
    wide = Arena(1, 2)
    wide.__dict__.update({**arena.__dict__, "k": arena.k.double(), "v": arena.v.double()})
    error = (out.double() - reference(q.double(), wide, SCALE)).abs().max()
    assert error < (0.03 if dtype == torch.bfloat16 else 1e-5)


def test_the_written_out_softmax_goes_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no fused kernel returns a log-sum-exp, memory stays bounded and nothing changes."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=draw, dtype=torch.float64) for n in (9, 9, 9))
    whole = [softmax.sdpa(q, k, v, 0.3, softcap=5.0, causal=causal) for causal in (True, False)]
    monkeypatch.setattr(softmax, "LOGITS_AT_ONCE", 2 * 3 * 9 * 2)  # two queries at a time
    for causal, (out, lse) in zip((True, False), whole, strict=True):
        blocked = softmax.sdpa(q, k, v, 0.3, softcap=5.0, causal=causal)
        torch.testing.assert_close(blocked, (out, lse))
