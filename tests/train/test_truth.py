"""On a model whose retrieval heads are known (tests/train/circuit.py) both objectives find exactly those heads."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from train import circuit

from kvledger.train.loop import train
from kvledger.train.options import changed, preset
from kvledger.train.parallel import Peers

MODEL = cache(circuit.circuit)
RETRIEVAL = 3
COMMON: dict[str, Any] = dict(
    sparsity=1 - RETRIEVAL / circuit.GROUPS, sink=circuit.SINK, window=circuit.WINDOW, seq_len=circuit.LENGTH, batch=2,
    micro=2, save_every=1000,
)  # fmt: skip
FAST = {"prulong": dict(steps=36, lr=0.5, lr_lambda=0.5), "duo": dict(steps=30, lr=0.1)}


def test_the_model_answers_and_only_retrieval_heads_need_what_is_far() -> None:
    from kvledger.train.attention import Gating

    document = circuit.document({1, 6}, Random(0))
    ids = torch.tensor(document.ids)
    wanted = [i for i in range(len(ids)) if document.learn[i]]
    with Gating(MODEL(), circuit.SINK, circuit.WINDOW) as gating, torch.no_grad():

        def surest(streaming: set[int]) -> list[float]:
            z = torch.ones(circuit.GROUPS)
            z[list(streaming)] = 0
            log = MODEL().lm_head(gating.hidden(ids, (0,), z.view(circuit.LAYERS, circuit.HEADS)))[0].log_softmax(-1)
            return [float(log[i - 1, ids[i]].exp()) for i in wanted]

        assert min(surest(set())) > 0.9
        assert min(surest({0, 2, 3, 4, 5, 7})) > 0.9
        assert sum(p < 0.1 for p in surest({1})) == sum(p < 0.1 for p in surest({6})) == circuit.KEYS


@pytest.mark.parametrize("objective", ["prulong", "duo"])
@pytest.mark.parametrize("seed", range(5))
def test_training_finds_exactly_the_heads_that_must_remember(objective: str, seed: int, tmp_path: Path) -> None:
    remember = set(Random(seed).sample(range(circuit.GROUPS), RETRIEVAL))
    o = changed(preset(objective), {**COMMON, **FAST[objective], "seed": seed})
    gates = train(o, MODEL(), None, circuit.stream(remember, seed), Peers(), tmp_path / "gates.json")
    scores = [score for row in gates.scores for score in row]
    assert {head for head, score in enumerate(scores) if score >= 0.5} == remember
    assert min(scores[head] for head in remember) > 0.8
    assert max(score for head, score in enumerate(scores) if head not in remember) < 0.2
