"""Patched reading: every chunk is judged by the prompt's last queries, and the patch leaves nothing behind.

The reference is dense and written out: eager layers' own queries and keys, the paper's vote (arXiv 2506.17121 §3; SnapKV's
scores over the chunk and the patch, whose own columns are left out), top rows, and masks for all that was dropped.
"""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

import kvledger as kv
from kvledger.hf.cache import arenas

W, CHUNK, KEEP, KERNEL = 4, 12, 0.5, 5
CONTEXT, QUESTION = tiny.text(40), tiny.text(5, seed=1)
RECIPE = f"snapkv(keep={KEEP}, window={W}, kernel={KERNEL}, when='chunk')"


class Dense:
    """A chunked reader over plain lists of kept (key, value) rows per layer and KV head; notes the positions kept."""

    def __init__(self, made: Any):
        self.made, config = made, made.config
        self.heads, self.groups = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
        empty = torch.zeros(0, config.head_dim, dtype=torch.float64)
        self.rows = [[(empty, empty, []) for _ in range(self.heads)] for _ in range(config.num_hidden_layers)]

    def forward(self, ids: list[int], first: int, patch: int, budget: int | None) -> Tensor:
        """`patch` of the ids come last and are forgotten; `budget` rows of the others stay (None: all)."""

        def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **more: Any):
            out = torch.zeros_like(q)
            for head in range(q.shape[1]):
                h = head // self.groups
                out[0, head] = self._attend(module.layer_idx, h, q[0, head], k[0, h], v[0, h], scaling)
            for h in range(self.heads):
                group = q[0, h * self.groups : (h + 1) * self.groups]
                self._store(module.layer_idx, h, group, k[0, h], v[0, h], scaling, first, patch, budget)
            return out.transpose(1, 2), None

        AttentionInterface.register("dense_patched", attention)
        AttentionMaskInterface.register("dense_patched", lambda **arguments: None)
        position = torch.arange(first, first + len(ids))[None]
        with tiny.implementation(self.made, "dense_patched"), torch.inference_mode():
            return self.made(torch.tensor([ids]), position_ids=position, use_cache=False).logits[0, -1]

    def _attend(self, layer: int, h: int, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        old_k, old_v, _ = self.rows[layer][h]
        logits = q @ torch.cat([old_k, k]).T * scaling
        later = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
        logits[:, len(old_k) :].masked_fill_(later, -torch.inf)
        return logits.softmax(-1) @ torch.cat([old_v, v])

    def _store(self, layer, h, group, k, v, scaling, first, patch, budget) -> None:
        n = len(k) - patch
        kept = list(range(n))
        if budget is not None:
            prefix = len(k) - W  # a patch is the window; in the last chunk the window are the chunk's own rows
            votes = torch.zeros(len(group), prefix)
            for g, q in enumerate(group):
                for i in range(W):
                    reach = prefix + i + 1
                    votes[g] += (k[:reach].float() @ q[prefix + i].float() * scaling).softmax(0)[:prefix]
            smooth = torch.nn.functional.avg_pool1d(votes, KERNEL, 1, KERNEL // 2).mean(0)
            free = budget if patch else budget - W
            best = smooth.argsort(descending=True, stable=True)[:free].tolist()
            kept = sorted(best + ([] if patch else list(range(prefix, n))))
        old_k, old_v, old = self.rows[layer][h]
        self.rows[layer][h] = torch.cat([old_k, k[kept]]), torch.cat([old_v, v[kept]]), old + [first + i for i in kept]


@pytest.fixture
def read() -> tuple[kv.Session, Dense, Tensor]:
    """The same prompt, read by a session and by the dense reader; and the latter's last logits."""
    made = tiny.model("llama", torch.float64)
    session = kv.open(made, tiny.tokenizer(), RECIPE, CHUNK)
    session.read(CONTEXT, QUESTION, patched=True)
    dense, ids = Dense(made), tiny.tokenizer()(f"{CONTEXT} {QUESTION}")["input_ids"]
    for start in range(0, len(ids), CHUNK):
        chunk, last = ids[start : start + CHUNK], start + CHUNK >= len(ids)
        logits = dense.forward(chunk + ([] if last else ids[-W:]), start, 0 if last else W, int(KEEP * len(chunk)))
    return session, dense, logits


def test_the_rows_kept_are_those_that_the_prompts_last_queries_want(read) -> None:
    session, dense, _ = read
    kept = [[set(positions) for _, _, positions in layer] for layer in dense.rows]
    assert tiny.alive(session.cache) == kept
    naive = kv.open(session.model, tiny.tokenizer(), RECIPE, CHUNK)
    naive.read(CONTEXT, QUESTION)
    assert tiny.alive(naive.cache) != kept
    for layer, rows in zip(arenas(session.cache), dense.rows):
        for s, (k, v, _) in enumerate(rows):
            torch.testing.assert_close(layer.arena.k[layer.arena.segment(s)], k, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(layer.arena.v[layer.arena.segment(s)], v, rtol=1e-6, atol=1e-6)


def test_the_patch_leaves_no_rows_and_positions_go_on(read) -> None:
    session, dense, logits = read
    assert session.tokens == 46
    assert all(layer.columns == 46 and layer.arena.seen == [46] for layer in arenas(session.cache))
    assert sum(layer.arena.rows for layer in arenas(session.cache)) == (6 + 6 + 6 + 5) * 2 * 3
    assert all(layer.last_queries == [] for layer in arenas(session.cache))
    with tiny.Witness(session.model) as witness:
        answer = session.answer(4)
    for token, (ids, _, said) in enumerate(witness.steps):
        logits = dense.forward(ids, 46 + token, 0, None)
        torch.testing.assert_close(said, logits, rtol=1e-5, atol=1e-5)
    assert answer.prompt_tokens == 46


def test_the_first_token_follows_from_the_whole_prompt(read) -> None:
    session, _, logits = read
    token = int(logits.argmax())
    assert session.answer(1).text == tiny.tokenizer().decode([token])


def test_the_patch_is_on_the_books_and_not_in_the_full_cache(read) -> None:
    session, _, _ = read
    ledger = session.ledger
    assert sum(step.tokens for step in ledger.steps) == 46 + 3 * W
    full = 46 * 47 / 2
    area, alive = 0.0, 0
    for rows, patch, kept in ((12, W, 6), (12, W, 6), (12, W, 6), (10, 0, 5)):
        T = rows + patch
        area += T * (T + 1) / 2 + T * alive
        alive += kept
    assert ledger.footprint == pytest.approx(area / full)
    assert ledger.full_bytes == 46 * 2 * 3 * 2 * 16 * 8
    assert ledger.dropped == (46 - 23) * 2 * 3


@pytest.mark.parametrize("name", ["adakv", "pyramidkv"])
def test_every_voting_method_reads_patched(name: str) -> None:
    session = kv.open(tiny.model("llama", torch.float64), tiny.tokenizer(), RECIPE.replace("snapkv", name), CHUNK)
    session.read(CONTEXT, QUESTION, patched=True)
    total = sum(layer.arena.rows for layer in arenas(session.cache))
    assert total == 23 * 6 if name == "adakv" else 23 * 6 <= total <= 23 * 6 + 4 * 6
    assert {layer.arena.seen[0] for layer in arenas(session.cache)} == {46}


def test_methods_without_votes_read_as_ever() -> None:
    kept = []
    for patched in (False, True):
        session = kv.open(tiny.model(), tiny.tokenizer(), "streaming(keep=0.5, when='chunk')", CHUNK)
        session.read(CONTEXT, QUESTION, patched=patched)
        kept.append(tiny.alive(session.cache))
    assert kept[0] == kept[1]


def test_sliding_windows_cannot_forget_a_patch() -> None:
    session = kv.open(tiny.model("gemma3_text"), tiny.tokenizer(), RECIPE, CHUNK)
    with pytest.raises(ValueError, match="others cannot forget the patch"):
        session.read(CONTEXT, QUESTION, patched=True)
