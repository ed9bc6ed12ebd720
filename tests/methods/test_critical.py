"""CriticalKV and SimLayerKV against plain lines written from their papers."""

from __future__ import annotations

import pytest
import tiny
import torch
from small import small
from torch import Tensor
from views import E, G, H, N, W, view

from kvledger.hf.cache import arenas
from kvledger.hf.session import Session
from kvledger.methods import criticalkv
from kvledger.methods.allocate import across_heads, across_layers, even
from kvledger.methods.base import View
from kvledger.recipe import Recipe, parse, registry

RAGGED = [(0, 0), (5, 0), (0, 11)]


def votes(seen: View, kernel: int = 5) -> Tensor:
    """SnapKV's scores as a mean over the window's queries, by loops: [H, N - W]; what is not stored has none."""
    scores = torch.zeros(H, N - W)
    for h in range(H):
        for g in range(G):
            mass = torch.zeros(N)
            for i, query in enumerate(seen.queries[h, g]):
                reach = [r for r in range(N - W + i + 1) if seen.stored[h, r]]
                mass[reach] += (seen.keys[h, reach] @ query * seen.scale).softmax(0) / W
            for j in range(N - W):
                near = mass[max(0, j - kernel // 2) : min(N - W, j + kernel // 2 + 1)]
                scores[h, j] += float(near.sum()) / kernel / G
    return scores


def norms(seen: View) -> Tensor:
    """‖v W_o‖₁ by loops over the embedding."""
    total = torch.zeros(H, N)
    for h in range(H):
        for g in range(G):
            for e in range(E):
                total[h] += (seen.values[h] @ seen.output[h, g, :, e]).abs() / G
    return total


def two_stages(
    scores: list[float], weights: list[float], rows: list[int], count: int, ratio: float, eps: float
) -> set[int]:
    """Algorithm 1: the most attended first, then the largest attention times norm."""
    first = sorted(rows, key=lambda i: (-scores[i], i))[: int(ratio * count)]
    rest = [i for i in rows if i not in first]
    return set(first) | set(sorted(rest, key=lambda i: (-(scores[i] + eps) * weights[i], i))[: count - len(first)])


def chosen(mask: Tensor) -> list[set[int]]:
    return [set(row.nonzero().squeeze(-1).tolist()) for row in mask]


WINDOW = set(range(N - W, N))


@pytest.mark.parametrize("absent", RAGGED)
@pytest.mark.parametrize("ratio, eps, seed", [(0.5, 1e-4, 0), (0.0, 0.5, 1), (0.3, 0.0, 2), (1.0, 0.1, 3)])
def test_criticalkv_chooses_in_two_stages(absent: tuple[int, ...], ratio: float, eps: float, seed: int) -> None:
    seen = view(17, absent=absent, seed=seed)
    method = parse(f"criticalkv(window={W}, first_stage_ratio={ratio}, epsilon={eps})").method
    scores, weights = votes(seen), norms(seen)
    expected = [
        two_stages(scores[h].tolist(), weights[h].tolist(), list(range(absent[h], N - W)), 17 - W, ratio, eps) | WINDOW
        for h in range(H)
    ]
    assert chosen(method.select(seen)) == expected
    if ratio < 1:
        assert expected != chosen(parse(f"snapkv(window={W})").method.select(seen))


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_heads_share_by_attention_and_then_choose_in_two_stages(floor: float) -> None:
    """Critical-AdaKV: how many rows a head gets is AdaKV's answer, which ones is CriticalKV's."""
    seen = view(17)
    seen.queries[0] *= 3
    method = parse(f"criticalkv(window={W}, allocator='heads', floor={floor})").method
    scores, weights = votes(seen), norms(seen)
    guarded = torch.cat([scores, torch.full((H, W), torch.inf)], 1)
    counts = (across_heads(guarded, 17, floor).sum(1) - W).tolist()
    assert counts[0] != counts[1]
    expected = [
        two_stages(scores[h].tolist(), weights[h].tolist(), list(range(N - W)), counts[h], 0.5, 1e-4) | WINDOW
        for h in range(H)
    ]
    assert chosen(method.select(seen)) == expected


def test_layers_share_by_the_second_stage_after_an_even_first() -> None:
    method = parse(f"criticalkv(window={W}, allocator='layers', first_stage_ratio=0.4)").method
    layers = [view(17, layer, seed=layer) for layer in range(4)]
    masks = across_layers([method.guarded(seen) for seen in layers], 17)
    assert sum(int(mask.sum()) for mask in masks) == 4 * H * 17
    for seen, mask in zip(layers, masks):
        first = even(torch.cat([votes(seen), torch.full((H, W), -torch.inf)], 1), int(0.4 * (17 - W)))
        assert bool(mask[first].all())


def test_norms_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = view()
    whole = criticalkv.projected_norm(seen)
    torch.testing.assert_close(whole, norms(seen), rtol=1e-5, atol=1e-5)
    monkeypatch.setitem(criticalkv.NUMBERS_AT_ONCE, "cpu", 7 * E)
    torch.testing.assert_close(criticalkv.projected_norm(seen), whole)


@pytest.mark.parametrize("heads", ["kv", "query"])
def test_the_projection_is_the_model_s_own(heads: str) -> None:
    """What the norms are made of: all heads' values through their parts of W_o add up to the layer's output projection."""
    made = tiny.model("llama", torch.float64)
    session = Session(made, tiny.tokenizer(), parse(f"criticalkv(window=4, heads={heads!r})"), 0)
    session.read(tiny.text(20))
    for layer, block in zip(arenas(session.cache), made.model.layers):
        parts = layer.output.flatten(0, 1)
        x = torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            torch.einsum("hd,hde->e", x, parts), torch.nn.functional.linear(x.flatten(), block.self_attn.o_proj.weight)
        )


# ---- SimLayerKV ------------------------------------------------------------------------------------------------------


def lazy_share(seen: View, sinks: int, recent: int) -> float:
    """The attention that the window's queries give to sinks and recent rows, mean over queries and heads."""
    total = 0.0
    for h in range(H):
        for g in range(G):
            for i, query in enumerate(seen.queries[h, g]):
                reach = [r for r in range(N) if seen.stored[h, r] and seen.positions[h, r] <= seen.query_positions[i]]
                weights = (seen.keys[h, reach] @ query * seen.scale).softmax(0).tolist()
                near = [seen.positions[h, r] < sinks or seen.positions[h, r] >= seen.seen - recent for r in reach]
                total += sum(w for w, yes in zip(weights, near) if yes)
    return total / (H * G * len(seen.query_positions))


@pytest.mark.parametrize("absent", RAGGED)
@pytest.mark.parametrize("start", [0, 2])
def test_simlayerkv_measures_laziness(absent: tuple[int, ...], start: int) -> None:
    seen = view(40, w=3, absent=absent, start=start)
    method = parse("simlayerkv(sinks=4, local=7, window=3)").method
    assert method.laziness(seen) == pytest.approx(lazy_share(seen, 4, 7), rel=1e-5)
    method = parse("simlayerkv(sinks=4, local=30, window=3)").method  # a quarter of the budget at most
    assert method.laziness(seen) == pytest.approx(lazy_share(seen, 4, 10), rel=1e-5)


def test_whole_layers_go_first() -> None:
    method = parse("simlayerkv(sinks=2, local=4, window=3)").method
    layers = [view(18, layer, w=3, seed=layer) for layer in range(4)]
    lazy = [lazy_share(seen, 2, 4) for seen in layers]
    masks = across_layers([method.guarded(seen) for seen in layers], 18)
    rows = 4 * 18 * H
    near = {0, 1} | set(range(N - 4, N))
    order = sorted(range(4), key=lambda i: lazy[i])
    whole = (rows - 4 * H * 6) // (H * (N - 6))
    assert whole == 1
    assert chosen(masks[order[0]]) == [set(range(N))] * H
    rest = rows - H * N - 2 * H * 6  # what the second gets: its youngest rows
    assert sorted(map(len, chosen(masks[order[1]]))) == [rest // 2, rest - rest // 2]
    for kept in chosen(masks[order[1]]):
        assert kept == {0, 1} | set(range(N - len(kept) + 2, N))
    for i in order[2:]:
        assert chosen(masks[i]) == [near] * H


@pytest.mark.parametrize("absent", RAGGED)
def test_the_paper_s_threshold(absent: tuple[int, ...]) -> None:
    seen = view(10, w=3, absent=absent)
    share = lazy_share(seen, 4, 12)
    lazy, busy = (
        parse(f"simlayerkv(sinks=4, local=12, window=3, threshold={share + shift})").method.select(seen)
        for shift in (-1e-3, 1e-3)
    )
    for h in range(H):
        assert chosen(lazy)[h] == {i for i in range(absent[h], N) if i < 4 or i >= N - 12}
        assert chosen(busy)[h] == set(range(absent[h], N))


def test_layers_of_a_model_keep_all_or_little() -> None:
    made = tiny.model("llama", torch.float64)
    session = Session(made, tiny.tokenizer(), parse("simlayerkv(keep=0.4, sinks=2, local=3, window=2)"), 16)
    session.read(tiny.text(59))
    lengths = [layer.arena.length for layer in arenas(session.cache)]
    assert sum(map(sum, lengths)) == 3 * 2 * int(0.4 * 60)
    assert sorted(max(row) for row in lengths)[0] == 5
    assert sorted(max(row) for row in lengths)[-1] == 60


@pytest.mark.parametrize("name", ["criticalkv", "simlayerkv", "fastgen", "headkv"])
def test_a_patch_votes_and_leaves_nothing_behind(name: str) -> None:
    """Each chunk judged by the question: its rows stay, the patches go, and budgets hold."""
    made = tiny.model("llama", torch.float64)
    method = registry()[name](keep=0.4, when="chunk", **small(name))
    session = Session(made, tiny.tokenizer(), Recipe((method,)), 13)
    session.read(tiny.text(44), tiny.text(5, seed=1), patched=True)
    kept = [rows for layer in tiny.alive(session.cache) for rows in layer]
    assert session.tokens == 50
    assert all(rows <= set(range(50)) for rows in kept)
    parts = [50] if method.among == "all" else [13, 13, 13, 11]
    wanted = sum(int(0.4 * part) for part in parts) * len(kept)
    total = sum(map(len, kept))
    assert total == wanted if method.exact else 0 < total <= wanted


def test_bad_options_are_named() -> None:
    for text, message in (
        ("criticalkv(epsilon=-1.0)", "epsilon=-1.0 is negative"),
        ("criticalkv(first_stage_ratio=1.5)", r"first_stage_ratio=1.5 is outside \[0, 1\]"),
        ("criticalkv(floor=2.0)", r"floor=2.0 is outside \[0, 1\]"),
        ("simlayerkv(window=0)", "window=0: at least one query"),
        ("simlayerkv(threshold=1.5)", r"threshold=1.5 is outside \[0, 1\]"),
        ("simlayerkv(local=-1)", "local=-1 is negative"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(text)
