"""Which prefill pattern suits each query head: MInference's offline search (Jiang et al., 2024, arXiv 2407.02490 §3.2).

Prompts are read densely, in one go. In each layer every candidate pattern chooses for every head, and what it would keep of the
attention is exp(lse of the chosen rows - lse of all rows) for a query; the mean over the queries behind the first twelfth of
the prompt, over prompts, decides. The candidates are those of the authors' code, whose sizes are for 30,000 tokens, in
proportion to the prompt's length. Deviation: the code writes a winning A-shape down as vertical-slash of the same sizes and
block-sparse as another; here a head gets what won.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from kvledger.cache.masks import Band
from kvledger.cache.sparse import read
from kvledger.hf.attention import use
from kvledger.hf.cache import arenas, check_supported, new_cache, run_of
from kvledger.hf.chat import Chat
from kvledger.hf.layer import ArenaLayer
from kvledger.hf.note import News
from kvledger.hf.place import home
from kvledger.methods.headpatterns import HeadPattern, HeadPatterns
from kvledger.methods.minference import MInference, choose
from kvledger.methods.pattern import Look

TOKENS = 30_000
CANDIDATES = (
    HeadPattern("a_shape", 100, 800),
    HeadPattern("vertical_slash", 30, 800),
    HeadPattern("vertical_slash", 100, 750),
    HeadPattern("vertical_slash", 500, 700),
    HeadPattern("vertical_slash", 3500, 100),
    HeadPattern("block_sparse", 100),
)
UNCOUNTED = 12  # the first 1/12 of the queries see nearly all rows under any pattern


class _Searching(ArenaLayer):
    """A layer that drops nothing and leaves the attention that each candidate would have kept, `shares` [Hq, candidates]."""

    shares: Tensor
    candidates: Sequence[HeadPattern]

    def _settle(self, news: News) -> None:
        arena = self.arena
        assert arena is not None
        G, T = news.q.shape[1] // arena.heads, news.q.shape[2]
        found = []
        for h in range(arena.heads):
            group = slice(h * G, (h + 1) * G)
            k, v = arena.plain(h)
            look = Look(self.slot, range(h * G, (h + 1) * G), news.q[0, group], k, self.scale, news.softcap)
            dense = read(look.queries, k, v, Band(0, len(k)), look.scale, look.softcap)[1][:, T // UNCOUNTED :]
            late = [_lse(look, v, one)[:, T // UNCOUNTED :] for one in self.candidates]
            kept = [(lse - dense).clamp(max=0).exp().mean(-1) for lse in late]
            found.append(torch.stack(kept, -1))
        self.shares = torch.cat(found)
        super()._settle(news)


def _lse(look: Look, v: Tensor, candidate: HeadPattern) -> Tensor:
    usual = MInference()
    choice = choose(look, [candidate] * len(look.heads), usual.queries, usual.block)
    return read(look.queries, look.keys, v, choice, look.scale, look.softcap)[1]


def sized(tokens: int) -> list[HeadPattern]:
    """The candidates for a prompt of so many tokens."""
    scale = tokens / TOKENS
    return [HeadPattern(one.kind, max(1, round(one.first * scale)), round(one.second * scale)) for one in CANDIDATES]


@torch.inference_mode()
def head_patterns(model: Any, tokenizer: Any, prompts: Iterable[tuple[str, str]], tokens: int) -> HeadPatterns:
    """For each full-attention layer and query head the candidate that keeps most of the attention, over prompts of a context
    and a question of about `tokens` tokens. ValueError for a model whose cache cannot be held, or no prompt."""
    check_supported(model)
    use(model)
    chat, candidates, kept = Chat(tokenizer), sized(tokens), []
    for context, question in prompts:
        before, after = chat.opening(context, question)
        cache = new_cache(model, "full")
        run_of(cache).auto = False
        cache.layers = [_searching(layer, candidates) for layer in cache.layers]
        model(input_ids=torch.tensor([before + after], device=home(model)), past_key_values=cache, use_cache=True)
        kept.append(torch.stack([layer.shares for layer in arenas(cache) if isinstance(layer, _Searching)]))
    if not kept:
        raise ValueError("no sample to search with: ask for one at least")
    best = torch.stack(kept).float().mean(0).max(-1)
    heads = tuple(tuple(candidates[i] for i in row) for row in best.indices.tolist())
    return HeadPatterns(heads, tuple(tuple(round(x, 4) for x in row) for row in best.values.tolist()))


def _searching(layer: Any, candidates: Sequence[HeadPattern]) -> Any:
    if not isinstance(layer, ArenaLayer):
        return layer
    twin = _Searching(layer.slot, layer.run)
    vars(twin).update(vars(layer))
    twin.candidates = candidates
    return twin
