"""A tiny random model of every causal type in transformers: the default configuration, shrunk by the names of its fields."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 97
SIZES: dict[int, str] = {
    32: "hidden_size d_model n_embd dim_model embedding_dim word_embed_proj_dim emb_dim embedding_size lru_width "
    "attention_hidden_size input_embedding_size output_embedding_size hidden_dim",
    48: "intermediate_size moe_intermediate_size shared_expert_intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim "
    "n_inner ffn_hidden_size expert_ffn_hidden_size intermediate_size_mlp dff dim_ff d_inner dense_intermediate_size "
    "shared_experts_intermediate_size moe_shared_expert_intermediate_size shared_intermediate_size feed_forward_size "
    "block_ff_dim encoder_intermediate_size",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers encoder_layers num_encoder_layers "
    "num_blocks num_key_value_heads num_kv_heads num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts "
    "num_query_groups linear_num_key_heads n_groups mamba_n_groups index_n_heads mamba_ngroups swa_num_key_value_heads "
    "altup_num_inputs num_random_blocks hc_mult hc_count",
    4: "num_attention_heads n_head n_heads decoder_attention_heads num_decoder_attention_heads attention_heads num_heads "
    "encoder_attention_heads num_encoder_attention_heads num_experts n_routed_experts num_local_experts moe_num_experts "
    "linear_num_value_heads linear_num_heads mamba_n_heads mamba_num_heads n_mamba_heads state_size mamba_d_state "
    "ssm_state_size swa_num_attention_heads time_step_rank mamba_dt_rank laurel_rank linear_head_dim adapter_rank "
    "router_hidden_size d_rel index_topk zero_expert_num gated_norm_rank",
    8: "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim kv_channels dim_head attention_head_size rotary_dim d_head "
    "linear_key_head_dim linear_value_head_dim index_head_dim swa_head_dim hidden_size_per_layer_input global_head_dim "
    "swa_v_head_dim mamba_chunk_size chunk_size block_size",
    16: "kv_lora_rank q_lora_rank o_lora_rank mamba_d_head mamba_head_dim mamba_headdim qk_head_dim hc_lowrank "
    "sliding_window sliding_window_size local_attention attention_window_size window_size attention_chunk_size",
    1: "topk_group n_group num_expert_group first_k_dense_replace num_dense_layers moe_layer_start_index attn_layer_offset "
    "num_mem_blocks prompt_types num_nextn_predict_layers bos_token_id eos_token_id sep_token_id decoder_start_token_id "
    "forced_eos_token_id",
    0: "num_kv_shared_layers pad_token_id",
    256: "max_position_embeddings n_positions n_ctx max_seq_len seq_length context_length rel_extent",
    VOCAB: "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size",
}
SHRUNK = {name: size for size, names in SIZES.items() for name in names.split()}

# What no name can tell: sizes that must fit each other.
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
CONV = {"layer_types": ["conv", "full_attention"]}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], **MAMBA},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {**ROPE, "mrope_section": [1, 1, 2]}}},
    "cpmant": {"prompt_length": 4, "prompt_types": 32, "segment_types": 32},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "gemma3n_text": {"intermediate_size": [48, 48], "activation_sparsity_pattern": [0.95, 0.0]},
    "granitemoehybrid": {**LINEAR, **MAMBA},
    "lfm2": CONV,
    "lfm2_moe": CONV,
    "mamba2": {"head_dim": 16},
    "minimax_m3_vl_text": {"layer_types": ["minimax_m3_sparse", "full_attention"], "index_block_size": 4}
    | {"index_topk_blocks": 2},
    "ministral": {"layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": None},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4}
    | {"indexer_compress_ratio": 1, "ple_embed_dim": 8, "ngram_vocab_size_base": 16, "split_ngram_parts": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "roc_bert": {
        "pronunciation_vocab_size": 97,
        "shape_vocab_size": 97,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attention_hidden_size": 64, "attention_head_dim": 16}
    | {"num_key_value_heads": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4, "n_mamba_heads": 4}
    | {"mamba_headdim": 16, "kv_channels": 8, "hybrid_layer_ids": [1], "num_query_groups": 4},
    "zaya": {"num_experts_per_tok": 1},
}
SKIPPED = {  # more than a language model with an encoder before it, or nothing that can be made small
    "blt": "reads bytes through a patching model of its own, in four parts",
    "dots3_note": "wraps a language model with encoders of other inputs",
    "gemma3n": "wraps a language model with an encoder that needs the timm library",
    "gemma4_assistant": "drafts for another model, whose cache it reads",
    "gemma4_unified_assistant": "drafts for another model, whose cache it reads",
    "git": "reads images besides, through an encoder of its own",
    "mllama": "wraps a language model with an encoder of other inputs",
    "moshi": "generates sound from several streams of tokens at once",
    "musicgen": "generates sound from text by three models of which one is causal",
    "musicgen_melody": "generates sound from text by three models of which one is causal",
    "phi4_multimodal": "reads images besides, through an encoder of its own",
    "qwen4_exp": "wraps a language model with an encoder of other inputs",
}


def skipped(kind: str) -> str:
    """Why a type has no tiny model here, or nothing."""
    return SKIPPED.get(kind, "")


def types() -> list[str]:
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def few(values: list[Any], count: int) -> list[Any]:
    """`count` values with every kind among them, full attention last, as most models have it."""
    kinds = sorted(dict.fromkeys(values), key=lambda kind: kind == "full_attention")
    return kinds[:-1] + kinds[-1:] * (count - len(kinds) + 1)


def config(kind: str) -> Any:
    """The type's default configuration, as small as it goes; of a model that wraps a language model, each of its parts."""
    default = CONFIG_MAPPING[kind]()
    parts = {name: getattr(default, name, None) for name in type(default).sub_configs}
    if "text_config" not in parts:
        return shrunk(default)
    return type(default)(**{name: shrunk(part) for name, part in parts.items() if part is not None})


