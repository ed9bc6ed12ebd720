"""What each decode step of a model read, seen from outside, and what its index should hold. Shared by the tests of readers."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from kvledger.cache.arena import Arena
from kvledger.cache.index import Index
from kvledger.hf.loading import Loader
from kvledger.methods.reader import Look, Reader
from kvledger.recipe import registry


class Reads(tiny.Witness):
    """A witness who also writes down which tokens each decode step attended to, and what that should have cost."""

    def __init__(self, made: Any, monkeypatch: pytest.MonkeyPatch):
        super().__init__(made)
        self.reads: list[dict[int, dict[int, list[int]]]] = []  # per forward: layer -> segment -> tokens
        self.bytes: list[dict[int, int]] = []
        kinds = {cls for cls in registry().values() if cls.role == "reader"}
        read, chooses = Loader.read, {cls: cls.choose for cls in kinds}

        def reading(loader: Loader, layer: Any, *rest: Any) -> Any:
            self.slot = loader.slot
            return read(loader, layer, *rest)

        def choosing(reader: Reader, look: Look) -> Any:
            choice = chooses[type(reader)](reader, look)
            if choice is not None:
                self._note(look.arena, choice.spans, choice.nbytes)
            return choice

        monkeypatch.setattr(Loader, "read", reading)
        for cls in kinds:
            monkeypatch.setattr(cls, "choose", choosing)

    def _before(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        super()._before(module, args, kwargs)
        self.reads.append({})
        self.bytes.append({})

    def _note(self, arena: Arena, spans: Tensor, nbytes: int) -> None:
        tokens: dict[int, list[int]] = {}
        for s, first, n in spans.tolist():
            inside = slice(first - arena.start[s], first - arena.start[s] + n)
            tokens.setdefault(s, []).extend(arena.positions(s)[inside].tolist())
        self.reads[-1][self.slot] = tokens
        self.bytes[-1][self.slot] = nbytes + sum(map(len, tokens.values())) * arena.row_nbytes

    def dense(self) -> Tensor:
        """As `Witness.dense`, for forwards that came one after the other and were all kept."""
        tokens = [token for ids, _, _ in self.steps for token in ids]
        layers, heads = self.model.config.num_hidden_layers, self.model.config.num_attention_heads
        allowed = torch.zeros(layers, heads, len(tokens), len(tokens), dtype=torch.bool)
        start, last = 0, []
        for (ids, stored, _), reads in zip(self.steps, self.reads):
            stop = start + len(ids)
            allowed[:, :, start:stop, start:stop] = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
            for layer in range(layers):
                for head in range(heads if start else 0):
                    kept = sorted(stored[layer][head * len(stored[layer]) // heads])
                    chosen = reads.get(layer, {}).get(head * len(stored[layer]) // heads)
                    if chosen is not None:
                        allowed[layer, head, start] = False  # not even itself, unless it was chosen
                    allowed[layer, head, start:stop, kept if chosen is None else chosen] = True
            last.append(stop - 1)
            start = stop
        return tiny.masked_forward(self.model, torch.tensor([tokens]), allowed)[0, last]


def check_index(layer: Any) -> None:
    """The index is what would be built from the rows as they are."""
    layer.loader.catch_up(layer)
    index, arena = layer.loader.index, layer.arena
    assert (index is None) == (type(layer.run.reader).row.name == "retrieval_attention" or not layer.loader.chooses)
    if index is not None:
        segments = [b * arena.heads + h for b in range(arena.batch) for h in layer.full_heads]
        fresh = Index(index.size, index.summary)
        fresh.update(arena, segments)
        assert fresh.count == index.count
        for s in segments:
            for a, b in zip(index.tables, fresh.tables):
                assert torch.equal(a[index.start[s] :][: index.count[s]], b[fresh.start[s] :][: fresh.count[s]])
