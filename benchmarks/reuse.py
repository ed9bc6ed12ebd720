"""What a context costs that is read once: five questions against one, and a saved cache in another process against reading.

1. Multi-request mode: every question is asked of the context alone, in a session of its own from a fresh `Prefixes` store.
   Five questions over the first of them, which waits for the reading. With --alone also five sessions that read for themselves.
2. First token in a process that has loaded the model and has answered about another, short context: with the context read
   (cold), and, in a fresh process, with the saved session reopened (warm).

Ratios are taken inside a round; medians over the rounds. The answers must be the same in all ways, or the run ends.

    OMP_NUM_THREADS=1 python benchmarks/reuse.py --alone
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timing import ratio, seconds, setting, table

import kvledger as kv
from kvledger.tasks import get
from kvledger.tasks.base import Sample

RECIPES = ("full", "snapkv(keep=0.3)")
NEW = 16  # tokens an answer may have
SHORT = "A short context, so that nothing is timed on its first call. " * 8


@dataclass
class Times:
    """Seconds of each round, the bytes of the file, and the answers."""

    one: list[float] = field(default_factory=list)
    five: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    size: int = 0
    answers: list[str] = field(default_factory=list)


def sample_of(tokenizer: Any, tokens: int) -> Sample:
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return get("scbench/kv").make(seed=1, index=0, tokens=tokens, count=count, turns=5, form="small")


def equal(one: object, other: object) -> None:
    if one != other:
        raise SystemExit(f"answers differ: {one} and {other}")


class Bench:
    """One recipe on one sample."""

    def __init__(self, recipe: str, tokens: int, chunk: int):
        self.model, self.tokenizer = kv.load("zoo")
        self.recipe, self.chunk = recipe, chunk
        self.sample = sample_of(self.tokenizer, tokens)
        with tempfile.TemporaryDirectory() as folder:  # once through everything
            self.read(SHORT).save(f"{folder}/short.kv")
            kv.reopen(self.model, self.tokenizer, f"{folder}/short.kv").ask("w", 1)

    def read(self, text: str) -> Any:
        session = kv.open(self.model, self.tokenizer, self.recipe, chunk=self.chunk)
        session.read(text)
        return session

    def questions(self, times: Times) -> None:
        """Five sessions from a fresh store."""
        store = kv.Prefixes(self.model, self.tokenizer, self.recipe, chunk=self.chunk)
        answers: list[str] = []
        spent = [
            seconds(lambda turn=turn: answers.append(store.session(self.sample.text).ask(turn.question, NEW)))  # type: ignore[misc]
            for turn in self.sample.turns
        ]
        times.one.append(spent[0])
        times.five.append(sum(spent))
        equal(times.answers or answers, answers)
        times.answers = answers

    def alone(self, times: Times) -> None:
        """Five sessions that each read for themselves."""
        answers: list[str] = []
        for turn in self.sample.turns:
            ask = lambda turn=turn: answers.append(self.read(self.sample.text).ask(turn.question, NEW))  # noqa: E731
            times.alone.append(seconds(ask))
        equal(times.answers, answers)

    def processes(self, times: Times, tokens: int, folder: str) -> None:
        """The first token here, with the context read, and in another process, from a file."""
        said: list[Any] = []

        def cold() -> None:
            session = self.read(self.sample.text)
            said.extend([session, session.fork().ask(self.sample.turns[0].question, 1)])

        times.cold.append(seconds(cold))
        times.size = said[0].save(f"{folder}/context.kv")
        options = ["--recipe", self.recipe, "--tokens", str(tokens), "--chunk", str(self.chunk)]
        command = [sys.executable, __file__, "--reopen", f"{folder}/context.kv", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        spent, _, token = done.stdout.strip().partition(" ")
        equal(repr(said[1]), token)
        times.warm.append(float(spent))

    def reopened(self, path: str) -> None:
        """Print the seconds to the first token of the first question from a file, and that token."""
        said: list[str] = []

        def warm() -> None:
            session = kv.reopen(self.model, self.tokenizer, path, recipe=self.recipe, context=self.sample.text)
            said.append(session.ask(self.sample.turns[0].question, 1))

        print(seconds(warm), repr(said[0]))


def measure(recipe: str, options: argparse.Namespace) -> Times:
    bench, times = Bench(recipe, options.tokens, options.chunk), Times()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            bench.questions(times)
            bench.processes(times, options.tokens, folder)
    if options.alone:
        bench.alone(times)
    return times


def report(options: argparse.Namespace) -> str:
    found = {recipe: measure(recipe, options) for recipe in RECIPES}
    asked = [
        {
            "recipe": f"`{recipe}`",
            "first question, s": statistics.median(times.one),
            "all five, s": statistics.median(times.five),
            "five / one": ratio(times.five, times.one),
            "five that each read, s": sum(times.alone) or "-",
        }
        for recipe, times in found.items()
    ]
    opened = [
        {
            "recipe": f"`{recipe}`",
            "file, MB": times.size / 1e6,
            "cold, s": statistics.median(times.cold),
            "warm, s": statistics.median(times.warm),
            "warm / cold": f"{ratio(times.warm, times.cold):.3f}",
        }
        for recipe, times in found.items()
    ]
    about = (
        f"The embedded model on a CPU, {setting()}; {options.tokens:,} tokens in chunks of {options.chunk:,}; answers of at "
        f"most {NEW} tokens; medians of {options.repeats} rounds."
    )
    return "\n\n".join([about, table(asked), table(opened)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="also five sessions that each read for themselves, once")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--reopen", help=argparse.SUPPRESS)
    parser.add_argument("--recipe", default="full", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reopen:
        Bench(options.recipe, options.tokens, options.chunk).reopened(options.reopen)
        return
    text = report(options)
    print(text)
    if options.table:
        options.table.write_text(text)


if __name__ == "__main__":
    main()
