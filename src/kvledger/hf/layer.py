"""One layer of a compressed cache: the arena, the schedule, and the frame in which a method is asked.

transformers calls `update` with new keys and values and then the attention function, which calls `attend`.  There the layer
stores the rows, attends, remembers the last queries if the method wants them and, at the scheduled moment, lets the method
choose what stays.  What is evicted in one layer is gone before the next layer runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from kvledger.cache.arena import Arena
from kvledger.cache.attend import attend
from kvledger.cache.ledger import Ledger
from kvledger.hf.attention import NAME, TAG
from kvledger.methods.base import Method, View


@dataclass
class Run:
    """What the layers of one cache share. A session sets `evict` and `probe` before each forward; left to itself (`auto`)
    the cache treats the first forward of several tokens as the prompt, and every such forward as a chunk."""

    method: Method
    layers: int
    config: Any  # of the model, to see which attention it is set to
    ledger: Ledger = field(default_factory=Ledger)
    auto: bool = True
    reading: bool = True
    evict: bool = False
    probe: int = 0


class ArenaLayer(CacheLayerMixin):
    """A full-attention layer's cache: ragged rows instead of `[B, H, N, D]`. `slot` counts the compressible layers."""

    is_sliding = False

    def __init__(self, slot: int, run: Run):
        super().__init__()
        self.slot, self.run = slot, run
        self.columns = 0  # tokens seen, padding included: what transformers derives positions and masks from
        self.arena: Arena | None = None
        self.last_queries: list[Tensor] = []
        self.pending = False

    # ---- what transformers calls ---------------------------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.pending:
            raise ValueError(
                "this model changes keys after they reach the cache, so its attention cannot be kept by kvledger; "
                "supported are models that pass cached keys straight to their attention function"
            )
        if self.run.config._attn_implementation != NAME:
            raise ValueError(
                "the model's attention was changed under this cache: use it inside `attach`, or in a session"
            )
        self.is_initialized = self.pending = True
        self.columns += key_states.shape[-2]
        key_states = key_states[:]  # a fresh object: the tag must not outlive this call
        setattr(key_states, TAG, self)
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # the name in transformers < 5.14

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.arena is not None:
            self.arena.select(beam_idx.tolist())

    def reset(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("a compressed cache is not reset, cropped or moved in place; make a new one")

    offload = prefetch = crop = batch_repeat_interleave = batch_select_indices = reset  # type: ignore[assignment]

    # ---- what the attention function calls -----------------------------------------------------------------------

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        valid: Tensor | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Store the new rows, attend over all, drop what the schedule says. [B, Hq, T, Dk] -> [B, Hq, T, Dv]."""
        if not self.pending:
            raise ValueError("several layers of this model read one layer's keys, which kvledger cannot keep yet")
        self.pending = False
        run, method = self.run, self.run.method
        if self.arena is None:
            self._open(q, k, v)
        assert self.arena is not None
        if method.heads == "query":
            groups = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        added = self.arena.append(k, v, valid)
        run.ledger.forward(self.slot, added, self.arena.length, self.arena.row_nbytes, run.probe)
        out = attend(q, k, v, self.arena, scale, valid, sinks, softcap)
        if run.auto:
            self._guess_phase(max(added))
        if run.reading and method.window and method.keep < 1:
            self._remember(q, valid)
        if run.evict:
            self._evict(added, scale)
        elif run.probe:
            self.take_back(run.probe, probe=True)
        return out

    def _open(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        B, H = k.shape[:2]
        stored = q.shape[1] if self.run.method.heads == "query" else H
        row_bytes = k.element_size() * k.shape[-1] + v.element_size() * v.shape[-1]
        self.run.ledger.open_layer(self.slot, B, B * stored, H, row_bytes)
        self.arena = Arena(B, stored, self._hold)

    def _hold(self, arena_bytes: int) -> None:
        self.run.ledger.hold(self.slot, arena_bytes + sum(q.nbytes for q in self.last_queries))

    def _guess_phase(self, tokens: int) -> None:
        """Without a session nobody says where a prompt ends: its first forward of several tokens is taken for all of it."""
        run = self.run
        if tokens > 1 and self.slot == 0:
            first = len(run.ledger.steps) == 1
            run.reading = run.evict = run.method.keep < 1 and (first or run.method.when == "chunk")
        elif tokens == 1:
            run.reading = run.evict = False

    # ---- eviction ------------------------------------------------------------------------------------------------

    def _remember(self, q: Tensor, valid: Tensor | None) -> None:
        """Keep the last `window` queries of each sequence, across chunks: [Hq, W, Dk] each."""
        W = self.run.method.window
        fresh = [q[b] if valid is None else q[b][:, valid[b]] for b in range(q.shape[0])]
        if self.last_queries and self.run.method.when == "prompt":
            fresh = [torch.cat([old, new], dim=1) for old, new in zip(self.last_queries, fresh)]
        self.last_queries = [x[:, -W:].clone() for x in fresh]
        assert self.arena is not None
        self._hold(self.arena.nbytes)

    def _evict(self, added: list[int], scale: float) -> None:
        """Ask the method about each sequence's candidates and drop the rest, the probe's rows with them."""
        assert self.arena is not None
        run, arena, masks = self.run, self.arena, []
        for b, new in enumerate(added):
            new -= run.probe
            whole = run.method.when == "prompt" or run.method.among == "all"
            lengths = arena.length[b * arena.heads : (b + 1) * arena.heads]
            if whole and len(set(lengths)) > 1:
                raise ValueError(
                    f"{run.method}: among='all' needs heads of equal length, and these hold {lengths} rows"
                )
            candidates = lengths[0] - run.probe if whole else new
            budget = run.method.rows(arena.seen[b] - run.probe if whole else new)
            if candidates <= budget or run.method.keep == 1:
                mask = torch.ones(arena.heads, candidates, dtype=torch.bool)
            else:  # a probe's rows are the recent ones: they vote, are counted in while the method looks, and go
                mask = run.method.select(self._view(b, candidates + run.probe, budget + run.probe, scale))
            masks.append(torch.nn.functional.pad(mask[:, :candidates], (0, run.probe), value=False))
        dropped = arena.keep(masks) - run.probe * len(arena.length)
        arena.seen = [n - run.probe for n in arena.seen]
        self.columns -= run.probe
        self.last_queries = []
        self._hold(arena.nbytes)
        run.ledger.evict(self.slot, arena.length, dropped)

    def _view(self, b: int, candidates: int, budget: int, scale: float) -> View:
        """The last `candidates` rows of sequence `b`, as a method sees them."""
        assert self.arena is not None
        arena = self.arena
        segments = range(b * arena.heads, (b + 1) * arena.heads)

        def rows(buffer: Tensor) -> Tensor:
            return torch.stack([buffer[arena.segment(s, candidates)] for s in segments])

        if self.last_queries:
            queries = self.last_queries[b].unflatten(0, (arena.heads, -1))
        else:
            queries = arena.k.new_zeros(arena.heads, 1, 0, arena.k.shape[-1])
        seen = arena.seen[b]
        positions = arena.positions(segments[0], candidates)
        query_positions = torch.arange(seen - queries.shape[2], seen, device=positions.device)
        recent = (
            positions >= (seen - queries.shape[2])
            if queries.shape[2]
            else torch.zeros_like(positions, dtype=torch.bool)
        )
        return View(
            self.slot,
            self.run.layers,
            rows(arena.k),
            rows(arena.v),
            positions,
            queries,
            query_positions,
            scale,
            recent,
            budget,
        )

    def take_back(self, tokens: int, probe: bool = False) -> None:
        """Forget the last `tokens` tokens of each sequence."""
        assert self.arena is not None
        self.arena.rollback([seen - tokens for seen in self.arena.seen])
        self.columns -= tokens
        self.run.ledger.rollback(self.slot, self.arena.length, tokens, probe)

    def fork(self, run: Run) -> ArenaLayer:
        """The same rows under another run; buffers are shared until one side writes."""
        twin = ArenaLayer(self.slot, run)
        twin.is_initialized, twin.columns = self.is_initialized, self.columns
        twin.last_queries = list(self.last_queries)
        twin.arena = None if self.arena is None else self.arena.fork(twin._hold)
        return twin
