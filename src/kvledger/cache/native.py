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
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvledger.cache.formats import Stored
from kvledger.cache.kernels.codes import Codes

SOURCE = Path(__file__).with_name("decode.c")
HEADER = Path(__file__).with_name("rows.h")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float8_e4m3fn: 4}  # as rows.h numbers them
CODES = {4: 3, 2: 5}  # likewise, of uint8 by bits
QUERIES = (torch.float32, torch.bfloat16, torch.float16)
BYTES_A_THREAD = 1 << 18  # less than this is not worth waking a thread for
SECONDS = 60  # for the compiler
Spans = Sequence[int] | Tensor  # flat: three numbers a span


def usable(q: Tensor, k: Stored, v: Stored) -> bool:
    """Whether `decode` serves queries `q` over rows `k` and `v`: on a CPU, head dims multiples of 16, nobody wants gradients,
    and the rows are float32 or bfloat16 as the queries, or codes in forms that decode.c knows."""
    if q.device.type != "cpu" or (q.requires_grad and torch.is_grad_enabled()) or k.shape[-1] % 16 or v.shape[-1] % 16:
        return False
    if isinstance(k, Codes) and isinstance(v, Codes):
        known = q.dtype in QUERIES and _known(k, v)
    else:
        known = (
            isinstance(k, Tensor) and isinstance(v, Tensor) and q.dtype == k.dtype == v.dtype and q.dtype in QUERIES[:2]
        )
    return known and _library() is not None


def _known(k: Codes, v: Codes) -> bool:
    by_column = k.row_group > 1 and k.dim_group == 1 and k.zero is not None and k.bits in CODES
    rows = (k.row_group == 1 and k.scale.shape[1] == 1) or by_column
    groups = v.row_group == 1 and (v.scale.shape[1] == 1 or v.dim_group % 16 == 0)
    return rows and groups and k.scale.dtype == v.scale.dtype == torch.float16 and _kind(k) == _kind(v) is not None


def _kind(x: Stored) -> int | None:
    if isinstance(x, Codes):
        return CODES.get(x.bits, KINDS.get(x.data.dtype))
    return KINDS.get(x.dtype) if isinstance(x, Tensor) else None


def _data(x: Stored) -> Tensor:
    assert isinstance(x, Codes | Tensor)
    return x.data if isinstance(x, Codes) else x


class _Scales(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("k_scale", "k_zero", "v_scale", "v_zero")),
        *((name, ctypes.c_int) for name in ("group", "columns")),
    )


