"""Sink-and-window attention against the mask written out, over every shape of store it may meet."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvledger.cache import window as module
from kvledger.cache.window import window_attention

SOME = settings(max_examples=120, deadline=None, derandomize=True)


def dense(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, last: int, sinks: int, window: int, softcap=None):
    """The definition: all positions that are stored, one mask."""
    at = torch.arange(last - q.shape[2] + 1, last + 1)[:, None]
    allowed = (positions <= at) & ((positions < sinks) | (at - positions < window))
    logits = q @ k.transpose(-1, -2) * 0.3
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


def store(last: int, sinks: int, kept: int, heads: int, seed: int = 0, s: int = 2, D: int = 4):
    """Keys and values of the sinks and of the `kept` last positions behind them, and those positions."""
    behind = min(kept, last + 1 - min(sinks, last + 1))
    positions = torch.cat([torch.arange(min(sinks, last + 1)), torch.arange(last + 1 - behind, last + 1)])
    maker = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(s, heads, len(positions), D, generator=maker, dtype=torch.float64) for _ in range(2))
    return k, v, positions


def queries(T: int, heads: int = 3, s: int = 2, D: int = 4) -> Tensor:
    return torch.randn(s, heads, T, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@SOME
@given(
    T=st.integers(1, 40), before=st.integers(0, 40), sinks=st.integers(0, 12), window=st.integers(1, 30),
    spare=st.integers(0, 20), own=st.booleans(), block=st.sampled_from([1, 3, 8, 64]),
    softcap=st.sampled_from([None, None, 2.0]),
)  # fmt: skip
def test_any_store_equals_the_mask_written_out(T, before, sinks, window, spare, own, block, softcap) -> None:
    last = before + T - 1
    k, v, positions = store(last, sinks, window - 1 + T + spare, 3 if own else 1)
    short, module.SHORT = module.SHORT, block  # small blocks, so that short inputs cross many of them
    try:
        out, lse = window_attention(queries(T), k, v, last, sinks, window, 0.3, softcap)
    finally:
        module.SHORT = short
    want, want_lse = dense(queries(T), k, v, positions, last, sinks, window, softcap)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, want_lse, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sinks", [0, 1, 700])
def test_long_blocks_are_exact_where_whole_stretches_of_keys_are_masked(sinks: int) -> None:
    last, window, T = 2999, 1024, 1500
    k, v, positions = store(last, sinks, window - 1 + T, 1, s=1)
    out, lse = window_attention(queries(T, 2, 1), k, v, last, sinks, window, 0.3)
    want, want_lse = dense(queries(T, 2, 1), k, v, positions, last, sinks, window)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, want_lse, rtol=0, atol=1e-12)


def test_decode_sees_the_sinks_and_exactly_the_window() -> None:
    k, v, positions = store(99, 4, 16, 1)
    out, _ = window_attention(queries(1), k, v, 99, 4, 16, 0.3)
    torch.testing.assert_close(out, (queries(1) @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v, rtol=0, atol=1e-12)
    moved = v.clone()
    moved[:, :, 4] += 1  # position 84: the oldest in the window
    assert not torch.equal(window_attention(queries(1), k, moved, 99, 4, 16, 0.3)[0], out)
    assert torch.equal(
        window_attention(queries(1), k, moved, 99, 4, 15, 0.3)[0], window_attention(queries(1), k, v, 99, 4, 15, 0.3)[0]
    )
    assert positions[4] == 84


def test_a_window_over_everything_is_causal_attention() -> None:
    k, v, _ = store(49, 3, 50, 3)
    out, _ = window_attention(queries(50), k, v, 49, 3, 50, 0.3)
    want = torch.nn.functional.scaled_dot_product_attention(queries(50), k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("heads", [1, 2])
def test_gradients(softcap: float | None, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT", 4)
    k, v, _ = store(11, 2, 12, heads, s=1, D=2)
    q = queries(10, 2, 1, 2)
    inputs = tuple(x.requires_grad_() for x in (q, k, v))
    assert torch.autograd.gradcheck(lambda *x: window_attention(*x, 11, 2, 5, 0.3, softcap)[0], inputs)


def test_memory_grows_with_tokens_not_with_their_square() -> None:
    """The largest tensor that any step makes stays as it is when the sequence doubles, but for inputs and outputs."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                if isinstance(x, Tensor) and x.untyped_storage().nbytes() == x.nbytes:
                    self.most = max(self.most, x.numel())
            return out

    most = []
    for T in (1024, 2048):
        k, v, _ = store(T - 1, 4, T, 1, s=1, D=1)
        with Largest() as seen:
            window_attention(queries(T, 1, 1, 1), k, v, T - 1, 4, 64, 0.3)
        most.append(seen.most)
    assert most[0] == most[1]
