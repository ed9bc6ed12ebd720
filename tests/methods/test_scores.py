"""Each method's scores and choices against a few dense lines written from its paper."""

from __future__ import annotations

import pytest
import torch
from small import small
from torch import Tensor
from views import G, H, N, W, taught, view

from kvledger.methods.base import Method, View
from kvledger.recipe import parse, registry

NAMES = sorted(name for name, part in registry().items() if part.role == "compression")


def votes(seen: View, kernel: int, pool: str) -> Tensor:
    """SnapKV §4 by loops: softmax of each window query, summed, window columns out, pooled, mean over the group."""
    w, prefix = seen.queries.shape[2], seen.keys.shape[1] - seen.queries.shape[2]
    scores = torch.zeros(H, prefix)
    for h in range(H):
        for g in range(G):
            mass = torch.zeros(prefix)
            for i in range(w):
                reach = prefix + i + 1
                logits = seen.keys[h, :reach] @ seen.queries[h, g, i] * seen.scale
                mass += logits.softmax(0)[:prefix]
            for j in range(prefix):
                near = [
                    mass[x].item() if 0 <= x < prefix else None for x in range(j - kernel // 2, j + kernel // 2 + 1)
                ]
                real = [x for x in near if x is not None]
                scores[h, j] += (sum(real) / kernel if pool == "avg" else max(real)) / G
    return scores


def best(scores: Tensor, count: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))[:count])


def chosen(mask: Tensor) -> list[set[int]]:
    return [set(row.nonzero().squeeze(-1).tolist()) for row in mask]


WINDOW = set(range(N - W, N))


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("kernel", [1, 5, 7])
def test_snapkv_scores_by_the_votes_of_the_last_queries(pool: str, kernel: int) -> None:
    method, seen = parse(f"snapkv(window={W}, kernel={kernel}, pool={pool!r})").method, view()
    expected = votes(seen, kernel, pool)
    torch.testing.assert_close(method.score(seen)[:, : N - W], expected, rtol=1e-5, atol=1e-6)
    assert chosen(method.select(seen)) == [best(expected[h], 16 - W) | WINDOW for h in range(H)]


