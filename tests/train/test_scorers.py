"""Training learned scorers: what they are taught, that they learn it, and that a run can be cut off and taken up again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from kvledger.hf.load import load
from kvledger.hf.reading import Reading
from kvledger.hf.session import Session
from kvledger.methods.kvzip import KVzip
from kvledger.methods.scorerfile import Scorer, digest, embedded, fitting, read_scorer
from kvledger.recipe import Recipe
from kvledger.train import scorers
from kvledger.train.data import Packed, Stream, open_stream
from kvledger.train.scorer_options import ScorerOptions
from kvledger.train.scorers import ScorerStep, ranking, spearman, train_scorer
from kvledger.train.targets import LEAST, causal_importance, examples

T = 64


def packed(seed: int, starts: tuple[int, ...] = (0,)) -> Packed:
    return Packed(tuple(tiny.ids(T, seed=seed)[0].tolist()), starts, tuple(i not in starts for i in range(T)))


STREAM = Stream("numbers", lambda start: map(packed, count(start)))


def options(kind: str, **more: Any) -> ScorerOptions:
    small = ScorerOptions(
        objective=kind, data="numbers", model="tiny", steps=12, seq_len=T, hidden=24, lr=3e-3, save_every=4
    )
    return replace(small, **more)


def run(o: ScorerOptions, out: Path, **more: Any) -> tuple[Scorer, list[ScorerStep]]:
    seen: list[ScorerStep] = []
    return train_scorer(o, tiny.model(), tiny.tokenizer(True), STREAM, out, seen.append, **more), seen


# ---- targets ---------------------------------------------------------------------------------------------------------


def test_kvzap_is_taught_the_logarithm_of_what_kvzip_plus_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers that a session under kvzip(plus=True) has noted when it drops."""
    noted: list[Tensor] = []
    score = KVzip.score

    def spy(self: KVzip, seen: Any) -> Tensor:
        noted.append(score(self, seen).clone())
        return noted[-1]

    monkeypatch.setattr(KVzip, "score", spy)
    made, known = tiny.model("gemma3_text"), tiny.tokenizer(True)
    session = Session(made, known, Recipe((KVzip(plus=True, keep=0.5),)), 0)
    reading, ids = Reading(session), list(packed(3).ids)
    reading.advance(ids, len(ids))
    (example,) = examples("kvzap", made, known, packed(3))
    assert len(example.wanted) == len(noted) == 2  # its sliding layer is left alone
    for wanted, tally in zip(example.wanted, noted):
        torch.testing.assert_close(wanted, tally.clamp(min=LEAST).log(), rtol=1e-3, atol=1e-3)
        assert float(wanted.std()) > 0.1


@pytest.mark.parametrize("block", [1, 10**6])
def test_locret_is_taught_the_greatest_logit_of_a_later_query(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvledger.train import targets

    monkeypatch.setattr(targets, "LOGITS_AT_ONCE", block)
    H, G, N, D = 2, 3, 12, 5
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(H, G, N, D, generator=draw), torch.randn(H, N, D, generator=draw)
    asking = (2, 5, 6, 9)
    given = causal_importance(q, k, asking, 0.3)
    for h in range(H):
        for n in range(N):
            logits = [float(q[h, g, t] @ k[h, n]) * 0.3 for g in range(G) for t in asking if t > n]
            assert float(given[h, n]) == pytest.approx(max(logits, default=-math.inf), rel=1e-5)


def test_each_document_is_an_example_and_padding_is_none() -> None:
    sequence = packed(1, starts=(0, 30, 40))  # the second is too short
    assert [x.wanted[0].shape[1] for x in examples("locret", tiny.model(), tiny.tokenizer(True), sequence)] == [30, 24]
    silent = replace(sequence, learn=tuple(i < 30 and flag for i, flag in enumerate(sequence.learn)))
    (only,) = examples("locret", tiny.model(), tiny.tokenizer(True), silent)
    alone = Packed(sequence.ids[:30], (0,), sequence.learn[:30])
    (same,) = examples("locret", tiny.model(), tiny.tokenizer(True), alone)
    for ours, theirs in zip(only.wanted, same.wanted):
        torch.testing.assert_close(ours, theirs)


def test_only_answers_ask() -> None:
    learn = tuple(i in (20, 21) for i in range(T))
    (example,) = examples("locret", tiny.model(), tiny.tokenizer(True), replace(packed(2), learn=learn))
    told = (example.wanted[0] > -torch.inf).all(0)
    assert told.tolist() == [i < 20 for i in range(T)]  # token 20 is what the last query, of token 20, comes after


def test_rank_correlation() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(a, a.exp()) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, torch.tensor([2.0, 1.0, 4.0, 3.0])) == pytest.approx(0.6)
    assert spearman(a, torch.tensor([1.0, 1.0, 2.0, 2.0])) == pytest.approx(2 / math.sqrt(5))
    assert spearman(a, torch.ones(4)) == 0


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, hidden", [("kvzap", 24), ("kvzap", 0), ("locret", 24)])
def test_training_lowers_the_loss_and_ranks_new_rows_better(kind: str, hidden: int, tmp_path: Path) -> None:
    o = options(kind, hidden=hidden)
    made, steps = run(o, tmp_path / "s.safetensors")
    assert steps[-1].loss < 0.9 * steps[0].loss
    new = [x for n in range(5000, 5006) for x in examples(kind, tiny.model(), tiny.tokenizer(True), packed(n))]
    inputs = new[0].inputs[0].shape[1]
    untrained = fitting("random:0", kind, 3, 2, inputs, torch.device("cpu"))
    assert abs(ranking(untrained, new)) < 0.1
    assert ranking(made, new) > 0.12
    assert ranking(read_scorer(tmp_path / "s.safetensors"), new) == pytest.approx(ranking(made, new))
    assert (made.facts.kind, made.facts.model, made.facts.data, made.facts.steps) == (kind, "tiny", "numbers", 12)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    before = {name: x.clone() for name, x in tiny.model().state_dict().items()}
    tiny.model().zero_grad(set_to_none=True)  # the tests share it, and others train it
    run(options("kvzap", steps=2), tmp_path / "s.safetensors")
    assert all(torch.equal(x, before[name]) for name, x in tiny.model().state_dict().items())
    assert all(x.grad is None for x in tiny.model().parameters())


