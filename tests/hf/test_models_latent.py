"""Multi-head latent attention: the latents are the cache. Each is stored once and counted once, and what is dropped is dropped
for all heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import tiny
import torch

import kvledger as kv
from kvledger.cache.latent import LatentArena
from kvledger.hf.cache import arenas
from kvledger.hf.latent import LatentLayer, ranks

pytestmark = pytest.mark.skipif(not ranks(models.model("deepseek_v3")), reason="this transformers caches expanded keys")
RANK, ROTATED = 16, 8


def opened(recipe: str, kind: str = "deepseek_v3", chunk: int = 0) -> Any:
    return kv.open(models.model(kind), tiny.tokenizer(), recipe, chunk)


@pytest.mark.parametrize("recipe", ["snapkv(keep=0.5, window=4)", "h2o(keep=0.4)", "streaming(keep=0.5, sinks=2)"])
@pytest.mark.parametrize("chunk", [0, 8])
def test_what_is_dropped_equals_dense_attention_with_it_masked(recipe: str, chunk: int) -> None:
    session = opened(recipe, chunk=chunk)
    with tiny.Witness(session.model) as witness:
        session.read(tiny.text(24))
        session.ask(tiny.text(3, seed=1), 4)
    torch.testing.assert_close(witness.logits(), witness.dense(), rtol=1e-4, atol=1e-4)
    assert session.ledger.dropped > 0


def test_a_row_is_one_latent_for_all_heads() -> None:
    session = opened("full")
    session.read(tiny.text(24))
    layer = arenas(session.cache)[0]
    assert isinstance(layer, LatentLayer)
    assert isinstance(layer.arena, LatentArena)
    tokens, layers = session.tokens, len(session.cache.layers)
    assert session.ledger.full_bytes == tokens * layers * (RANK + ROTATED) * 4 == session.ledger.stored_bytes
    k, v = layer.arena.plain(0)
    assert (k.shape, v.shape) == ((tokens, RANK + ROTATED), (tokens, RANK))
    assert torch.equal(k[:, :RANK], v)


def test_forks_and_files_hold_latents(tmp_path: Path) -> None:
    session = opened("snapkv(keep=0.5, window=4)")
    session.read(tiny.text(24))
    session.save(tmp_path / "saved")
    again = kv.reopen(session.model, tiny.tokenizer(), tmp_path / "saved")
    twin = session.fork()
    told = session.ask("w7 w8 w9", 5, gold="w5")
    assert twin.ask("w7 w8 w9", 5) == told == again.ask("w7 w8 w9", 5)
    assert session.ledger.stored_bytes == models.walk(session.cache.layers)


def test_what_latents_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="no output projection"):
        opened("criticalkv(keep=0.5)").read(tiny.text(24))
    with pytest.raises(ValueError, match="cache holds latents"):
        opened("kivi(bits=4, group=8)")
