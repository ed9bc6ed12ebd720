"""CacheBlend's reading (arXiv 2405.16444 §4): chunks encoded apart, then some tokens again, over what the others left.

Three passes over the first tokens of a session's context.  Each chunk is read alone, at its own place, and its rows are stored;
one that an earlier request has read (`encoded.py`) is not read again.
Then all tokens go through the first layers and no further, and the rows of those layers are written again.  The tokens whose
rows changed most go through the whole model a second time: in each layer their new rows take the place of the old ones, and
they attend to all rows up to their own.  That is the paper's selective recompute, in which those tokens alone leave the layer
where they were chosen; what they compute below it a second time is `layer` of the model's layers for that fraction.

The rest of the prompt is then read as usual, and rows are dropped then, if the recipe says so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from kvledger.cache.arena import Arena
from kvledger.cache.ledger import triangle
from kvledger.hf import cache as caches
from kvledger.hf.attention import TAG, attention_function, use
from kvledger.hf.encoded import Rows
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.place import home

if TYPE_CHECKING:
    from kvledger.hf.session import Session

QUERIES = 512  # whose mask over all rows is held at a time


@torch.inference_mode()
def blend(session: Session, ids: list[int], edges: list[int]) -> None:
    """Read the first edges[-1] tokens of the prompt `ids` into the session's empty cache; chunk i begins at edges[i]."""
    started, source, stop = time.perf_counter(), session.recipe.source, edges[-1]
    use(session.model)
    session.run.ledger.kind = "read"
    stores = _encode(session, ids, edges)
    fresh = _first_layers(session, ids[:stop], source.layer, stores)
    copies = caches.arenas(session.cache)[0].copies
    chosen = source.choose(deviation(fresh[source.layer], rows_of(stores[source.layer], stop, copies)))
    session.encoded = None
    for store, (k, v) in zip(stores, fresh):
        for s in range(len(store.start)):
            h = s * len(k) // len(store.start)
            store.replace(s, torch.arange(stop, device=k.device), k[h], v[h])
    del fresh
    _recompute(session, ids, chosen, stores)
    _hand_over(session, stores, stop)
    session.reading_seconds += time.perf_counter() - started


def deviation(new: Rows, old: Rows) -> Tensor:
    """How far each token's rows are from the stored ones: squared distance of keys and values over all heads, [N] float32."""
    parts = [((a.float() - b.float()) ** 2).sum((0, 2)) for a, b in zip(new, old)]
    return parts[0] + parts[1]


def rows_of(store: Arena, stop: int, copies: int = 1) -> Rows:
    """The first `stop` rows of each KV head, which is stored `copies` times."""
    k, v = zip(*[store.span(s, 0, stop) for s in range(0, len(store.start), copies)])
    return torch.stack(k), torch.stack(v)


# ---- the three passes --------------------------------------------------------------------------------------------


def _encode(session: Session, ids: list[int], edges: list[int]) -> list[Arena]:
    """Read each chunk alone, but for those that an earlier request has read; the stores of all layers, plain whatever the
    recipe's format."""
    layers, heads, known = caches.arenas(session.cache), _query_heads(session), session.encoded
    stores: list[Arena] = []
    for start, stop in pairwise(edges):
        rows = known.find(ids[start:stop], start) if known is not None else None
        there, rows = rows is not None, rows or _alone(session, ids, start, stop)
        for layer, (keys, values) in zip(layers, rows):
            if layer.arena is None:
                layer._open(keys, values, heads)
            if len(stores) < len(layers):
                stores.append(_scratch(layer))
            store = stores[layer.slot]
            store.append(*(x.repeat_interleave(layer.copies, dim=1) for x in (keys, values)))
            if there:
                layer.run.ledger.take(layer.slot, stop - start, store.length)
            else:
                _account(layer, store, stop - start, 0, triangle(stop - start, 0))
    return stores


def _alone(session: Session, ids: list[int], start: int, stop: int) -> list[Rows]:
    """All layers' rows [1, H, n, D] of a chunk that is read by itself."""
    cache = _plain_cache(session)
    _forward(session, ids[start:stop], cache, range(start, stop))
    rows = [(layer.keys, layer.values) for layer in cache.layers]
    if session.encoded is not None:
        session.encoded.add(ids[start:stop], start, rows)
    return rows


def _first_layers(session: Session, ids: list[int], last: int, stores: list[Arena]) -> list[Rows]:
    """What the layers up to `last` store of these tokens, read as usual."""
    cache, found = _plain_cache(session), []
    cache.layers[last] = Halt()
    size = session.chunk or len(ids)
    for start in range(0, len(ids), size):
        try:
            _forward(session, ids[start : start + size], cache, range(start, min(start + size, len(ids))))
        except Enough as reached:
            found.append(reached.rows)
    rows = [(layer.keys[0], layer.values[0]) for layer in cache.layers[:last]]
    rows.append((torch.cat([k[0] for k, _ in found], dim=1), torch.cat([v[0] for _, v in found], dim=1)))
    for layer, store, (k, v) in zip(caches.arenas(session.cache), stores, rows):
        layer._hold(store.nbytes + k.nbytes + v.nbytes)
        _account(layer, store, len(ids), len(ids), triangle(len(ids), 0), more=len(ids))
        layer._hold(store.nbytes)
    return rows


