"""What the embedded model can do with its full cache: `python -m kvledger.zoo.evaluate --tokens 2048 --samples 20`.

Plain transformers and greedy decoding, on evaluation seeds, none of which training ever drew.  Both shared-context
modes of SCBench: multi-turn (each question sees the questions before it and their gold answers) and multi-request (each
question sees the context alone).  One JSON line per task, length and mode.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from kvledger import zoo
from kvledger.tasks import Sample, Task, get
from kvledger.zoo.data import FIRST_TRAINING_SEED, PLANS
from kvledger.zoo.wide import WIDE

MODES = ("multi-turn", "multi-request")


class Reader:
    """One sequence and its cache: reads text, answers, and goes back to an earlier length."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer, self.cache, self.length = model, tokenizer, DynamicCache(), 0

    @torch.no_grad()
    def read(self, text: str) -> int:
        """Append `text`; the most likely next token."""
        return self._forward(self.tokenizer.encode(text, add_special_tokens=False))

    def _forward(self, ids: list[int]) -> int:
        out = self.model(torch.tensor([ids]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.length += len(ids)
        return int(out.logits[0, -1].argmax())

    @torch.no_grad()
    def answer(self, question: str, cap: int) -> str:
        """The greedy answer; the sequence is left as it was before the question."""
        mark = self.length
        ids: list[int] = []
        token = self.read(question + "<|end|><|assistant|>")
        while token != self.tokenizer.eos_token_id and len(ids) < cap:
            ids.append(token)
            token = self._forward([token]) if len(ids) < cap else token
        self.back_to(mark)
        return str(self.tokenizer.decode(ids))

    def back_to(self, length: int) -> None:
        if length < self.length:
            self.cache.crop(length - self.length)  # negative: so many tokens off the end
        self.length = length


def ask_all(reader: Reader, task: Task, made: Sample, mode: str) -> list[float]:
    """Scores of the sample's turns."""
    reader.read("<|bos|><|user|>" + made.text)
    scores, opening = [], ""
    for turn in made.turns:
        scores.append(task.score(reader.answer(opening + turn.question, turn.max_new_tokens), turn.golds))
        if mode == "multi-turn":
            reader.read(f"{opening}{turn.question}<|end|><|assistant|>{turn.gold}<|end|>")
            opening = "<|user|>"
    return scores


def evaluate(folder: Path, tasks: list[str], tokens: int, samples: int, seed: int, mode: str, turns: int) -> list[dict]:
    """A result per task: the mean score, and the means by turn."""
    assert seed < FIRST_TRAINING_SEED
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    results = []
    for name in tasks:
        task = get(name)
        made = [task.sample(seed, i, tokens, lambda text: len(tokenizer.encode(text)), turns) for i in range(samples)]
        scores = [ask_all(Reader(model, tokenizer), task, each, mode) for each in made]
        by_turn = [round(statistics.mean(column), 3) for column in zip(*scores, strict=True)]
        mean = round(statistics.mean(score for row in scores for score in row), 4)
        results.append(
            {"task": name, "tokens": tokens, "mode": mode, "samples": samples, "score": mean, "turns": by_turn}
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=zoo.path(), help="a folder")
    parser.add_argument("--wide", action="store_true", help="the second embedded model, and all that it learned")
    parser.add_argument("--tasks", nargs="+", help="default: what the model learned")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048])
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    options = parser.parse_args()
    if options.wide:
        options.model = zoo.path("zoo-wide")
    options.tasks = options.tasks or [*(f"scbench/{name}" for name in PLANS), *(WIDE if options.wide else ())]
    for tokens in options.tokens:
        for mode in options.modes:
            for name in options.tasks:
                case = ([name], tokens, options.samples, options.seed, mode, options.turns)
                print(json.dumps(evaluate(options.model, *case)[0]), flush=True)


if __name__ == "__main__":
    main()
