"""Gated attention inside models of every family, against their own attention and against masks written out."""

from __future__ import annotations

import gc
import weakref

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from kvledger.hf.cache import arenas, new_cache
from kvledger.train.attention import Gating, full_layers

STOCK = {"gemma2": "eager", "gpt_oss": "eager"}  # what SDPA cannot do: soft-capped logits, sink logits
EXACT = [family for family in tiny.FAMILIES if family not in STOCK]
SINKS, WINDOW, N = 2, 8, 40


def plain(made, ids: Tensor, name: str) -> Tensor:
    with tiny.implementation(made, name), torch.no_grad():
        return made.base_model(input_ids=ids[None], use_cache=False).last_hidden_state


def gated(made, ids: Tensor, z: Tensor | None, starts=(0,)) -> Tensor:
    with Gating(made, SINKS, WINDOW) as gating, torch.no_grad():
        return gating.hidden(ids, starts, z)


def ones(made) -> Tensor:
    return torch.ones(len(full_layers(made)), 2, dtype=torch.float64)


def seen(T: int, sinks: int, window: int) -> Tensor:
    at, pos = torch.arange(T)[:, None], torch.arange(T)
    return (pos <= at) & ((pos < sinks) | (at - pos < window))


@pytest.mark.parametrize("family", EXACT)
def test_open_gates_give_the_stock_model_to_the_last_bit(family: str) -> None:
    made, ids = tiny.model(family), tiny.ids(N)[0]
    want = plain(made, ids, "sdpa")
    assert torch.equal(gated(made, ids, ones(made)), want)
    assert torch.equal(gated(made, ids, None), want)
    assert not torch.equal(gated(made, ids, 0.5 * ones(made)), want)


@pytest.mark.parametrize("family", sorted(STOCK))
def test_open_gates_give_the_stock_model_where_sdpa_cannot(family: str) -> None:
    made, ids = tiny.model(family), tiny.ids(N)[0]
    want = plain(made, ids, STOCK[family])
    torch.testing.assert_close(gated(made, ids, ones(made)), want, rtol=1e-4, atol=2e-5)
    assert float((gated(made, ids, 0 * ones(made)) - want).abs().max()) > 0.1


@pytest.mark.parametrize("family", ["llama", "qwen3", "glm4", "phi3"])
def test_shut_gates_give_sinks_and_window_as_a_dense_mask(family: str) -> None:
    made, ids = tiny.model(family, torch.float64), tiny.ids(N)[0]
    made.config.num_attention_heads = 8
    allowed = seen(N, SINKS, WINDOW).expand(3, 8, N, N)
    want = tiny.masked_forward(made, ids[None], allowed)[0]
    got = made.lm_head(gated(made, ids, 0 * ones(made)))[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_gates_matter_from_the_first_token_that_would_forget() -> None:
    made, short = tiny.model("llama"), tiny.ids(SINKS + WINDOW)[0]
    assert torch.equal(gated(made, short, 0 * ones(made)), gated(made, short, None))
    longer = tiny.ids(SINKS + WINDOW + 1)[0]
    assert not torch.equal(gated(made, longer, 0 * ones(made)), gated(made, longer, None))


def test_a_bfloat16_model_keeps_its_open_gates_exact_and_its_gradients_close() -> None:
    ids, grads = tiny.ids(N)[0], []
    for dtype in (torch.float32, torch.bfloat16):
        made = tiny.model("llama", dtype)
        assert torch.equal(gated(made, ids, ones(made)), plain(made, ids, "sdpa"))
        z = torch.full((3, 2), 0.6, dtype=torch.float64, requires_grad=True)
        with Gating(made, SINKS, WINDOW) as gating:
            grads.append(torch.autograd.grad(gating.hidden(ids, (0,), z).float()[..., 0].sum(), z)[0])
    assert float((grads[0] - grads[1]).norm() / grads[0].norm()) < 0.2


def by_hand(z: Tensor):
    """z·full + (1 - z)·streaming, every head and mask written out."""

    def attention(module, q, k, v, mask, scaling=1.0, **more):
        k, v = k.repeat_interleave(4, 1), v.repeat_interleave(4, 1)
        logits = q @ k.transpose(-1, -2) * scaling
        T = q.shape[2]
        full, near = (
            logits.masked_fill(~allowed, -torch.inf).softmax(-1) @ v
            for allowed in (seen(T, 0, T), seen(T, SINKS, WINDOW))
        )
        each = z[module.layer_idx].repeat_interleave(4)[None, :, None, None]
        return (each * full + (1 - each) * near).transpose(1, 2), None

    return attention


def test_any_gates_and_their_gradients_equal_the_formula() -> None:
    made, ids = tiny.model("llama", torch.float64), tiny.ids(N)[0]
    z = torch.rand(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    with Gating(made, SINKS, WINDOW) as gating:
        got = gating.hidden(ids, (0,), z)
        (grad,) = torch.autograd.grad(got.pow(2).sum(), z)
    AttentionInterface.register("gates_by_hand", by_hand(z))
    with tiny.implementation(made, "gates_by_hand"):
        want = made.base_model(input_ids=ids[None], use_cache=False).last_hidden_state
        (want_grad,) = torch.autograd.grad(want.pow(2).sum(), z)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    torch.testing.assert_close(grad, want_grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "more", [{}, {"softcap": 3.0}, {"s_aux": torch.tensor([0.3, -0.5, 1.0, 0.0], dtype=torch.float64)}]
)
def test_gradients_through_the_attention_function(more: dict) -> None:
    """Of the function alone: the models' own norms compute in float32, which finite differences would not survive."""

    class Module(torch.nn.Module):
        layer_idx, num_key_value_groups = 1, 2

    maker = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, heads, 9, 2, dtype=torch.float64, generator=maker) for heads in (4, 2, 2))
    gating, module = Gating(tiny.model(), 1, 3), Module()
    gating._spans, z = [(0, 3), (3, 9)], torch.rand(2, 3, 2, dtype=torch.float64, generator=maker)

    def attention(q: Tensor, k: Tensor, v: Tensor, z: Tensor) -> Tensor:
        gating._z = z
        return gating._attend(module, q, k, v, None, **more)[0]

    assert torch.autograd.gradcheck(attention, tuple(x.requires_grad_() for x in (q, k, v, z)))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_packed_documents_equal_documents_alone(family: str) -> None:
    made, ids = tiny.model(family, torch.float64), tiny.ids(60)[0]
    z = torch.rand(3, *ones(made).shape, dtype=torch.float64)
    starts = (0, 25, 29)
    packed = gated(made, ids, z, starts)[0]
    alone = [gated(made, ids[a:b], gates)[0] for a, b, gates in zip(starts, (25, 29, 60), z)]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=1e-10)
    assert float((packed - gated(made, ids, z[0])[0]).abs().max()) > 0.01  # and without starts they do differ


