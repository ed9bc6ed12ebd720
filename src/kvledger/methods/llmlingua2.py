"""LLMLingua-2 (Pan et al., 2024, arXiv 2403.12968; code MIT): a small encoder says which words a text can do without.

The library itself does it (`pip install "kvledger[llmlingua]"`), with its own model, which is downloaded unless `model` is a
folder.  Settings are those of SCBench (arXiv 2412.10319, appendix C): a third of the tokens, line breaks and question marks
always kept.  Stretches between protected spans are handed over apart, and put back between them with the blanks at their ends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from kvledger.methods.base import Shape
from kvledger.methods.source import Judge, Shortener, Span, merged
from kvledger.recipe import Row, register

FORCED = ("\n", "?")


@register(Row("llmlingua2", "generation", "text", "a library", "arXiv 2403.12968", "words that a small encoder keeps"))
@dataclass(frozen=True, kw_only=True)
class LLMLingua2(Shortener):
    """model: of the encoder, a hub id or a folder. device: "" takes a GPU if there is one."""

    keep: float = 0.33
    model: str = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"
    device: str = ""

    def fit(self, shape: Shape) -> None:
        if self.keep < 1 and "llmlingua" not in sys.modules and find_spec("llmlingua") is None:
            raise ValueError(
                "llmlingua2 needs the package llmlingua: pip install 'kvledger[llmlingua]', or take selfinfo, which needs none"
            )

    def shorten(self, text: str, protected: Sequence[Span], judge: Judge) -> tuple[str, list[Span]]:
        if self.keep >= 1 or not text.strip():
            return text, list(protected)
        edges = [0, *(place for span in merged(protected) for place in span), len(text)]
        stretches = [text[a:b] for a, b in pairwise(edges)]  # every second one is protected
        free = [stretch for stretch in stretches[::2] if stretch.strip()]
        short = iter(compressed(free, self) if free else [])
        made = [next(short) if i % 2 == 0 and x.strip() else x for i, x in enumerate(stretches)]
        return "".join(made), _moved(edges, made, protected)


def compressed(stretches: list[str], part: LLMLingua2) -> list[str]:
    """Each stretch without the words that the encoder can do without, with its own blanks at both ends."""
    out = _compressor(part.model, part.device).compress_prompt_llmlingua2(
        list(stretches), rate=part.keep, force_tokens=list(FORCED), use_context_level_filter=False
    )
    found = out["compressed_prompt_list"]
    if len(found) != len(stretches):
        raise ValueError(f"llmlingua made {len(found)} texts of {len(stretches)}: this version of it is not supported")
    return [_ends(old)[0] + new.strip() + _ends(old)[1] for old, new in zip(stretches, found)]


def _ends(text: str) -> tuple[str, str]:
    return text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]


@lru_cache(maxsize=1)  # half a gigabyte
def _compressor(model: str, device: str) -> Any:
    import torch
    from llmlingua import PromptCompressor

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    safe = {"trust_remote_code": False}  # by itself the library would run code that lies beside a model
    return PromptCompressor(model_name=model, device_map=device, model_config=safe, use_llmlingua2=True)


def _moved(edges: list[int], made: list[str], protected: Sequence[Span]) -> list[Span]:
    """Where spans of protected stretches, which are as they were, lie once the stretches between `edges` read as `made`."""
    found = []
    for start, end in protected:
        i = next((i for i in range(1, len(made), 2) if edges[i] <= start and end <= edges[i + 1]), None)
        if i is not None:  # an empty span is none
            shift = sum(map(len, made[:i])) - edges[i]
            found.append((start + shift, end + shift))
    return found
