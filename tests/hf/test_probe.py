"""The head probe against dense attention, and its command."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from kvledger.cli import main
from kvledger.hf import probe as probes
from kvledger.hf.probe import Needle, head_importance
from kvledger.methods.importance import Importance
from kvledger.recipe import parse
from kvledger.run.probe import needles
from kvledger.tasks import TASKS, Sample, Segment, Turn

CONTEXT, QUESTION, ANSWER = tiny.text(40), tiny.text(3, seed=1), tiny.text(4, seed=2)


def needle(first: int, last: int) -> Needle:
    """The words `first … last` of the context."""
    words = CONTEXT.split(" ")
    start = len(" ".join(words[:first])) + 1
    return Needle(CONTEXT, QUESTION, ANSWER, ((start, start + len(" ".join(words[first : last + 1]))),))


def dense(made: object, rows: set[int]) -> torch.Tensor:
    """Hits [L, Hq] from the whole attention matrix: the top row of each question and answer token but the last."""
    ids = tiny.tokenizer()(CONTEXT)["input_ids"]
    tail = tiny.tokenizer()(QUESTION + " " + ANSWER, add_special_tokens=False)["input_ids"][:-1]
    with tiny.implementation(made, "eager"), torch.inference_mode():
        weights = made(input_ids=torch.tensor([ids + tail]), use_cache=False, output_attentions=True).attentions
    tops = torch.stack([layer[0, :, len(ids) :].argmax(-1) for layer in weights])
    return torch.isin(tops, torch.tensor(sorted(rows))).double().mean(-1)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("chunk", [7, 2048])
def test_hits_are_those_of_the_whole_matrix(kind: str, chunk: int) -> None:
    made = tiny.model(kind, torch.float64)
    scores = torch.tensor(head_importance(made, tiny.tokenizer(), [needle(10, 24)], chunk).scores)
    expected = dense(made, set(range(11, 27)))  # tokens 11 … 25, for <s> is token 0, and the one behind
    full = [i for i in range(3) if kind != "gemma2" or made.config.layer_types[i] == "full_attention"]
    torch.testing.assert_close(scores.double(), expected[full], rtol=0, atol=6e-5)
    assert 0 < float(scores.mean()) < 1


def test_a_query_looks_at_rows_up_to_its_own() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 20, 4, generator=draw), torch.randn(24, 4, generator=draw)
    for g in range(2):
        for t in range(20):
            assert int(probes.top_rows(q, k, 0.5)[g, t]) == int((k[: 24 - 20 + t + 1] @ q[g, t]).argmax())


def test_needles_are_averaged_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made, tokenizer = tiny.model("llama", torch.float64), tiny.tokenizer()
    one, two = (torch.tensor(head_importance(made, tokenizer, [n]).scores) for n in (needle(2, 9), needle(20, 35)))
    monkeypatch.setattr(probes, "LOGITS_AT_ONCE", 4 * 47 * 2)  # two queries at a time
    both = torch.tensor(head_importance(made, tokenizer, [needle(2, 9), needle(20, 35)]).scores)
    torch.testing.assert_close(both, (one + two) / 2, rtol=0, atol=2e-4)
    assert not torch.equal(one, two)


def test_the_command_writes_what_headkv_reads(tmp_path: Path) -> None:
    out = tmp_path / "importance.json"
    options = ["--samples", "1", "--turns", "2", "--context", "160", "--seed", "3"]
    assert main(["probe", "headkv", "--out", str(out), *options]) == 0
    made = Importance.load(out)
    assert (len(made.scores), len(made.scores[0])) == (6, 8)
    assert (made.model, made.task, made.samples, made.tokens, made.seed) == ("zoo", "scbench/kv", 2, 160, 3)
    assert top(made) == top(Importance.load("zoo"))  # the embedded file says the same of the same heads
    assert parse(f"headkv(importance={str(out)!r})").method.fingerprint


def top(importance: Importance) -> int:
    """The layer whose heads look at needles most."""
    return max(range(len(importance.scores)), key=lambda layer: sum(importance.scores[layer]))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--samples", "0"], "--samples 0: there must be at least one"),
        (["--task", "scbench/vk"], "unknown task 'scbench/vk'"),
    ],
)
def test_mistakes_are_named(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "headkv", "--out", str(tmp_path / "x.json"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_probing_with_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample to probe with"):
        head_importance(tiny.model("llama"), tiny.tokenizer(), [])


def test_a_task_without_evidence_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample("bare", 0, (Segment("context", CONTEXT),), (Turn(QUESTION, ANSWER, (ANSWER,), 4),))
    monkeypatch.setitem(TASKS, "bare", replace(TASKS["scbench/kv"], make=lambda **shape: sample))
    given = argparse.Namespace(task="bare", samples=1, turns=1, context=40, seed=0)
    with pytest.raises(ValueError, match="the questions of bare name no evidence; take a retrieval task"):
        list(needles(tiny.tokenizer(), given))
