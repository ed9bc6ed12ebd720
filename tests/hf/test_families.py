"""Model families: the same tokens as plain transformers, in one shot or chunks, alone or in a padded batch."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import kvledger as kv
from kvledger.hf.cache import check_supported, run_of
from kvledger.hf.session import open_session

CASES = [(name, {}) for name in tiny.FAMILIES]
PROMPT, NEW = 41, 8


def eager(made: Any, prompt: torch.Tensor, count: int = NEW, **more: Any) -> list[list[int]]:
    with tiny.implementation(made, "eager"):
        return tiny.generated(made, prompt, count, **more)


def ours(
    made: Any, recipe: str, prompt: torch.Tensor, mask: torch.Tensor | None = None, **more: Any
) -> list[list[int]]:
    with tiny.implementation(made, "kvledger"):
        return tiny.generated(made, prompt, NEW, mask, past_key_values=kv.new_cache(made, recipe), **more)


@pytest.mark.parametrize("kind, changes", CASES, ids=[kind for kind, _ in CASES])
def test_full_generates_what_plain_transformers_generates(kind: str, changes: dict[str, Any]) -> None:
    made, prompt = tiny.model(kind, **changes), tiny.ids(PROMPT)
    expected = eager(made, prompt)
    assert len(set(expected[0])) > 2  # the model does not just repeat itself
    assert ours(made, "full", prompt) == expected


@pytest.mark.parametrize("kind, changes", CASES, ids=[kind for kind, _ in CASES])
def test_chunks_and_one_shot_agree(kind: str, changes: dict[str, Any]) -> None:
    made = tiny.model(kind, **changes)
    logits = []
    for chunk in (0, 9):
        session = open_session(made, tiny.tokenizer(), "full", chunk)
        with tiny.Witness(made) as witness:
            session.read(tiny.text(PROMPT), tiny.text(3, seed=1))
            session.answer(3)
        reads = sum(step.kind == "read" for step in session.ledger.steps)
        logits.append(witness.logits()[reads - 1 :])
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


RECIPES = ["full", "snapkv(keep=0.4, window=4)", "adakv(keep=0.4, window=4, heads='query')", "streaming(keep=0.4)"]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gemma3_text", "gpt_oss", "glm4"])
def test_a_padded_batch_is_each_prompt_alone(kind: str, recipe: str) -> None:
    dtype = torch.float32 if kind == "gpt_oss" else torch.float64  # its experts know no float64
    made, lengths = tiny.model(kind, dtype), (PROMPT, 25, 12)
    prompts = [tiny.ids(n, seed=n) for n in lengths]
    padded, mask = torch.zeros(3, PROMPT, dtype=torch.long), torch.zeros(3, PROMPT, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        padded[row, PROMPT - prompt.shape[1] :] = prompt[0]
        mask[row, PROMPT - prompt.shape[1] :] = 1
    with kv.attach(made, recipe) as attached:
        together = tiny.generated(made, padded, NEW, mask)
        dropped = attached.ledger.dropped
        alone = []
        for prompt in prompts:
            alone += tiny.generated(made, prompt, NEW)
            dropped -= attached.ledger.dropped
    assert together == alone
    assert dropped == 0
    if recipe == "full":
        assert together == [eager(made, prompt)[0] for prompt in prompts]


def test_without_our_cache_a_model_still_works() -> None:
    """A model set to our attention and called with another cache, or none, runs dense."""
    for kind in ("llama", "gemma2", "gpt_oss", "gemma3_text"):
        made, prompt = tiny.model(kind), tiny.ids(20, batch=2)
        mask = torch.ones_like(prompt)
        mask[1, :7] = 0
        results = []
        for name in ("eager", "kvledger"):
            with tiny.implementation(made, name), torch.inference_mode():
                cached = tiny.generated(made, prompt, 4, mask)
                results.append((made(prompt, attention_mask=mask, use_cache=False).logits[:, 7:], cached))
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
        assert results[0][1] == results[1][1]


def bare(kind: str, **changes: Any) -> Any:
    config = AutoConfig.for_model(kind, **{**tiny.SMALL, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("jetmoe", {"kv_channels": 16, "num_local_experts": 4}),  # repeats keys after caching them
        ("gptj", {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}),  # attends by itself
    ],
)
@pytest.mark.parametrize("way", ["open", "attach"])
def test_a_model_whose_keys_we_cannot_keep_is_refused_by_name(kind: str, changes: dict[str, Any], way: str) -> None:
    made = bare(kind, **changes)
    with pytest.raises(ValueError, match=f"'{kind}'"), contextlib.ExitStack() as stack:
        open_session(made, tiny.tokenizer(), "full") if way == "open" else stack.enter_context(kv.attach(made, "full"))
    assert made.config._attn_implementation == "eager"


@pytest.mark.parametrize("kind, changes", [("mamba", {"state_size": 4}), ("mistral", {"sliding_window": 8})])
def test_a_model_without_full_attention_runs_whole_and_is_not_compressed(kind: str, changes: dict[str, Any]) -> None:
    made = bare(kind, **changes)
    with pytest.raises(ValueError, match=f"'{kind}' has no full-attention layer"):
        open_session(made, tiny.tokenizer(), "snapkv(keep=0.5)")
    session = open_session(made, tiny.tokenizer(), "full")
    session.read(tiny.text(12))
    assert session.ledger.stored_bytes > 0


def test_layers_that_share_keys_are_refused_by_name() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    made = bare(
        "gemma3n_text",
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        layer_types=kinds,
        sliding_window=16,
        vocab_size_per_layer_input=97,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        intermediate_size=[96] * 4,
        activation_sparsity_pattern=[0.0] * 4,
        altup_num_inputs=2,
    )
    with pytest.raises(ValueError, match="'gemma3n_text' is not supported: several layers"):
        check_supported(made)


def test_a_custom_mask_has_no_place() -> None:
    made = tiny.model("llama")
    with tiny.implementation(made, "kvledger"), torch.inference_mode():
        cache = kv.new_cache(made, "full")
        with pytest.raises(ValueError, match="attends causally"):
            made(input_ids=tiny.ids(4), attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.bool), past_key_values=cache)


def test_only_full_attention_layers_are_compressed() -> None:
    made = tiny.model("gemma3_text")
    with kv.attach(made, "snapkv(keep=0.25, window=4)") as attached:
        tiny.generated(made, tiny.ids(PROMPT), 4)
    assert run_of(attached.cache).layers == 2
    ledger = attached.ledger
    sliding = attached.cache.layers[0]
    held = sliding.keys.untyped_storage().nbytes() + sliding.values.untyped_storage().nbytes()
    assert held <= ledger.other_bytes <= held + 16  # and its counters
    assert ledger.stored_bytes == sum(book.held for book in ledger.layers.values()) + ledger.other_bytes
    assert ledger.peak_bytes >= ledger.stored_bytes
    assert ledger.full_peak_bytes >= ledger.full_bytes
