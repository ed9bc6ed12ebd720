"""Times of the CUDA reader on one GPU, each beside the hardware's limit or a peer measured in the same run; writes JSON.

    benchmarks/gpu.sh OUT                 all of it, with the kernels' tests and the memory checker, under 9 minutes on an H200
    python benchmarks/gpu.py --only step  one part
    python benchmarks/gpu.py --tiny       every part at toy sizes, on a CPU as well: shows that the script runs

Llama-3.1-8B's shape, random bfloat16 weights and rows made on the device, a context of 131,072 tokens. A part that fails says
why in the JSON and the next one runs.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_model import (
    LLAMA,
    TINY,
    Bare,
    Shape,
    arena_step,
    captured,
    free,
    rows_bytes,
    seconds,
    spread,
    static_step,
    stored,
)
from torch import Tensor
from torch.nn import functional as F

from kvledger.cache.arena import Arena
from kvledger.cache.attend import attend
from kvledger.cache.kernels import usable

KEEPS = (1.0, 0.3, 0.1)
Part = Callable[[Shape, torch.device], dict[str, Any]]


def copy(shape: Shape, device: torch.device) -> dict[str, Any]:
    """Bandwidth of a plain copy, bytes read and written: the limit that reading a cache is held against."""
    size = 1 << (32 if device.type == "cuda" else 20)
    x = torch.zeros(size, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    return {"bytes_per_second": 2 * size / seconds(lambda: y.copy_(x), device, shape.repeats)}


def queries(shape: Shape, batch: int, T: int, device: torch.device) -> list[Tensor]:
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    return [torch.randn(batch, h, T, shape.dim, device=device, dtype=torch.bfloat16) for h in heads]


def reading_time(arenas: list[Arena], shape: Shape, device: torch.device, windows: Any = None) -> float:
    """Seconds to read the rows of all layers once, as a graph."""
    q, k, v = queries(shape, arenas[0].batch, 1, device)

    def read() -> None:
        for arena in arenas:
            attend(q, k, v, arena, shape.dim**-0.5, windows=windows)

    return seconds(captured(read, device), device, shape.repeats)


def attention(shape: Shape, device: torch.device) -> dict[str, Any]:
    """Decode attention over all layers: bytes per second for even and ragged heads, against the copy."""
    limit, found = copy(shape, device)["bytes_per_second"], {}
    for keep in KEEPS:
        arenas = stored(shape, keep, 1, device)
        time_, held = reading_time(arenas, shape, device), rows_bytes(arenas)
        found[f"keep {keep}"] = {
            "seconds": time_,
            "bytes": held,
            "of_copy": held / time_ / limit,
            "heads": [spread(shape, keep, 0)],
        }
        del arenas
        free(device)
    windows = [(4, 64 if shape is TINY else 1148) if h % 2 else None for h in range(shape.kv_heads)]
    arenas = stored(shape, 0.3, 1, device)
    found["half the heads with a window"] = {"seconds": reading_time(arenas, shape, device, windows)}
    if usable(arenas[0].k):
        found["tiles and shapes"] = sweep(arenas, shape, device, limit)
    return found


def sweep(arenas: list[Arena], shape: Shape, device: torch.device, limit: float) -> dict[str, Any]:
    """Share of the copy at other tile sizes and block shapes, for whoever chooses them next."""
    from kvledger.cache.kernels import plan

    def share() -> float:
        return rows_bytes(arenas) / reading_time(arenas, shape, device) / limit

    found: dict[str, Any] = {}
    tiles = plan.TILES
    for name in shaped(((64, 4, 4), (128, 4, 2), (128, 8, 3), (32, 4, 5))):
        found[name] = attempt(share)
    for count in (4, 16, 32):
        plan.TILES = count
        found[f"{count} tiles a processor"] = share()
    plan.TILES = tiles
    return found


def shaped(shapes: Sequence[tuple[int, int, int]]) -> Iterator[str]:
    """Lets the kernels run with each block shape in turn: rows at a time, warps, stages."""
    from kvledger.cache.kernels import read

    chosen = read._shape
    for rows, warps, stages in shapes:
        read._shape = lambda *_, n=rows, w=warps, s=stages: {"BLOCK_N": n, "num_warps": w, "num_stages": s}
        yield f"{rows} rows, {warps} warps, {stages} stages"
    read._shape = chosen


def formats(shape: Shape, device: torch.device) -> dict[str, Any]:
    """Decode attention over rows in 8 and 4 bits, seconds for one layer of the full context beside bfloat16."""
    if device.type != "cuda" or not usable(torch.empty(0, device=device, dtype=torch.bfloat16)):
        return {"not run": "these formats are read by the CUDA kernels alone"}
    from kvledger.cache.kernels.codes import Codes
    from kvledger.cache.kernels.plan import make_plan, processors, tile_rows
    from kvledger.cache.kernels.read import over_rows

    H, N, D = shape.kv_heads, shape.context, shape.dim
    tile = tile_rows(H * N, N, 1, processors(device))
    plan = make_plan([h * N for h in range(H)], [N] * H, [N] * H, [None] * H, tile, device)
    q, plain, byte = queries(shape, 1, 1, device)[0], torch.randn(H * N, D, device=device), torch.uint8
    by_row = torch.rand(H * N, 1, device=device)
    eight, four = Codes((plain * 40).to(torch.int8), by_row), (plain * 40).to(byte)[:, ::2].contiguous()
    channel, groups = torch.rand(2, H * N // 32, D, device=device), torch.rand(2, H * N, D // 32, device=device)
    kinds: dict[str, Any] = {
        "bf16": (plain.bfloat16(), plain.bfloat16()),
        "fp8": (Codes(plain.to(torch.float8_e4m3fn), by_row),) * 2,
        "int8": (eight, eight),
        "int4 as KIVI": (Codes(four, *channel, 32, 1, True), Codes(four, *groups, 1, 32, True)),
    }
    return {
        name: seconds(
            captured(lambda k=k, v=v: over_rows(q, k, v, plan, 0, 0.1, causal=False), device), device, shape.repeats
        )
        for name, (k, v) in kinds.items()
    }


def step(shape: Shape, device: torch.device) -> dict[str, Any]:
    """A decode step, batch 1, as a graph: the full cache in place (ours, and PyTorch's attention) and 30 %, 10 % of it."""
    bare = Bare(shape, device)
    found: dict[str, Any] = {"weights_bytes": bare.nbytes}
    for keep in KEEPS:
        arenas = stored(shape, keep, 1, device)
        found[f"keep {keep}"] = seconds(arena_step(bare, arenas, device), device, shape.repeats)
        del arenas
        free(device)
    found["static, sdpa"] = seconds(static_step(bare, 1, device), device, shape.repeats)
    full = min(found["keep 1.0"], found["static, sdpa"])
    found["faster_at_0.3"], found["faster_at_0.1"] = full / found["keep 0.3"], full / found["keep 0.1"]
    found["throughput"] = throughput(bare, shape, device)
    return found


def throughput(bare: Bare, shape: Shape, device: torch.device) -> dict[str, Any]:
    """Tokens per second of as many requests as fit into the same memory."""
    room = 4 * shape.kv_heads * shape.layers * shape.context * shape.row_bytes
    if device.type == "cuda":
        room = int(torch.cuda.mem_get_info(device)[0] * 0.9) - (2 << 30)
    found: dict[str, Any] = {"room_bytes": room}
    for keep in KEEPS[:2]:
        batch = int(room // (keep * shape.kv_heads * shape.layers * shape.context * (shape.row_bytes + 4)))
        arenas = stored(shape, keep, batch, device, slack=64)
        time_ = seconds(arena_step(bare, arenas, device), device, 10 if device.type == "cuda" else 2)
        found[f"keep {keep}"] = {"requests": batch, "seconds": time_, "tokens_per_second": batch / time_}
        del arenas
        free(device)
    found["ratio"] = found["keep 0.3"]["tokens_per_second"] / found["keep 1.0"]["tokens_per_second"]
    return found


def chunk(shape: Shape, device: torch.device) -> dict[str, Any]:
    """One layer's attention of a chunk over ragged older rows: seconds, and those of FlashAttention's varlen call for it."""
    arenas = stored(Shape(**{**asdict(shape), "layers": 1}), 0.3, 1, device, slack=shape.chunk)
    arena, (q, k, v) = arenas[0], queries(shape, 1, shape.chunk, device)
    arena.append(k, v)
    pairs = sum(n - shape.chunk / 2 for n in arena.length) * shape.chunk * shape.heads // shape.kv_heads
    time_ = seconds(lambda: attend(q, k, v, arena, shape.dim**-0.5), device, shape.repeats)
    found: dict[str, Any] = {"seconds": time_, "flop_per_second": 4 * shape.dim * pairs / time_}
    dense = seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), device, 3)
    found["sdpa_flop_per_second"] = 2 * shape.dim * shape.heads * shape.chunk**2 / dense
    if usable(q):
        for name in shaped(((64, 8, 2), (128, 8, 2), (64, 4, 3), (128, 8, 3))):
            found[name] = attempt(lambda: seconds(lambda: attend(q, k, v, arena, shape.dim**-0.5), device, 5))
        found["varlen_seconds"] = attempt(lambda: seconds(lambda: varlen(q, arena), device, shape.repeats))
    return found


