"""The CPU reader of single tokens, in C (`decode.c`): compiled when it is first needed, by the machine's own compiler.

PyTorch's CPU kernels give one token's attention over one long head to one thread and read a few queries' rows at a third of
what memory delivers. This reader takes all heads of a layer in one pass, at about the speed at which their bytes can be read
(docs/performance.md). Where there is no compiler, or no such dtype, PyTorch's kernels serve; nobody has to choose.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("decode.c")
KINDS = {torch.float32: 0, torch.bfloat16: 1}  # as decode.c numbers them
BYTES_A_THREAD = 1 << 18  # less than this is not worth waking a thread for
SECONDS = 60  # for the compiler


def usable(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `decode` serves queries `q` over rows `k` and `v`: on a CPU, float32 or bfloat16, head dims multiples of 16, and
    nobody wants gradients."""
    if q.requires_grad and torch.is_grad_enabled():
        return False
    kinds = q.device.type == "cpu" and q.dtype == k.dtype == v.dtype and q.dtype in KINDS
    return kinds and not (k.shape[-1] % 16 or v.shape[-1] % 16) and _library() is not None


def decode(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    """Attention of `q` [S, G, Dk], the queries of S segments, over rows of `k` [rows, Dk] and `v` [rows, Dv]: output
    [S, G, Dv] in the dtype of `q` and log-sum-exp [S, G] float32; a segment without rows gets 0 and -inf.

    `spans` says which rows, three numbers a span: segment, first row, rows. Spans of a segment follow each other.
    """
    library = _library()
    assert library is not None
    S, G, Dk = q.shape
    q, Dv, rows = q.contiguous(), v.shape[-1], sum(spans[2::3])
    out, lse = torch.empty(S, G, Dv), torch.empty(S, G)
    work = rows * (Dk + Dv) * k.element_size()
    threads = max(1, min(torch.get_num_threads(), work // BYTES_A_THREAD))
    failed = library.kvledger_decode(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), (ctypes.c_int64 * len(spans))(*spans), len(spans) // 3, S, G, Dk, Dv,
        scale, KINDS[q.dtype], threads, out.data_ptr(), lse.data_ptr(),
    )  # fmt: skip
    if failed:
        raise MemoryError("no memory for the partial sums of a decode step")
    return out.to(q.dtype), lse


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).info("no C reader (%s): decoding on the CPU takes PyTorch's kernels", error)
        return None
    kinds: dict[str, Any] = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
    library.kvledger_decode.argtypes = [kinds[letter] for letter in "pppplliiifiipp"]
    library.kvledger_decode.restype = ctypes.c_int
    return library


def _compiled() -> Path:
    """The shared library, made if this source has not yet been compiled for processors like this one. It is kept in the
    user's cache folder, or where that cannot be written, in a folder of this process."""
    command = [*shlex.split(os.environ.get("CC", "cc")), "-O3", "-std=gnu11", "-shared", "-fPIC", "-fopenmp"]
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        command += ["-mavx2", "-mfma"]  # not -march=native: a home may serve several machines
    facts = "\n".join([SOURCE.read_text(), *command, platform.machine()])
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    library = _folder() / f"decode-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # moved in whole: others may be at it too
            made = Path(folder) / "decode.so"
            command += [str(SOURCE), "-o", str(made), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
            made.replace(library)
    return library


def _folder() -> Path:
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvledger"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    except (OSError, RuntimeError):  # of Path.home, where there is none
        pass
    return Path(tempfile.mkdtemp(prefix="kvledger-"))
