"""KVzap, Locret and DMS: what is noted when a row is stored, when it goes, and which scorer files are taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from scorers import opened
from torch import Tensor
from torch.nn.functional import gelu, silu
from views import H, N, view

from kvledger.hf.cache import arenas
from kvledger.hf.load import attach
from kvledger.hf.session import Session
from kvledger.methods.scorerfile import Net, read_scorer
from kvledger.recipe import parse

TOKENS = 60


# ---- what a row is given when it is stored ---------------------------------------------------------------------------


def seen_by_layers(made: Any, tokens: list[int], kind: str) -> list[Tensor]:
    """What each layer's scorer should read, [T, I], from one forward of the stock model and its own weights."""
    found: list[Tensor] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        x = (args[0] if args else kwargs["hidden_states"])[0]
        found.append(x if kind == "kvzap" else torch.cat([module.q_proj(x), module.k_proj(x), module.v_proj(x)], -1))

    handles = [layer.self_attn.register_forward_pre_hook(note, with_kwargs=True) for layer in made.model.layers]
    with tiny.implementation(made, "eager"), torch.inference_mode():
        made(input_ids=torch.tensor([tokens]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def by_hand(net: Net, x: Tensor, kind: str) -> Tensor:
    x = x.float()
    if kind == "kvzap":
        return (gelu(x @ net.inner.T + net.inner_bias) @ net.weight.T + net.bias).T
    return (silu(x @ net.inner.T) @ net.weight.T).T


@pytest.mark.parametrize("kind", ["kvzap", "locret"])
@pytest.mark.parametrize("chunk", [0, 17])
@pytest.mark.parametrize("heads", ["kv", "query"])
def test_each_row_is_given_what_the_network_says_of_its_token(
    kind: str, chunk: int, heads: str, files: dict[str, str]
) -> None:
    """Also in chunks, and while writing: nothing has gone yet that could change what later tokens see."""
    session = opened(f"{kind}(path={files[kind]!r}, rows=5000, when='prompt', every=5000, heads={heads!r})", chunk)
    with tiny.Witness(session.model) as witness:
        session.read(tiny.text(TOKENS))
        session.ask(tiny.text(3, seed=1), max_new_tokens=4)
    tokens = [token for ids, _, _ in witness.steps for token in ids]
    nets = read_scorer(files[kind]).nets
    inputs = seen_by_layers(session.model, tokens, kind)
    for layer, net, x in zip(arenas(session.cache), nets, inputs):
        wanted = by_hand(net, x, kind)
        copies = layer.arena.heads // len(wanted)
        assert copies == (4 if heads == "query" else 1)
        for s in range(layer.arena.heads):
            rows = layer.arena.segment(s)
            torch.testing.assert_close(layer.arena.tally[rows], wanted[s // copies], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["kvzap", "locret"])
def test_beside_a_head_profile_each_head_keeps_its_own_scores(kind: str, files: dict[str, str]) -> None:
    profile = "headgate(keep=0.5, path='random:1', sink=1, window=5000)"
    alone, both = (
        opened(f"{more}{kind}(path={files[kind]!r}, rows=5000, every=5000)") for more in ("", profile + " + ")
    )
    for session in (alone, both):
        session.read(tiny.text(TOKENS))
    checked = 0
    for one, other in zip(arenas(alone.cache), arenas(both.cache)):
        for h in other.full_heads:
            torch.testing.assert_close(
                one.arena.tally[one.arena.segment(h)], other.arena.tally[other.arena.segment(h)], rtol=1e-4, atol=1e-4
            )
            checked += 1
    assert 0 < checked < 6


def test_without_a_file_dms_goes_by_the_norm_of_keys() -> None:
    session = opened("dms(rows=5000, every=5000)", 17)
    session.read(tiny.text(TOKENS))
    for layer in arenas(session.cache):
        torch.testing.assert_close(layer.arena.tally, -layer.arena.k.float().norm(dim=-1))


# ---- when a row goes -------------------------------------------------------------------------------------------------


def chosen(recipe: str, **changes: Any) -> list[set[int]]:
    seen = view(**{"recent": torch.zeros(H, N, dtype=torch.bool), **changes})
    seen = replace(seen, tally=-10 * seen.tally)
    return [set(row.nonzero().squeeze(-1).tolist()) for row in parse(recipe).method.select(seen)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("absent", [(0, 0), (5, 0)])
@pytest.mark.parametrize(
    "recipe",
    ["dms(delay=6)", "kvzap(path='random:0', delay=6, allocator='even')", "locret(path='random:0', stabilizers=6)"],
)
def test_the_best_and_the_youngest_stay(seed: int, absent: tuple[int, int], recipe: str) -> None:
    tally = -10 * view(seed=seed).tally
    for h, kept in enumerate(chosen(recipe, seed=seed, absent=absent, budget=16)):
        young = set(range(N - 6, N))
        old = sorted(set(range(absent[h], N)) - young, key=lambda i: -float(tally[h, i]))
        assert kept == young | set(old[:10])


def test_a_delay_longer_than_the_budget_takes_half_of_it() -> None:
    for kept in chosen("dms(delay=999)", budget=16):
        assert len(kept) == 16
        assert kept >= set(range(N - 8, N))
        assert kept != set(range(N - 16, N))


@pytest.mark.parametrize("allocator", ["even", "heads"])
def test_a_threshold_takes_what_is_bad_and_old_and_nothing_else(allocator: str) -> None:
    tally = -10 * view(seed=1).tally
    recipe = f"kvzap(path='random:0', keep=1, delay=6, threshold=-4, allocator={allocator!r})"
    for h, kept in enumerate(chosen(recipe, seed=1, budget=N)):
        assert kept == {i for i in range(N) if i >= N - 6 or tally[h, i] >= -4}
        assert 6 < len(kept) < N
    capped = chosen(recipe, seed=1, budget=9)
    assert all(len(kept) <= 9 for kept in capped) or allocator == "heads"
    assert sum(map(len, capped)) <= 9 * H


@pytest.mark.parametrize("allocator", ["even", "heads", "layers"])
@pytest.mark.parametrize("chunk", [0, 13])
def test_under_a_threshold_no_old_row_below_it_is_left(allocator: str, chunk: int) -> None:
    """While reading in chunks and while writing; keep=1 is no bound, so the size of the cache is up to the text."""
    recipe = f"dms(keep=1, delay=8, threshold=-6, when='chunk', every=2, allocator={allocator!r})"
    session = opened(recipe, chunk)
    session.read(tiny.text(TOKENS))
    lengths = check_threshold(session, -6, 8)
    assert len(set(lengths)) > 1
    assert session.ledger.dropped > 0
    session.ask(tiny.text(3, seed=1), max_new_tokens=8)
    check_threshold(session, -6, 8 + 2)


def check_threshold(session: Session, threshold: float, delay: int) -> list[int]:
    lengths = []
    for layer in arenas(session.cache):
        for s in range(len(layer.arena.start)):
            rows, positions = layer.arena.segment(s), layer.arena.positions(s)
            old = positions < session.tokens - delay
            assert bool((layer.arena.tally[rows][old] >= threshold).all())
            young = set(range(session.tokens - delay + 2, session.tokens))
            assert set(positions.tolist()) >= young
            lengths.append(len(positions))
    return lengths


@pytest.mark.parametrize(
    "recipe",
    ["locret(path={!r}, rows=20, stabilizers=6)", "kvzap(path={!r}, rows=20, delay=6, when='chunk', allocator='even')"],
)
def test_a_long_context_is_read_in_a_bounded_cache(recipe: str, files: dict[str, str]) -> None:
    session = opened(recipe.format(files[recipe.split("(")[0]]), 10)
    with tiny.Witness(session.model) as witness:
        session.read(tiny.text(150))
    most = max(len(rows) for _, stored, _ in witness.steps for layer in stored for rows in layer)
    assert most == 20
    for layer in tiny.alive(session.cache):
        for rows in layer:
            assert len(rows) == 20
            assert rows >= set(range(session.tokens - 6, session.tokens))
            assert min(rows) < session.tokens - 20  # and not a mere window


def test_what_went_once_does_not_decide_again_and_what_stayed_is_judged_by_its_first_score(
    files: dict[str, str],
) -> None:
    """Two chunkings of the same tokens note the same numbers, row by row, wherever both kept it in the first layer."""
    tallies = []
    for chunk in (10, 25):
        session = opened(
            f"kvzap(path={files['kvzap']!r}, rows=30, delay=5, when='chunk', every=99, allocator='even')", chunk
        )
        session.read(tiny.text(80))
        store = arenas(session.cache)[0].arena
        tallies.append({p: float(store.tally[i]) for i, p in enumerate(store.positions(0).tolist())})
    common = tallies[0].keys() & tallies[1].keys()
    assert len(common) > 20
    assert all(tallies[0][p] == pytest.approx(tallies[1][p], abs=1e-4) for p in common)


@pytest.mark.parametrize(
    "recipe", ["dms(rows=24, delay=8, every=6)", "kvzap(path='random:2', rows=24, delay=8, every=6, allocator='even')"]
)
def test_a_long_answer_is_written_in_a_bounded_cache(recipe: str) -> None:
    session = opened(recipe)
    with tiny.Witness(session.model) as witness:
        session.read(tiny.text(40))
        session.ask(tiny.text(3, seed=1), max_new_tokens=60)
    torch.testing.assert_close(witness.logits(), witness.dense(), rtol=1e-6, atol=1e-6)
    sizes = [max(len(rows) for layer in stored for rows in layer) for _, stored, _ in witness.steps[2:]]
    assert len(sizes) > 15
    assert max(sizes) <= 24 + 6


def test_under_attach_the_layers_show_their_input_as_well() -> None:
    made = tiny.model()
    with attach(made, "kvzap(path='random:0', rows=12, delay=4, allocator='even')") as attached:
        tiny.generated(made, tiny.ids(40), 3)
        assert {len(rows) for layer in tiny.alive(attached.cache) for rows in layer} == {12 + 2}
