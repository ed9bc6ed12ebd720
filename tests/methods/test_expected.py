"""Expected Attention against dense lines from its paper, and what it is told through chunks, evictions and decoding."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch import Tensor
from views import D, G, H, N, view

from kvledger.hf.session import open_session
from kvledger.methods.base import Fresh, View
from kvledger.methods.expected_attention import ExpectedAttention
from kvledger.methods.rope import Rope
from kvledger.recipe import parse

ROPE = Rope(10.0 ** -torch.arange(0, 2, 2 / (D // 2)), scaling=1.2)


def fresh(queries: Tensor, start: int) -> Fresh:
    positions = torch.arange(start, start + queries.shape[2])
    nothing = torch.zeros(H, queries.shape[2], D)
    return Fresh(0, 4, ROPE.turn(queries, positions), nothing, nothing, positions, 0.35, rope=ROPE)


def rotation(position: int) -> Tensor:
    """RoPE's matrix at one position, by its definition."""
    matrix = torch.zeros(D, D, dtype=torch.float64)
    for i, frequency in enumerate(ROPE.frequencies.tolist()):
        c, s, j = math.cos(position * frequency), math.sin(position * frequency), i + D // 2
        matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix * ROPE.scaling


def reference(seen: View, queries: Tensor, future: int, sinks: int, epsilon: float, covariance: bool) -> Tensor:
    """§3: exp(μ·k + kᵀΣk/2) by loops, with the mean rotation of the positions after `seen.seen`."""
    mean_rotation = torch.stack([rotation(p) for p in range(seen.seen, seen.seen + future)]).mean(0)
    scores = torch.zeros(H, N, dtype=torch.float64)
    for h in range(H):
        rows = [i for i in range(N) if bool(seen.stored[h, i]) and int(seen.positions[h, i]) >= sinks]
        for g in range(G):
            q = queries[h, g, sinks:].double()
            mu, sigma = mean_rotation @ q.mean(0), mean_rotation @ torch.cov(q.T, correction=0) @ mean_rotation.T
            k = seen.keys[h, rows].double() * seen.scale
            logits = k @ mu + (covariance * 0.5) * torch.stack([x @ sigma @ x for x in k])
            scores[h, rows] += logits.softmax(0) / G
        scores[h] = (scores[h] + epsilon) * seen.values[h].double().norm(dim=-1)
    return scores


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("absent", [(0, 0), (7, 0)])
@pytest.mark.parametrize("options", ["", "epsilon=0.02", "covariance=False, future=3, sinks=2"])
def test_scores_are_the_expected_weights_of_queries_to_come(seed: int, absent: tuple[int, int], options: str) -> None:
    method = parse(f"expected_attention({options})").method
    queries = torch.randn(H, G, N, D, generator=torch.Generator().manual_seed(seed + 50))
    state = None
    for start, stop in ((0, 3), (3, 4), (4, 21), (21, N)):  # as chunks bring them
        state = method.learn(fresh(queries[:, :, start:stop], start), state)
    seen = view(seed=seed, absent=absent, state=state, rope=ROPE)
    expected = reference(seen, queries, method.future, method.sinks, method.epsilon, method.covariance)
    got = method.score(seen).double()
    real = seen.stored & (seen.positions >= method.sinks)
    torch.testing.assert_close(got[real], expected[real], rtol=1e-4, atol=1e-6)


def test_the_future_moves_with_the_tokens_seen() -> None:
    method = parse("expected_attention(future=4)").method
    queries = torch.randn(H, G, N, D, generator=torch.Generator().manual_seed(1))
    state = method.learn(fresh(queries, 0), None)
    near, far = (method.score(view(state=state, rope=ROPE, seen=n)) for n in (N, N + 7))
    assert not torch.allclose(near, far)


def test_a_prompt_of_sinks_alone_is_judged_by_its_values() -> None:
    method = parse("expected_attention(sinks=4)").method
    assert method.learn(fresh(torch.randn(H, G, 4, D), 0), None) is None
    seen = view(state=None)
    torch.testing.assert_close(method.score(seen), seen.values.norm(dim=-1))


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> list[View]:
    """Every View that Expected Attention is shown."""
    shown: list[View] = []
    score = ExpectedAttention.score

    def spy(self: ExpectedAttention, seen: View) -> Tensor:
        shown.append(seen)
        return score(self, seen)

    monkeypatch.setattr(ExpectedAttention, "score", spy)
    return shown


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_what_is_learned_does_not_depend_on_chunks(views: list[View], kind: str) -> None:
    for chunk in (0, 13):
        session = open_session(tiny.model(kind, torch.float64), tiny.tokenizer(), "expected_attention(rows=50)", chunk)
        session.read(tiny.text(59))
    one, many = views[: len(views) // 2], views[len(views) // 2 :]
    for a, b in zip(one, many):
        assert a.seen == b.seen == 60
        for x, y in zip(a.state, b.state):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            parse("expected_attention").method.score(a), parse("expected_attention").method.score(b)
        )


def test_queries_are_taken_back_to_where_they_were_before_their_rotation(views: list[View]) -> None:
    made = tiny.model("llama", torch.float64)
    inputs: list[Tensor] = []
    attention = made.model.layers[0].self_attn
    handle = attention.q_proj.register_forward_hook(lambda module, args, out: inputs.append(out[0]))
    session = open_session(made, tiny.tokenizer(), "expected_attention(keep=0.5, when='chunk', every=2)", 20)
    inputs.clear()
    session.read(tiny.text(39))
    session.ask(tiny.text(3, seed=1), max_new_tokens=5)
    handle.remove()
    raw = torch.cat(inputs).unflatten(-1, (2, 4, 16)).permute(1, 2, 0, 3)  # [H, G, tokens, D]
    firsts = [seen for seen in views if seen.layer == 0]
    assert [seen.seen for seen in firsts][:2] == [20, 40]
    assert len(firsts) > 3  # and while decoding
    for seen in firsts:
        count, mean, scatter = seen.state
        assert int(count) == seen.seen - 4
        q = raw[:, :, 4 : seen.seen].float()
        torch.testing.assert_close(mean, q.mean(2), rtol=1e-4, atol=1e-4)
        centred = q - q.mean(2, keepdim=True)
        torch.testing.assert_close(scatter, centred.mT @ centred, rtol=1e-3, atol=1e-2)
        assert int(seen.positions.max()) == seen.seen - 1


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("expected_attention(future=0)", "future=0: at least one position must come"),
        ("expected_attention(epsilon=-0.1)", "epsilon=-0.1 is negative"),
        ("expected_attention(sinks=-1)", "sinks=-1 is negative"),
    ],
)
def test_bad_options_are_named(recipe: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(recipe)