def _scales(k: Codes, v: Codes) -> _Scales:
    places = [None if x is None else x.data_ptr() for x in (k.scale, k.zero, v.scale, v.zero)]
    return _Scales(*places, k.row_group, v.dim // v.scale.shape[1])


def decode(q: Tensor, k: Stored, v: Stored, spans: Spans, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of `q` [S, G, Dk], the queries of S segments, over rows of `k` [rows, Dk] and `v` [rows, Dv], which are
    `usable`: output [S, G, Dv] in the dtype of `q` and log-sum-exp [S, G] float32; a segment without rows gets 0 and -inf.

    `spans` says which rows, three numbers a span: segment, first row, rows. Spans of a segment follow each other.
    """
    library = _library()
    assert library is not None
    S, G, Dk = q.shape
    asked = (q.float() if isinstance(k, Codes) else q).contiguous()
    Dv, (at, n, rows, held) = v.shape[-1], _flat(spans)
    out, lse = torch.empty(S, G, Dv), torch.empty(S, G)
    data = _data(k), _data(v)
    threads = _threads(rows * sum(x.shape[-1] * x.element_size() for x in data))
    by = ctypes.byref(_scales(k, v)) if isinstance(k, Codes) and isinstance(v, Codes) else None
    failed = library.kvledger_decode(
        asked.data_ptr(), *(x.data_ptr() for x in data), by, at, n, S, G, Dk, Dv,
        scale, _kind(k), threads, out.data_ptr(), lse.data_ptr(),
    )  # fmt: skip
    if failed:
        raise MemoryError("no memory for the partial sums of a decode step")
    del held
    return out if q.dtype == out.dtype else out.to(q.dtype), lse


def _flat(spans: Spans) -> tuple[int, int, int, object]:
    """Where the numbers of `spans` stand, how many spans and rows they are, and what holds them. A few numbers make a tensor
    slowly, and each step has a list of them in each layer."""
    if isinstance(spans, Tensor):
        held = spans.to(torch.int64).contiguous()
        return held.data_ptr(), len(held) // 3, int(held[2::3].sum()), held
    numbers = array("q", spans)
    return numbers.buffer_info()[0], len(numbers) // 3, sum(spans[2::3]), numbers


def logits(q: Tensor, k: Tensor, spans: Spans, scale: float) -> Tensor:
    """Logits of `q` [S, G, D] over rows of `k` [rows, D], which `usable(q, k, k)` allows, or over codes of 4 bits [rows, D / 2]
    as they are, with float32 queries: [G, rows of all spans] float32, in the order of the spans, which are as in `decode`."""
    library = _library()
    assert library is not None
    S, G, D = q.shape
    q, (at, n, rows, held) = q.contiguous(), _flat(spans)
    kind = CODES[4] if k.dtype == torch.uint8 else KINDS[q.dtype]
    out = torch.empty(G, rows)
    failed = library.kvledger_logits(
        q.data_ptr(), k.data_ptr(), at, n, S, G, D, scale, kind,
        _threads(rows * k.shape[-1] * k.element_size()), out.data_ptr(),
    )  # fmt: skip
    if failed:
        raise MemoryError("no memory for the queries of a decode step")
    del held
    return out


def pages(logits: Tensor, of: Sequence[int], k: int, size: int) -> Tensor:
    """The `k` pages of `size` rows that each of S segments reads: the newest, and those of the largest `logits` [G, n] float32
    over the n complete pages of all segments. `of`, flat: segment, first row, rows, complete pages. Spans [m, 3]."""
    library = _library()
    assert library is not None
    logits, facts = logits.contiguous(), array("q", of)
    spans = torch.empty(len(facts) // 4 * k, 3, dtype=torch.int64)
    found = library.kvledger_pages(
        logits.data_ptr(), len(logits), facts.buffer_info()[0], len(facts) // 4, k, size, spans.data_ptr()
    )
    if found < 0:
        raise MemoryError("no memory to choose the pages of a decode step")
    return spans[:found]


def available(x: Tensor) -> bool:
    """Whether `pages` serves float32 logits `x`."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and _library() is not None


def _threads(nbytes: int) -> int:
    return max(1, min(torch.get_num_threads(), nbytes // BYTES_A_THREAD))


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(compiled(SOURCE)))
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).info("no C reader (%s): decoding on the CPU takes PyTorch's kernels", error)
        return None
    kinds: dict[str, Any] = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
    library.kvledger_decode.argtypes = [kinds[letter] for letter in "ppppplliiifiipp"]
    library.kvledger_logits.argtypes = [kinds[letter] for letter in "ppplliifiip"]
    library.kvledger_pages.argtypes = [kinds[letter] for letter in "piplllp"]
    library.kvledger_pages.restype = ctypes.c_int64
    library.kvledger_decode.restype = library.kvledger_logits.restype = ctypes.c_int
    return library


def compiled(source: Path) -> Path:
    """The shared library of a source file, made if it has not yet been compiled for processors like this one. It is kept in
    the user's cache folder, or where that cannot be written, in a folder of this process."""
    command = [*shlex.split(os.environ.get("CC", "cc")), "-O3", "-std=gnu11", "-shared", "-fPIC", "-fopenmp"]
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        command += ["-mavx2", "-mfma"]  # not -march=native: a home may serve several machines
    facts = "\n".join([source.read_text(), HEADER.read_text(), *command, platform.machine()])
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    library = _folder() / f"{source.stem}-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # moved in whole: others may be at it too
            made = Path(folder) / library.name
            command += [str(source), "-o", str(made), "-lm"]
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
