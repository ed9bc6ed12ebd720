"""`kvledger drift` against the whole attention matrix, its command, and what it refuses."""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny as small
import torch
from torch import Tensor

from kvledger.cache import mass as column
from kvledger.cli import main
from kvledger.hf.chat import Chat
from kvledger.hf.load import load
from kvledger.hf.session import open_session
from kvledger.hf.watcher import Watcher, held_rows
from kvledger.records import claim
from kvledger.run import drift
from kvledger.tasks import get

RECIPES = ("adakv(keep=0.4, window=8)", "random(keep=0.5) + protect(evidence=True)", "full")


def options(out: Path, tiny: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    drift.add_parser(parser.add_subparsers(), lambda folder, scores: None)
    words = ["--context", "300", "--turns", "3", "--samples", "1", "--chunk", "128", "--recipes", *RECIPES]
    return parser.parse_args(["drift", "--model", str(tiny), "--out", str(out), *words, *more])


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in drift.path_of(out).read_text().splitlines()]


@pytest.fixture(scope="module")
def measured(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("drift")
    assert drift.measure(options(out, tiny)) == len(RECIPES) * 2 * 3
    return lines(out)


# ---- the numbers -----------------------------------------------------------------------------------------------------


def attention(made: Any, ids: list[int]) -> Tensor:
    """[L, H, N, N]: the softmax of every query of a dense forward, mean over the query heads of a KV head."""
    with small.implementation(made, "eager"), torch.inference_mode():
        found = made(input_ids=torch.tensor([ids]), use_cache=False, output_attentions=True).attentions
    H = made.config.num_key_value_heads
    return torch.stack([layer[0].unflatten(0, (H, -1)).mean(1) for layer in found])


def reference(tiny: Path, recipe: str, visibility: str) -> list[list[dict[str, float]]]:
    """The shares of each turn (question, answer), from the matrix and from a session that reads alone."""
    model, tokenizer = load(str(tiny))
    chat = Chat(tokenizer)
    sample = get("scbench/kv").make(
        seed=0, index=0, tokens=300, turns=3, form="small", count=lambda text: len(tokenizer(text)["input_ids"])
    )
    spans = [(max(0, a - 4), b + 4) for turn in sample.turns for a, b in turn.evidence] if "protect" in recipe else []
    session = open_session(model, tokenizer, recipe, 128)
    session.read(sample.text, None if visibility == "hidden" else sample.turns[0].question, protect=spans)
    ids, pieces = chat.opening(sample.text, "")[0], []
    context = len(ids)
    for number, turn in enumerate(sample.turns):
        asked = chat.follow_up(turn.question) if number else chat.opening(sample.text, turn.question)[1]
        for piece in (asked, chat.answer(turn.gold)):
            pieces.append((number, range(len(ids), len(ids) + len(piece))))
            ids = ids + piece
    weights = attention(model, ids)
    held = torch.ones(*weights.shape[:2], len(ids), dtype=torch.bool)
    held[:, :, : session.tokens] = held_rows(session).view(*weights.shape[:2], -1)
    found: list[list[dict[str, float]]] = [[] for _ in sample.turns]
    for number, queries in pieces:
        seen = weights[:, :, list(queries)].mean(2)
        rows = sorted(chat.places(sample.text, sample.turns[number].evidence, system=False))
        inside, looked = seen[:, :, :context], seen[:, :, rows]
        share = {"held": float((seen * held).sum(-1).mean())}
        share["context"] = float((inside * held[:, :, :context]).sum() / inside.sum())
        share["evidence"] = float((looked * held[:, :, rows]).sum() / looked.sum())
        found[number].append(share)
    return found


@pytest.mark.parametrize("recipe, visibility", list(product(RECIPES, ("hidden", "visible"))))
def test_shares_are_those_of_the_whole_matrix(
    tiny: Path, measured: list[dict[str, Any]], recipe: str, visibility: str
) -> None:
    expected = reference(tiny, recipe, visibility)
    mine = [line for line in measured if (line["recipe"], line["visibility"]) == (recipe, visibility)]
    assert [line["turn"] for line in mine] == [0, 1, 2]
    for line, (question, answer) in zip(mine, expected, strict=True):
        assert line["question"] == pytest.approx(question, abs=2e-5)
        assert line["answer"] == pytest.approx(answer, abs=2e-5)
        assert sum(line["steps"]) / len(line["steps"]) == pytest.approx(answer["held"], abs=2e-5)


def test_what_must_be_whole_is_whole_and_the_rest_is_not(measured: list[dict[str, Any]]) -> None:
    for line in measured:
        shares = [line["question"], line["answer"]]
        if line["recipe"] == "full":
            assert all(set(share.values()) == {1.0} for share in shares)
            assert set(line["steps"]) == {1.0}
            continue
        assert all(0 < share["context"] < 1 for share in shares)
        protected = "protect" in line["recipe"]
        assert all((share["evidence"] == 1.0) == protected for share in shares)
        assert line["kept"] == pytest.approx(0.5 if protected else 0.4, abs=0.01)


def test_visible_alone_and_one_shot_say_the_same(tiny: Path, tmp_path: Path, measured: list[dict[str, Any]]) -> None:
    drift.measure(options(tmp_path, tiny, "--visibility", "visible", "--chunk", "0"))
    before = [line for line in measured if line["visibility"] == "visible"]
    assert len(lines(tmp_path)) == len(before)
    for mine, theirs in zip(lines(tmp_path), before, strict=True):
        assert mine["steps"] == pytest.approx(theirs["steps"], abs=2e-5)
        assert mine["question"] == pytest.approx(theirs["question"], abs=2e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_oss"])
def test_mass_is_the_softmax_of_each_layer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column, "WEIGHTS_AT_ONCE", 16 * 30)  # a few queries at a time
    made = small.model(kind)
    session = open_session(made, small.tokenizer(), "full", 16)
    session.read(small.text(40))
    ids, tail = small.tokenizer()(small.text(40))["input_ids"], small.ids(20, seed=3)[0].tolist()
    weights = attention(made, ids + tail)
    types = getattr(made.config, "layer_types", None) or ["full_attention"] * 3
    weights = weights[[n for n, name in enumerate(types) if name == "full_attention"]].flatten(0, 1)
    watcher = Watcher(session)
    for piece in (range(41, 60), range(60, 61)):
        mass = watcher.feed((ids + tail)[piece.start : piece.stop])
        torch.testing.assert_close(mass, weights[:, list(piece), : piece.stop].mean(1), rtol=1e-4, atol=1e-5)
    assert watcher.tokens == 61
    assert session.tokens == 41  # the session that was handed over is left as it was


def test_only_a_full_cache_is_watched() -> None:
    session = open_session(small.model("llama"), small.tokenizer(), "streaming(keep=0.5)")
    session.read(small.text(40))
    with pytest.raises(ValueError, match="drops rows; what the full cache attends to"):
        Watcher(session)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_a_killed_command_goes_on(tiny: Path, tmp_path: Path, measured: list[dict[str, Any]]) -> None:
    path = drift.path_of(tmp_path)
    path.parent.mkdir()
    whole = [json.dumps(line) for line in measured]
    path.write_text("\n".join(whole[:7]) + "\n" + whole[7][:50])
    assert drift.measure(options(tmp_path, tiny)) == len(whole) - 7
    after = path.read_text().splitlines()
    assert after[:7] == whole[:7]
    assert after[7] == whole[7][:50]
    assert sorted(after[:7] + after[8:]) == sorted(whole)
    assert drift.measure(options(tmp_path, tiny)) == 0


def test_the_command_shows_what_it_measured(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(tiny), "--recipes", "snapkv(keep=0.4, window=8)", "--context", "200", "--turns", "2"]
    same = [*words, "--samples", "2", "--visibility", "visible", "hidden"]
    assert main(["run", *same, "--tasks", "scbench/kv", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    assert main(["drift", *same, "--out", str(out)]) == 0
    assert "Tokens of the answer: attention on rows that are held" in capsys.readouterr().out
    assert (out / "drift.html").exists()
    keys = {
        json.loads(line)["cell"] for line in (tmp_path / "run" / "records" / "turns.jsonl").read_text().splitlines()
    }
    assert {line["cell"] for line in lines(out)} == keys  # so that measures and scores find one another
    assert main(["drift", *same, "--out", str(out), "--scores", str(tmp_path)]) == 2
    assert "no scores in" in capsys.readouterr().err


def test_measures_of_other_versions_are_not_mixed(tiny: Path, tmp_path: Path) -> None:
    claim(tmp_path, "kvledger 0.0, torch 1.0")
    with pytest.raises(ValueError, match=r"made with kvledger 0.0, torch 1.0; here is kvledger"):
        drift.measure(options(tmp_path, tiny))
    assert not drift.path_of(tmp_path).exists()


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("snapkv(keep=0.3, every=8)", "drops rows while it answers"),
        ("headgate(keep=0.3)", "drops rows while it answers"),
        ("snapkv(keep=0.3, heads='query')", "stores rows by query head"),
        ("snapkw(keep=0.3)", "unknown method 'snapkw'"),
    ],
)
def test_mistakes_are_named_before_any_work(
    recipe: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drift", "--recipes", recipe, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
