"""What scorers are shown of a model's inside is what the model uses."""

from __future__ import annotations

import importlib

import pytest
import tiny
import torch

from kvledger.hf.inside import output_projection, rope_of


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "phi3", "olmo2", "gemma2", "gemma3_text", "gpt_oss"])
def test_rotation_there_and_back(kind: str) -> None:
    made = tiny.model(kind)
    rope, x = rope_of(made), torch.randn(1, 2, 7, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(3, 10)
    module = next(m for name, m in made.named_modules() if name.endswith("rotary_emb"))
    more = {"layer_type": "full_attention"} if hasattr(module, "full_attention_inv_freq") else {}
    cos, sin = module(x, positions[None], **more)
    theirs, _ = importlib.import_module(type(made).__module__).apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(rope.turn(x, positions), theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rope.back(theirs, positions), x, rtol=1e-5, atol=1e-5)


def test_scaling_is_divided_out() -> None:
    scaled = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 128}
    made = tiny.model.__wrapped__("llama", rope_parameters=scaled)
    rope, x = rope_of(made), torch.randn(1, 1, 5, 16)
    assert rope.scaling > 1
    torch.testing.assert_close(rope.back(rope.turn(x, torch.arange(5)), torch.arange(5)), x, rtol=1e-5, atol=1e-5)


def test_other_rotations_are_refused() -> None:
    with pytest.raises(ValueError, match="keys of 'glm4' cannot be turned back"):
        rope_of(tiny.model("glm4"))
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ValueError, match="cannot be turned back"):
        rope_of(tiny.model.__wrapped__("llama", rope_parameters=dynamic))


def test_the_output_projection_by_heads() -> None:
    layer = tiny.model("llama").model.layers[0].self_attn
    by_head = output_projection(layer, 8, 16)
    x = torch.randn(3, 8, 16)
    torch.testing.assert_close(
        torch.einsum("thd,hde->te", x, by_head), layer.o_proj(x.flatten(1)), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ValueError, match="has no output projection"):
        output_projection(layer, 4, 16)
