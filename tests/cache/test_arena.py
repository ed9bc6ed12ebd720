"""The arena against a naive store: a Python list of (token, key, value) rows for each segment."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvledger.cache.arena import Arena

DK, DV = 3, 2


class Naive:
    """What an arena must hold: rows of each segment, in order, and the tokens each sequence has seen."""

    def __init__(self, batch: int, heads: int):
        self.heads = heads
        self.rows: list[list[tuple[int, list[float], list[float]]]] = [[] for _ in range(batch * heads)]
        self.seen = [0] * batch

    def append(self, k: torch.Tensor, v: torch.Tensor, valid: torch.Tensor | None) -> None:
        for b in range(len(self.seen)):
            for t in range(k.shape[2]):
                if valid is not None and not valid[b, t]:
                    continue
                for h in range(self.heads):
                    self.rows[b * self.heads + h].append((self.seen[b], k[b, h, t].tolist(), v[b, h, t].tolist()))
                self.seen[b] += 1

    def keep(self, masks: list[torch.Tensor]) -> None:
        for s, rows in enumerate(self.rows):
            mask = masks[s // self.heads][s % self.heads].tolist()
            old = len(rows) - len(mask)
            self.rows[s] = rows[:old] + [row for row, stays in zip(rows[old:], mask) if stays]

    def select(self, sequences: list[int]) -> None:
        self.rows = [list(self.rows[b * self.heads + h]) for b in sequences for h in range(self.heads)]
        self.seen = [self.seen[b] for b in sequences]

    def rollback(self, mark: list[int]) -> None:
        self.rows = [[row for row in rows if row[0] < mark[s // self.heads]] for s, rows in enumerate(self.rows)]
        self.seen = list(mark)


class Pair:
    """An arena and its naive twin, with every byte count that the arena reported."""

    def __init__(self, batch: int, heads: int):
        self.told: list[int] = []
        self.arena, self.naive = Arena(batch, heads, self.told.append), Naive(batch, heads)

    def fork(self) -> Pair:
        twin = copy.copy(self)
        twin.told = []
        twin.arena, twin.naive = self.arena.fork(twin.told.append), copy.deepcopy(self.naive)
        return twin

    def check(self) -> None:
        arena, naive = self.arena, self.naive
        assert arena.seen == naive.seen
        assert arena.length == [len(rows) for rows in naive.rows]
        assert arena.rows == sum(arena.length)
        for s, rows in enumerate(naive.rows):
            assert arena.positions(s).tolist() == [row[0] for row in rows]
            assert arena.k[arena.segment(s)].tolist() == [row[1] for row in rows]
            assert arena.v[arena.segment(s)].tolist() == [row[2] for row in rows]
        tensors = [t for t in (arena.k, arena.v, arena.position) if t is not None]
        assert arena.nbytes == sum(t.numel() * t.element_size() for t in tensors) >= arena.rows * arena.row_nbytes
        assert not self.told or self.told[-1] == arena.nbytes


def fresh(pair: Pair, T: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shape = pair.arena.batch, pair.arena.heads, T
    return torch.randn(*shape, DK, generator=draw), torch.randn(*shape, DV, generator=draw)


def append(pair: Pair, T: int, seed: int, pads: list[int] | None = None) -> None:
    """`pads[b]` of the tokens are padding on the left."""
    k, v = fresh(pair, T, seed)
    valid = None if pads is None else torch.arange(T)[None] >= torch.tensor(pads)[:, None]
    added = pair.arena.append(k, v, valid)
    assert added == [T] * pair.arena.batch if pads is None else [T - p for p in pads]
    pair.naive.append(k, v, valid)


def keep(pair: Pair, seed: int, share: float) -> None:
    """A random mask over a random tail of each sequence."""
    draw = torch.Generator().manual_seed(seed)
    arena, masks = pair.arena, []
    for b in range(arena.batch):
        shortest = min(arena.length[b * arena.heads : (b + 1) * arena.heads])
        n = int(torch.randint(0, shortest + 1, (), generator=draw))
        masks.append(torch.rand(arena.heads, n, generator=draw) < share)
    before = arena.rows
    assert arena.keep(masks) == sum(int((~m).sum()) for m in masks) == before - arena.rows
    pair.naive.keep(masks)


def replace(pair: Pair, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    s = int(torch.randint(0, len(pair.arena.start), (), generator=draw))
    rows = (torch.rand(pair.arena.length[s], generator=draw) < 0.5).nonzero().squeeze(-1)
    k, v = torch.randn(len(rows), DK, generator=draw), torch.randn(len(rows), DV, generator=draw)
    pair.arena.replace(s, rows, k, v)
    for i, row in enumerate(rows.tolist()):
        token = pair.naive.rows[s][row][0]
        pair.naive.rows[s][row] = (token, k[i].tolist(), v[i].tolist())


def act(pair: Pair, kind: str, seed: int) -> None:
    batch = pair.arena.batch
    draw = torch.Generator().manual_seed(seed)
    if kind in ("one", "many"):
        append(pair, 1 if kind == "one" else 1 + seed % 7, seed)
    elif kind == "padded":
        append(pair, 6, seed, torch.randint(0, 7, (batch,), generator=draw).tolist())
    elif kind == "keep":
        keep(pair, seed, 0.5)
    elif kind == "nothing":
        keep(pair, seed, 2.0)
    elif kind == "replace":
        replace(pair, seed)
    elif kind == "select":
        order = torch.randint(0, batch, (batch,), generator=draw).tolist()
        pair.arena.select(order)
        pair.naive.select(order)
    elif kind == "undo":
        mark = pair.arena.mark()
        append(pair, 1 + seed % 5, seed)
        pair.arena.rollback(mark)
        pair.naive.rollback(list(mark))


ACTIONS = st.tuples(
    st.sampled_from(["one", "many", "padded", "keep", "nothing", "replace", "select", "undo"]), st.integers(0, 10**6)
)


@settings(max_examples=120)
@given(st.integers(1, 3), st.integers(1, 3), st.lists(ACTIONS, max_size=12))
def test_any_history_leaves_what_the_naive_store_holds(batch: int, heads: int, history: list[tuple[str, int]]) -> None:
    pair = Pair(batch, heads)
    for kind, seed in history:
        act(pair, kind, seed)
        pair.check()


@settings(max_examples=80)
@given(
    st.integers(1, 2),
    st.lists(ACTIONS, max_size=6),
    st.lists(st.tuples(st.integers(0, 2), ACTIONS), min_size=2, max_size=12),
)
def test_branches_never_touch_each_other(batch: int, trunk: list, branches: list) -> None:
    pairs = [Pair(batch, 2)]
    for kind, seed in trunk:
        act(pairs[0], kind, seed)
    pairs += [pairs[0].fork()]
    pairs += [pairs[1].fork()]
    for who, (kind, seed) in branches:
        act(pairs[who], kind, seed)
        for pair in pairs:
            pair.check()


def filled(T: int, batch: int = 1, heads: int = 2) -> Pair:
    pair = Pair(batch, heads)
    append(pair, T, seed=T)
    return pair


def test_a_fork_shares_memory_until_one_side_writes() -> None:
    trunk = filled(10)
    twin = trunk.fork()
    assert trunk.arena.k.data_ptr() == twin.arena.k.data_ptr()
    append(twin, 1, seed=1)
    assert trunk.arena.k.data_ptr() != twin.arena.k.data_ptr()
    append(trunk, 1, seed=2)
    trunk.check()
    twin.check()


def test_positions_are_true_and_change_their_width_in_time() -> None:
    limit = torch.iinfo(torch.int16).max
    pair = Pair(1, 1)
    k = torch.arange(limit - 1.0)[None, None, :, None]
    pair.arena.append(k, k)
    mask = torch.zeros(1, limit - 1, dtype=torch.bool)
    mask[0, -3:] = True
    pair.arena.keep([mask])
    assert pair.arena.position is not None
    assert pair.arena.position.dtype == torch.int16
    pair.arena.append(torch.full((1, 1, 4, 1), 7.0), torch.zeros(1, 1, 4, 1))
    assert pair.arena.position.dtype == torch.int32
    assert pair.arena.positions(0).tolist() == list(range(limit - 4, limit + 3))
    assert pair.told[-1] == pair.arena.nbytes


def test_positions_are_wide_from_the_start_when_many_tokens_were_seen() -> None:
    arena = Arena(1, 1)
    k = torch.zeros(1, 1, 40_000, 1)
    arena.append(k, k)
    mask = torch.zeros(1, 40_000, dtype=torch.bool)
    mask[0, [5, 39_999]] = True
    arena.keep([mask])
    assert arena.positions(0).tolist() == [5, 39_999]


def test_padding_is_never_stored() -> None:
    pair = Pair(3, 2)
    append(pair, 8, seed=0, pads=[0, 3, 8])
    assert pair.arena.length == [8, 8, 5, 5, 0, 0]
    assert pair.arena.k.shape[0] == 26
    append(pair, 2, seed=1)
    pair.check()


def test_equal_and_ragged_paths_store_the_same() -> None:
    fast, slow = filled(9, batch=2), Pair(2, 2)
    append(slow, 9, seed=9, pads=[0, 0])
    assert len(set(fast.arena.length)) == len(set(fast.arena.capacity)) == 1
    assert torch.equal(fast.arena.k, slow.arena.k)
    assert torch.equal(fast.arena.v, slow.arena.v)


def test_the_peak_counts_old_and_new_buffers_while_both_live() -> None:
    pair = filled(32)
    before = pair.arena.nbytes
    pair.arena.keep([torch.arange(32)[None].expand(2, -1) % 4 == 0])
    positions, fresh_keys = 2 * 32 * 2, 16 * DK * 4
    assert pair.arena.nbytes == 16 * ((DK + DV) * 4 + 2)
    assert max(pair.told) == before + positions + fresh_keys  # the old keys are free before the values are copied
    assert pair.told[-1] == pair.arena.nbytes


def test_dropping_frees_memory_at_once_and_reading_reserves_no_slack() -> None:
    pair = filled(64)
    assert pair.arena.k.untyped_storage().nbytes() == 2 * 64 * DK * 4
    pair.arena.keep([torch.zeros(2, 64, dtype=torch.bool)])
    assert pair.arena.nbytes == 0
    append(pair, 3, seed=1)
    assert pair.arena.positions(1).tolist() == [64, 65, 66]


def test_what_is_dropped_cannot_come_back() -> None:
    pair = filled(10)
    mark = pair.arena.mark()
    append(pair, 4, seed=1)
    pair.arena.keep([torch.tensor([[True, False, True, True]] * 2)])
    with pytest.raises(ValueError, match="cannot roll back past an eviction"):
        pair.arena.rollback(mark)
    assert pair.arena.seen == [14]


def test_no_way_back_to_the_future() -> None:
    with pytest.raises(ValueError, match="has not seen"):
        filled(5).arena.rollback([6])


def test_masks_and_rows_outside_a_segment_are_refused() -> None:
    arena = filled(4).arena
    with pytest.raises(ValueError, match="a mask over 5 rows for a segment of 4"):
        arena.keep([torch.ones(2, 5, dtype=torch.bool)])
    with pytest.raises(ValueError, match="outside a segment of 4 rows"):
        arena.replace(0, torch.tensor([4]), torch.zeros(1, DK), torch.zeros(1, DV))


def test_no_tokens_are_no_change() -> None:
    pair = filled(4)
    append(pair, 0, seed=0)
    pair.check()
    empty = Pair(1, 2)
    append(empty, 0, seed=0)
    assert empty.arena.rows == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rows_keep_their_dtype(dtype: torch.dtype) -> None:
    arena = Arena(1, 1)
    k = torch.randn(1, 1, 5, 4, dtype=dtype)
    arena.append(k, k)
    arena.keep([torch.tensor([[True, False, True, True, True]])])
    assert arena.k.dtype == dtype
    assert arena.row_nbytes == 2 * 4 * k.element_size() + 2
