"""A model whose retrieval heads are known, because its weights are written by hand, and the text that needs them.

Every KV head owns a group of keys. A fact token states the value of a key, a query token asks for a key, and the head of that
group, and no other, finds the fact (an exact match of one-hot codes) and writes the answer. All other heads rest on the first
token of the document, whose value is nothing. Facts of some groups stand far before their queries: their heads must remember.
Facts of all other groups stand within the window: their heads are local.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvledger.train.data import Packed, Stream

LAYERS, HEADS, G, D = 2, 4, 2, 8
GROUPS, KEYS, VALUES = LAYERS * HEADS, 2, 4
SINK, WINDOW, LENGTH = 1, 12, 96
BOS, FILLER, ANSWER = 0, 1, 5  # one, four and VALUES tokens
FACT = ANSWER + VALUES
QUERY = FACT + GROUPS * KEYS * VALUES
VOCAB = QUERY + GROUPS * KEYS
# residual dimensions
CONST, FIRST, BALLAST, FACTS = 0, 1, 2, 3
QUERIES = FACTS + GROUPS * KEYS
VALUE = QUERIES + GROUPS * KEYS
RESULT = VALUE + VALUES
HIDDEN = 48
MATCH, REST, SURE = 24.0, 12.0, 8.0  # logits: of a match, of the first token, of the answer


def fact(group: int, key: int, value: int) -> int:
    return FACT + (group * KEYS + key) * VALUES + value


def query(group: int, key: int) -> int:
    return QUERY + group * KEYS + key


def embedding() -> torch.Tensor:
    """One-hot features, filled up so that every token has the same norm, which RMSNorm then divides out."""
    x = torch.zeros(VOCAB, HIDDEN)
    x[:, CONST] = 1
    x[BOS, FIRST] = 1
    for group in range(GROUPS):
        for key in range(KEYS):
            x[query(group, key), QUERIES + group * KEYS + key] = 1
            for value in range(VALUES):
                x[fact(group, key, value), FACTS + group * KEYS + key] = 1
                x[fact(group, key, value), VALUE + value] = 1
    x[:, BALLAST] = (3 - x.pow(2).sum(1)).sqrt()
    return x


def circuit() -> Any:
    """The model. Content lies in head dimensions that RoPE turns by 1e-5 a token or less; dimension 0 is left empty."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=8, num_hidden_layers=LAYERS, num_attention_heads=HEADS * G,
        num_key_value_heads=HEADS, head_dim=D, max_position_embeddings=512, tie_word_embeddings=False, rms_norm_eps=1e-9,
        rope_parameters={"rope_type": "default", "rope_theta": 1e20}, bos_token_id=BOS, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    unit = (HIDDEN / 3) ** 0.5  # what a feature of 1 is after the norm
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.zero_()
        model.model.embed_tokens.weight.copy_(embedding())
        for layer, block in enumerate(model.model.layers):
            for head in range(HEADS):
                _write(block.self_attn, layer * HEADS + head, head, unit)
        for value in range(VALUES):
            model.lm_head.weight[ANSWER + value, RESULT + value] = SURE / unit
    return model


def _write(attention: Any, group: int, head: int, unit: float) -> None:
    """The circuit of one group in one KV head: match keys, rest on the first token, copy the value."""
    match, rest = ((logit * D**0.5) ** 0.5 / unit for logit in (MATCH, REST))
    k, v = (p.weight[head * D : (head + 1) * D] for p in (attention.k_proj, attention.v_proj))
    for key in range(KEYS):
        k[1 + key, FACTS + group * KEYS + key] = match
    k[1 + KEYS, FIRST] = rest
    for value in range(VALUES):
        v[value, VALUE + value] = 1 / unit
    for g in range(head * G, (head + 1) * G):
        q, o = attention.q_proj.weight[g * D : (g + 1) * D], attention.o_proj.weight[:, g * D : (g + 1) * D]
        for key in range(KEYS):
            q[1 + key, QUERIES + group * KEYS + key] = match
        q[1 + KEYS, CONST] = rest
        for value in range(VALUES):
            o[RESULT + value, value] = 1 / G


def document(remember: set[int], random: Random) -> Packed:
    """Facts of the groups in `remember` first, their queries last; between them, facts and queries side by side."""
    value = {(group, key): random.randrange(VALUES) for group in range(GROUPS) for key in range(KEYS)}
    far = [pair for pair in value if pair[0] in remember]
    near = [pair for pair in value if pair[0] not in remember]
    random.shuffle(far), random.shuffle(near)
    ids = [BOS, *(fact(*pair, value[pair]) for pair in far)]
    for pair in near:
        ids += [fact(*pair, value[pair]), FILLER + random.randrange(4), query(*pair), ANSWER + value[pair]]
    ids += [FILLER + random.randrange(4) for _ in range(LENGTH - len(ids) - 2 * len(far))]
    random.shuffle(far)
    for pair in far:
        ids += [query(*pair), ANSWER + value[pair]]
    assert len(ids) == LENGTH
    return Packed(tuple(ids), (0,), (False, *(ANSWER <= token < FACT for token in ids[1:])))


def stream(remember: set[int], seed: int) -> Stream:
    def begin(start: int) -> Iterator[Packed]:
        return (document(remember, Random(f"{seed} {number}")) for number in count(start))

    return Stream("circuit", begin)
