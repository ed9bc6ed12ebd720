"""HeadKV: how a budget is shared by importance, and the file that says it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from views import G, H, N, W, view

from kvledger.hf.cache import arenas, new_cache
from kvledger.hf.session import Session
from kvledger.methods.headkv import HeadKV, spread
from kvledger.methods.importance import Importance
from kvledger.recipe import Recipe, parse

LAYERS = 4


def table(seed: int = 0) -> tuple[tuple[float, ...], ...]:
    draw = torch.rand(LAYERS, H * G, generator=torch.Generator().manual_seed(seed)) ** 3
    return tuple(tuple(row) for row in draw.tolist())


@pytest.fixture
def file(tmp_path: Path) -> str:
    Importance(table()).save(tmp_path / "importance.json")
    return str(tmp_path / "importance.json")


def head_budgets(budget: int, beta: float) -> list[list[float]]:
    """§3.2 by loops: base b - b/β, and the pool of all heads by importance (a KV head's is the mean of its queries')."""
    shared = int(budget / beta)
    scores = [[sum(row[h * G : (h + 1) * G]) / G for h in range(H)] for row in table()]
    total = sum(map(sum, scores))
    return [[budget - shared + shared * LAYERS * H * score / total for score in row] for row in scores]


@pytest.mark.parametrize("beta", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("budget", [W + 1, 11, 14])
def test_heads_get_their_base_and_their_share(file: str, budget: int, beta: float) -> None:
    method = HeadKV(window=W, importance=file, beta=beta)
    wanted, masks = head_budgets(budget - W, beta), [method.select(view(budget, layer)) for layer in range(LAYERS)]
    for layer, mask in enumerate(masks):
        for h, count in enumerate(mask.sum(1).tolist()):
            assert abs(count - W - min(wanted[layer][h], N - W)) < 1.001
    assert sum(int(mask.sum()) for mask in masks) == LAYERS * H * budget


def test_inside_a_head_snapkv_chooses(file: str) -> None:
    seen = view(14)
    mask = HeadKV(window=W, importance=file).select(seen)
    order = parse(f"snapkv(window={W})").method.guarded(seen).sort(descending=True, stable=True).indices
    counts = mask.sum(1).tolist()
    assert counts[0] != counts[1]
    for h in range(H):
        assert set(mask[h].nonzero().squeeze(-1).tolist()) == set(order[h, : counts[h]].tolist())


def test_each_query_head_has_its_own_importance_where_rows_are_stored_so(file: str) -> None:
    seen = view(14)
    wide = view(
        14,
        **{
            name: getattr(seen, name).repeat_interleave(G, 0)
            for name in ("keys", "values", "positions", "stored", "recent", "pinned")
        },
        queries=seen.queries.flatten(0, 1)[:, None],
    )
    weights = HeadKV(window=W, importance=file).weights(wide)
    torch.testing.assert_close(weights, torch.tensor(table(), dtype=torch.float64))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.integers(0, 30), st.floats(1, 5), st.integers(0, 60))
def test_shares_add_up(weights: list[float], mean: int, beta: float, most: int) -> None:
    n = len(weights)
    counts = spread(torch.tensor(weights), mean, beta, most).tolist()
    assert sum(counts) == min(n * mean, n * most)
    assert all(0 <= count <= most for count in counts)
    for i in range(n):
        for j in range(n):
            assert weights[i] <= weights[j] or counts[i] >= counts[j]


def test_what_a_full_head_cannot_use_goes_to_the_others() -> None:
    assert spread(torch.tensor([8.0, 1.0, 1.0]), 10, 1.0, 12).tolist() == [12, 9, 9]
    assert spread(torch.tensor([1.0, 0.0, 0.0]), 10, 1.0, 12).tolist() == [12, 9, 9]
    assert spread(torch.tensor([0.0, 0.0]), 10, 1.5, 99).tolist() == [10, 10]


@pytest.mark.parametrize("chunk, when", [(0, "prompt"), (20, "prompt"), (20, "chunk")])
def test_a_model_s_heads_keep_what_importance_gives_them(tmp_path: Path, chunk: int, when: str) -> None:
    made = tiny.model("llama", torch.float64)
    scores = tuple(tuple(float(layer == 1 and head < 4) for head in range(8)) for layer in range(3))
    Importance(scores).save(tmp_path / "one.json")
    method = HeadKV(keep=0.3, window=2, beta=2.0, when=when, importance=str(tmp_path / "one.json"))
    session = Session(made, tiny.tokenizer(), Recipe((method,)), chunk)
    session.read(tiny.text(59))
    lengths = [layer.arena.length for layer in arenas(session.cache)]
    parts = [60] if when == "prompt" else [20] * 3
    budgets = [int(0.3 * part) for part in parts]
    pools = [int((budget - 2) / 2) for budget in budgets]
    rich = sum(min(part, b - pool + 6 * pool) for part, b, pool in zip(parts, budgets, pools))
    assert lengths[1][0] == rich
    assert sum(map(sum, lengths)) == 6 * sum(budgets)


def test_padding_does_not_change_what_a_head_gets(file: str) -> None:
    seen, ragged = view(11), view(11, absent=(0, 7))
    method = HeadKV(window=W, importance=file)
    assert method.select(seen).sum(1).tolist() == method.select(ragged).sum(1).tolist()


# ---- the file --------------------------------------------------------------------------------------------------------


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    one = Importance(table(), model="m", task="scbench/kv", samples=3, tokens=64, seed=5, version="0")
    one.save(tmp_path / "deep" / "one.json")
    assert Importance.load(tmp_path / "deep" / "one.json") == one


def test_a_new_probe_s_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    Importance(((1.0, 0.0),)).save(path)
    first = HeadKV(importance=str(path))
    before = first._table(1, 2), first.fingerprint
    Importance(((0.0, 1.0),)).save(path)
    os.utime(path, ns=(1, 1))
    assert first._table(1, 2) == ((0.0, 1.0),) != before[0]
    assert first.fingerprint != before[1]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot read the head importance"),
        ("[]", "not an importance file of format 1"),
        ('{"format": 2, "scores": [[1]]}', "not an importance file of format 1"),
        ('{"format": 1}', "not a table of numbers"),
        ('{"format": 1, "scores": [[1], [1, 2]]}', "not a table"),
        ('{"format": 1, "scores": [[true]]}', "not a table of numbers"),
        ('{"format": 1, "scores": [[-1]]}', "-1.0 is not a number of 0 or more"),
        ('{"format": 1, "scores": [[NaN]]}', "nan is not a number of 0 or more"),
        ('{"format": 1, "scores": [[1]], "colour": "red"}', "colour='red' is not known"),
        ('{"format": 1, "scores": [[1]], "seed": "0"}', "seed='0' is not known"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Importance.load(tmp_path / "bad.json")


def test_a_model_of_another_shape_is_refused_before_it_reads() -> None:
    with pytest.raises(ValueError, match="is for 6 layers of 8 query heads, and here are 3 of 8: measure it"):
        new_cache(tiny.model("llama"), "headkv")
    with pytest.raises(ValueError, match=r"cannot read the head importance 'nowhere.json'"):
        new_cache(tiny.model("llama"), "headkv(importance='nowhere.json')")


def test_bad_options_are_named() -> None:
    for text, message in (
        ("headkv(beta=0.5)", "beta=0.5 is below 1"),
        ("headkv(allocator='heads')", "allocator='heads' has no place here"),
        ("headkv(importance='random:x')", "named by its seed, like 'random:0'"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(text)
