"""The embedded model's tokenizer: 1,024 tokens, byte-level BPE under a layer of hand-made pieces.

The pieces (syllables, two-digit numbers, the glue and the set phrases of the task prompts) are matched before BPE, so
a key is always two tokens and what is asked for lies a few tokens before the answer, which a tiny model needs.
Everything else falls through to BPE and, at worst, to single bytes: any text can be read.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kvledger.tasks import overall, retrieval
from kvledger.tasks.words import SYLLABLES

VOCABULARY = 1024
SPECIAL = ("<|bos|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>")
NUMBERS = tuple(f"{n:02d}" for n in range(100))
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}"
    "{{ '<|' + ('assistant' if message['role'] == 'assistant' else 'user') + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def phrases() -> list[str]:
    """The fixed texts of the prompts. Those of the full form share most of them."""
    named = {**vars(retrieval), **vars(overall)}
    prefixes = ("KV_", "PS_", "VT_", "MF_", "MS_", "MIX_")
    texts = {v for k, v in named.items() if k.startswith(prefixes) and isinstance(v, str) and len(v) > 1}
    return sorted(texts | set(overall.RANKS))


def build(corpus: list[str]) -> PreTrainedTokenizerFast:
    """Train the BPE layer on `corpus` and put the pieces on top; exactly `VOCABULARY` tokens."""
    pieces = [*SYLLABLES, *NUMBERS, *phrases()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(pieces),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # No capitals, no digits: the pieces come first, so such merges would hardly be reached.
    tokenizer.train_from_iterator([re.sub(r"\d", "", text.lower()) for text in corpus], trainer)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    assert tokenizer.get_vocab_size() == VOCABULARY, tokenizer.get_vocab_size()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


def standard_library(limit: int = 600) -> Iterator[str]:
    """Natural text that is always at hand: modules of the running interpreter's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.glob("*/*.py") if "site-packages" not in p.parts and "test" not in p.parts)
    for file in [*sorted(root.glob("*.py")), *files][:limit]:
        yield file.read_text(encoding="utf-8", errors="ignore")
