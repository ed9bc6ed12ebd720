"""Compiles the kernels for a Hopper GPU that need not be there and prints the shared memory of each as JSON: what Triton's
compiler and NVIDIA's assembler refuse is found without one. Run by `test_kernels.py`, in a process of its own."""

from __future__ import annotations

import json
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from kvledger.cache.arena import Arena
from kvledger.cache.kernels.append import append
from kvledger.cache.kernels.codes import Codes
from kvledger.cache.kernels.plan import make_plan
from kvledger.cache.kernels.read import over_rows, read

HEADS, ROWS = 2, 3000
made: dict[str, int] = {}
run = jit.JITFunction.run


class Hopper:
    """A driver that answers for a GPU of compute capability 9.0."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
    kernel = run(self, *args, grid=grid, warmup=True, **options)
    made[f"{len(made)} {self.fn.__name__}"] = kernel.metadata.shared
    return kernel


def arena_of(dim: int, dtype: torch.dtype) -> Arena:
    arena = Arena(1, HEADS)
    arena.start, arena.length, arena.capacity = [0, ROWS + 8], [ROWS] * HEADS, [ROWS + 8] * HEADS
    arena.seen, arena.k = [ROWS], torch.zeros(HEADS * (ROWS + 8), dim, dtype=dtype)
    arena.v = torch.zeros_like(arena.k)
    return arena


def main() -> None:
    driver.set_active(Hopper())
    jit.JITFunction.run = compile_only
    half = torch.bfloat16
    windows = [(4, 100), None]
    for dim, T, dtype, sight in [(128, 1, half, None), (96, 512, half, None), (256, 512, half, windows)]:
        arena = arena_of(dim, dtype)
        read(torch.zeros(1, 8, T, dim, dtype=dtype), arena, 0, 0.1, softcap=9.0 if sight else None, windows=sight)
    arena, q = arena_of(128, half), torch.zeros(1, 8, 1, 128, dtype=half)
    arena.position = torch.zeros(len(arena.k), dtype=torch.int16)
    append(arena, *torch.zeros(2, 1, HEADS, 1, 128, dtype=half))
    n, four = len(arena.k) // 32 * 32, torch.uint8
    keys = Codes(torch.zeros(n, 64, dtype=four), *torch.zeros(2, n // 32, 128), 32, 1, True)
    values = Codes(torch.zeros(n, 64, dtype=four), *torch.zeros(2, n, 4), 1, 32, True)
    plan = make_plan([0, 3008], [3000] * 2, [3000] * 2, [None] * 2, 128, q.device)
    over_rows(q, keys, values, plan, 0, 0.1, bias=torch.zeros(n), causal=False)
    eight = Codes(torch.zeros(n, 128, dtype=torch.float8_e4m3fn), torch.zeros(n, 1))
    over_rows(q, eight, eight, plan, 0, 0.1, causal=False)
    print(json.dumps(made))


if __name__ == "__main__":
    main()
