"""Out of memory: what would have fitted. The figures are an estimate of what a reading holds at its peak: weights are there
already, then all rows kept so far, one chunk's work, and one layer's rows a second time while they are moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kvledger.hf.place import home
from kvledger.recipe import Recipe

if TYPE_CHECKING:
    from kvledger.hf.session import Session

MEMINFO = Path("/proc/meminfo")
SMALLEST = 64  # tokens of a chunk that is worth reading
LARGEST = 16384
SAFE = 0.9  # of the free memory: allocators do not use the last tenth
KEEPS = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)
MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")  # of CUDA, MPS and PyTorch's CPU allocator


@dataclass(frozen=True)
class Load:
    """Bytes a token costs in a reading: `row`, its keys and values in all layers; `layer`, in the largest of them; `work`,
    while its chunk goes through the model."""

    row: int
    layer: int
    work: int

    def peak(self, tokens: int, chunk: int, keep: float) -> int:
        """Bytes held at most, of a prompt of `tokens` that is read in chunks of which `keep` stays."""
        most = min(chunk or tokens, tokens)
        kept = int(keep * (tokens - most)) + most
        return kept * (self.row + self.layer) + most * self.work


def load_of(model: Any) -> Load:
    config, size = model.config.get_text_config(decoder=True), model.dtype.itemsize
    heads = getattr(config, "num_attention_heads", None) or 1
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width, layers = config.hidden_size, config.num_hidden_layers
    dim = getattr(config, "head_dim", None) or width // heads
    inner = getattr(config, "intermediate_size", None) or 4 * width
    layer = 2 * kv_heads * dim * size
    return Load(layers * layer, layer, size * (6 * width + 3 * inner + 2 * heads * dim))


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where nobody says."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu" and MEMINFO.exists():  # what is free, and what files are cached in and would be given up
        lines = (line.split() for line in MEMINFO.read_text().splitlines())
        return next((1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:"), None)
    return None


def advice(load: Load, recipe: Recipe, tokens: int, chunk: int, free: int) -> str:
    """What would fit into `free` bytes: a smaller chunk, else a smaller keep, else a shorter prompt."""
    method, room = recipe.method, int(SAFE * free)
    keep = method.keep if method.drops and method.when == "chunk" and not method.rows and not method.bytes else 1.0
    sizes = [1 << n for n in range(LARGEST.bit_length() - 1, SMALLEST.bit_length() - 2, -1)]
    for size in (size for size in sizes if size < (chunk or tokens)):
        if load.peak(tokens, size, keep) <= room:
            return f"read in chunks of {size} or fewer (--chunk {size})"
    size = min(chunk or SMALLEST, 512)
    for less in (less for less in KEEPS if less < keep):
        if load.peak(tokens, size, less) <= room:
            return f"keep={less} with when='chunk' and chunks of {size} would fit (--chunk {size})"
    most = max((n for n in range(0, tokens, 256) if load.peak(n, size, keep) <= room), default=0)
    return (
        f"no chunk size and no keep of {KEEPS[-1]} or more would fit; about {most} tokens would, as the recipe stands"
    )


@contextmanager
def explained(session: Session, tokens: int) -> Iterator[None]:
    """A forward of a prompt of `tokens`. If memory runs out, the session lets go of all that it holds, and the RuntimeError
    says what would have fitted."""
    if not session.cache.layers:
        raise RuntimeError("this session ran out of memory and has let go of its rows: open another")
    try:
        yield
        return
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in reason.lower() for text in MESSAGES):
            raise
    session.cache.layers.clear()  # outside of the handler, whose traceback holds on to what the forward had made
    session.run.waiting.clear()
    session.logits = None
    model, recipe, device = session.model, session.recipe, home(session.model)
    free = free_bytes(device)
    tip = "" if free is None else "; " + advice(load_of(model), recipe, tokens, session.chunk, free)
    raise RuntimeError(f"out of memory on {device} at {tokens} tokens under {recipe} ({reason}){tip}")
