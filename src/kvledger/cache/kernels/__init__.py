"""The CUDA reader, in Triton: the contract of `attend.py` in two launches a layer, whatever the lengths of the heads.

`plan.py` the work list of a layer, made on the host when lengths change other than by appending · `attention.py` the kernels ·
`read.py` attention over an arena or a region of it · `append.py` new rows of all heads in one launch · `codes.py` rows stored
in 8 or 4 bits.  The modules that need Triton are imported only where there is a GPU.  All of it also runs, slowly, on a CPU by
Triton's interpreter (TRITON_INTERPRET=1), which is how it is tested without a GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from kvledger.cache.kernels.codes import Codes

WIDEST = 256  # head dim that registers and shared memory hold


def usable(x: Tensor) -> bool:
    """Whether the kernels serve tensors [..., D] like this one, else PyTorch's own do: on CUDA with Triton, in a dtype that the
    device multiplies, heads not too wide for it, and without gradients, which the kernels do not have."""
    if x.device.type != "cuda" or x.shape[-1] > WIDEST or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return _usable(x.device, x.dtype)


def reads(buffers: Sequence[object]) -> bool:
    """Whether the kernels know these buffers, plain or coded, on a device on which they are `usable`."""
    return all(isinstance(x, Tensor) or (isinstance(x, Codes) and _knows(x)) for x in buffers)


def _knows(x: Codes) -> bool:
    if x.bits < 4:
        return False
    return x.data.dtype != torch.float8_e4m3fn or torch.cuda.get_device_capability(x.data.device) >= (8, 9)


@cache
def _usable(device: torch.device, dtype: torch.dtype) -> bool:
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability(device) < (7, 5):
        return False
    if dtype == torch.bfloat16:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return dtype in (torch.float16, torch.float32)