def _recompute(session: Session, ids: list[int], chosen: Tensor, stores: list[Arena]) -> None:
    """The tokens `chosen` through all layers, in the order of their places, so that later ones see what earlier ones wrote."""
    for part in chosen.split(session.chunk or max(1, len(chosen))):
        if not len(part):
            continue
        cache, places = _plain_cache(session), part.tolist()
        cache.layers = [BlendLayer(store, part, layer) for layer, store in zip(caches.arenas(session.cache), stores)]
        _forward(session, [ids[i] for i in places], cache, places)
        for layer, store in zip(caches.arenas(session.cache), stores):
            _account(layer, store, len(places), len(places), sum(places) + len(places))


def _hand_over(session: Session, stores: list[Arena], stop: int) -> None:
    """Leave the rows in the session's own arenas, in the form that the recipe asks for, as if they had been read."""
    for slot, layer in enumerate(caches.arenas(session.cache)):
        store, arena = stores[slot], layer.arena
        assert arena is not None
        if arena is not store:
            arena.watch = partial(_hold_both, layer, store)
            k, v = rows_of(store, stop)
            arena.append(k[None], v[None])
            arena.seal()
            arena.watch = layer._hold
        stores[slot] = arena
        layer.is_initialized, layer.columns = True, stop
        layer.hold()
    session.tokens = stop
    caches.account(session.cache, session.run, stop)


# ---- what they are made of ---------------------------------------------------------------------------------------


class Enough(Exception):
    """The layer that was to be looked at has been reached; nothing above it is wanted."""

    def __init__(self, rows: Rows):
        super().__init__()
        self.rows = rows


class Halt(DynamicLayer):  # type: ignore[misc]
    """A layer that nothing passes."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise Enough((key_states, value_states))


class BlendLayer(DynamicLayer):  # type: ignore[misc]
    """A layer in which the tokens `places` [T] are read again: their rows take the place of those that `store` holds."""

    def __init__(self, store: Arena, places: Tensor, layer: ArenaLayer):
        super().__init__()
        self.store, self.places, self.copies = store, places, layer.copies

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        key_states = key_states[:]
        setattr(key_states, TAG, self)
        return key_states, value_states

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        valid: Tensor | None,
        softcap: float | None,
        sinks: Tensor | None,
        module: nn.Module,
    ) -> Tensor:
        """Write the rows, attend to all up to each token's own. [1, Hq, T, Dk] -> [1, Hq, T, Dv]."""
        places = self.places.to(k.device)
        for s in range(len(self.store.start)):
            self.store.replace(s, places, k[0, s // self.copies], v[0, s // self.copies])
        keys, values = rows_of(self.store, int(places[-1]) + 1, self.copies)
        rows, out = torch.arange(keys.shape[1], device=k.device), []
        for start in range(0, len(places), QUERIES):
            mask = rows <= places[start : start + QUERIES, None]
            part = q[:, :, start : start + QUERIES]
            out.append(
                attention_function(
                    module, part, keys[None], values[None], mask[None, None], scale, softcap=softcap, s_aux=sinks
                )[0]
            )
        return torch.cat(out, dim=1).transpose(1, 2)


def _plain_cache(session: Session) -> Any:
    """transformers' own cache for the model, empty."""
    return DynamicCache(config=session.model.config.get_text_config(decoder=True))


def _forward(session: Session, ids: list[int], cache: Any, places: Sequence[int]) -> None:
    device = home(session.model)
    more: dict[str, Any] = {caches.argument(session.model): cache, "use_cache": True, **session.short_logits}
    session.model(
        input_ids=torch.tensor([ids], device=device), position_ids=torch.tensor([list(places)], device=device), **more
    )


def _query_heads(session: Session) -> int:
    return int(session.model.config.get_text_config(decoder=True).num_attention_heads)


def _scratch(layer: ArenaLayer) -> Arena:
    """A plain store for the layer's rows: its own, where that is plain."""
    assert layer.arena is not None
    return layer.arena if layer.run.format is None else Arena(1, layer.arena.heads, layer._hold)


def _hold_both(layer: ArenaLayer, store: Arena, held: int) -> None:
    layer._hold(held + store.nbytes)


def _account(layer: ArenaLayer, store: Arena, tokens: int, probe: int, pairs: float, more: int = 0) -> None:
    """Book a pass of `tokens` through a layer that took `pairs` query-key pairs; `more` rows of each head lived beside the
    stored ones meanwhile. A full cache would not have read the `probe` ones among them again."""
    ledger, alive = layer.run.ledger, store.length
    ledger.forward(layer.slot, [tokens], [n + more for n in alive], store.row_nbytes, probe)
    ledger.look(layer.slot, [pairs] * len(alive), [tokens], probe)
    if more:
        ledger.rollback(layer.slot, alive, more, probe=True)