def test_old_rows_and_padding_count_in_the_average() -> None:
    """At the edge zeros are averaged in, so a peak at row 0 is worth 3/5 of the same peak inside."""
    seen = view(n=N)
    keys = torch.zeros_like(seen.keys)
    method = parse(f"snapkv(window={W})").method
    flat = method.score(View(**{**seen.__dict__, "keys": keys}))
    inside, edge = flat[:, 10], flat[:, 0]
    torch.testing.assert_close(edge / inside, torch.full((H,), 3 / 5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("floor", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("budget", [7, 16, 30])
def test_adakv_lets_heads_compete(floor: float, budget: int) -> None:
    method, seen = parse(f"adakv(window={W}, floor={floor})").method, view(budget)
    scores = votes(seen, 7, "max")
    sure = int(floor * (budget - W))
    kept = [best(scores[h], sure) for h in range(H)]
    pool = sorted(
        ((-float(scores[h, i]), h, i) for h in range(H) for i in range(N - W) if i not in kept[h]),
    )[: H * (budget - W - sure)]
    for _, h, i in pool:
        kept[h].add(i)
    mask = method.select(seen)
    assert chosen(mask) == [rows | WINDOW for rows in kept]
    assert int(mask.sum()) == H * budget
    if floor == 1:
        assert mask.sum(1).tolist() == [budget] * H


def test_adakv_really_gives_heads_different_lengths() -> None:
    seen = view(16)
    seen.queries[0] *= 20  # head 0 looks at few rows, sharply
    lengths = parse(f"adakv(window={W}, floor=0.0)").method.select(seen).sum(1).tolist()
    assert lengths[0] != lengths[1]
    assert sum(lengths) == 32


@pytest.mark.parametrize("layer", range(4))
def test_pyramidkv_gives_deep_layers_less_by_the_same_votes(layer: int) -> None:
    method, seen = parse(f"pyramidkv(window={W}, beta=5)").method, view(16, layer)
    free, least = 16 - W, (16 - W) // 5
    most = 2 * free - least
    rows = most - layer * ((most - least) // 3)
    expected = votes(seen, 5, "avg")
    assert chosen(method.select(seen)) == [best(expected[h], rows) | WINDOW for h in range(H)]


@pytest.mark.parametrize("budget", [27, 30, 39])
def test_pyramidkv_is_snapkv_when_much_is_kept(budget: int) -> None:
    for layer in range(4):
        seen = view(budget, layer)
        snap, pyramid = (parse(f"{name}(window={W})").method for name in ("snapkv", "pyramidkv"))
        assert torch.equal(snap.select(seen), pyramid.select(seen))


@pytest.mark.parametrize("budget, sinks", [(10, 4), (10, 0), (3, 4), (4, 4)])
def test_streaming_keeps_sinks_and_the_recent(budget: int, sinks: int) -> None:
    mask = parse(f"streaming(sinks={sinks})").method.select(view(budget, recent=torch.zeros(H, N, dtype=torch.bool)))
    first = min(sinks, budget)
    expected = set(range(first)) | set(range(N - (budget - first), N))
    assert chosen(mask) == [expected] * H


def test_streaming_knows_sinks_by_their_true_position() -> None:
    seen = view(5, start=2, recent=torch.zeros(H, N, dtype=torch.bool))  # tokens 2 and 3 are sinks, 0 and 1 are gone
    assert chosen(parse("streaming").method.select(seen)) == [{0, 1, N - 3, N - 2, N - 1}] * H


def test_random_is_seeded_and_fair() -> None:
    seen = view(20)
    masks = [parse(f"random(seed={seed})").method.select(seen) for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0][0], masks[0][1])
    for other in (view(20, layer=1), view(20, start=512)):
        assert not torch.equal(masks[0], parse("random").method.select(other))
    share = torch.stack([parse(f"random(seed={s})").method.score(view(20)) for s in range(200)]).argsort(-1) < 20
    assert share.float().mean((0, 1)).sub(0.5).abs().max() < 0.12


def with_small_window(name: str) -> Method:
    return registry()[name](**small(name, W))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [1, 3, 6, 7, 20, 39])
def test_budgets_are_kept_and_the_recent_stay(name: str, budget: int) -> None:
    method = with_small_window(name)
    w = method.window
    layers = [method.select(taught(method, view(budget, layer, w=w))) for layer in range(4)]
    total = sum(int(mask.sum()) for mask in layers)
    if name == "pyramidkv":
        assert 0 <= total - 4 * H * budget <= 4 * H * 3  # the floor of the step leaves a few rows over
    elif name == "headkv":
        assert total == 4 * H * budget
    elif method.exact:
        assert [int(mask.sum()) for mask in layers] == [H * budget] * 4
    else:
        assert all(0 < int(mask.sum()) <= H * budget for mask in layers)
    for mask in layers:
        assert mask.dtype == torch.bool
        assert bool(mask[:, N - min(w, max(0, budget - method.sinks)) :].all())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_rows_are_chosen_twice(name: str) -> None:
    method = with_small_window(name)
    seen = taught(method, view(12, w=method.window))
    before = seen.keys.clone(), seen.queries.clone(), seen.positions.clone()
    assert torch.equal(method.select(seen), method.select(seen))
    for old, new in zip(before, (seen.keys, seen.queries, seen.positions)):
        assert torch.equal(old, new)


@pytest.mark.parametrize("name", ["snapkv", "adakv", "pyramidkv"])
def test_ties_go_to_the_earlier_row(name: str) -> None:
    seen = view(16)
    flat = View(**{**seen.__dict__, "keys": torch.zeros_like(seen.keys)})
    mask = parse(f"{name}(window={W}, kernel=1)").method.select(flat)
    if name == "adakv":  # heads compete: the first head's rows are the earlier ones
        assert chosen(mask)[0] >= WINDOW | set(range(2))
    for rows in chosen(mask):
        prefix = rows - WINDOW
        assert prefix == set(range(len(prefix)))


def test_knorm_keeps_the_smallest_keys() -> None:
    seen = view()
    expected = torch.tensor([[-(sum(float(x) ** 2 for x in key) ** 0.5) for key in head] for head in seen.keys])
    torch.testing.assert_close(parse("knorm").method.score(seen), expected)


def test_keydiff_keeps_the_keys_least_like_the_mean_direction() -> None:
    seen = view()
    expected = torch.zeros(H, N)
    for h in range(H):
        directions = torch.stack([key / key.norm() for key in seen.keys[h]])
        anchor = directions.mean(0)
        for j in range(N):
            expected[h, j] = -float(directions[j] @ anchor) / float(anchor.norm())
    torch.testing.assert_close(parse("keydiff").method.score(seen), expected)


def test_tova_asks_the_last_query_of_all_heads_and_keeps_the_same_rows_in_each() -> None:
    seen = view(w=1, budget=9)
    mass = torch.zeros(N)
    for h in range(H):
        for g in range(G):
            mass += (seen.keys[h] @ seen.queries[h, g, 0] * seen.scale).softmax(0) / (H * G)
    expected = best(mass[:-1], 8) | {N - 1}
    assert chosen(parse("tova").method.select(seen)) == [expected] * H
