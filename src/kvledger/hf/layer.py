"""One layer of a compressed cache: the arena, the schedule, and the frame in which a method is asked.

transformers calls `update` with new keys and values and then the attention function, which calls `attend`.  There the layer
stores the rows, attends, notes what the method wants to know of them and, at the scheduled moment, lets it choose what stays
(`eviction.py`).  What is evicted in one layer is gone before the next layer runs, unless layers share a budget.
"""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from kvledger.cache.arena import Arena
from kvledger.cache.attend import Windows, weigh_sinks
from kvledger.hf.attention import NAME, TAG
from kvledger.hf.eviction import evict
from kvledger.hf.inside import output_projection
from kvledger.hf.loading import Loader
from kvledger.hf.note import News, note, notes, read_all, watch
from kvledger.hf.prefill import Kept, dense_pairs, due, read_chosen, trim
from kvledger.hf.run import Run

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
        self.kept: dict[int, Kept] = {}  # per segment, what the recipe's pattern keeps of its rows
        self.looked: int | None = None  # bytes of rows and of that which one token has read by the pattern
        self.loader = Loader(run.reader, slot)
        self.hidden: Tensor | None = None  # this layer's input, where the method asks for it
        self.output: Tensor | None = None  # [H, G, Dv, E], likewise
        self.scale, self.copies = 1.0, 1  # how often a row is stored: once, or for each query head
        self.pending = False
        self.followers: list[ArenaLayer] = []  # of other recipes, which share these rows and their attention

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
            self.kept = {}
            self.loader.select(self.arena, beam_idx.tolist())

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
        method = self.run.method
        for layer in (self, *self.followers):
            if layer.arena is None:
                layer._open(k, v, q.shape[1])
                layer.scale = scale
            if layer.output is None and "output" in layer.run.method.needs:
                assert layer.arena is not None
                output = output_projection(module, q.shape[1], v.shape[-1]).to(v.device)
                layer.output = output.unflatten(0, (layer.arena.heads, -1))
        arena = self.arena
        assert arena is not None
        if method.heads == "query":
            groups = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        self.loader.arrive(self, k.device)
        added = arena.append(k, v, valid)
        out, news = self._attended(q, k, v, valid, softcap, sinks, added)
        self._settle(news)
        for twin in self.followers:
            twin._follow(self, news)
        self.loader.leave(self, k.device)
        self.hidden = None
        return out

    def _attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        valid: Tensor | None,
        softcap: float | None,
        sinks: Tensor | None,
        added: list[int],
    ) -> tuple[Tensor, News]:
        """Attention of the tokens just stored: to what the recipe's reader or pattern chooses, or to everything."""
        arena, windows, pairs, mass = self.arena, self._windows_of(added), None, None
        assert arena is not None
        self.looked = None
        chosen = self.loader.read(self, q, valid, softcap, sinks)
        if chosen is not None:
            out, lse = chosen
        elif due(self, added):
            out, lse, pairs, self.looked = read_chosen(self, q, valid, softcap, windows)
            out, lse = weigh_sinks(out, lse, sinks)
        else:
            out, lse, mass = read_all(self, q, k, v, valid, sinks, softcap, windows)
        return out, News(q, k, v, lse, valid, softcap, added, pairs, mass)

    def _windows_of(self, added: list[int]) -> Windows | None:
        """The windows that a forward of `added[b]` tokens keeps to."""
        return None if self.run.dense_chunks and max(added) > 1 else self.windows

    def _follow(self, lead: ArenaLayer, news: News) -> None:
        """What `attend` does, for a layer whose rows and attention are those of `lead`, which drops nothing."""
        started = time.perf_counter()
        assert self.arena is not None
        assert lead.arena is not None
        self.is_initialized, self.columns, self.hidden = True, lead.columns, lead.hidden
        self.arena.follow(lead.arena)
        self._settle(news)
        self.hidden = None
        self.run.spent += time.perf_counter() - started

    def _settle(self, news: News) -> None:
        """What follows once the new rows are stored and have attended: account, note, drop what is due."""
        run, arena, most = self.run, self.arena, max(news.added)
        assert arena is not None
        probe = run.probe if run.watching is None else news.added
        run.ledger.forward(self.slot, news.added, arena.length, arena.row_nbytes, probe, self._read)
        if run.ledger.steps[-1].kind == "read":
            pairs = dense_pairs(self, news.added, self._windows_of(news.added)) if news.pairs is None else news.pairs
            run.ledger.look(self.slot, pairs, news.added, probe)
        run.begin(self.slot, most)
        if run.watching is not None:
            watch(self, news, run.watching)
        elif notes(self):
            note(self, news)
        self._forget(news)
        trim(self)
        arena.seal()

    @property
    def _read(self) -> int:
        """Bytes that the last forward has read: what was chosen, or every row."""
        assert self.arena is not None
        told = self.looked if self.loader.nbytes is None else self.loader.nbytes
        return self.arena.alive_nbytes if told is None else told

    @property
    def wants_hidden(self) -> bool:
        """Whether somebody who looks at these tokens asks for the layer's input."""
        return any("hidden" in layer.run.needs for layer in (self, *self.followers))

    def _open(self, k: Tensor, v: Tensor, query_heads: int) -> None:
        B, H = k.shape[:2]
        run = self.run
        stored = query_heads if run.method.heads == "query" else H
        row_bytes = k.element_size() * k.shape[-1] + v.element_size() * v.shape[-1]
        run.ledger.open_layer(self.slot, B, B * stored, H, row_bytes)
        self.hold_in(self.store(B, stored), stored // H)

    def store(self, batch: int, heads: int) -> Arena:
        """An empty arena of the kind that the recipe's format asks for."""
        form = self.run.format
        return Arena(batch, heads, self._hold) if form is None else form.arena(batch, heads, self._hold)

    def hold_in(self, arena: Arena, copies: int) -> None:
        """Keep the rows in `arena`, which stores each of them `copies` times."""
        run, self.arena, self.copies = self.run, arena, copies
        if run.windows is not None:
            self.windows = run.windows[self.slot]
        self.full_heads = [h for h in range(arena.heads) if self.windows is None or self.windows[h] is None]

    def hold(self) -> None:
        """Tell the ledger what this layer holds now."""
        assert self.arena is not None
        self._hold(self.arena.nbytes)

    def _hold(self, arena_bytes: int) -> None:
        for twin in self.followers:  # the rows are theirs too; their tallies move after keys and values
            tally = None if twin.arena is None else twin.arena.tally
            twin._hold(arena_bytes + (0 if tally is None else tally.nbytes))
        learned = [x for state in self.states for x in state or ()]
        indices = [kept.table for kept in self.kept.values()]
        noted = sum(x.nbytes for x in self.last_queries + learned + indices)
        self.run.ledger.hold(self.slot, arena_bytes + self.loader.held + noted)

    # ---- eviction ------------------------------------------------------------------------------------------------

    def _forget(self, news: News) -> None:
        """Drop what is due after this forward."""
        run, arena, added = self.run, self.arena, news.added
        assert arena is not None
        if run.evict and run.method.drops:
            evict(self, added, asked=True)
        elif run.watching is not None:
            arena.rollback([seen - n for seen, n in zip(arena.seen, added)])
            self.columns -= news.q.shape[2]
            run.ledger.rollback(self.slot, arena.length, max(added), probe=True)
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
        self.loader.cut(self.arena)
        trim(self)
        self.columns -= tokens
        self.run.ledger.rollback(self.slot, self.arena.length, tokens, probe)

    def close(self) -> None:
        """Nothing is dropped from here on: let go of what was noted to that end."""
        self.last_queries, self.states = [], []
        if self.arena is not None:
            self.arena.tally = None
            self.hold()

    def blank(self, run: Run) -> ArenaLayer:
        """A layer of this kind that has no rows yet."""
        return ArenaLayer(self.slot, run)

    def fork(self, run: Run) -> ArenaLayer:
        """The same rows under another run; buffers are shared until one side writes."""
        twin = self.blank(run)
        for name in ("is_initialized", "columns", "windows", "full_heads", "output", "scale", "copies"):
            setattr(twin, name, getattr(self, name))
        twin.last_queries, twin.states, twin.kept = list(self.last_queries), list(self.states), dict(self.kept)
        twin.loader = self.loader.fork()
        twin.arena = None if self.arena is None else self.arena.fork(twin._hold)
        return twin