def test_packed_documents_of_sink_logits() -> None:
    made, ids = tiny.model("gpt_oss"), tiny.ids(60)[0]
    z = torch.rand(2, 2, 2)
    alone = [gated(made, ids[:25], z[0])[0], gated(made, ids[25:], z[1])[0]]
    torch.testing.assert_close(gated(made, ids, z, (0, 25))[0], torch.cat(alone), rtol=1e-4, atol=2e-5)


def test_recomputed_layers_give_the_same_gradients() -> None:
    from kvledger.train.loop import _recomputed

    made, ids = tiny.model("llama", torch.float64), tiny.ids(N)[0]
    z = torch.rand(3, 2, dtype=torch.float64).requires_grad_()
    grads = []
    for wanted in (False, True):
        with Gating(made, SINKS, WINDOW) as gating, _recomputed(made, wanted):
            grads.append(torch.autograd.grad(gating.hidden(ids, (0, 10), z).pow(2).sum(), z)[0])
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)
    assert not made.is_gradient_checkpointing
    assert not any(module.training for module in made.modules())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_slots_are_the_layers_whose_cache_is_replaced(family: str) -> None:
    made = tiny.model(family)
    before = made.config._attn_implementation
    cache = new_cache(made, "full")
    made.set_attn_implementation(before)
    own = arenas(cache)
    assert full_layers(made) == {cache.layers.index(layer): layer.slot for layer in own}


def test_the_model_is_left_as_it_was() -> None:
    made = tiny.model("llama")
    made.lm_head.requires_grad_(False)
    flags = [p.requires_grad for p in made.parameters()]
    try:
        with tiny.implementation(made, "sdpa"):
            with Gating(made, SINKS, WINDOW) as gating:
                assert not any(p.requires_grad for p in made.parameters())
                assert made.config._attn_implementation == gating.name
            assert made.config._attn_implementation == "sdpa"
            with Gating(made, SINKS, WINDOW, train_weights=True):
                assert all(p.requires_grad for p in made.parameters())
        assert [p.requires_grad for p in made.parameters()] == flags
        name, gone = gating.name, weakref.ref(gating)
        del gating
        gc.collect()
        assert gone() is None
        assert name not in AttentionInterface()
    finally:
        made.lm_head.requires_grad_(True)


def test_two_gatings_do_not_touch_each_other() -> None:
    one, other, ids = tiny.model("llama"), tiny.model("qwen3"), tiny.ids(N)[0]
    alone = gated(one, ids, 0 * ones(one))
    with Gating(one, SINKS, WINDOW) as a, Gating(other, SINKS, N) as b, torch.no_grad():
        b.hidden(ids, (0,), ones(other))
        assert torch.equal(a.hidden(ids, (0,), 0 * ones(one)), alone)


@pytest.mark.parametrize(
    "kind, changes, reason",
    [
        ("mistral", {"sliding_window": 8}, "gates need full-attention layers"),
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention", "full_attention"]}, "linear_attention"),
        (
            "llama4_text",
            {"layer_types": ["chunked_attention", "full_attention", "full_attention"]},
            "chunked_attention",
        ),
    ],
)
def test_models_without_full_layers_or_with_recurrent_ones_are_refused(kind: str, changes: dict, reason: str) -> None:
    class Shell:  # a model is not needed to say so
        config = AutoConfig.for_model(kind, **{**tiny.SMALL, **changes})

    with pytest.raises(ValueError, match=reason):
        Gating(Shell(), SINKS, WINDOW)


def test_a_model_that_bypasses_the_attention_interface_is_refused() -> None:
    config = AutoConfig.for_model("bloom", hidden_size=32, n_layer=2, n_head=4, vocab_size=tiny.VOCAB)
    made = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises((ValueError, TypeError)), Gating(made, SINKS, WINDOW) as gating:
        gating.hidden(tiny.ids(N)[0], (0,), ones(made))
