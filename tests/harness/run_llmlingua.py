"""Run by test_harnesses.py: the library llmlingua with a tiny random encoder, as the source of a session on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tiktoken
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForTokenClassification

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny

import kvledger as kv
from kvledger.methods import llmlingua2
from kvledger.recipe import Recipe

FOLDER = "tiny-xlm-roberta-large"  # the library tells the kind of tokenizer by the model's name
GUARDED = "w40 w41 w42"


class Counter:
    """Stands for OpenAI's tokenizer, whose table the library would download to count tokens for its own report."""

    def encode(self, text: str) -> list[str]:
        return text.split()


def make() -> None:
    """A token classifier of two labels with random weights, and a tokenizer of words and letters, in a folder."""
    letters = [(part + c, -9.0) for part in ("", "▁") for c in "abcdefghijklmnopqrstuvwxyz0123456789.?\n<>/"]
    words = [(f"▁w{i}", -4.0) for i in range(5, 96)]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core = Tokenizer(models.Unigram([*((x, 0.0) for x in special), ("▁", -8.0), *words, *letters], unk_id=3))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    known = PreTrainedTokenizerFast(tokenizer_object=core, cls_token="<s>", sep_token="</s>", **names)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = XLMRobertaConfig(
        vocab_size=len(known), num_labels=2, max_position_embeddings=520, pad_token_id=1, bos_token_id=0, **sizes
    )
    made = XLMRobertaForTokenClassification(config)
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(0, 0.3)
        made.classifier.weight.normal_(0, 0.01)  # probabilities that differ
    made.save_pretrained(FOLDER)
    known.save_pretrained(FOLDER)


def session(recipe: str | Recipe) -> Any:
    return kv.open(tiny.model(), tiny.tokenizer(), recipe, chunk=32)


def main() -> None:
    tiktoken.encoding_for_model = lambda name: Counter()
    make()
    context = f"{tiny.text(120)} {GUARDED} {tiny.text(90, seed=1)}"
    span = context.index(GUARDED), context.index(GUARDED) + len(GUARDED)
    part = llmlingua2.LLMLingua2(keep=0.4, model=FOLDER, device="cpu")
    short, (moved,) = part.shorten(context, [span], lambda text, window: None)
    whole, own = session("full"), session(Recipe((part,)))
    whole.read(context)
    own.read(context, protect=[span])
    by_hand = session("full")
    by_hand.read(short)
    print(
        json.dumps(
            {
                "words": [len(context.split()), len(short.split())],
                "in order": in_order(short.split(), context.split()),
                "guarded": short[slice(*moved)],
                "left out": own.ledger.skipped,
                "tokens": [whole.tokens, own.tokens],
                "answers": [own.ask("w9 w8", 6), by_hand.ask("w9 w8", 6)],
                "footprint": own.ledger.footprint,
            }
        )
    )


def in_order(some: list[str], every: list[str]) -> bool:
    """Whether `some` are among `every`, in their order."""
    rest = iter(every)
    return all(word in rest for word in some)


if __name__ == "__main__":
    main()
