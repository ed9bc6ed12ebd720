"""The CUDA reader, in Triton: the contract of `attend.py` in two launches a layer, whatever the lengths of the heads.

`plan.py` the work list of a layer, made on the host when lengths change other than by appending · `attention.py` the kernels ·
`read.py` attention over an arena or a region of it · `append.py` new rows of all heads in one launch · `codes.py` rows stored
in 8 or 4 bits.  The modules that need Triton are imported only where there is a GPU.  All of it also runs, slowly, on a CPU by
Triton's interpreter (TRITON_INTERPRET=1), which is how it is tested without a GPU.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

WIDEST = 256  # head dim that registers and shared memory hold


def usable(x: Tensor) -> bool:
    """Whether the kernels serve tensors [..., D] like this one, else PyTorch's own do: on CUDA with Triton, in a dtype that the
    device multiplies, heads not too wide for it, and without gradients, which the kernels do not have."""
    if x.device.type != "cuda" or x.shape[-1] > WIDEST or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return _usable(x.device, x.dtype)


@cache
def _usable(device: torch.device, dtype: torch.dtype) -> bool:
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability(device) < (7, 5):
        return False
    if dtype == torch.bfloat16:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return dtype in (torch.float16, torch.float32)
