"""Set-up of the tests of the CUDA reader: compiled where there is a GPU, else by Triton's interpreter; ragged arenas, and the
softmax written out. Importing it skips the test file where Triton is not installed."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from kvledger.cache.arena import Arena

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (pip install triton==3.6.0, on Linux)", allow_module_level=True)
if DEVICE == "cpu":
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("without a GPU these tests need TRITON_INTERPRET=1 from the start", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"

from triton.runtime import interpreter  # noqa: E402

SCALE = 0.3
patch_lang_tensor = interpreter._patch_lang_tensor


def mended(tensor: Any, *scope: Any) -> None:
    """Triton 3.6's interpreter turns arrays of one element into loop bounds in a way that NumPy 2.4 no longer allows."""
    patch_lang_tensor(tensor, *scope)
    tensor.__index__ = lambda self: int(self.handle.data.item())


interpreter._patch_lang_tensor = mended
EXACT = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def arena_of(
    lengths: list[list[int]],
    dk: int = 16,
    dv: int = 16,
    dtype: torch.dtype = torch.float32,
    slack: int = 5,
    seed: int = 0,
) -> Arena:
    """Segments of the given lengths; rows that are nobody's are NaN, and there are some behind each segment."""
    arena, flat = Arena(len(lengths), len(lengths[0])), [n for row in lengths for n in row]
    arena.length, arena.capacity = list(flat), [n + slack for n in flat]
    arena.start = [sum(arena.capacity[:s]) for s in range(len(flat))]
    arena.seen = [max(row) + 3 for row in lengths]
    arena.k = torch.full((sum(arena.capacity), dk), torch.nan, device=DEVICE, dtype=dtype)
    arena.v = torch.full((sum(arena.capacity), dv), torch.nan, device=DEVICE, dtype=dtype)
    for s in range(len(flat)):
        rows = arena.segment(s)
        arena.k[rows] = draw(flat[s], dk, seed=seed + 2 * s, dtype=dtype)
        arena.v[rows] = draw(flat[s], dv, seed=seed + 2 * s + 1, dtype=dtype)
    return arena


def written_out(
    q: Tensor,
    arena: Arena,
    softcap: float | None = None,
    windows: Any = None,
    causal: bool = True,
    bias: Tensor | None = None,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """Head by head in float64: output and log-sum-exp."""
    B, Hq, T, _ = q.shape
    H, out, total = arena.heads, [], []
    for b in range(B):
        for head in range(Hq):
            h = head * H // Hq
            rows = arena.segment((first + b) * H + h)
            n = arena.length[(first + b) * H + h]
            logits = q[b, head].double() @ arena.k[rows].double().T * SCALE
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            if bias is not None:
                logits = logits + bias[rows].double()
            own, row = torch.arange(n - T, n, device=q.device)[:, None], torch.arange(n, device=q.device)[None]
            seen = row <= own if causal else torch.ones(T, n, dtype=torch.bool, device=q.device)
            if windows is not None and windows[h] is not None:
                sinks, window = windows[h]
                seen = seen & ((row < sinks) | (own - row < window))
            logits = logits.masked_fill(~seen, -torch.inf)
            out.append(logits.softmax(-1).nan_to_num(0.0) @ arena.v[rows].double())
            total.append(logits.logsumexp(-1))
    return torch.stack(out).view(B, Hq, T, -1), torch.stack(total).view(B, Hq, T)


def close(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], dtype: torch.dtype = torch.float32) -> None:
    assert got[0].dtype == dtype
    assert got[1].dtype == torch.float32
    torch.testing.assert_close(got[0].double(), wanted[0], rtol=EXACT[dtype], atol=EXACT[dtype])
    torch.testing.assert_close(got[1].double(), wanted[1], rtol=EXACT[dtype], atol=EXACT[dtype])
