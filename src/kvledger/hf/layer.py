"""One layer of a compressed cache: the arena, the schedule, and the frame in which a method is asked.

transformers calls `update` with new keys and values and then the attention function, which calls `attend`.  There the layer
stores the rows, attends, notes what the method wants to know of them and, at the scheduled moment, lets it choose what stays
(`eviction.py`).  What is evicted in one layer is gone before the next layer runs, unless layers share a budget.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from kvledger.cache.arena import Arena
from kvledger.cache.attend import Windows, attend
from kvledger.cache.mass import add_mass
from kvledger.hf.attention import NAME, TAG
from kvledger.hf.eviction import evict
from kvledger.hf.inside import output_projection
from kvledger.hf.run import Run
from kvledger.methods.base import Fresh, Glance, Probe

GATHER = 16  # rows that may gather behind a window while decoding, so that they are moved rarely


class ArenaLayer(CacheLayerMixin):
    """A full-attention layer's cache: ragged rows instead of `[B, H, N, D]`. `slot` counts the compressible layers."""

    is_sliding = False

    def __init__(self, slot: int, run: Run):
        super().__init__()
        self.slot, self.run = slot, run
        self.columns = 0  # tokens seen, padding included: what transformers derives positions and masks from
        self.arena: Arena | None = None
        self.windows: Windows | None = None  # of heads that see their first and last tokens only
        self.full_heads: list[int] = []  # the others: those the method is asked about
        self.last_queries: list[Tensor] = []
        self.states: list[Any] = []  # per sequence, what the method has learned
        self.hidden: Tensor | None = None  # this layer's input, where the method asks for it
        self.output: Tensor | None = None  # [H, G, Dv, E], likewise
        self.scale, self.copies = 1.0, 1  # how often a row is stored: once, or for each query head
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
        module: nn.Module | None = None,
    ) -> Tensor:
        """Store the new rows, attend over all, drop what the schedule says. [B, Hq, T, Dk] -> [B, Hq, T, Dv]."""
        if not self.pending:
            raise ValueError("several layers of this model read one layer's keys, which kvledger cannot keep yet")
        self.pending, self.scale = False, scale
        run, method = self.run, self.run.method
        if self.arena is None:
            self._open(q, k, v, module)
        arena = self.arena
        assert arena is not None
        if method.heads == "query":
            groups = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        added = arena.append(k, v, valid)
        probe = max(added) if run.watching is not None else run.probe
        run.ledger.forward(self.slot, added, arena.length, arena.row_nbytes, probe)
        windows = None if run.dense_chunks and max(added) > 1 else self.windows
        out, lse = attend(q, k, v, arena, scale, valid, sinks, softcap, windows)
        run.begin(self.slot, max(added))
        if run.watching is not None:
            self._watch(q, run.watching)
        elif method.drops and (run.reading or method.every):
            self._note(q, k, v, lse, valid, softcap)
        self._forget(added)
        return out

    def _open(self, q: Tensor, k: Tensor, v: Tensor, module: nn.Module | None) -> None:
        B, H = k.shape[:2]
        run = self.run
        stored = q.shape[1] if run.method.heads == "query" else H
        row_bytes = k.element_size() * k.shape[-1] + v.element_size() * v.shape[-1]
        run.ledger.open_layer(self.slot, B, B * stored, H, row_bytes)
        self.arena, self.copies = Arena(B, stored, self._hold), stored // H
        if run.windows is not None:
            self.windows = run.windows[self.slot]
        self.full_heads = [h for h in range(stored) if self.windows is None or self.windows[h] is None]
        if "output" in run.method.needs:
            self.output = output_projection(module, q.shape[1], v.shape[-1]).unflatten(0, (stored, -1))

    def hold(self) -> None:
        """Tell the ledger what this layer holds now."""
        assert self.arena is not None
        self._hold(self.arena.nbytes)

    def _hold(self, arena_bytes: int) -> None:
        learned = [x for state in self.states for x in state or ()]
        self.run.ledger.hold(self.slot, arena_bytes + sum(x.nbytes for x in self.last_queries + learned))

    def _note(self, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, valid: Tensor | None, softcap: float | None) -> None:
        """What the method wants to know of these tokens: the last queries, and a number for each row."""
        method, arena = self.run.method, self.arena
        assert arena is not None
        if method.window:
            self._remember(q, valid)
        if method.tally:
            arena.open_tally()
        if method.tally == "mass":
            add_mass(q, arena, lse, self.scale, self.full_heads, valid, softcap)
        if method.tally == "rate" or method.learns:
            states = self.states or [None] * arena.batch
            self.states = [self._learn(b, q, k, v, valid, states[b]) for b in range(arena.batch)]
        self.hidden = None

    def _learn(self, b: int, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, state: Any) -> Any:
        run, method, arena = self.run, self.run.method, self.arena
        assert arena is not None
        real = slice(None) if valid is None else valid[b]
        queries, copies = q[b][:, real].unflatten(0, (arena.heads, -1)), self.copies
        whole = q[b][:, real], k[b, ::copies][:, real], v[b, ::copies][:, real]
        fresh = Fresh(
            layer=self.slot,
            layers=run.layers,
            queries=queries[self.full_heads],
            keys=k[b][self.full_heads][:, real],
            values=v[b][self.full_heads][:, real],
            positions=torch.arange(arena.seen[b] - queries.shape[2], arena.seen[b], device=q.device),
            scale=self.scale,
            hidden=None if self.hidden is None else self.hidden[b][real],
            rope=run.rope,
            whole=whole if "whole" in method.needs else None,
            heads=tuple(h // copies for h in self.full_heads),
            kv_heads=arena.heads // copies,
        )
        if method.tally == "rate" and queries.shape[2]:
            assert arena.tally is not None
            for h, rates in zip(self.full_heads, method.rate(fresh).float()):
                arena.tally[arena.segment(b * arena.heads + h, len(rates))] = rates
        return method.learn(fresh, state) if method.learns else None

    def _remember(self, q: Tensor, valid: Tensor | None) -> None:
        """Keep the last `window` queries of each sequence, across chunks: [Hq, W, Dk] each."""
        method = self.run.method
        fresh = [q[b] if valid is None else q[b][:, valid[b]] for b in range(q.shape[0])]
        if self.last_queries and (method.when == "prompt" or not self.run.reading):
            fresh = [torch.cat([old, new], dim=1) for old, new in zip(self.last_queries, fresh)]
        self.last_queries = [x[:, -method.window :].clone() for x in fresh]
        self.hold()

    def _watch(self, q: Tensor, probe: Probe) -> None:
        """A probe's queries judge the rows of its span; each row keeps the most it was ever given."""
        arena = self.arena
        assert arena is not None
        assert arena.batch == 1, "probes are read one sequence at a time"
        arena.open_tally()
        assert arena.tally is not None
        queries, hidden = q[0].unflatten(0, (arena.heads, -1)), None if self.hidden is None else self.hidden[0]
        for h in self.full_heads:  # one head at a time: lengths differ, and so little is held
            rows, positions = arena.segment(h), arena.positions(h)
            output = None if self.output is None else self.output[h : h + 1]
            k, v = arena.k[rows][None], arena.v[rows][None]
            glance = Glance(probe, queries[h : h + 1], k, v, positions, self.scale, hidden, output)
            chosen = ((positions >= probe.start) & (positions < probe.stop)).nonzero().squeeze(-1) + rows.start
            arena.tally[chosen] = torch.maximum(arena.tally[chosen], self.run.method.watch(glance)[0])
        self.hidden = None

    # ---- eviction ------------------------------------------------------------------------------------------------

    def _forget(self, added: list[int]) -> None:
        """Drop what is due after this forward."""
        run, arena = self.run, self.arena
        assert arena is not None
        if run.evict and run.method.drops:
            evict(self, added, asked=True)
        elif run.watching is not None:
            self.take_back(max(added), probe=True)
        elif self.windows is not None and (max(added) > 1 or run.ledger.kind == "read"):
            evict(self, added, asked=False)
        elif run.probe:
            self.take_back(run.probe, probe=True)
        elif self.windows is not None:
            self._slide()

    def _slide(self) -> None:
        """While decoding, heads with a window let some rows gather before they are overwritten in place."""
        arena, dropped = self.arena, 0
        assert arena is not None
        assert self.windows is not None
        for s, n in enumerate(arena.length):
            window = self.windows[s % arena.heads]
            if window is not None and n >= sum(window) + (1 if self.run.dense_chunks else GATHER):
                dropped += arena.slide(s, *window)
        if dropped:
            self.hold()
            self.run.ledger.evict(self.slot, arena.length, dropped)

    def take_back(self, tokens: int, probe: bool = False) -> None:
        """Forget the last `tokens` tokens of each sequence."""
        assert self.arena is not None
        self.arena.rollback([seen - tokens for seen in self.arena.seen])
        self.columns -= tokens
        self.run.ledger.rollback(self.slot, self.arena.length, tokens, probe)

    def close(self) -> None:
        """Nothing is dropped from here on: let go of what was noted to that end."""
        self.last_queries, self.states = [], []
        if self.arena is not None:
            self.arena.tally = None
            self.hold()

    def fork(self, run: Run) -> ArenaLayer:
        """The same rows under another run; buffers are shared until one side writes."""
        twin = ArenaLayer(self.slot, run)
        for name in ("is_initialized", "columns", "windows", "full_heads", "output", "scale", "copies"):
            setattr(twin, name, getattr(self, name))
        twin.last_queries, twin.states = list(self.last_queries), list(self.states)
        twin.arena = None if self.arena is None else self.arena.fork(twin._hold)
        return twin
