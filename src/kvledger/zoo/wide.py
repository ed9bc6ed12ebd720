"""What the second embedded model, "zoo-wide", learns beside the first one's six tasks: RULER's, and SCBench's look-alikes.

It begins with the weights of the first (`--start`). Its tokenizer has the set phrases of these tasks as tokens too, so that
here as well what is asked for lies a few tokens before the answer, and the signs of the Chinese names.  A conversation has
as many questions as its row has room for, so that a context is paid for once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kvledger.tasks import qa
from kvledger.zoo.start import EMBEDDED


@dataclass(frozen=True)
class Plan:
    """How a task fills a row: tokens of a turn with its answer, most turns, loss weight, and the shortest row it goes into."""

    turn: int
    most_turns: int
    weight: float = 1.0
    shortest: int = 64


WIDE: dict[str, Plan] = {
    "ruler/niah_single_1": Plan(9, 32, 1.0, 128),
    "ruler/niah_single_2": Plan(9, 32, 1.0, 128),
    "ruler/niah_single_3": Plan(11, 32, 1.0, 128),
    "ruler/niah_multikey_1": Plan(9, 32, 1.0, 128),
    "ruler/niah_multikey_2": Plan(10, 32),
    "ruler/niah_multikey_3": Plan(12, 32),
    "ruler/niah_multivalue": Plan(15, 12, 1.0, 128),
    "ruler/niah_multiquery": Plan(24, 12, 1.0, 128),
    "ruler/vt": Plan(32, 20, 1.0, 256),
    "ruler/cwe": Plan(16, 4, 2.0, 256),
    "ruler/fwe": Plan(16, 3, 2.0, 256),
    "ruler/qa_1_alike": Plan(9, 24, 1.0, 128),
    "ruler/qa_2_alike": Plan(10, 24, 1.5, 128),
    "scbench/qa_eng_alike": Plan(13, 24, 1.5, 128),
    "scbench/choice_eng_alike": Plan(26, 20, 2.0, 256),
    "scbench/summary_alike": Plan(36, 8, 1.0, 256),
    "scbench/summary_with_needles_alike": Plan(30, 8, 1.0, 512),
    "scbench/qa_chn_alike": Plan(30, 16, 1.0, 256),
}
PHRASES = (
    "Remember the magic values in the text below.\n\n", "The magic value of ", "A magic value of ", "\n\nThe magic value of ",
    "\n\nThe magic values of ", "Remember which words are most common.\n\n", "Remember which codes are most frequent.\n\n",
    "\n\nThe most common words", "\n\nThe most frequent codes", " of list ", " are ", "... ", "List ", "Document ", ":\n",
    "Answer the questions from the documents below.\n\n", " lives in ", " sails the ", " was taught by ", " has a dog ",
    "\n\nQuestion: Where does ", "\n\nQuestion: Which boat does ", "\n\nQuestion: Which dog has ", " live? Answer: ",
    " sail? Answer: ", " live?\nAnswer: ", "?\nAnswer: ", " live?\nA. ", "?\nA. ", "\nB. ", "\nC. ", "\nD. ",
    "the teacher of ", "the one in ", "the one with the dog ", "\nThe correct answer is ", qa.ENGLISH_READ, qa.CHOICE_READ,
    "Read the reports below.\n\n", " led by ", " was at ", " found ", " counted ", "\n\nWhat of ",
    "? Tell who led it, where it was, what it found and counted.\n", "The pass key of ", ". Remember it. ",
    "\n\nWhat is the pass key of ", "? The pass key is ", qa.CHINESE_READ, "\n\n问题：", "\n答案：",
)  # fmt: skip


def pieces() -> list[str]:
    """The tokens that the first model has not: phrases, and the set phrases and signs of the Chinese task."""
    said = [
        part for kind in qa.CHINESE for text in (kind.says, kind.ask, kind.bridge) for part in re.split(r"{\w+}", text)
    ]
    return list(dict.fromkeys([*PHRASES, *(part for part in said if len(part) > 1), *qa.SURNAMES, *qa.SIGNS]))


@torch.no_grad()
def widen(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give both the new pieces. A phrase begins as the mean of the tokens that it was before; signs begin at random, since
    their three bytes are nearly the same in all of them."""
    new = [piece for piece in pieces() if piece not in tokenizer.get_vocab()]
    old, before = [tokenizer.encode(piece) for piece in new], len(tokenizer)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in new])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    for row, (piece, ids) in enumerate(zip(new, old, strict=True), before):
        table[row] = torch.randn(table.shape[1]) * EMBEDDED if piece in qa.SURNAMES + qa.SIGNS else table[ids].mean(0)
