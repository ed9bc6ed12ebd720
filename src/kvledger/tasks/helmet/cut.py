"""HELMET's two truncations (arXiv 2410.02694; MIT, commit 4526dfb), and the sample that is left.

Long documents are first cut to a number of Llama-2 tokens, so that every model sees the same text (`to_llama2`).  Then
any prompt that is longer than the model's length minus the answer loses the end of its context, and nothing else
(`sample`); demonstrations and question survive.
Deviation: HELMET finds the second cut by token offsets; here a cut that leaves at most 8 tokens unused is searched.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvledger.tasks.base import CountTokens, Sample, Segment, Turn, Unfit
from kvledger.tasks.hub import Data, hash_of

OMITTED = " ... [the rest of the text is omitted]"
LLAMA2 = "NousResearch/Llama-2-7b-hf"  # an open copy of the gated meta-llama/Llama-2-7b-hf
HELLO = [1, 15043, 3186]  # "Hello world" in Llama-2's vocabulary
SLACK = 8  # tokens


def sample(
    task: str, segments: list[Segment], turn: Turn, index: int, tokens: int, count: CountTokens, keep: str = ""
) -> Sample:
    """One question about segments, of which the last is the context. Text, question and answer have at most `tokens`
    tokens: the context's end is cut where they have more, but not its closing `keep`. `Unfit` where there is no room."""
    budget = tokens - count(turn.question) - turn.max_new_tokens
    *before, context = segments
    head = "".join(segment.text for segment in before)
    if (used := count(head + context.text)) > budget:
        context = replace(
            context, text=_shortened(task, head, context.text.removesuffix(keep), keep, used, budget, count)
        )
    kept = tuple(segment for segment in (*before, context) if segment.text)
    length = len(head) + len(context.text)
    evidence = tuple((start, end) for start, end in turn.evidence if end <= length)
    depth = evidence[0][0] / length if evidence else 0.0
    return Sample(task, index, kept, (replace(turn, evidence=evidence, depth=depth),))


def _shortened(task: str, head: str, context: str, keep: str, used: int, budget: int, count: CountTokens) -> str:
    """The longest start of `context` that fits, up to `SLACK` tokens, and `keep`."""
    low, high, taken = 0, len(context), count(head + keep)
    if taken > budget:
        raise Unfit(f"{task}: {budget} tokens hold not even the instruction and demonstrations, which have {taken}")
    over = used
    for trial in range(32):
        if high - low <= 1 or budget - taken <= SLACK:
            break
        share = (budget - taken - SLACK / 2) / max(over - taken, 1)
        at = low + (int((high - low) * share) if trial % 4 != 3 else (high - low) // 2)
        at = min(max(at, low + 1), high - 1)
        have = count(head + context[:at] + keep)
        if have <= budget:
            low, taken = at, have
        else:
            high, over = at, have
    return context[:low] + keep


def to_llama2(text: str, limit: int, tokenizer: Any) -> str:
    """`text`, or its start and the mark that says so, if it has more than `limit` Llama-2 tokens."""
    if len(text.encode()) + 2 <= limit:  # a token is at least a byte, but for the first two
        return text
    offsets = tokenizer.encode(text).offsets
    if len(offsets) <= limit:
        return text
    return text[: offsets[limit - len(tokenizer.encode(OMITTED).ids)][1]] + OMITTED


def llama2_tokens(text: str, tokenizer: Any) -> int:
    return len(tokenizer.encode(text).ids)


def llama2(data: Data) -> Any:
    """Llama-2's tokenizer: from the hub, or `NousResearch/Llama-2-7b-hf/tokenizer.json` in the data folder; its hash is part
    of the data's fingerprint. ValueError for one that is not Llama-2's."""
    if data.root != "hub":
        return _tokenizer(data.path(LLAMA2, "tokenizer.json", "main"))
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(LLAMA2, "tokenizer.json"))  # of a model, where `Data.path` knows data sets
    except OSError as error:
        raise ValueError(
            f"the tokenizer of {LLAMA2}, by which HELMET cuts long texts, cannot be had: {error}"
        ) from error
    stat = path.stat()
    data.used[f"{LLAMA2}/tokenizer.json"] = hash_of(path, stat.st_size, stat.st_mtime_ns)
    return _tokenizer(path)


@lru_cache(maxsize=2)
def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.encode("Hello world").ids != HELLO:
        raise ValueError(f"{path} is not Llama-2's tokenizer, by whose tokens HELMET cuts long texts")
    return tokenizer
