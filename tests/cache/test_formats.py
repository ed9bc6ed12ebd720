"""Formats against the formulas they are made from, and their error bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvledger.cache.formats import AsIs, Fp8, Int4, Int8, affine, up
from kvledger.cache.grouped import GroupedArena, check_groups
from kvledger.cache.kernels.codes import pack, unpack
from kvledger.cache.packed import PackedArena
from kvledger.cache.turboquant import TurboRows, codebook, rotation


def draw(*shape: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + shift


def there_and_back(form, x: Tensor) -> Tensor:
    return form.stored(form.pack(x), x.dtype).plain()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-6, 1e-3, 1.0, 300.0]),
    shift=st.sampled_from([0.0, 5.0, -40.0]),
    dim=st.sampled_from([2, 16, 128]),
)
def test_errors_stay_within_their_bounds(seed: int, size: float, shift: float, dim: int) -> None:
    x = draw(20, dim, seed=seed, shift=shift) * size
    x[3] = 0
    for form in (Int8(), Int4()):
        step = form.pack(x)["scale"].float()
        assert ((x - there_and_back(form, x)).abs() <= step / 2 + 1e-6 * x.abs()).all()
    top, low, high = x.abs().amax(-1, True), x.amin(-1, True), x.amax(-1, True)
    assert (Int8().pack(x)["scale"].float() <= top / 127 * 1.002 + 2**-23).all()
    assert (Int4().pack(x)["scale"].float() <= (high - low + 0.002 * low.abs()) / 15 * 1.002 + 2**-22).all()
    fp8 = (x - there_and_back(Fp8(), x)).abs()
    assert (fp8 <= torch.maximum(x.abs() / 16, Fp8().pack(x)["scale"].float() / 1024) * (1 + 1e-5)).all()


def test_int8_and_int4_are_the_formulas() -> None:
    x = torch.tensor([[-254.0, 127.0, 1.0, 0.0]])  # a step of about 2
    held = Int8().pack(x)
    assert held["data"].tolist() == [[-127, 63, 0, 0]]
    assert held["scale"].item() == pytest.approx(2.0, rel=2e-3)
    assert held["scale"].item() >= 2.0
    x = torch.tensor([[0.0, 15.0, 7.4, 30.0]])  # likewise
    held = Int4().pack(x)
    assert unpack(held["data"], 4).tolist() == [[0, 7, 4, 15]]
    assert held["data"].tolist() == [[7 << 4, 15 << 4 | 4]]  # the first of two in the low half
    assert held["scale"].item() == pytest.approx(2.0, rel=2e-3)
    assert held["zero"].item() == 0


def test_fp8_is_e4m3_with_448_for_the_largest() -> None:
    x = draw(50, 32, seed=1)
    scale = up(x.abs().amax(-1, keepdim=True) / 448).float()
    assert torch.equal(there_and_back(Fp8(), x), (x / scale).to(torch.float8_e4m3fn).float() * scale)
    assert (x.abs().amax(-1) / scale[:, 0]).min() > 446


@pytest.mark.parametrize("bits", [2, 4])
def test_groups_are_kivis_formula(bits: int) -> None:
    """scale = (max - min) / (2^b - 1), zero = min, code = round((x - zero) / scale): keys per channel over 32 tokens, values
    per token over 32 channels (arXiv 2402.02750, §3.2 and its code)."""
    k, v = draw(1, 1, 64, 64, seed=0, shift=2), draw(1, 1, 64, 64, seed=1)
    arena = GroupedArena(bits, 32, 0, 1, 1)
    arena.append(k, v)
    arena.seal()
    for got, x, over in zip(arena.plain(0), (k[0, 0], v[0, 0]), (0, 1), strict=True):
        groups = x.unflatten(over, (-1, 32))
        low, high = groups.amin(over + 1, keepdim=True), groups.amax(over + 1, keepdim=True)
        scale = (high - low) / (2**bits - 1)
        want = (((groups - low) / scale).round() * scale + low).flatten(over, over + 1)
        near = ((got - want).abs() <= 0.01).float().mean()  # some fall on the other side of a half, by the scale's type
        assert near > 0.97
        assert ((got - x).abs().unflatten(over, (-1, 32)) <= scale * 0.51 + 0.004).all()


def test_turboquants_codebook_is_the_papers() -> None:
    """§3.1: ±sqrt(2 / (π d)) for one bit, ±0.453 / sqrt(d) and ±1.51 / sqrt(d) for two, as d grows."""
    one, two = codebook(512, 1) * math.sqrt(512), codebook(512, 2) * math.sqrt(512)
    torch.testing.assert_close(one, torch.tensor([-1, 1]) * math.sqrt(2 / math.pi), rtol=5e-3, atol=0)
    torch.testing.assert_close(two, torch.tensor([-1.51, -0.453, 0.453, 1.51]), rtol=5e-3, atol=0)


@pytest.mark.parametrize("bits, most", [(2, 0.117), (3, 0.0345), (4, 0.0095)])
def test_turboquants_error_is_the_theorems(bits: int, most: float) -> None:
    """Theorem 1 bounds the mean; it holds for any rows, so these are far from random. Dense reference beside it."""
    x = torch.eye(64).repeat(4, 1) * 3 + draw(256, 1, seed=2)
    form = TurboRows(bits, seed=5)
    got, turn, levels = there_and_back(form, x), rotation(64, 5), codebook(64, bits)
    assert ((got - x).square().sum(-1) / x.square().sum(-1)).mean() <= most
    norm = x.norm(dim=-1, keepdim=True).half().float()
    unit = x @ turn / norm
    nearest = levels[(unit[..., None] - levels).abs().argmin(-1)]
    torch.testing.assert_close(got, nearest @ turn.T * norm, rtol=1e-4, atol=1e-4)


def test_the_rotation_is_one_and_follows_the_seed() -> None:
    turn = rotation(32, 1)
    torch.testing.assert_close(turn @ turn.T, torch.eye(32), rtol=1e-5, atol=1e-5)
    assert not torch.equal(turn, rotation(32, 2))
    rotation.cache_clear()
    assert torch.equal(turn, rotation(32, 1))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_come_out_as_they_went_in(bits: int) -> None:
    code = torch.randint(0, 2**bits, (5, 24), generator=torch.Generator().manual_seed(bits))
    packed = pack(code, bits)
    assert packed.shape == (5, 3 * bits)
    assert torch.equal(unpack(packed, bits).long(), code)


def test_numbers_too_large_for_a_scale_show_and_zeros_are_exact() -> None:
    x = torch.zeros(2, 16)
    x[0, 0] = 1e30
    for form in (Int8(), Int4(), Fp8(), TurboRows(4)):
        got = there_and_back(form, x)
        assert not got[0].isfinite().all()
        assert not got[1].any()
    assert affine(torch.full((1, 4), 3.0), 4, -1)["zero"].item() == pytest.approx(3.0, rel=2e-3)


def stored_share(arena: PackedArena | GroupedArena, dim: int, rows: int) -> float:
    arena.append(*(draw(1, 2, rows, dim, seed=i).bfloat16() for i in (0, 1)))
    arena.seal()
    return arena.nbytes / (2 * 2 * rows * dim * 2)


@pytest.mark.parametrize(
    "form, share", [(Int8(), 0.508), (Int4(), 0.266), (Fp8(), 0.508), (TurboRows(4), 0.258), (TurboRows(3), 0.195)]
)
def test_stored_bytes_against_bfloat16(form, share: float) -> None:
    assert stored_share(PackedArena(form, 1, 2), 128, 512) == pytest.approx(share, abs=6e-4)


def test_stored_bytes_of_groups() -> None:
    """3 and 5 bits a number (2 and 4, and 16-bit scale and zero for 32), and a plain tail of 32 rows."""
    assert stored_share(GroupedArena(2, 32, 32, 1, 2), 128, 1024) == pytest.approx(3 / 16 + 13 / 16 * 32 / 1024)
    assert stored_share(GroupedArena(4, 32, 32, 1, 2), 128, 1024) == pytest.approx(5 / 16 + 11 / 16 * 32 / 1024)


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="dimension 15 have an odd one: use int8"):
        Int4().check(15)
    with pytest.raises(ValueError, match="eight coordinates together, and heads have dimension 20"):
        TurboRows(4).check(20)
    with pytest.raises(ValueError, match="group=32 does not divide the values' head dimension 80: give group=16"):
        check_groups(80, 80, 2, 32)
    with pytest.raises(ValueError, match="keys of dimension 6"):
        check_groups(6, 32, 2, 32)
    check_groups(6, 7, 16, 32)
    whole = torch.zeros(1, 1, 4, 32, dtype=torch.int32)
    for arena in (PackedArena(AsIs(), 1, 1), GroupedArena(2, 32, 32, 1, 1)):
        with pytest.raises(
            ValueError, match="keys of int32 cannot be stored in fewer bits: load the model in one of float16"
        ):
            arena.append(whole, whole)
