"""`attach`: any code that calls the model is compressed, and nothing is left behind."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import DynamicCache

import kvledger as kv
from kvledger.hf.cache import arenas, run_of

SNAP = "snapkv(keep=0.3, window=4)"
NEW = 6


def fresh():
    made = tiny.model("llama", torch.float64)
    made.set_attn_implementation("eager")
    return made


def test_generate_is_compressed_and_the_model_is_left_as_it_was() -> None:
    made, prompt = fresh(), tiny.ids(50)
    hooks = len(made._forward_pre_hooks), len(made._forward_hooks)
    with kv.attach(made, SNAP) as attached:
        assert made.config._attn_implementation == "kvledger"
        tiny.generated(made, prompt, NEW)
    assert made.config._attn_implementation == "eager"
    assert (len(made._forward_pre_hooks), len(made._forward_hooks)) == hooks
    ledger = attached.ledger
    assert [layer.arena.length for layer in arenas(attached.cache)] == [[15 + NEW - 1] * 2] * 3
    assert ledger.dropped == 35 * 2 * 3
    assert 0 < ledger.footprint < 1
    assert ledger.stored_bytes < 0.6 * ledger.full_bytes


def test_what_is_generated_is_dense_attention_with_the_entries_masked() -> None:
    made = fresh()
    with kv.attach(made, "adakv(keep=0.3, window=4)"):
        cache = kv.new_cache(made, "adakv(keep=0.3, window=4)")
        with tiny.Witness(made) as witness:
            tiny.generated(made, tiny.ids(50), NEW, past_key_values=cache)
    torch.testing.assert_close(witness.logits(), witness.dense(), rtol=1e-6, atol=1e-6)


def test_chunked_prefill_of_transformers_is_evicted_chunk_by_chunk() -> None:
    made = fresh()
    with kv.attach(made, "snapkv(keep=0.5, window=4, when='chunk')") as attached:
        tiny.generated(made, tiny.ids(48), 1, prefill_chunk_size=16)
    assert [layer.arena.length for layer in arenas(attached.cache)] == [[24] * 2] * 3


@pytest.mark.parametrize("recipe", ["full", "snapkv(keep=0.5, window=4, when='chunk')"])
def test_a_conversation_goes_on_from_an_evicted_cache(recipe: str) -> None:
    """The second turn is given as transformers wants it: all ids so far, and the cache that has seen most of them."""
    made = fresh()
    with kv.attach(made, recipe):
        cache = kv.new_cache(made, recipe)
        with tiny.Witness(made) as witness:
            first = tiny.generated(made, tiny.ids(40), NEW, past_key_values=cache)
            whole = torch.cat([tiny.ids(40), torch.tensor(first), tiny.ids(5, seed=1)], dim=1)
            tiny.generated(made, whole, NEW, past_key_values=cache)
    assert [len(ids) for ids, _, _ in witness.steps] == [40, *[1] * (NEW - 1), 6, *[1] * (NEW - 1)]
    torch.testing.assert_close(witness.logits(), witness.dense(), rtol=1e-6, atol=1e-6)


def test_chunks_that_are_all_padding_for_some() -> None:
    made = fresh()
    padded, mask = tiny.ids(30, batch=2), torch.ones(2, 30, dtype=torch.long)
    mask[1, :21] = 0
    with kv.attach(made, "full") as attached:
        together = tiny.generated(made, padded, NEW, mask, prefill_chunk_size=8)
        assert attached.ledger.full_bytes == (30 + 9 + 2 * (NEW - 1)) * 3 * 2 * 2 * 16 * 8
        alone = [tiny.generated(made, padded[:1], NEW)[0], tiny.generated(made, padded[1:, 21:], NEW)[0]]
    assert together == alone
    with kv.attach(made, "snapkv(keep=0.5, window=4, when='chunk')") as attached:
        tiny.generated(made, padded, 1, mask, prefill_chunk_size=8)
    assert [layer.arena.length for layer in arenas(attached.cache)] == [[15, 15, 4, 4]] * 3


@pytest.mark.parametrize("left", [True, False])
def test_padding_does_not_vote(left: bool) -> None:
    made, padded, mask = fresh(), tiny.ids(30, batch=2), torch.ones(2, 30, dtype=torch.long)
    real = slice(10, 30) if left else slice(0, 20)
    mask[1] = 0
    mask[1, real] = 1
    kept = []
    with kv.attach(made, SNAP) as attached, torch.inference_mode():
        made(input_ids=padded, attention_mask=mask)
        kept.append([layer[2:] for layer in tiny.alive(attached.cache)])
        made(input_ids=padded[1:, real])
        kept.append(tiny.alive(attached.cache))
    assert kept[0] == kept[1]


def test_the_name_is_put_back_after_an_error() -> None:
    made = fresh()
    with pytest.raises(KeyError), kv.attach(made, SNAP):
        raise KeyError
    assert made.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="unknown method"), kv.attach(made, "snapvk"):
        pass
    assert made.config._attn_implementation == "eager"


def test_each_call_has_a_cache_of_its_own() -> None:
    made = fresh()
    with kv.attach(made, SNAP) as attached:
        first = tiny.generated(made, tiny.ids(40), NEW)
        cache, books = attached.cache, attached.ledger.full_bytes
        tiny.generated(made, tiny.ids(30, seed=1), NEW)
        assert attached.cache is not cache
        assert run_of(cache).ledger.full_bytes == books
        assert tiny.generated(made, tiny.ids(40), NEW) == first


def test_no_call_no_ledger() -> None:
    with kv.attach(fresh(), SNAP) as attached, pytest.raises(ValueError, match="has not been called"):
        _ = attached.ledger


def test_interleaved_caches_never_touch_each_other() -> None:
    """Two attached recipes and two sessions on one model, token by token in turns, and each as if it were alone."""
    made = fresh()
    recipes = [SNAP, "streaming(keep=0.5)"]
    prompts = [tiny.ids(40, seed=1), tiny.ids(33, seed=2)]

    def step(cache, ids):
        with torch.inference_mode():
            return made(input_ids=ids, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)

    alone = []
    for recipe, prompt in zip(recipes, prompts):
        with kv.attach(made, recipe):
            alone.append(tiny.generated(made, prompt, NEW)[0])
    caches, last, got = [], [], []
    for recipe, prompt in zip(recipes, prompts):
        with kv.attach(made, recipe) as attached:
            last.append(step(None, prompt))
            caches.append(attached.cache)
            got.append([int(last[-1])])
    with kv.attach(made, "full"):
        for _ in range(NEW - 1):
            for i, cache in enumerate(caches):
                last[i] = step(cache, last[i])
                got[i].append(int(last[i]))
    assert got == alone


def test_a_cache_taken_out_of_its_block_is_refused_and_not_wrong() -> None:
    made = fresh()
    with kv.attach(made, SNAP) as attached:
        tiny.generated(made, tiny.ids(40), 2)
    with pytest.raises(ValueError, match="attention was changed under this cache"):
        made(input_ids=tiny.ids(1), past_key_values=attached.cache)


def test_a_session_outlives_a_block() -> None:
    made = fresh()
    sessions = [kv.open(made, tiny.tokenizer(), SNAP) for _ in range(2)]
    for session in sessions:
        session.read(tiny.text(40))
    expected = sessions[0].ask(tiny.text(3, seed=1), NEW)
    with kv.attach(made, "full"):
        tiny.generated(made, tiny.ids(5), 1)
    made.set_attn_implementation("sdpa")
    assert sessions[1].ask(tiny.text(3, seed=1), NEW) == expected


def test_a_session_inside_a_block_keeps_to_itself() -> None:
    made = fresh()
    with kv.attach(made, SNAP) as attached:
        tiny.generated(made, tiny.ids(40), 2)
        cache = attached.cache
        session = kv.open(made, tiny.tokenizer(), "full")
        session.read(tiny.text(30))
        assert session.ask(tiny.text(3, seed=1), NEW)
        assert attached.cache is cache
    assert session.ledger.dropped == 0


@pytest.mark.parametrize("recipe", ["full", SNAP, "adakv(keep=0.4, window=4, heads='query')"])
def test_beam_search_reorders_the_rows(recipe: str) -> None:
    made, prompt = fresh(), tiny.ids(30, batch=2)
    with kv.attach(made, recipe) as attached:
        beams = tiny.generated(made, prompt, NEW, num_beams=3)
        rows = [tiny.generated(made, prompt[b : b + 1], NEW, num_beams=3)[0] for b in range(2)]
    assert beams == rows
    assert len(attached.ledger.layers[0].area) == 3 * (8 if "query" in recipe else 2)
    if recipe == "full":
        assert beams == tiny.generated(made, prompt, NEW, num_beams=3)


def test_foreign_caches() -> None:
    made = fresh()
    full = DynamicCache(config=made.config)
    tiny.generated(made, tiny.ids(10), 1, past_key_values=full)
    with kv.attach(made, SNAP) as attached:
        with pytest.raises(ValueError, match="holds tokens already"), torch.inference_mode():
            made(input_ids=tiny.ids(1), past_key_values=full)
        for empty in (DynamicCache(), DynamicCache(config=made.config)):
            with torch.inference_mode():
                made(input_ids=tiny.ids(40), past_key_values=empty)
            assert attached.cache is empty
            assert attached.ledger.dropped == 28 * 2 * 3


@pytest.mark.parametrize("way", ["crop", "reset", "batch_select_indices", "batch_repeat_interleave"])
def test_what_a_compressed_cache_cannot_do_is_refused(way: str) -> None:
    made = fresh()
    with kv.attach(made, SNAP) as attached:
        tiny.generated(made, tiny.ids(40), 2)
    with pytest.raises(NotImplementedError, match="make a new one"):
        getattr(attached.cache, way)(*([] if way == "reset" else [1]))


def test_a_call_without_cache_stays_without() -> None:
    made = fresh()
    with kv.attach(made, SNAP) as attached, torch.inference_mode():
        out = made(input_ids=tiny.ids(12), use_cache=False)
        assert attached.cache is None
    with torch.inference_mode():
        torch.testing.assert_close(out.logits, made(tiny.ids(12), use_cache=False).logits, rtol=1e-4, atol=1e-4)
