"""What each pattern chooses, against loops written from the papers' formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from patterns import EVERYTHING, NAMES, SPARSE
from torch import Tensor

from kvledger.cache.masks import allowed
from kvledger.methods import minference
from kvledger.methods.flexprefill import FlexPrefill, divergence
from kvledger.methods.headpatterns import HeadPattern
from kvledger.methods.minference import MInference
from kvledger.methods.moba import MoBA
from kvledger.methods.nsa import NSA, importance
from kvledger.methods.pattern import Look, by_distance, last_attention, pooled
from kvledger.methods.xattention import XAttention
from kvledger.recipe import parse

G, N, D, SCALE = 2, 45, 8, 0.5


def seen(T: int = N, ends: bool = True, softcap: float | None = None, seed: int = 0) -> Look:
    maker = torch.Generator().manual_seed(seed)
    q, k = torch.randn(G, N, D, generator=maker), torch.randn(N, D, generator=maker)
    return Look(0, range(G), q[:, N - T :], k, SCALE, softcap, ends)


def mask_of(pattern: object, look: Look) -> Tensor:
    return allowed(pattern.choose(look), *look.shape)  # type: ignore[attr-defined]


def weights(look: Look) -> Tensor:
    """Causal attention of all queries, [G, N, N]."""
    logits = look.queries @ look.keys.T * SCALE
    return logits.masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def top(scores: list[float], count: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def test_there_are_options_for_all() -> None:
    assert set(NAMES) == set(EVERYTHING) == set(SPARSE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("T", [N, 17])
def test_everything_is_everything_and_sparse_is_less(name: str, T: int) -> None:
    causal = torch.ones(T, N, dtype=torch.bool).tril(N - T).expand(G, -1, -1)
    assert torch.equal(mask_of(parse(EVERYTHING[name]).pattern, seen(T)), causal)
    sparse = mask_of(parse(SPARSE[name]).pattern, seen(T))
    assert bool((sparse <= causal).all())
    assert int(sparse.sum()) < int(causal.sum())


@pytest.mark.parametrize("name", ["ashape", "xattention", "moba", "nsa"])
def test_a_chunk_chooses_as_the_whole_does(name: str) -> None:
    """Where each query, or each block of them, chooses for itself. Chunks begin at whole blocks."""
    pattern = parse(SPARSE[name]).pattern
    assert torch.equal(mask_of(pattern, seen(17)), mask_of(pattern, seen())[:, -17:])


def test_shapes_of_ashape_and_trishape_are_the_papers() -> None:
    i, j = torch.arange(N)[:, None], torch.arange(N)
    paper = (j <= i) & ((j < 2) | (i - j < 6))
    assert torch.equal(mask_of(parse("ashape(sinks=2, window=6)").pattern, seen()), paper.expand(G, -1, -1))
    pattern = parse("trishape(sinks=2, window=6, last=5)").pattern
    assert torch.equal(mask_of(pattern, seen(ends=False)), paper.expand(G, -1, -1))
    paper[-5:] = (j <= i)[-5:]
    assert torch.equal(mask_of(pattern, seen()), paper.expand(G, -1, -1))


def test_vertical_slash_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minference, "FIRST", 2)
    monkeypatch.setattr(minference, "NEAREST", 3)
    look, block = seen(), 4
    A, want = weights(look)[:, -6:], torch.zeros(G, N, N, dtype=torch.bool)
    for g in range(G):
        vertical = [math.inf if j < 2 else float(A[g, :, j].sum()) for j in range(N)]
        slash = [
            math.inf if s < 3 else sum(float(A[g, w, N - 6 + w - s]) for w in range(6) if N - 6 + w >= s)
            for s in range(N)
        ]
        columns, distances = top(vertical, 5), top(slash, 6)
        for i in range(N):
            a = i // block * block
            for j in range(i + 1):
                want[g, i, j] = j >= a or j in columns or any(a - s <= j < a - s + block for s in distances)
    assert torch.equal(mask_of(MInference(vertical=5, slash=6, queries=6, block=block), look), want)


def test_heads_of_minference_have_patterns_of_their_own() -> None:
    look, block = seen(20), 4
    wanted = [HeadPattern("block_sparse", 3), HeadPattern("a_shape", 2, 7)]
    got = allowed(minference.choose(look, wanted, 6, block), *look.shape)
    q = torch.stack(
        [look.queries[0, max(0, a) : a + 4].mean(0) for a in range(-1, 20, 4)]
    )  # 25 older rows, one in the block
    k = torch.stack([look.keys[a : a + 4].mean(0) for a in range(0, N, 4)])
    for t in range(20):
        i = 25 + t
        own = i // block
        chosen = top((q[own - 6] @ k[: own + 1].T).tolist(), 3) | {own}
        assert set(got[0, t].nonzero().flatten().tolist()) == {j for j in range(i + 1) if j // block in chosen}
        reach = {j for j in range(i + 1) if j < 2 or j > own * block - 7}  # the window, to whole blocks
        assert set(got[1, t].nonzero().flatten().tolist()) == reach


def test_diagonals_and_columns_of_the_last_queries() -> None:
    look = seen()
    A = last_attention(look, 6)
    torch.testing.assert_close(A, weights(look)[:, -6:])
    for s in range(N):
        total = sum(A[:, w, N - 6 + w - s] for w in range(6) if N - 6 + w >= s)
        torch.testing.assert_close(by_distance(A)[:, s], total)
    x = torch.arange(10.0)[None, :, None]
    assert pooled(x, 4, lead=3).flatten().tolist() == [0, 2.5, 6.5, 9]


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_flexprefill_is_the_papers(tau: float) -> None:
    look, block, gamma = seen(), 4, 0.5
    blocks = -(-N // block)
    A, want = weights(look)[:, -block:], torch.zeros(G, N, N, dtype=torch.bool)
    q, k = (
        torch.stack([x[..., a : a + block, :].mean(-2) for a in range(0, N, block)], -2)
        for x in (look.queries, look.keys)
    )
    for g in range(G):
        pairs = {(a, 0) for a in range(blocks)} | {(a, a) for a in range(blocks)}
        if tau:  # query-aware
            later = torch.ones(blocks, blocks, dtype=torch.bool).triu(1)
            flat = (q[g] @ k.T * SCALE).masked_fill(later, -torch.inf).softmax(-1).flatten().tolist()
            mass = 0.0
            for n in sorted(range(len(flat)), key=lambda n: -flat[n]):
                if mass >= gamma * blocks:
                    break
                mass += flat[n]
                pairs.add((n // blocks, n % blocks))
        else:
            vertical = A[g].mean(0).tolist()
            slash = [
                sum(float(A[g, w, N - block + w - s]) for w in range(block) if N - block + w >= s) / block
                for s in range(N)
            ]
            chosen = []
            for mass_of in (vertical, slash):
                left, count = 0.0, 0
                for x in sorted(mass_of, reverse=True):
                    left, count = left + x, count + 1
                    if left > gamma:
                        break
                sums = [sum(mass_of[a : a + block]) for a in range(0, N, block)]
                chosen.append(top([math.inf, *sums[1:]], count // block + 1))
            pairs |= {(a, b) for a in range(blocks) for b in chosen[0] if b <= a}
            pairs |= {(a, a - b) for a in range(blocks) for b in chosen[1] if b <= a}
        for i in range(N):
            for j in range(i + 1):
                want[g, i, j] = (i // block, j // block) in pairs
    assert torch.equal(mask_of(FlexPrefill(gamma=gamma, tau=tau, block=block), look), want)


def test_the_divergence_is_jensen_shannons() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(divergence(p, q), torch.tensor([0.0, math.sqrt(math.log(2))]))


def test_xattention_is_the_papers() -> None:
    look, S, block, threshold = seen(), 2, 4, 0.6
    runs, want = -(-N // S), torch.zeros(G, N, N, dtype=torch.bool)
    for g in range(G):
        logits = torch.full((runs, runs), -torch.inf)
        for a in range(runs):
            for b in range(a + 1):  # the sum along an antidiagonal of a S x S square
                pairs = [(a * S + S - 1 - s, b * S + s) for s in range(S)]
                logits[a, b] = sum(look.queries[g, i] @ look.keys[j] for i, j in pairs if i < N and j < N) * SCALE / S
        mass = logits.softmax(-1)
        for a in range(-(-N // block)):
            rows = mass[a * block // S : (a + 1) * block // S]
            of = [float(rows[:, b * block // S : (b + 1) * block // S].sum()) for b in range(a + 1)]
            chosen = {0, a}
            for b in sorted(range(a + 1), key=lambda b: -of[b]):
                if sum(of[c] for c in chosen) < threshold * sum(of):
                    chosen.add(b)
            for i in range(a * block, min(N, (a + 1) * block)):
                for j in range(i + 1):
                    want[g, i, j] = j // block in chosen
    assert torch.equal(mask_of(XAttention(threshold=threshold, stride=S, block=block), look), want)


def test_moba_is_the_papers() -> None:
    look, block, want = seen(), 4, torch.zeros(G, N, N, dtype=torch.bool)
    for g in range(G):
        for i in range(N):
            own = i // block
            gates = [float(look.queries[g, i] @ look.keys[b * block : (b + 1) * block].mean(0)) for b in range(own)]
            chosen = {own} | top(gates, 2)
            want[g, i] = torch.tensor([j <= i and j // block in chosen for j in range(N)])
    assert torch.equal(mask_of(MoBA(block=block, top=3), look), want)


def test_nsa_selects_as_the_paper_does() -> None:
    look, l, d, block, want = seen(), 4, 2, 4, torch.zeros(G, N, N, dtype=torch.bool)
    for i in range(N):
        runs = [look.keys[a : a + l].mean(0) for a in range(0, i + 2 - l, d)]
        p = [(torch.stack(runs) @ look.queries[g, i] * SCALE).softmax(-1) if runs else torch.zeros(0) for g in range(G)]
        own = i // block
        worth = []
        for j in range(1, own + 2):  # equation 9, which counts from 1
            places = [block // d * j - m - n for m in range(block // d) for n in range(l // d)]
            worth.append(sum(float(p[g][c - 1]) for g in range(G) for c in places if 1 <= c <= len(runs)))
        worth = [math.inf if j in (0, own - 1, own) else w for j, w in enumerate(worth)]
        chosen = top(worth, 5) | {own, own - 1, own - 2}  # a window of 6 rows is two blocks and the query's own
        want[:, i] = torch.tensor([j <= i and j // block in chosen for j in range(N)])
    assert torch.equal(mask_of(NSA(compress=l, stride=d, block=block, select=5, window=6), look), want)


def test_attention_to_runs_as_attention_to_blocks() -> None:
    got = importance(torch.tensor([[[1.0, 10.0, 100.0, 1000.0, 1e4]]]), 2, 2, 4)
    assert got.tolist() == [[[1 + 1 + 10 + 10 + 100 + 100 + 1000, 1000 + 2e4]]]


@pytest.mark.parametrize("pattern", [MoBA(block=4, top=2), NSA(compress=4, stride=2, block=4, select=3)])
def test_an_index_grows_as_if_made_at_once(pattern: MoBA | NSA) -> None:
    look, grown = seen(), None
    for n in range(1, N + 1):
        first = replace(look, keys=look.keys[:n])
        grown = pattern.index(first, grown)
        torch.testing.assert_close(grown, pattern.index(first, None))


@pytest.mark.parametrize(
    "text, message",
    [
        ("ashape(window=0)", "window=0 is below 1"),
        ("trishape(last=-1)", "last=-1 is below 0"),
        ("minference(vertical=0)", "vertical=0 is below 1"),
        ("flexprefill(gamma=0)", "outside \\(0, 1\\]"),
        ("flexprefill(tau=2)", "outside \\[0, 1\\]"),
        ("xattention(threshold=1.5)", "outside \\(0, 1\\]"),
        ("xattention(stride=3)", "block=128 is no multiple of stride=3"),
        ("moba(top=0)", "top=0 is below 1"),
        ("nsa(select=2)", "select=2 is below 3"),
        ("nsa(block=24)", "block=24 is no multiple of stride=16"),
        ("moba + nsa", "moba and nsa are two prefill patterns"),
        ("moba + h2o(keep=0.5)", "h2o adds up the attention of all queries"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)
