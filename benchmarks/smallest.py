"""How many KVs does each method need, one question a prompt, in the layout of arXiv 2506.17121 table 2: on the embedded model.

The question is part of the prompt ("visible"). `naive` eviction judges each chunk by its own last queries, `patched` by the
prompt's, `one shot` waits for the whole prompt and so saves nothing while it reads. Two tables from one set of records: the
smallest entry footprint (the paper's) and the smallest share of bytes stored that keep 90 % of the full cache's score.
Resumes.

    python benchmarks/smallest.py --out results/smallest --table docs/results/smallest.md
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from kvledger.critical import Question
from kvledger.recipe import parse
from kvledger.records import read
from kvledger.report import critical
from kvledger.run.sweep import Grid, Progress, sweep

KEEPS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)
TASKS = ("scbench/kv", "scbench/prefix_suffix", "scbench/vt", "scbench/mf", "scbench/many_shot", "scbench/mix")
CONTEXT, CHUNK = 1024, 256
LINES = {
    "random": "random(keep={}, when='chunk')",
    "streaming": "streaming(keep={}, when='chunk')",
    "SnapKV, naive": "snapkv(keep={}, when='chunk')",
    "PyramidKV, naive": "pyramidkv(keep={}, when='chunk')",
    "AdaKV, naive": "adakv(keep={}, when='chunk')",
    "SnapKV, one shot": "snapkv(keep={})",
    "PyramidKV, one shot": "pyramidkv(keep={})",
    "AdaKV, one shot": "adakv(keep={})",
    "KVzip, one shot": "kvzip(keep={})",
    "KVzap": "kvzap(keep={}, when='chunk')",
    "headgate, Duo": "headgate(path='zoo/duo', keep={})",
    "headgate, PruLong": "headgate(keep={})",
    "oracle": "streaming(keep={}) + protect(evidence=True)",
}
PATCHED = {
    "SnapKV, patched": "SnapKV, naive",
    "PyramidKV, patched": "PyramidKV, naive",
    "AdaKV, patched": "AdaKV, naive",
}
HEAD = f"""# How many KVs, one question a prompt?

In the layout of arXiv 2506.17121 table 2, on the embedded model: {CONTEXT:,} tokens read in chunks of {CHUNK}, the question at
the prompt's end, seven budgets from keep 0.1 to 0.9, {{samples}} contexts a task. Per cent of the full cache's; 95 % intervals
in brackets; `<` and `>`: beyond the budgets measured. Not the paper's model nor its data: the numbers do not stand beside its
own. What can be compared is the order (see docs/fidelity.md).

```
python benchmarks/smallest.py --out results/smallest --table docs/results/smallest.md
```
"""


def recipes() -> dict[str, str]:
    """Recipe -> line of the table."""
    return {str(parse(text.format(keep))): line for line, text in LINES.items() for keep in KEEPS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--samples", type=int, default=6)
    arguments = parser.parse_args()
    lines = recipes()
    naive = tuple(recipe for recipe, line in lines.items() if line in PATCHED.values())
    grid = Grid(
        "zoo",
        ("full", *lines),
        TASKS,
        visibility=("visible",),
        context=(CONTEXT,),
        chunk=CHUNK,
        samples=arguments.samples,
        turns=1,
        seed=11,
    )

    def watch(now: Progress) -> None:
        print(f"\r{now.done} of {now.total} turns", end="", file=sys.stderr)

    for part in (grid, replace(grid, recipes=naive, visibility=("patched",))):
        sweep(part, arguments.out, watch, lambda line: print(line, file=sys.stderr))
    patched = {line: name for name, line in PATCHED.items()}
    records = []
    for r in read(arguments.out)[0]:
        if r.visibility == "patched":  # beside the others, on the same samples and the same full cache
            lines[f"{r.recipe} patched"] = patched[lines[r.recipe]]
            r = replace(r, recipe=f"{r.recipe} patched", visibility="visible")
        if r.recipe in lines or r.recipe == "full":
            records.append(r)
    text = [HEAD.format(samples=arguments.samples)]
    for axis in ("entries", "stored"):
        for found in critical.tables(records, Question(axis=axis, lines=lines)):
            text += [*critical.markdown(found), ""]
    print("\n".join(text))
    if arguments.table:
        arguments.table.write_text("\n".join(text))


if __name__ == "__main__":
    main()
