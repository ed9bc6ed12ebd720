"""LagKV, ChunkKV and Compactor against a few dense lines written from their papers."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor
from views import G, H, N, W, view

from kvledger.hf.cache import arenas, new_cache
from kvledger.hf.session import open_session
from kvledger.methods.base import Fresh, View, window_attention
from kvledger.methods.compactor import Compactor
from kvledger.methods.rope import Rope
from kvledger.recipe import parse

SEEDS = range(4)
RAGGED = [(0, 0), (5, 0), (0, 11)]


def chosen(mask: Tensor) -> list[set[int]]:
    return [set(row.nonzero().squeeze(-1).tolist()) for row in mask]


# ---- LagKV -----------------------------------------------------------------------------------------------------------


def information(x: Tensor, after: Tensor) -> Tensor:
    """§3: `x` [n, D] by the range of the block after it."""
    low, high = after.min(0).values, after.max(0).values
    return ((x - low) / (high - low)).std(-1).softmax(0)


def lag_blocks(seen: View, h: int, lag: int, sinks: int) -> list[tuple[list[int], list[float]]]:
    """Rows and scores of each block that another full one follows, by loops over true positions."""
    positions, blocks = seen.positions[h].tolist(), []
    first = sinks
    while first + 2 * lag <= seen.seen:
        here = [i for i, p in enumerate(positions) if first <= p < first + lag]
        after = [i for i, p in enumerate(positions) if first + lag <= p < first + 2 * lag]
        if here:
            parts = [information(x[h][here], x[h][after]) for x in (seen.keys, seen.values)]
            blocks.append((here, (sum(parts) / 2).tolist()))
        first += lag
    return blocks


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("absent", RAGGED)
@pytest.mark.parametrize("start", [0, 3])
def test_lagkv_ranks_each_row_in_its_block_by_the_block_after(seed: int, absent: tuple[int, int], start: int) -> None:
    seen = view(20, seed=seed, absent=absent, start=start, recent=torch.zeros(H, N, dtype=torch.bool))
    method = parse("lagkv(lag=7, sinks=4)").method
    scores = method.score(seen)
    raw = parse("lagkv(lag=7, sinks=4, allocator='heads')").method.score(seen)
    for h in range(H):
        judged: set[int] = set()
        for rows, values in lag_blocks(seen, h, 7, 4):
            judged |= set(rows)
            best_first = sorted(range(len(rows)), key=lambda i: -values[i])
            for place, i in enumerate(best_first):
                assert float(scores[h, rows[i]]) == pytest.approx(-place / 7)
            torch.testing.assert_close(raw[h, rows], torch.tensor(values), rtol=1e-4, atol=1e-6)
        tail = [i for i in range(N) if i not in judged and int(seen.positions[h, i]) >= 4]
        assert len(tail) >= 7  # the last full block and what follows
        assert scores[h, tail].tolist() == sorted(scores[h, tail].tolist())
        assert float(scores[h, tail].min()) > 1


def test_lagkv_takes_the_same_share_of_every_block_and_the_tail_stays() -> None:
    seen = view(4 + 6 + 5 * 2, recent=torch.zeros(H, N, dtype=torch.bool))  # 4 sinks, 5 blocks of 6, and the last one
    for rows in chosen(parse("lagkv(lag=6)").method.select(seen)):
        assert rows >= set(range(4)) | set(range(34, 40))
        assert [len(rows & set(range(a, a + 6))) for a in range(4, 34, 6)] == [2] * 5


def test_lagkv_judges_again_what_an_earlier_chunk_has_kept_and_finds_the_same() -> None:
    """What the first eviction kept is ranked among its block as before: the best of it is still best."""
    method = parse("lagkv(lag=6)").method
    whole = view(30, recent=torch.zeros(H, N, dtype=torch.bool))
    kept = chosen(method.select(whole))[0]
    again = View(**{**whole.__dict__, "stored": whole.stored & method.select(whole)})
    again = View(**{**again.__dict__, "positions": again.positions.where(again.stored, torch.tensor(-1)), "budget": 26})
    assert chosen(method.select(again))[0] <= kept


def test_lagkv_counts_its_blocks_by_true_positions_from_chunk_to_chunk() -> None:
    """Whatever the chunks, with room for all, what is judged last is judged like in one shot."""
    kept = []
    for chunk in (0, 20, 33):
        session = open_session(
            tiny.model("llama", torch.float64), tiny.tokenizer(), "lagkv(lag=8, rows=48, when='chunk')", chunk
        )
        session.read(tiny.text(59))
        kept.append(tiny.alive(session.cache))
    assert kept[0] == kept[1] == kept[2]  # the first chunks fit; one eviction at the end


# ---- ChunkKV ---------------------------------------------------------------------------------------------------------


def chunk_worth(seen: View, length: int, kernel: int) -> dict[int, float]:
    """Mean SnapKV vote of the chunk's rows outside the window, over all heads."""
    votes, worth = window_attention(seen, kernel, "avg"), {}
    for c in range(int(seen.positions.max()) // length + 1):
        inside = [
            float(votes[h, i])
            for h in range(H)
            for i in range(N)
            if bool(seen.stored[h, i]) and not bool(seen.recent[h, i]) and int(seen.positions[h, i]) // length == c
        ]
        worth[c] = sum(inside) / len(inside) if inside else 0.0
    return worth


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("absent", RAGGED)
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("budget", [7, 16, 29])
def test_chunkkv_keeps_whole_chunks_to_the_row(seed: int, absent: tuple[int, int], start: int, budget: int) -> None:
    seen = view(budget, seed=seed, absent=absent, start=start)
    worth = chunk_worth(seen, 5, 5)
    mask = parse(f"chunkkv(window={W}, length=5)").method.select(seen)
    for h in range(H):
        rows = list(range(absent[h], N - W))
        rows.sort(key=lambda i: (-worth[int(seen.positions[h, i]) // 5], i))
        assert chosen(mask)[h] == set(rows[: budget - W]) | set(range(N - W, N))


def test_chunkkv_gives_every_sequence_of_a_batch_its_own_chunks() -> None:
    """A left-padded batch keeps what each prompt alone keeps."""
    made = tiny.model("llama", torch.float64)
    prompts, recipe = [tiny.ids(41, seed=1), tiny.ids(60, seed=2)], "chunkkv(keep=0.4, window=4, length=6)"
    padded = torch.cat([torch.nn.functional.pad(x, (60 - x.shape[1], 0)) for x in prompts])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(x), (60 - x.shape[1], 0)) for x in prompts])
    alone = []
    with torch.inference_mode():
        for prompt in prompts:
            cache = new_cache(made, recipe)
            made(prompt, past_key_values=cache, use_cache=True)
            alone.append(tiny.alive(cache))
        cache = new_cache(made, recipe)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        made(padded, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    heads = arenas(cache)[0].arena.heads
    for layer, kept in enumerate(tiny.alive(cache)):
        assert kept == alone[0][layer] + alone[1][layer]
    assert heads == 2
    assert alone[0] != alone[1]


# ---- Compactor -------------------------------------------------------------------------------------------------------


def column_sums(queries: Tensor, keys: Tensor, first: int, chunk: int, sinks: int) -> Tensor:
    """Non-causal attention inside chunks of true positions, summed over queries, mean over the group, by loops."""
    sums = torch.zeros(H, keys.shape[1])
    for h in range(H):
        for c in range(first // chunk, (first + keys.shape[1]) // chunk + 1):
            inside = [i for i in range(keys.shape[1]) if (first + i) // chunk == c and first + i >= sinks]
            for g in range(G):
                for i in inside:
                    sums[h, inside] += (keys[h, inside] @ queries[h, g, i]).softmax(0) / G
    return sums


@pytest.mark.parametrize("first", [0, 5, 30])
@pytest.mark.parametrize("chunk", [4, 16, 256])
def test_compactor_sums_attention_without_causality_in_chunks(first: int, chunk: int) -> None:
    draw = torch.Generator().manual_seed(first)
    seen = view()
    queries = torch.randn(H, G, N, seen.keys.shape[-1], generator=draw)
    fresh = Fresh(0, 4, queries, seen.keys, seen.values, torch.arange(first, first + N), 0.35)
    got = parse(f"compactor(chunk={chunk}, sinks=3)").method.rate(fresh)
    torch.testing.assert_close(got, column_sums(queries, seen.keys, first, chunk, 3), rtol=1e-4, atol=1e-5)
    voters = min(N, N + first - 3)
    torch.testing.assert_close(got.sum(1), torch.full((H,), float(voters)), rtol=1e-5, atol=1e-4)  # each has one vote


def compacted(seen: View, method: Compactor) -> Tensor:
    """§3 and §4: leverage xᵀ(XᵀX)⁻¹x of centred keys before rotation, beside attention times the norms of values."""
    parts = []
    rows = [[i for i in range(N) if bool(seen.stored[h, i] and seen.positions[h, i] >= 3)] for h in range(H)]
    rows = [[i for i in real if i < N - 4] for real in rows]
    lever, mass = torch.zeros(H, N), torch.zeros(H, N)
    for h in range(H):
        x = seen.rope.back(seen.keys[h], seen.positions[h])[rows[h]].double()
        x = x - x.mean(0)
        inverse = torch.linalg.inv(x.T @ x + 0.01 * torch.eye(x.shape[1]))
        lever[h, rows[h]] = torch.stack([row @ inverse @ row for row in x]).float()
        mass[h, rows[h]] = seen.tally[h, rows[h]] * seen.values[h, rows[h]].norm(dim=-1)
    near = torch.nn.functional.pad(mass, (1, 1))
    for part in (lever, (near[:, :-2] + near[:, 1:-1] + near[:, 2:]) / 3):
        real = torch.cat([part[h, rows[h]] for h in range(H)])
        parts.append((part - real.mean()) / real.std())
    scores = torch.full((H, N), torch.nan)
    for h in range(H):
        scores[h, rows[h]] = method.blend * parts[0][h, rows[h]] + parts[1][h, rows[h]]
    return scores


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("absent", RAGGED)
@pytest.mark.parametrize("blend", [0.0, 0.35, 2.0])
def test_compactor_blends_leverage_and_attention(seed: int, absent: tuple[int, int], blend: float) -> None:
    seen = view(seed=seed, absent=absent, w=4)
    method = parse(f"compactor(blend={blend}, sinks=3)").method
    expected, got = compacted(seen, method), method.score(seen)
    real = ~expected.isnan()
    assert int(real.sum()) > N
    torch.testing.assert_close(got[real], expected[real], rtol=1e-3, atol=1e-4)
    for rows, lost in zip(chosen(method.select(seen)), absent):
        assert rows >= set(range(N - 4, N)) | set(range(lost, 3))


def test_compactor_sketches_keys_with_a_seed() -> None:
    """A sketch of 7 of 8 dimensions changes little, and the same seed the same."""
    seen = view()
    rows = seen.stored
    exact, a, b, other = (
        parse(f"compactor(sketch={k}, seed={s})").method.leverage(seen, rows)
        for k, s in ((8, 0), (7, 0), (7, 0), (7, 1))
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    assert float(torch.corrcoef(torch.stack([exact.flatten(), a.flatten()]))[0, 1]) > 0.5
    torch.testing.assert_close(exact.sum(1), torch.full((H,), 8.0), rtol=0.01, atol=0.01)  # leverage sums to the rank
    torch.testing.assert_close(a.sum(1), torch.full((H,), 7.0), rtol=0.05, atol=0.01)


def test_compactor_survives_keys_that_are_all_alike() -> None:
    seen = view(keys=torch.ones(H, N, 8), rope=Rope(torch.zeros(4)))
    assert bool(parse("compactor(sketch=4)").method.score(seen).isfinite().all())


def test_compactor_reads_in_chunks_what_it_reads_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[View] = []
    score = Compactor.score

    def spy(self: Compactor, seen: View) -> Tensor:
        shown.append(seen)
        return score(self, seen)

    monkeypatch.setattr(Compactor, "score", spy)
    for chunk in (0, 16, 24):
        made = tiny.model("llama", torch.float64)
        session = open_session(made, tiny.tokenizer(), "compactor(keep=0.5, chunk=8, sinks=4)", chunk)
        session.read(tiny.text(59))  # the last chunk is half full
    one, two, three = shown[:3], shown[3:6], shown[6:]
    for a, b, c in zip(one, two, three):
        torch.testing.assert_close(a.tally, b.tally, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a.tally, c.tally, rtol=1e-4, atol=1e-5)
        assert float(a.tally[:, 56:].sum()) == pytest.approx(4 * 2, rel=1e-4)  # four queries voted, not eight


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("lagkv(lag=0)", "lag=0: a block has at least one token"),
        ("lagkv(sinks=-1)", "sinks=-1 is negative"),
        ("compactor(blend=-1)", "blend=-1.0 is negative"),
        ("compactor(chunk=0)", "chunk=0 must be at least 1"),
        ("compactor(sketch=0)", "sketch=0 must be at least 1"),
        ("chunkkv(length=0)", "length=0: a chunk has at least one token"),
        ("chunkkv(window=0)", "window=0: at least one query must vote"),
    ],
)
def test_bad_options_are_named(recipe: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(recipe)
