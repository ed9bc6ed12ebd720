"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434 §2.1): transformers caches latents and expands all of them to keys
and values of every head at each forward, so that nothing of what was cached reaches the attention function.

Here the up-projections move to the other side, as in the paper's §2.1.2: a query is brought into the space of the latents,
attends there as if all heads shared one KV head of `rank + rotated` dimensions, and the sum is brought back. What is stored,
counted and dropped are the latents; a method sees them as keys and values of one head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kvledger.cache.arena import Arena
from kvledger.cache.latent import LatentArena
from kvledger.hf.attention import TAG
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.run import Run


class Traced(Tensor):
    """New latents that say whose they are through all that the model makes of them."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})
        owner = next((getattr(x, TAG) for x in args if hasattr(x, TAG)), None)
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Traced) and owner is not None:
                setattr(x, TAG, owner)
        return out


class LatentLayer(ArenaLayer):
    """An `ArenaLayer` of latents. `rank`: their numbers, without the rotated part."""

    def __init__(self, slot: int, run: Run, rank: int):
        super().__init__(slot, run)
        self.rank = rank
        self.new: Tensor | None = None  # between `update` and `attend`
        if run.format is not None:
            raise ValueError(
                f"{type(run.format).row.name} stores keys and values, and this model's cache holds latents"
            )

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Latents [B, 1, T, rank] and rotated keys [B, 1, T, Dr]."""
        super().update(key_states, value_states)
        self.new = torch.cat([key_states, value_states], dim=-1)
        traced = key_states.as_subclass(Traced)
        setattr(traced, TAG, self)
        return traced, value_states

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        valid: Tensor | None,
        softcap: float | None,
        sinks: Tensor | None,
        module: nn.Module | None = None,
    ) -> Tensor:
        """`q` [B, Hq, T, Dn + Dr]; the expanded keys and values of the new tokens are not needed. [B, Hq, T, Dv]."""
        assert self.new is not None
        new, self.new = self.new, None
        plain = new.shape[-1] - self.rank
        up: Tensor = module.kv_b_proj.weight.unflatten(0, (q.shape[1], -1))  # type: ignore[union-attr,operator,assignment]
        to_keys, to_values = up.split([q.shape[-1] - plain, v.shape[-1]], dim=1)
        here = torch.einsum("bhtn,hnr->bhtr", q[..., :-plain], to_keys)
        q = torch.cat([here, q[..., -plain:]], dim=-1)
        out = super().attend(q, new, new[..., : self.rank], scale, valid, softcap, sinks, module)
        return torch.einsum("bhtr,hvr->bhtv", out, to_values)

    def _open(self, k: Tensor, v: Tensor, query_heads: int) -> None:
        super()._open(k, v[..., :0], query_heads)  # values are stored with the keys

    def store(self, batch: int, heads: int) -> Arena:
        return LatentArena(self.rank, batch, heads, self._hold)

    def blank(self, run: Run) -> ArenaLayer:
        return LatentLayer(self.slot, run, self.rank)


def ranks(model: Any) -> dict[int, int]:
    """Layers of a cache that hold latents, and the numbers of each."""
    found = (module for module in model.modules() if hasattr(module, "expand_kv") and hasattr(module, "kv_b_proj"))
    return {module.layer_idx: module.kv_lora_rank for module in found}
