"""How long does a sample take to make? Every task that is generated, at each length, first and second sample of a process.

Each measurement has a process of its own, forked before anything was generated, so that nothing is warm. Lengths are counted
with the embedded model's tokenizer, as a run counts them.

    python benchmarks/samples.py --tokens 2048 8192 131072 --table docs/results/samples.md
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from tokenizers import Tokenizer

from kvledger import zoo
from kvledger.tasks import TASKS
from kvledger.tasks.base import Form

HEAD = """# Seconds to make a sample

First and second sample of a process, the worst of all {tasks} generated tasks at each length, in the {form} form; one core,
`python benchmarks/samples.py --tokens {tokens} --form {form}`.

| tokens | slowest | first | second | median of the first | not made |
|---|---|---|---|---|---|
"""
TOKENIZER = Tokenizer.from_file(str(zoo.path() / "tokenizer.json"))


def count(text: str) -> int:
    return len(TOKENIZER.encode_batch_fast([text], add_special_tokens=False)[0])


def measured(name: str, tokens: int, form: Form) -> list[float]:
    """Seconds of two samples, in a process of their own; none where the task has no context that short."""
    read, write = os.pipe()
    if not os.fork():
        spent: list[float] = []
        try:
            for index in range(2):
                start = time.perf_counter()
                TASKS[name].sample(0, index, tokens, count, TASKS[name].turns, form)
                spent.append(time.perf_counter() - start)
        finally:
            os.write(write, json.dumps(spent).encode())
            os._exit(0)
    os.wait()
    os.close(write)
    with os.fdopen(read) as told:
        return json.load(told)


def line(tokens: int, form: Form, names: list[str]) -> str:
    spent = {name: measured(name, tokens, form) for name in names}
    made = {name: some for name, some in spent.items() if some}
    worst = max(made, key=lambda name: max(made[name]))
    median = sorted(some[0] for some in made.values())[len(made) // 2]
    first, second = made[worst]
    lacking = ", ".join(name for name in names if name not in made) or "–"
    return f"| {tokens:,} | {worst} | {first:.2f} | {second:.2f} | {median:.2f} | {lacking} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048, 8192, 131072])
    parser.add_argument("--form", default="small", choices=("small", "full"))
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    names = [name for name, task in TASKS.items() if task.make]
    tokens = " ".join(map(str, options.tokens))
    text = HEAD.format(tasks=len(names), form=options.form, tokens=tokens)
    text += "".join(line(length, options.form, names) for length in options.tokens)
    print(text)
    if options.table:
        options.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
