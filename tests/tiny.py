"""Tiny random models, a tiny tokenizer, and a dense forward that masks what a cache has dropped. Shared by the tests."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.masking_utils import AttentionMaskInterface

from kvledger.hf.attention import NAME, use
from kvledger.hf.cache import arenas, run_of

VOCAB = 97
SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=96,
)
MIXED = ["sliding_attention", "full_attention", "full_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "phi3": {},
    "glm4": {},
    "olmo2": {},
    "gemma2": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16, "layer_types": MIXED},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16, "layer_types": MIXED},
}


@cache
def model(kind: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model, wide enough in its weights that tokens matter. One object per set of arguments."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **FAMILIES.get(kind, {}), **changes})
    made = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)
    made.generation_config.eos_token_id = None
    return made


@contextmanager
def implementation(made: Any, name: str):
    """The model under another attention implementation, for the moment."""
    before = made.config._attn_implementation
    if name == NAME:
        use(made)
    made.set_attn_implementation(name)
    try:
        yield made
    finally:
        made.set_attn_implementation(before)


def ids(count: int, seed: int = 0, batch: int = 1) -> Tensor:
    """Random token ids [batch, count], none of them special."""
    return torch.randint(5, VOCAB - 1, (batch, count), generator=torch.Generator().manual_seed(seed))


def text(count: int, seed: int = 0) -> str:
    """`count` words, one token each."""
    return " ".join(f"w{i}" for i in ids(count, seed)[0].tolist())


TEMPLATE = (
    "<s> {% for m in messages %}{% if m.role == 'user' %}<user> {{ m.content }} <end> "
    "{% else %}<bot> {{ m.content }} <end> {% endif %}{% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
)


@cache
def tokenizer(template: bool = False) -> PreTrainedTokenizerFast:
    """Words w5 to w95, one token each; <s> opens a plain text; with a chat template if wanted."""
    special = ["<pad>", "<s>", "<user>", "<bot>", "<end>"]
    words = {word: i for i, word in enumerate(special + [f"w{i}" for i in range(5, VOCAB - 1)] + ["</s>"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.chat_template = TEMPLATE if template else None
    return made


SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
CHAT = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Any text, a token a byte, in the chat format of the embedded model."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(SPECIAL + alphabet)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|end|>",
        additional_special_tokens=SPECIAL[3:], chat_template=CHAT,
    )  # fmt: skip


def generated(made: Any, prompt: Tensor, count: int, mask: Tensor | None = None, **more: Any) -> list[list[int]]:
    """Greedy new tokens of plain `generate`."""
    mask = torch.ones_like(prompt) if mask is None else mask
    out = made.generate(prompt, attention_mask=mask, max_new_tokens=count, do_sample=False, **more)
    return out[:, prompt.shape[1] :].tolist()


# ---- what a cache keeps, seen from outside ---------------------------------------------------------------------------


def alive(cache: Any) -> list[list[set[int]]]:
    """Token indices stored, per compressible layer and segment."""
    return [
        [] if layer.arena is None else [set(layer.arena.positions(s).tolist()) for s in range(len(layer.arena.start))]
        for layer in arenas(cache)
    ]


class Witness:
    """Writes down each forward of a model, but for probes: its ids, what was stored before it, and its last row's logits."""

    def __init__(self, made: Any):
        self.model = made
        self.steps: list[tuple[list[int], list[list[set[int]]], Tensor]] = []

    def __enter__(self) -> Witness:
        self._handles = [
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after, with_kwargs=True),
        ]
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._alive = alive(kwargs["past_key_values"])

    def _after(self, module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        if run_of(kwargs["past_key_values"]).watching is not None:
            return
        self.steps.append((kwargs["input_ids"][0].tolist(), self._alive, out.logits[0, -1].clone()))

    def dense(self) -> Tensor:
        """Logits of each forward's last row, from one dense forward in which dropped rows are masked."""
        made, tokens = self.model, [token for ids, _, _ in self.steps for token in ids]
        heads = made.config.num_attention_heads
        allowed = torch.zeros(made.config.num_hidden_layers, heads, len(tokens), len(tokens), dtype=torch.bool)
        start, last = 0, []
        for ids, stored, _ in self.steps:
            stop = start + len(ids)
            for layer in range(len(allowed)):
                for head in range(heads if start else 0):
                    kept = stored[layer][head * len(stored[layer]) // heads]
                    allowed[layer, head, start:stop, sorted(kept)] = True
            allowed[:, :, start:stop, start:stop] = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
            last.append(stop - 1)
            start = stop
        return masked_forward(made, torch.tensor([tokens]), allowed)[0, last]

    def logits(self) -> Tensor:
        return torch.stack([logits for _, _, logits in self.steps])


def masked_forward(made: Any, tokens: Tensor, allowed: Tensor) -> Tensor:
    """Logits [1, N, V] of a dense forward; `allowed` [L, Hq, N, N] says which key each query of each head may see."""

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float = 1.0, **more: Any):
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        logits = (q @ k.transpose(-1, -2) * scaling).masked_fill(~allowed[module.layer_idx], -torch.inf)
        return (logits.softmax(-1) @ v).transpose(1, 2), None

    AttentionInterface.register("dense_by_head", attention)
    AttentionMaskInterface.register("dense_by_head", lambda **arguments: None)
    with implementation(made, "dense_by_head"), torch.inference_mode():
        return made(input_ids=tokens, use_cache=False).logits