# ---- being cut off ---------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def cut_off(o: ScorerOptions, out: Path, step: int) -> None:
    """Begin a run that the power leaves after `step`."""

    def watch(now: ScorerStep) -> None:
        if now.step == step:
            raise Stopped

    train_scorer(o, tiny.model(), tiny.tokenizer(True), STREAM, out, watch)


@pytest.mark.parametrize("kind", ["kvzap", "locret"])
def test_a_run_that_was_cut_off_ends_with_the_very_same_numbers(kind: str, tmp_path: Path) -> None:
    o = options(kind, steps=6, save_every=2, batch=2)
    whole, _ = run(o, tmp_path / "whole.safetensors")

    out = tmp_path / "cut.safetensors"
    with pytest.raises(Stopped):
        cut_off(o, out, step=3)
    made, steps = run(o, out)
    assert [step.step for step in steps] == [2, 3, 4, 5]
    for ours, theirs in zip(made.nets, whole.nets):
        assert all(torch.equal(x, theirs.tensors()[name]) for name, x in ours.tensors().items())
    log = [json.loads(line)["step"] for line in (tmp_path / "cut.log.jsonl").read_text().splitlines()]
    assert log == list(range(6))
    with pytest.raises(ValueError, match=r"other options \(lr was 0.003 and is 0.1\); --fresh begins anew"):
        run(replace(o, lr=0.1), out)
    assert [step.step for step in run(replace(o, steps=2), out, fresh=True)[1]] == [0, 1]


def test_what_is_no_number_stops_and_leaves_the_last_good_scorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    o, out = options("kvzap", steps=4, save_every=99), tmp_path / "s.safetensors"
    with pytest.raises(Stopped):
        cut_off(replace(o, save_every=2), tmp_path / "two.safetensors", step=2)

    def poisoned(*arguments: Any) -> Iterator[Any]:
        for n, example in enumerate(examples(*arguments)):
            bad = arguments[3].ids == packed(2).ids and n == 0
            yield replace(example, wanted=tuple(x * math.inf if bad else x for x in example.wanted))

    monkeypatch.setattr(scorers, "examples", poisoned)
    with pytest.raises(RuntimeError, match=r"in step 2; the scorer before it is in .*s\.safetensors"):
        run(o, out)
    assert digest(str(out)) == digest(str(tmp_path / "two.safetensors"))
    assert read_scorer(out).facts.steps == 2


def test_a_sequence_without_a_document_to_learn_from_is_refused(tmp_path: Path) -> None:
    short = Stream("short", lambda start: (packed(n, tuple(range(0, T, 8))) for n in count(start)))
    with pytest.raises(ValueError, match="no document that a scorer could learn from"):
        train_scorer(options("kvzap"), tiny.model(), tiny.tokenizer(True), short, tmp_path / "s.safetensors")


@pytest.mark.parametrize("kind", sorted(embedded()))
def test_the_embedded_scorers_are_good_for_the_embedded_model(kind: str) -> None:
    made, known = load("zoo", device="cpu")
    scorer = read_scorer(f"zoo/{kind}")
    assert (scorer.facts.kind, scorer.facts.model) == (kind, "zoo")
    sequence = next(open_stream("tasks:scbench/vt", known, 320, seed=99).sequences())
    new = list(examples(kind, made, known, sequence))
    assert ranking(scorer, new) > 0.3
