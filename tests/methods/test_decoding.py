"""R-KV and TriAttention against dense lines from their papers, and bounded caches while long answers are written."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor
from views import D, G, H, N, view

from kvledger.hf.cache import arenas
from kvledger.hf.session import open_session
from kvledger.methods import rkv
from kvledger.methods.base import Fresh, View
from kvledger.methods.rope import Rope
from kvledger.methods.triattention import TriAttention
from kvledger.recipe import parse

RAGGED = [(0, 0), (9, 0), (0, 3)]


# ---- R-KV ------------------------------------------------------------------------------------------------------------


def importance(seen: View, h: int, rows: list[int], w: int, kernel: int) -> dict[int, float]:
    old = rows[:-w]
    logits = torch.stack([seen.queries[h, g] @ seen.keys[h, old].T for g in range(G)]).amax(0) * seen.scale
    mean = logits.softmax(-1).mean(0).tolist()
    half = kernel // 2
    return {row: max(mean[max(0, i - half) : i + half + 1]) for i, row in enumerate(old)}


def redundancy(seen: View, h: int, rows: list[int], similar: float) -> Tensor:
    n = len(rows)
    cosines = torch.zeros(n, n)
    for i in range(n):
        for j in range(n):
            if i != j:
                cosines[i, j] = torch.nn.functional.cosine_similarity(
                    seen.keys[h, rows[i]], seen.keys[h, rows[j]], dim=0
                )
        alike = [j for j in range(n) if float(cosines[i, j]) > similar]
        if alike:
            cosines[i, alike[-1]] = 0
    return cosines.mean(0).softmax(0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("absent", RAGGED)
@pytest.mark.parametrize("options", [(0.07, 0.5, 7), (0.5, 0.2, 3)])
def test_rkv_weighs_attention_against_redundancy(
    seed: int, absent: tuple[int, int], options: tuple[float, float, int]
) -> None:
    mix, similar, kernel = options
    seen = view(seed=seed, absent=absent, w=8)
    method = parse(f"rkv(mix={mix}, similar={similar}, kernel={kernel})").method
    scores = method.score(seen)
    for h in range(H):
        rows = list(range(absent[h], N))
        attention, repeated = importance(seen, h, rows, 8, kernel), redundancy(seen, h, rows, similar)
        expected = torch.tensor([mix * attention[r] - (1 - mix) * float(repeated[i]) for i, r in enumerate(rows[:-8])])
        torch.testing.assert_close(scores[h, rows[:-8]], expected, rtol=1e-4, atol=1e-6)


def test_rkv_lets_the_latest_of_a_crowd_stay() -> None:
    keys = torch.eye(D)[torch.arange(N) % 6 + 2].repeat(H, 1, 1).clone()  # six crowds, which do not resemble
    keys[:, 29] = keys[:, 30] = keys[:, 31] = torch.eye(D)[0]  # three of a kind
    seen, method = view(12, keys=keys, w=8), parse("rkv").method
    first, second, third = method.redundancy(seen)[:, 29:32].T
    assert bool((third < second).all())
    assert bool((second < first).all())
    assert bool(method.select(seen)[:, 31].all())


def test_rkv_compares_keys_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, method = view(w=8, absent=(3, 0)), parse("rkv").method
    whole = method.score(seen)
    monkeypatch.setattr(rkv, "COSINES_AT_ONCE", 7 * H * N)
    torch.testing.assert_close(method.score(seen), whole)


# ---- TriAttention ----------------------------------------------------------------------------------------------------

ROPE = Rope(10.0 ** -torch.arange(0, 2, 2 / (D // 2)), scaling=1.3)


def series(seen: View, queries: Tensor, horizon: int) -> Tensor:
    """§3 by complex bands: keys taken back to before their rotation, cosines of distance and phase."""
    half, steps = D // 2, [2**i for i in range(40) if 2**i <= horizon]

    def planes(x: Tensor) -> Tensor:
        return torch.complex(x[..., :half].double(), x[..., half:].double())

    scores = torch.zeros(H, G, N, dtype=torch.float64)
    for h in range(H):
        keys = planes(ROPE.back(seen.keys[h].double(), seen.positions[h]))
        for g in range(G):
            q = planes(queries[h, g])
            centre = q.mean(0)
            for i in range(N):
                phase = (centre * keys[i].conj()).angle()
                for step in steps:
                    distance = seen.seen - 1 + step - int(seen.positions[h, i])
                    waves = (distance * ROPE.frequencies.double() + phase).cos()
                    scores[h, g, i] += (centre.abs() * keys[i].abs() * waves).sum() / len(steps)
                scores[h, g, i] += ((q.abs().mean(0) - centre.abs()) * keys[i].abs()).sum()
        real = seen.stored[h]
        scores[h] -= scores[h][:, real].mean(-1, keepdim=True)
        scores[h] /= scores[h][:, real].std(-1, correction=0, keepdim=True)
    return scores.amax(1)


def fresh(queries: Tensor, start: int) -> Fresh:
    positions = torch.arange(start, start + queries.shape[2])
    nothing = torch.zeros(H, queries.shape[2], D)
    return Fresh(0, 4, ROPE.turn(queries, positions), nothing, nothing, positions, 0.35, rope=ROPE)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("absent", RAGGED)
@pytest.mark.parametrize("horizon", [1, 20, 65536])
def test_triattention_is_the_trigonometric_series(seed: int, absent: tuple[int, int], horizon: int) -> None:
    method = parse(f"triattention(horizon={horizon})").method
    queries = torch.randn(H, G, N, D, generator=torch.Generator().manual_seed(seed + 7)) + 0.8
    state = None
    for start, stop in ((0, 11), (11, 12), (12, N)):
        state = method.learn(fresh(queries[:, :, start:stop], start), state)
    seen = view(seed=seed, absent=absent, state=state, rope=ROPE)
    expected = series(seen, queries, horizon)
    torch.testing.assert_close(method.score(seen).double()[seen.stored], expected[seen.stored], rtol=2e-3, atol=2e-3)


def test_triattention_learns_the_same_from_chunks_and_from_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[View] = []
    score = TriAttention.score

    def spy(self: TriAttention, seen: View) -> Tensor:
        shown.append(seen)
        return score(self, seen)

    monkeypatch.setattr(TriAttention, "score", spy)
    for chunk in (0, 13):
        made = tiny.model("llama", torch.float64)
        session = open_session(made, tiny.tokenizer(), "triattention(rows=24, every=10, recent=4)", chunk)
        session.read(tiny.text(39))
        session.ask(tiny.text(3, seed=1), max_new_tokens=20)
    one, many = shown[: len(shown) // 2], shown[len(shown) // 2 :]
    assert len(one) == 2 * 3  # two evictions in each layer
    for a, b in zip(one, many):
        assert int(a.state[0]) == a.seen == b.seen  # every token so far, once
        for x, y in zip(a.state, b.state):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
        assert bool((a.positions[:, -4:] == torch.arange(a.seen - 4, a.seen)).all())


# ---- while decoding --------------------------------------------------------------------------------------------------

METHODS = {"rkv": "window=4", "triattention": "recent=8"}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("every, prompt", [(1, 29), (8, 10)])
def test_a_long_answer_never_holds_more_than_its_budget_and_one_interval(name: str, every: int, prompt: int) -> None:
    made = tiny.model("llama", torch.float32, num_hidden_layers=1)
    session = open_session(made, tiny.tokenizer(), f"{name}(rows=32, every={every}, {METHODS[name]})")
    session._stop_ids = set  # nothing stops the answer
    session.read(tiny.text(prompt - 1))
    assert all(n == prompt for layer in arenas(session.cache) for n in layer.arena.length)  # the prompt is left alone
    session.ask(tiny.text(2, seed=1), max_new_tokens=200)
    heads = 2
    tops = [step.top / heads for step in session.ledger.steps]
    assert len(tops) >= 200
    assert max(tops) == 32 + every
    assert all(step.end / heads <= 32 + every for step in session.ledger.steps)
    assert min(step.end / heads for step in session.ledger.steps[64:]) == 32
    assert all(32 <= n < 32 + every for layer in arenas(session.cache) for n in layer.arena.length)


@pytest.mark.parametrize("name", METHODS)
def test_a_prompt_above_the_budget_is_cut_at_the_first_interval_of_the_answer(name: str) -> None:
    made = tiny.model("llama", torch.float32, num_hidden_layers=2)
    session = open_session(made, tiny.tokenizer(), f"{name}(rows=32, every=8, {METHODS[name]})", 20)
    session.read(tiny.text(60))
    assert session.ledger.dropped == 0
    session.ask(tiny.text(2, seed=1), max_new_tokens=20)
    assert all(32 <= n < 40 for layer in arenas(session.cache) for n in layer.arena.length)


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("rkv(mix=1.5)", "mix=1.5 is outside"),
        ("rkv(similar=2.0)", "similar=2.0 is outside"),
        ("rkv(window=0)", "window=0: at least one query must vote"),
        ("rkv(kernel=2)", "kernel=2 must be odd and positive"),
        ("rkv(every=0)", "every= must say after how many steps"),
        ("triattention(horizon=0)", "horizon=0: at least one token must come"),
        ("triattention(recent=-1)", "recent=-1 is negative"),
    ],
)
def test_bad_options_are_named(recipe: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(recipe)


def test_four_thousand_tokens_live_in_512_rows_a_head() -> None:
    made = tiny.model("llama", torch.float32, num_hidden_layers=1, max_position_embeddings=4400)
    session = open_session(made, tiny.tokenizer(), "rkv(rows=512, every=64)")
    session._stop_ids = set
    session.read(tiny.text(100))
    session.ask(tiny.text(2, seed=1), max_new_tokens=4096)
    assert session.tokens >= 4096
    assert max(step.top / 2 for step in session.ledger.steps) == 512 + 64