def attempt(work: Callable[[], Any]) -> Any:
    """The result, or what went wrong: a variant that does not run is a finding too."""
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def varlen(q: Tensor, arena: Arena) -> Tensor:
    """The same by FlashAttention: heads as sequences, the arena as it lies (torch.ops.aten, `seqused_k`)."""
    _, Hq, T, D = q.shape
    S, G = len(arena.start), Hq // arena.heads
    fold = q.view(S, G, T, D).transpose(1, 2).reshape(S * T, G, D)
    begin = torch.tensor([*arena.start, arena.k.shape[0]], dtype=torch.int32, device=q.device)
    length = torch.tensor(arena.length, dtype=torch.int32, device=q.device)
    cum = torch.arange(0, S * T + 1, T, dtype=torch.int32, device=q.device)
    rows = (x[:, None] for x in (arena.k, arena.v))
    return torch.ops.aten._flash_attention_forward(
        fold, *rows, cum, begin, T, max(arena.length), 0.0, True, False, scale=D**-0.5, seqused_k=length
    )[0]


def reading(shape: Shape, device: torch.device) -> dict[str, Any]:
    """The context read by transformers' Llama: at once with its DynamicCache, at once and in chunks with ours."""
    from gpu_reading import measure

    return measure(shape, device)


PARTS: dict[str, Part] = {  # the most wanted first
    "copy": copy,
    "attention": attention,
    "step": step,
    "reading": reading,
    "chunk": chunk,
    "formats": formats,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on a CPU if there is no GPU")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        parser.error("there is no GPU here; --tiny runs every part at toy sizes on the CPU")
    device, shape = torch.device("cuda" if torch.cuda.is_available() else "cpu"), TINY if arguments.tiny else LLAMA
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    found: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "shape": asdict(shape),
        "date": time.strftime("%F"),
    }
    for part in arguments.only:
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                found[part] = PARTS[part](shape, device)
        except Exception as error:  # the other parts are still worth having
            found[part] = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        free(device)
        print(f"{part} ({time.perf_counter() - started:.0f} s): {json.dumps(found[part], indent=1)}")
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
