"""Export: rounding to whole layers, settings that mean the same elsewhere, and what is refused."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from kvledger.cli import _Parser
from kvledger.hf.cache import new_cache
from kvledger.methods.gatefile import Gates, read_gates
from kvledger.serve import command, export
from kvledger.serve.rounding import rounded

MASK = ((True, True), (True, False), (False, False), (True, False))
SCORES = ((0.9, 0.8), (0.7, 0.0), (0.1, 0.1), (0.6, 0.5))
masks = st.integers(1, 4).flatmap(
    lambda heads: st.lists(st.tuples(*[st.booleans()] * heads), min_size=1, max_size=8).map(tuple)
)


def run(*words: str) -> None:
    parser = _Parser()
    command.add_export_parser(parser.add_subparsers())
    arguments = parser.parse_args(["export", *words])
    arguments.body(arguments)


# ---- rounding ----------------------------------------------------------------------------------------------------


def test_rounding_by_hand() -> None:
    budget = rounded(MASK, SCORES, "budget")
    assert budget.layers == (True, False, False, True)  # 4 of 8 heads are 2 layers; of equal ones the higher scores
    assert (budget.opened, budget.closed, budget.heads, budget.full) == (1, 1, 8, 0.5)
    safe = rounded(MASK, SCORES, "any")
    assert safe.layers == (True, True, False, True)
    assert (safe.opened, safe.closed) == (2, 0)


@given(masks)
def test_rounding_keeps_the_budget_or_every_full_head(mask: Any) -> None:
    flat = tuple((0.5,) * len(mask[0]) for _ in mask)
    full, width = sum(map(sum, mask)), len(mask[0])
    for how in ("budget", "any"):
        found = rounded(mask, flat, how)
        assert full + found.opened - found.closed == sum(found.layers) * width
    assert found.closed == 0
    least = rounded(mask, flat, "budget")
    assert sum(least.layers) == max(1, int(full / width + 0.5))
    assert min((sum(row) for row, keep in zip(mask, least.layers) if keep)) >= max(
        [sum(row) for row, keep in zip(mask, least.layers) if not keep], default=0
    )


def test_the_gates_of_whole_layers_open_those_layers() -> None:
    found = rounded(MASK, SCORES, "any")
    gates = found.gates(Gates(SCORES, 2, 8))
    assert gates.full_heads(found.full) == tuple((full, full) for full in found.layers)
    assert (gates.sink, gates.window) == (2, 8)


# ---- to vLLM -----------------------------------------------------------------------------------------------------


def test_the_overrides_mean_to_transformers_what_the_gates_mean_here(tmp_path: Path) -> None:
    """A window without sinks is transformers' own sliding window: the same logits from a model built with the overrides."""
    ours = tiny.model("qwen3")
    changes = export.overrides(ours.config, (True, False, True), window=7)
    assert changes["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]
    config = AutoConfig.for_model("qwen3", **{**tiny.SMALL, **changes})
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    theirs.load_state_dict(ours.state_dict())
    gates = rounded(((True,) * 2, (False,) * 2, (True,) * 2), ((1.0,) * 2,) * 3, "budget").gates(
        Gates(((1.0,) * 2,) * 3, 0, 7)
    )
    gates.save(tmp_path / "g.json")
    cache = new_cache(ours, f"headgate(path={str(tmp_path / 'g.json')!r}, keep={2 / 3!r})")
    tokens = tiny.ids(60)
    with torch.inference_mode():
        mine = ours(input_ids=tokens, past_key_values=cache).logits
        assert torch.allclose(mine, theirs(input_ids=tokens, use_cache=False).logits, atol=1e-4)
        dense = tiny.model("qwen3")(input_ids=tokens, past_key_values=new_cache(ours, "full")).logits
    assert not torch.allclose(mine, dense, atol=1e-2)


def test_layers_of_other_kinds_are_left_alone_and_other_windows_refused() -> None:
    config = copy.deepcopy(tiny.model("gemma3_text").config)
    kinds = export.overrides(config, (False, True), 16)["layer_types"]
    assert kinds == [tiny.MIXED[0], "sliding_attention", "full_attention"]
    with pytest.raises(ValueError, match="windows of 16 tokens of its own"):
        export.overrides(config, (False, True), 32)


@pytest.fixture
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvledger.hf import load

    model, tokenizer = load.load("zoo")
    monkeypatch.setattr(load, "load", lambda name: (model, tokenizer))


def test_gates_become_settings_with_what_they_cost(
    tmp_path: Path, one_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--to", "vllm", "--out", str(tmp_path), "--context", "300", "--samples", "1", "--turns", "2"]
    run("headgate(keep=0.3) + int8", *words)
    shown = capsys.readouterr().out.strip().splitlines()
    words = shlex.split(shown[-1])
    settings = json.loads((tmp_path / "vllm.json").read_text())
    assert words[:3] == ["vllm", "serve", "zoo"]
    assert json.loads(words[words.index("--hf-overrides") + 1]) == settings["hf_overrides"]
    assert words[5:] == ["--kv-cache-dtype", "int8_per_token_head"]
    rounding = settings["rounding"]
    assert f"24 KV heads: {rounding['opened']} with a window become full, {rounding['closed']} full ones" in shown[0]
    ways = settings["measured"]["ways"]
    assert [way["turns"] for way in ways] == [2] * 4
    assert ways[0]["bytes"] > 0.99 > ways[1]["bytes"]
    assert ways[2]["bytes"] > ways[3]["bytes"], "windows without sinks hold less"
    assert "sink=0" in ways[3]["recipe"]
    assert "int8" in ways[3]["recipe"]
    full = [full for full in rounding["layers"] if full]
    assert settings["hf_overrides"]["layer_types"].count("full_attention") == len(full)


def test_types_whose_code_in_vllm_knows_one_kind_of_layer_run_on_transformers() -> None:
    settings = {"model": "m", "hf_overrides": {"sliding_window": 8}}
    assert "--model-impl" not in export.command({**settings, "model_impl": "auto"})
    assert export.command({**settings, "model_impl": "transformers"})[-2:] == ["--model-impl", "transformers"]
    assert not {"qwen2", "qwen3"} & {*export.NATIVE}


def test_a_format_alone_and_parts_that_are_not_expressed(
    tmp_path: Path, one_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run("snapkv(keep=0.3) + fp8", "--to", "vllm", "--out", str(tmp_path), "--samples", "0")
    shown = capsys.readouterr().out
    assert "not expressed, vLLM has no such thing: snapkv(keep=0.3)" in shown
    assert shown.strip().endswith("vllm serve zoo --kv-cache-dtype fp8_per_token_head")


@pytest.mark.parametrize(
    "words, reason",
    [
        (["snapkv(keep=0.3)"], "nothing of snapkv"),
        (["headgate(keep=0.5) + kivi(bits=4)"], "kivi is not among vLLM's formats"),
        (["snpkv"], "did you mean 'snapkv'"),
        (["zoo/nothing"], "unknown gates 'zoo/nothing'"),
        (["zoo/duo", "--keep", "2"], "outside"),
    ],
)
def test_what_cannot_be_said_is_refused(tmp_path: Path, one_model: None, words: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        run(*words, "--to", "vllm", "--out", str(tmp_path))
    assert not list(tmp_path.iterdir())


# ---- to DuoAttention ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["zoo/duo", "folder", "file"])
def test_gates_become_duo_attentions_table_and_come_back(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = read_gates("zoo/duo")
    gates.save(tmp_path / "in" / "gates.json")
    path = {"folder": str(tmp_path / "in"), "file": str(tmp_path / "in" / "gates.json")}.get(source, source)
    run(path, "--to", "duo", "--out", str(tmp_path / "out"))
    back = read_gates(tmp_path / "out")
    assert (back.scores, back.sink, back.window) == (gates.scores, gates.sink, gates.window)
    assert "heads that stay full at keep=0.5: 12" in capsys.readouterr().out
