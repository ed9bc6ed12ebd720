"""The search for head patterns: a head of a known shape is recognised, and the file is what MInference reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

from kvledger.cli import main
from kvledger.hf import search
from kvledger.hf.cache import new_cache
from kvledger.hf.search import _Searching, head_patterns, sized
from kvledger.methods.headpatterns import HeadPattern, HeadPatterns
from kvledger.recipe import parse


def test_sizes_are_in_proportion_to_the_prompt() -> None:
    assert sized(30_000) == list(search.CANDIDATES)
    assert sized(3_000)[:2] == [HeadPattern("a_shape", 10, 80), HeadPattern("vertical_slash", 3, 80)]


def heads() -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [1, 2, 96, 97] and keys [1, 1, 96, 97]: head 0 looks at token 40, head 1 at the token 25 before."""
    tokens, lag = 96, 25
    q, k = torch.zeros(1, 2, tokens, tokens + 1), torch.zeros(1, 1, tokens, tokens + 1)
    k[0, 0, range(tokens), range(tokens)] = 1.0
    q[0, 0, :, 40] = 40.0
    q[0, 1, range(lag, tokens), range(tokens - lag)] = 40.0
    return q, k


def test_a_column_and_a_diagonal_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvledger.methods.minference.FIRST", 1)
    monkeypatch.setattr("kvledger.methods.minference.NEAREST", 1)
    monkeypatch.setattr("kvledger.hf.search.MInference", lambda: parse("minference(queries=8, block=4)").pattern)
    columns, diagonals, block = (
        HeadPattern(*one) for one in (("vertical_slash", 3, 1), ("vertical_slash", 1, 3), ("a_shape", 1, 4))
    )
    made = tiny.model("llama")
    template = new_cache(made, "full").layers[0]
    layer = search._searching(template, [columns, diagonals, block])
    assert isinstance(layer, _Searching)
    q, k = heads()
    v = torch.randn(1, 1, 96, 97, generator=torch.Generator().manual_seed(0))
    with tiny.implementation(made, "kvledger"):
        keys, values = layer.update(k, v)
        layer.attend(q, keys, values, 1.0, None, None, None)
    assert layer.shares.argmax(-1).tolist() == [0, 1]
    late = torch.arange(96 // 12, 96)  # queries that count; before token 40 there is nothing to look at but all alike
    assert float(layer.shares[0, 0]) > float((late >= 40).float().mean())
    assert float(layer.shares[1, 2]) < 0.5


def test_the_heads_of_a_model_get_what_kept_most() -> None:
    made = tiny.model("llama", num_hidden_layers=2)
    found = head_patterns(made, tiny.tokenizer(), [(tiny.text(150), tiny.text(3))], 150)
    assert (len(found.heads), len(found.heads[0])) == (2, 8)
    assert all(one in sized(150) for row in found.heads for one in row)
    assert all(0 < x <= 1 for row in found.score for x in row)
    with pytest.raises(ValueError, match="no sample to search with"):
        head_patterns(made, tiny.tokenizer(), [], 150)


def test_the_command_writes_what_minference_reads(tmp_path: Path) -> None:
    out = tmp_path / "patterns.json"
    options = ["--samples", "1", "--turns", "1", "--context", "160", "--seed", "3"]
    assert main(["probe", "minference", "--out", str(out), *options]) == 0
    made = HeadPatterns.load(out)
    assert (len(made.heads), len(made.heads[0])) == (6, 8)
    assert (made.model, made.task, made.samples, made.tokens, made.seed) == ("zoo", "scbench/kv", 1, 160, 3)
    pattern = parse(f"minference(path={str(out)!r})").pattern
    before = pattern.fingerprint
    made.save(out)
    assert pattern.fingerprint == before != ""
    HeadPatterns(((HeadPattern("a_shape", 1, 2),),)).save(out)
    assert pattern.fingerprint != before
    with pytest.raises(ValueError, match="are for 1 layers of 1 query heads, and this model has 3 of 8"):
        new_cache(tiny.model("llama"), f"minference(path={str(out)!r})")


def test_files_of_the_authors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps([{"0": ["vertical_and_slash", 1000, 6096, 0.9], "1": ["stream_llm", 100, 800, 1]}]))
    assert HeadPatterns.load(path).heads == (
        (HeadPattern("vertical_slash", 1000, 6096), HeadPattern("a_shape", 100, 800)),
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot read the head patterns"),
        ("{}", "of format 1"),
        ('{"format": 1}', "heads"),
        ('{"format": 1, "heads": []}', "not a table"),
        ('{"format": 1, "heads": [[["zigzag", 1, 2]]]}', "'zigzag' is not one of"),
        ('{"format": 1, "heads": [[["a_shape", 1.5, 2]]]}', "not whole numbers"),
        ('{"format": 1, "heads": [[["a_shape", 1, 2]]], "more": 1}', "more=1 is not known"),
        ('[{"0": ["zigzag", 1, 2, 0.5]}]', "zigzag"),
    ],
)
def test_damaged_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "patterns.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        HeadPatterns.load(path)
