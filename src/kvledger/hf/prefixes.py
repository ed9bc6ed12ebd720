"""Contexts that were read once and are asked again: a store of sealed caches in one process, shared by token hash.

What is shared, and is exact (tests/hf/test_prefixes.py compares rows, answers and ledgers with reading afresh):

- A whole context, under every recipe: a request for the same tokens gets a fork, which shares its buffers until it writes.
- A context that begins like one in the store, by whole chunks: reading goes on from the last chunk that both have. Under `full`
  and under recipes that drop while they read (when="chunk", head profiles) that state is what the store holds anyway.
- Methods that drop after the prompt have nothing left to go on from, unless `dense=True` also keeps what had been read before
  they dropped, at the price of a full cache.
- Chunks that CacheBlend reads apart, wherever they stood (there up to rounding, as keys are turned).

What is not: the last chunk of a context, whatever follows it (a method may look at its end); contexts that differ in a token,
in a chunk boundary or in what is protected; a context that was read together with its question; and patched reading.

The trie over chunks is kept flat: the key of a state is the hash of all chunks up to it, as in vLLM's prefix caching
(PagedAttention, arXiv 2309.06180, §4.4).  Unlike there the rows of a head are contiguous, so contexts that part ways each hold
what they begin with; the states along one context are shorter views of its last buffers and cost no rows of their own.  Where
rows go that were judged before (heads with a window, budgets in rows) they are no such views, and only the last one is kept.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvledger.cache.arena import Arena
from kvledger.hf import cache as caches
from kvledger.hf.encoded import Chunks, Encoded
from kvledger.hf.hybrid import states
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.reading import Reading
from kvledger.hf.saved import identity, reopen
from kvledger.hf.session import Session, open_session


@dataclass
class Begun:
    """A context after some whole chunks: a cache that is still reading, never written to itself."""

    cache: Any
    tokens: int


State = Begun | Session | Encoded


class Prefixes:
    """Sessions of `model` under `recipe` that have read a context, from a store of at most `bytes` bytes, counted from the
    tensors (shared ones once); least recently used ones go first. Sessions that were handed out are not counted: they share
    the store's buffers until they write, and keep them alive. While a context is read, its cache exists twice.

    chunk: tokens read at a time (0: all at once, so that only whole contexts are shared). dense: see above. folder: if given,
    each whole context is also written there (`Session.save`), and found there by this and other processes.
    chunks: under cacheblend those of earlier contexts, in the same store; the ledger counts them as taken, not read.
    hits: requests whose whole context was there; continued: those that went on from a part; misses: the others. reused: tokens
    that were not read again. Not for several threads at once.

    ValueError for what `kvledger.open` refuses, and for `dense=True` where no dense prefix exists.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        recipe: Any,
        chunk: int = 0,
        bytes: int = 1 << 30,
        dense: bool = False,
        folder: str | Path | None = None,
    ):
        self._blank = open_session(model, tokenizer, recipe, chunk)
        self.recipe, self.chunk, self.budget, self.dense = self._blank.recipe, chunk, bytes, dense
        self.folder = None if folder is None else Path(folder)
        if dense:
            _check_dense(self._blank)
        self.hits = self.continued = self.misses = self.reused = 0
        self._states: dict[str, State] = {}  # least recently used first; keys of whole contexts end in "."
        self.chunks = Chunks(model, self._states) if getattr(self.recipe.source, "blends", False) else None
        whose = f"{identity(model, tokenizer)} {self.recipe} {self.recipe.fingerprint} {chunk}"
        self._seed = hashlib.sha256(whose.encode())

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return _size(self._states.values())

    def session(self, context: str, protect: Sequence[tuple[int, int]] = ()) -> Session:
        """A session of its own that has read `context`, as `Session.read` would; `protect` as there. Its ledger is that of a
        session that read alone, its first turn is charged with the seconds that this call took. ValueError for a context that
        cannot be read, or that alone does not fit into the store."""
        started = time.perf_counter()
        fresh = self._open()
        ids = fresh.prompt(context, protect=protect)
        skipped = fresh.run.ledger.skipped
        keys = self._keys(ids, fresh.run.pinned)
        whole = self._find(keys[-1])
        if whole is None:
            whole = self._read(fresh, ids, keys)
        else:
            self.hits, self.reused = self.hits + 1, self.reused + len(ids)
        self._touch(keys)
        session = whole.fork()
        session.run.ledger.skip(skipped)
        session.reading_seconds = time.perf_counter() - started
        return session

    # ---- finding -------------------------------------------------------------------------------------------------

    def _open(self) -> Session:
        """A session that has read nothing; all share one `Chat`, which remembers the last context's tokens."""
        fresh = Session(self._blank.model, self._blank.chat.tokenizer, self.recipe, self.chunk)
        fresh.chat = self._blank.chat
        return fresh

    def _keys(self, ids: list[int], pinned: frozenset[int]) -> list[str]:
        """A key for the state after each whole chunk that is not the last, and one for the whole context. What is protected
        decides what a chunk keeps, so it is part of the key."""
        digest, keys, size = self._seed.copy(), [], self.chunk or len(ids)
        for start in range(0, len(ids), size):
            span = range(start, min(start + size, len(ids)))
            digest.update(" ".join(f"{ids[i]}{'!' if i in pinned else ''}" for i in span).encode() + b"\n")
            keys.append(digest.hexdigest())
        return [*keys[:-1], keys[-1] + "."]

    def _find(self, key: str) -> Session | None:
        """The whole context of that key, from memory or from the folder."""
        state = self._states.get(key)
        if state is None and self._file(key).is_file():
            blank = self._blank
            state = reopen(blank.model, blank.chat.tokenizer, self._file(key), recipe=self.recipe)
            state.chat = blank.chat
            self._fit([state], state.tokens, state.tokens)
            self._states[key] = state
            self._trim()
        assert not isinstance(state, Begun | Encoded)
        return state

    def _file(self, key: str) -> Path:
        return Path() if self.folder is None else self.folder / f"{key[:32]}.kv"

    def _touch(self, keys: Iterable[str]) -> None:
        """These were used just now."""
        for key in keys:
            if key in self._states:
                self._states[key] = self._states.pop(key)

    # ---- reading -------------------------------------------------------------------------------------------------

    def _read(self, session: Session, ids: list[int], keys: list[str]) -> Session:
        """Read what is not in the store yet, and put it there."""
        path = {key: state for key in keys if isinstance(state := self._states.get(key), Begun)}
        if path:
            _resume(session, list(path.values())[-1])
        begun_at, reading, session.encoded = session.tokens, Reading(session), self.chunks if session.chunks else None
        for key in keys[session.tokens // self.chunk : -1] if self._between else ():
            reading.advance(ids, session.tokens + self.chunk)
            now = Begun(caches.fork(session.cache), session.tokens)
            path = {k: x for k, x in path.items() if k in self._states or _seat(x, now.cache)} | {key: now}
            if self.dense or not self.recipe.drops:
                self._fit([now], now.tokens, len(ids))
        reading.advance(ids, len(ids))
        reading.end()
        session.begin_turns(asked=False)
        last = list(path.values())[-1:]
        self._fit([session, *last] if self.dense else [session], len(ids), len(ids))
        for state in path.values():
            any(_seat(state, cache) for cache in (session.cache, *(one.cache for one in last)))
        self._states |= path | {keys[-1]: session}
        self._touch(keys)
        self._trim()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            session.save(self._file(keys[-1]))
        self.reused += begun_at
        self.continued, self.misses = self.continued + (begun_at > 0), self.misses + (begun_at == 0)
        return session

    @property
    def _between(self) -> bool:
        """Whether states between chunks are kept."""
        method = self.recipe.method
        if getattr(self.recipe.source, "blends", False):
            return False
        return self.chunk > 0 and (self.dense or not (method.drops and method.when == "prompt"))

    # ---- bytes ---------------------------------------------------------------------------------------------------

    def _fit(self, states: Sequence[State], tokens: int, of: int) -> None:
        held = _size(states)
        if held > self.budget:
            raise ValueError(
                f"{tokens:,} of the {of:,} tokens of the context hold {held:,} bytes under {self.recipe}"
                f"{' with their dense prefix' if self.dense else ''}, and the store may hold {self.budget:,}: raise bytes= to "
                f"{held * of // tokens:,} or more, or keep less"
            )

    def _trim(self) -> None:
        """Let go of the least recently used states until the budget holds."""
        parts = {key: _storages(state) for key, state in self._states.items()}
        users = Counter(place for part in parts.values() for place in part)
        held = sum({place: n for part in parts.values() for place, n in part.items()}.values())
        for key, part in parts.items():
            if held <= self.budget:
                return
            del self._states[key]
            users.subtract(part.keys())
            held -= sum(n for place, n in part.items() if not users[place])


def _check_dense(session: Session) -> None:
    recipe = session.recipe
    if not session.chunk:
        raise ValueError(
            "dense=True shares what contexts begin with by whole chunks, and chunk=0 has none: give a chunk size"
        )
    at_end = recipe.method.drops and recipe.method.when == "prompt"
    if recipe.drops and recipe.method.when != "decode" and not at_end:
        raise ValueError(
            f"{recipe} drops while it reads, so it has no dense prefix to keep; its states between chunks are shared "
            "as they are: leave dense=False"
        )


def _storages(state: State) -> dict[tuple[torch.device, int], int]:
    """Bytes by place of all memory that a state holds."""
    held: list[Any] = [x for rows in getattr(state, "layers", ()) for x in rows]  # of a chunk
    for layer in () if isinstance(state, Encoded) else state.cache.layers:
        if not isinstance(layer, ArenaLayer):
            held += caches.tensors_of(layer)
            continue
        held += states(layer)  # of a hybrid's recurrent half
        held += layer.arena.tensors if layer.arena is not None else ()
        held += [*layer.last_queries, *(x for learned in layer.states for x in learned or ())]
        held += [*getattr(layer.loader.index, "tables", ()), *(kept.table for kept in layer.kept.values())]
    tensors = [x for x in held if isinstance(x, Tensor)]
    return {(x.device, x.untyped_storage().data_ptr()): x.untyped_storage().nbytes() for x in tensors}


def _size(states: Iterable[State]) -> int:
    return sum({place: n for state in states for place, n in _storages(state).items()}.values())


def _resume(session: Session, begun: Begun) -> None:
    """Let a session that has read nothing go on from `begun`. Its rows are moved to buffers of their own size first, so that
    its ledger does not see what else the store's buffers hold."""
    pinned = session.run.pinned
    session.cache, session.tokens = caches.fork(begun.cache), begun.tokens
    session.run = caches.run_of(session.cache)
    session.run.pinned = pinned
    for layer in caches.arenas(session.cache):
        arena = layer.arena
        assert arena is not None
        watch, arena.watch = arena.watch, lambda held: None
        arena.select(range(arena.batch))
        arena.watch = watch


def _seat(begun: Begun, host: Any) -> bool:
    """Let `begun` hold its rows in the buffers of a cache that read on from there, if they are the first rows of each of its
    segments; whether they are."""
    layers, hosts = caches.arenas(begun.cache), caches.arenas(host)
    seats = [_inside(mine.arena, theirs.arena) for mine, theirs in zip(layers, hosts)]
    if any(seat is None for seat in seats):
        return False
    for layer, seat in zip(layers, seats):
        assert seat is not None
        seat.watch, layer.arena = layer._hold, seat
    return True


def _inside(arena: Arena | None, host: Arena | None) -> Arena | None:
    """`arena`, as a view of the first rows of each segment of `host`; None if it is not."""
    assert arena is not None
    assert host is not None
    if not arena.by_row or (arena.position is not None and _other_dtype(arena.position, host.position)):
        return None
    for s, n in enumerate(arena.length):
        if n > host.length[s] or not torch.equal(arena.positions(s), host.positions(s)[:n]):
            return None
    twin = host.fork()
    twin.length, twin.seen, twin.tally = list(arena.length), list(arena.seen), None
    if arena.position is None:
        twin.position = None
    if arena.tally is not None:
        twin.tally = arena.tally.new_zeros(len(twin.k))
        for s in range(len(twin.start)):
            twin.tally[twin.segment(s)] = arena.tally[arena.segment(s)]
    return twin


def _other_dtype(mine: Tensor, theirs: Tensor | None) -> bool:
    return theirs is None or mine.dtype != theirs.dtype