def shrunk(default: Any) -> Any:
    """A configuration with a layer of each kind, two at least."""
    values = {name: value for name, value in vars(default).items() if not name.startswith("_")}
    changes: dict[str, Any] = {n: SHRUNK[n] for n, value in values.items() if n in SHRUNK and isinstance(value, int)}
    layers = getattr(default, "num_hidden_layers", 0)
    kinds = values.get("layer_types") or values.get("layers_block_type") or []
    count = max(2, len(set(kinds)))
    changes |= {name: count for name, size in changes.items() if name in SIZES[2].split()[:8]}
    for name, value in values.items():
        if value is None and name in ("head_dim", "num_key_value_heads"):
            changes[name] = SHRUNK[name]
        if isinstance(value, list) and len(value) == layers and not isinstance(value[0], list):
            changes[name] = few(value, count)
    if "kv_lora_rank" in values:
        changes["num_key_value_heads"] = SHRUNK["num_attention_heads"]
    if "is_decoder" in values:
        changes["is_decoder"] = True
    return type(default)(**{**changes, **EXCEPTIONS.get(default.model_type, {})})


def model(kind: str) -> Any:
    """A random model, wide enough in its weights that tokens matter."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config(kind), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)
    return made


def walk(things: Any, seen: set[int] | None = None) -> int:
    """Bytes of all tensors below the layers of a cache, each memory once; what they refer to but do not hold is left out."""
    seen = set() if seen is None else seen
    if isinstance(things, Tensor):
        place = things.untyped_storage().data_ptr()
        known = place in seen
        seen.add(place)
        return 0 if known else things.untyped_storage().nbytes()
    if id(things) in seen or things is None or isinstance(things, (str, int, float, torch.dtype, torch.device)):
        return 0
    if isinstance(things, dict):
        return sum(walk(x, seen) for x in things.values())
    if isinstance(things, (list, tuple)):
        return sum(walk(x, seen) for x in things)
    below = getattr(things, "__dict__", {})
    return sum(walk(x, seen) for name, x in below.items() if name not in ("run", "output", "hidden", "followers"))


def strays(model: Any) -> list[Tensor]:
    """Tensors of modules that are neither weights nor buffers: states that a model keeps outside its cache."""
    return [x for module in model.modules() for x in vars(module).values() if isinstance(x, Tensor)]
