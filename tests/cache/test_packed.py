"""Arenas of packed rows through a life of random changes: against a plain arena of rows that were rounded when they came, and
for groups, which round again when they are opened, within what two roundings cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvledger.cache.arena import Arena
from kvledger.cache.attend import attend, reference
from kvledger.cache.formats import AsIs, Fp8, Int4, Int8
from kvledger.cache.grouped import GroupedArena
from kvledger.cache.packed import PackedArena
from kvledger.cache.turboquant import TurboRows

DIM = 16
FORMS = {"as is": AsIs(), "int8": Int8(), "int4": Int4(), "fp8": Fp8(), "turboquant": TurboRows(3)}


class Rounded(Arena):
    """A plain arena of the numbers that a format leaves of each row."""

    def __init__(self, form: Any, batch: int, heads: int):
        super().__init__(batch, heads)
        self.form = form

    def _form(self, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        return {name: rounded(self.form, x) for name, x in (("k", k), ("v", v))}


def rounded(form: Any, x: Tensor) -> Tensor:
    if isinstance(form, AsIs):
        return x
    flat = {name: y.flatten(0, -2) for name, y in form.pack(x).items()}
    return form.stored(flat, x.dtype).plain().view(x.shape)


def pair(name: str) -> tuple[Arena, Arena]:
    if name.startswith("groups"):
        return GroupedArena(int(name[6:]), 8, 4, 2, 2), Arena(2, 2)
    return PackedArena(FORMS[name], 2, 2), Rounded(FORMS[name], 2, 2)


def rows_of(arena: Arena) -> list[Tensor]:
    return [x for s in range(len(arena.start)) for x in (*arena.plain(s), arena.positions(s))]


def step(arenas: list[Arena], op: str, seed: int) -> list[Arena]:
    """The same change to all of them; a fork goes on, and what it came from must stay as it was."""
    draw = torch.Generator().manual_seed(seed)
    first, T = arenas[0], 1 if op == "token" else 1 + seed % 23
    shape = first.batch, first.heads, T, DIM
    k, v = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    pads = torch.tensor([seed % T, 0])[: first.batch]
    shortest = min(first.length)
    back = first.position is None and min(first.seen) > 3
    masks = torch.rand(first.batch, first.heads, seed % (shortest + 1), generator=draw) < 0.6
    for arena in arenas:
        if op in ("token", "chunk"):
            arena.append(k, v, torch.arange(T)[None] >= pads[:, None] if op == "chunk" and first.batch == 2 else None)
        elif op == "keep":
            arena.keep(masks)
        elif op == "slide":
            arena.slide(seed % len(arena.start), 2, 5)
        elif op == "select":
            arena.select([seed % first.batch, first.batch - 1])
        elif op == "replace" and shortest:
            arena.replace(0, torch.arange(0, shortest, 2), k[0, 0, :1].expand(-(-shortest // 2), -1), v[0, 0, :1])
        elif op == "back" and back:
            arena.rollback([n - 1 - seed % 3 for n in arena.seen])
        arena.seal()
    return [arena.fork() for arena in arenas] if op == "fork" else arenas


OPS = st.lists(
    st.tuples(
        st.sampled_from(["token", "chunk", "chunk", "keep", "slide", "select", "replace", "back", "fork"]),
        st.integers(0, 999),
    ),
    max_size=9,
)


@pytest.mark.parametrize("name", [*FORMS, "groups16"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(ops=OPS)
def test_rows_are_those_of_a_plain_arena_of_rounded_rows(name: str, ops: list[tuple[str, int]]) -> None:
    arenas, held = list(pair(name)), []
    arenas = step(arenas, "chunk", 500)
    for op, seed in ops:
        if op == "fork":
            held.append((arenas[0], [x.clone() for x in rows_of(arenas[0])]))
        arenas = step(arenas, op, seed)
        ours, plain = arenas
        assert (ours.length, ours.seen) == (plain.length, plain.seen)
        for a, b in zip(rows_of(ours), rows_of(plain), strict=True):
            near = 1e-5 if name == "turboquant" else 0  # turning back many rows at once may round another way
            torch.testing.assert_close(a, b, rtol=near, atol=near)
        assert (
            ours.nbytes == sum(x.nbytes for x in ours.tensors) >= ours.rows * (0 if name[0] == "g" else ours.row_nbytes)
        )
    for arena, before in held:
        assert all(torch.equal(a, b) for a, b in zip(before, rows_of(arena), strict=True))


@pytest.mark.parametrize("name", ["groups2", "groups4"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(ops=OPS)
def test_groups_hold_the_right_rows_within_their_steps(name: str, ops: list[tuple[str, int]]) -> None:
    arenas, bits = step(list(pair(name)), "chunk", 500), int(name[6:])
    openings = 1
    for op, seed in ops:
        openings += op in ("keep", "slide", "replace", "back")
        arenas = step(arenas, op, seed)
        ours, plain = arenas
        assert isinstance(ours, GroupedArena)
        assert (ours.length, ours.seen) == (plain.length, plain.seen)
        spread = max((float(x.max() - x.min()) for x in rows_of(plain) if x.is_floating_point() and len(x)), default=0)
        for a, b in zip(rows_of(ours), rows_of(plain), strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() <= openings * (spread / (2**bits - 1) * 0.52 + 0.01) if len(a) else True
        assert all(n % 8 == 0 for n in ours.sealed_length)
        assert all(n < 4 + 8 for n in ours.tail.length)
        assert [a + b for a, b in zip(ours.sealed_length, ours.tail.length)] == ours.length


def test_groups_that_lose_nothing_stay_as_they_are_and_survivors_are_sealed_anew() -> None:
    arena = GroupedArena(4, 8, 4, 1, 1)
    arena.append(*(torch.randn(1, 1, 60, DIM, generator=torch.Generator().manual_seed(i)) for i in (0, 1)))
    before = [x.clone() for x in arena.plain(0)]
    arena.seal()
    sealed = [x.clone() for x in arena.plain(0)]
    assert arena.sealed_length == [56]
    assert arena.tail.length == [4]
    mask = torch.arange(60) % 3 > 0
    mask[:19] = True
    arena.keep([[mask]])
    scale = arena.sealed["k_scale"].float().amax()
    for got, old, exact in zip(arena.plain(0), sealed, before, strict=True):
        assert torch.equal(got[:16], old[:16])  # two groups before the first row that went
        assert not torch.equal(got[16:40], old[mask][16:40])
        if got.shape == exact[mask].shape:
            assert (got - exact[mask]).abs().max() <= scale + 0.01
    assert arena.length == [int(mask.sum())]


def test_a_forward_that_drops_its_own_rows_rounds_them_once() -> None:
    x = [torch.randn(1, 1, 40, DIM, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    mask = torch.arange(40) % 2 == 0
    one, two = GroupedArena(4, 8, 4, 1, 1), GroupedArena(4, 8, 4, 1, 1)
    one.append(*x)
    one.keep([[mask]])
    two.append(*(y[:, :, mask] for y in x))
    two.seal()
    assert all(torch.equal(a, b) for a, b in zip(one.plain(0), two.plain(0), strict=True))


@pytest.mark.parametrize("name", [*FORMS, "groups2", "groups4", "groups16"])
@pytest.mark.parametrize("T, softcap", [(1, None), (1, 3.0), (6, None), (6, 3.0)])
def test_attention_is_dense_attention_over_the_unpacked_rows(name: str, T: int, softcap: float | None) -> None:
    arena, draw = pair(name)[0], torch.Generator().manual_seed(1)
    arena.append(*(torch.randn(2, 2, 50, DIM, generator=draw) for _ in "kv"))
    arena.keep([torch.rand(2, 50, generator=draw) < torch.tensor([[0.4], [0.9]]) for _ in range(2)])
    arena.seal()
    q, k, v = (torch.randn(2, heads, T, DIM, generator=draw) for heads in (4, 2, 2))
    arena.append(k, v)
    twin = Arena(2, 2)
    for s in range(4):  # old rows as they are stored; a chunk sees its own exactly
        old = [x[: len(x) - T] if T > 1 else x for x in arena.plain(s)]
        twin.k, twin.v = (torch.cat([a, b.float(), *([c[s // 2, s % 2]] if T > 1 else [])]) for a, b, c in zip(
            (twin.k, twin.v) if s else (torch.empty(0, DIM), torch.empty(0, DIM)), old, (k, v), strict=True))  # fmt: skip
    twin.length, twin.seen, twin.start = list(arena.length), list(arena.seen), [sum(arena.length[:s]) for s in range(4)]
    twin.position = torch.cat([arena.positions(s) for s in range(4)])
    got, lse = attend(q, k, v, arena, 0.3, softcap=softcap)
    if softcap is None:
        torch.testing.assert_close(got, reference(q, twin, 0.3), rtol=1e-4, atol=1e-4)
    want, want_lse = attend(q, k, v, twin, 0.3, softcap=softcap)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lse, want_lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["int4", "groups4"])
def test_what_is_dumped_is_loaded(name: str) -> None:
    arena, draw = pair(name)[0], torch.Generator().manual_seed(1)
    arena.append(*(torch.randn(2, 2, 50, DIM, generator=draw).bfloat16() for _ in "kv"))
    arena.keep([torch.rand(2, 50, generator=draw) < 0.7 for _ in range(2)])
    facts, held = arena.dump()
    again = pair(name)[0]
    again.load(facts, held)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(rows_of(arena), rows_of(again), strict=True))
    new = torch.randn(2, 2, 1, DIM, generator=draw).bfloat16()
    for one in (arena, again):
        one.append(new, new)
        one.seal()
    assert all(torch.equal(a, b) for a, b in zip(rows_of(arena), rows_of(again), strict=True))
    assert again.nbytes <= arena.nbytes
