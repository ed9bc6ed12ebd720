"""`kvledger inspect`: the bits are the rows that the cache holds, and the page is made of them."""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from kvledger.cli import main
from kvledger.hf import cache as caches
from kvledger.hf.load import load
from kvledger.hf.session import open_session
from kvledger.recipe import parse
from kvledger.run.inspect import add_parser, at_keeps, inspect
from kvledger.tasks import get


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["inspect", *words])


def held(bits: str) -> list[int]:
    data = base64.b64decode(bits)
    return [token for token in range(8 * len(data)) if data[token >> 3] >> (token & 7) & 1]


@pytest.fixture(scope="module")
def facts(tiny: Path) -> dict[str, Any]:
    words = (
        "--model",
        str(tiny),
        "--recipe",
        "adakv(keep=0.4, window=8)",
        "--keeps",
        "0.2",
        "--context",
        "400",
        "--turns",
        "2",
    )
    return dict(json.loads(inspect(options(*words))))


def test_bits_are_the_rows_of_the_cache(tiny: Path, facts: dict[str, Any]) -> None:
    model, tokenizer = load(str(tiny))
    sample = get("scbench/kv").make(
        seed=0, index=0, tokens=400, turns=2, form="small", count=lambda text: len(tokenizer(text)["input_ids"])
    )
    assert [level["keep"] for level in facts["levels"]] == [0.2, 0.4]
    for level in facts["levels"]:
        session = open_session(model, tokenizer, level["recipe"])
        session.read(sample.text)
        layers = caches.arenas(session.cache)
        assert len(level["kept"]) == len(layers) == 2
        for bits, layer in zip(level["kept"], layers, strict=True):
            assert layer.arena is not None
            assert [held(head) for head in bits] == [layer.arena.positions(s).tolist() for s in range(2)]
    rows = sum(len(held(head)) for layer in facts["levels"][1]["kept"] for head in layer)
    assert rows == pytest.approx(0.4 * 4 * len(facts["tokens"]), abs=4)


def test_tokens_are_the_text_and_evidence_is_the_gold(tiny: Path, facts: dict[str, Any]) -> None:
    whole = "".join(facts["tokens"])
    assert whole.startswith("<|bos|>")
    for turn in facts["turns"]:
        assert turn["evidence"]
        assert turn["gold"] in "".join(facts["tokens"][place] for place in turn["evidence"])
    assert all(len(level["answers"]) == 2 for level in facts["levels"])


def test_the_command_writes_a_page(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    words = ["--recipe", "streaming(keep=0.5)", "--keeps", "0.3", "--context", "200", "--turns", "1", "--out", str(out)]
    assert main(["inspect", "--model", str(tiny), *words]) == 0
    assert capsys.readouterr().out == f"page: {out}\n"
    assert "What streaming(keep=0.5) holds" in out.read_text(encoding="utf-8")


def test_keeps_move_the_part_that_has_one() -> None:
    assert [str(r) for r in at_keeps(parse("snapkv(keep=0.3, window=8)"), (0.1, 1.0))] == [
        "snapkv(keep=0.1, window=8)",
        "snapkv(keep=0.3, window=8)",
    ]
    together = parse("snapkv(keep=0.3) + protect(recent=16)")
    assert [str(r) for r in at_keeps(together, (0.5,))] == [
        "snapkv(keep=0.3) + protect(recent=16)",
        "snapkv(keep=0.5) + protect(recent=16)",
    ]


@pytest.mark.parametrize(
    "words, said",
    [
        (("--recipe", "full"), "full drops nothing"),
        (("--recipe", "snapkv(keep=0.3)", "--keeps", "1.5"), "--keeps 1.5"),
        (("--recipe", "snapkv(rows=64)"), "has a keep that a slider could move"),
        (("--recipe", "snapkv(keep=0.3)", "--chunk", "-1"), "chunk=-1 is negative"),
        (("--recipe", "snapkw(keep=0.3)"), "snapkv"),
        (("--recipe", "snapkv(keep=0.3)", "--task", "scbench/none"), "scbench/none"),
    ],
)
def test_mistakes_are_told_in_one_line(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
