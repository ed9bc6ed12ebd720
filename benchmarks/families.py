"""SCBench's frame in one table: its families of methods, at their four stages, in both modes, on the embedded model.

Each family of arXiv 2412.10319 table 1 has its rows; windows and pages are scaled to prompts of 2,048 tokens. The question is
hidden, history is gold; `turn 1` and `later` are of the multi-turn mode. Costs are fractions of the full cache's: bytes stored
when a question comes, bytes read by a decode step, query-key pairs of attention while reading. Says at the end which of the
paper's findings hold here. Resumes; writes Markdown, JSON and the page. `--again` writes the Markdown anew from its JSON.

    python benchmarks/families.py --out results/families --samples 4 --table docs/results/families.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from kvledger.recipe import parse
from kvledger.records import Record, read
from kvledger.report import write_page
from kvledger.report.interval import Estimate, mean
from kvledger.run.sweep import Grid, Progress, sweep

TASKS = ("scbench/kv", "scbench/prefix_suffix", "scbench/vt", "scbench/mf", "scbench/many_shot", "scbench/mix")
FAMILIES = {
    "full attention": ("full",),
    "prompt compression": ("selfinfo(keep=0.5)",),
    "sparse prefill": (
        "ashape(sinks=64, window=512)",
        "trishape(sinks=64, window=512)",
        "minference(vertical=128, slash=256)",
        "flexprefill",
        "xattention",
    ),
    "dynamic sparsity": ("moba(block=64, top=8)", "nsa(select=4, window=128)"),
    "dropping": (
        "streaming(keep=0.3)",
        "snapkv(keep=0.3)",
        "pyramidkv(keep=0.3)",
        "kvzap(keep=0.3)",
        "headgate(keep=0.3)",
    ),
    "quantisation": ("int8", "int4", "kivi(bits=4)", "kivi(bits=2)", "turboquant(bits=4)"),
    "reuse of prefixes": ("cacheblend(chunk=512, recompute=0.15)",),
    "partial loading": ("quest(pages=16)", "retrieval_attention(k=128, sinks=16, window=64)", "twilight"),
    "composed": ("trishape(sinks=64, window=512) + kvzap(keep=0.3) + int8 + quest(pages=16)",),
}
HEAD = """# SCBench's frame in one table

One or more methods of each family of arXiv 2412.10319 (table 1) at its stage, on the embedded model: 2,048 tokens read in
chunks of 1,024, six tasks, {samples} contexts each, five questions a context, the question hidden while the context is read,
gold history. Windows, pages and blocks are scaled to this length. Scores in points with half a 95 % interval over contexts;
costs are fractions of the full cache's, which is float32 here (int8 is about a quarter): bytes stored when a question comes,
bytes that a decode step reads, and query-key pairs of attention while reading. The last row does all at once.

Gated linear RNNs and hybrids, the paper's two families of models, are other checkpoints and were not run here: their two rows
are read from [architectures.md](architectures.md) (prompts of {context} tokens, both modes in one mean, bytes as fractions of
the embedded Llama's full cache at that length).

```
python benchmarks/families.py --out results/families --samples {samples} --table docs/results/families.md
```
[The same as a page](families.html) (download it to open it).
"""


@dataclass(frozen=True)
class Line:
    family: str
    recipe: str
    turns: int
    score: Estimate
    first: float
    later: float
    alone: Estimate  # multi-request
    stored: float
    read: float
    work: float


def of(records: Iterable[Record]) -> Estimate:
    turns: dict[tuple[str, int], list[float]] = {}
    for r in records:
        turns.setdefault((r.task, r.sample), []).append(r.score)
    return mean(turns)


def line(family: str, recipe: str, records: list[Record], full: int) -> Line:
    """`full`: bytes of the whole context in the full cache, a token."""
    many = [r for r in records if r.mode == "multi-turn"]

    def share(value: Callable[[Record], float]) -> float:
        return fmean(map(value, records))

    return Line(
        family,
        recipe,
        len(records),
        of(many),
        fmean(r.score for r in many if r.turn == 1),
        fmean(r.score for r in many if r.turn > 1),
        of(r for r in records if r.mode == "multi-request"),
        share(lambda r: r.stored_bytes / (r.full_bytes + r.left_out * full)),
        share(lambda r: r.bytes_read_per_step / (r.full_read_per_step + r.left_out * full)),
        share(lambda r: r.prefill_work),
    )


def others(page: Path) -> tuple[list[str], int]:
    """Rows of the families that are models of their own, from the table of architectures, and the length of its prompts."""
    found: dict[str, tuple[int, float, float, float]] = {}
    for text in page.read_text().splitlines():
        cells = [cell.strip() for cell in text.strip("|").split("|")]
        if len(cells) == 12 and cells[1] == "`full`":  # the longest prompts come last
            held, _, read = map(float, cells[9:])
            found[cells[0]] = int(cells[2]), fmean(map(float, cells[3:9])), held, read
    context, _, full, step = found["Llama"]
    rows = []
    for family, model in (("gated linear RNN", "Mamba-2"), ("hybrid", "Bamba")):
        _, score, held, read = found[model]
        cells = [family, f"{model}, `full` *", "–", f"{score:.0f} *", "–", "–", f"{score:.0f} *"]
        rows.append("| " + " | ".join([*cells, f"{100 * held / full:.0f} %", f"{100 * read / step:.0f} %", "–"]) + " |")
    return rows, context


def points(value: Estimate) -> str:
    half = 0.0 if value.low is None or value.high is None else 50 * (value.high - value.low)
    return f"{100 * value.mean:.0f} ± {half:.0f}"


def table(lines: list[Line]) -> list[str]:
    text = [
        "| family | recipe | stage | multi-turn | turn 1 | later | multi-request | stored | read a step | prefill pairs |"
    ]
    text.append("|---" * 10 + "|")
    for x in lines:
        stage = "–" if x.recipe == "full" or " + " in x.recipe else type(parse(x.recipe).parts[0]).row.stage
        cells = [x.family, f"`{x.recipe}`", stage, points(x.score), f"{100 * x.first:.0f}", f"{100 * x.later:.0f}"]
        cells += [points(x.alone), *(f"{100 * value:.0f} %" for value in (x.stored, x.read, x.work))]
        text.append("| " + " | ".join(cells) + " |")
    return text


def findings(lines: list[Line]) -> list[str]:
    """The paper's claims (§4.2) beside what these lines say."""
    full = lines[0]

    def best(family: str) -> Line:
        return max((x for x in lines if x.family == family), key=lambda x: x.score.mean)

    def kept(value: float, whole: float) -> str:
        return f"{100 * value / whole:.0f} %"

    voting = [x for x in lines if x.recipe.startswith(("snapkv", "pyramidkv"))]
    drop = fmean(x.first for x in voting), fmean(x.later for x in voting)
    return [
        "- *Dropping works for the first question and fails on later ones.* That is so where it has seen the first question "
        "([headline.md](headline.md)). Here it has seen none, and so fails on all alike: SnapKV and PyramidKV keep "
        f"{kept(drop[0], full.first)} of the full score in turn 1 and {kept(drop[1], full.later)} later: the paper's other "
        "finding, that a hidden question hurts. What was trained or asks for no question (`kvzap`, `headgate`) does not.",
        *(
            f"- *{claim}.* The best of `{family}` keeps {kept(best(family).score.mean, full.score.mean)} of the full score "
            f"(`{best(family).recipe}`)."
            for family, claim in (
                ("sparse prefill", "Sparse prefill with a full cache holds up over turns"),
                ("quantisation", "Quantised caches hold up"),
                ("partial loading", "Loading parts of a full cache holds up"),
                ("prompt compression", "Prompt compression fails at exact retrieval"),
            )
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--again", action="store_true", help="from the JSON beside --table")
    arguments = parser.parse_args()
    if arguments.again:
        lines = [again(x) for x in json.loads(arguments.table.with_suffix(".json").read_text())]
    else:
        lines = measured(arguments)
    page = Path(__file__).parents[1] / "docs" / "results" / "architectures.md"
    rows, context = others(page)
    text = [
        HEAD.format(samples=arguments.samples, context=context),
        *table(lines),
        *rows,
        "",
        "\\* another checkpoint, another length, both modes in one mean.",
        "",
        "## The paper's findings, here",
        "",
        *findings(lines),
        "",
    ]
    print("\n" + "\n".join(text))
    if arguments.table:
        arguments.table.write_text("\n".join(text))


def again(facts: dict[str, Any]) -> Line:
    """A line as it was written."""
    return Line(**{**facts, "score": Estimate(**facts["score"]), "alone": Estimate(**facts["alone"])})


def measured(arguments: argparse.Namespace) -> list[Line]:
    """Run what has not been run; with a table, its JSON and its page are written."""
    recipes = {str(parse(text)): family for family, texts in FAMILIES.items() for text in texts}
    grid = Grid(
        "zoo",
        tuple(recipes),
        TASKS,
        modes=("multi-turn", "multi-request"),
        context=(arguments.context,),
        chunk=arguments.chunk,
        samples=arguments.samples,
        turns=5,
        seed=11,
    )

    def watch(now: Progress) -> None:
        print(f"\r{now.done} of {now.total} turns", end="", file=sys.stderr)

    sweep(grid, arguments.out, watch, lambda text: print(text, file=sys.stderr))
    groups: dict[str, list[Record]] = {recipe: [] for recipe in recipes}
    for r in read(arguments.out)[0]:
        if r.recipe in groups:
            groups[r.recipe].append(r)
    one = groups["full"][0]
    whole = one.full_bytes // one.prompt_tokens if one.prompt_tokens else 0
    lines = [line(family, recipe, groups[recipe], whole) for recipe, family in recipes.items() if groups[recipe]]
    if arguments.table:
        arguments.table.with_suffix(".json").write_text(json.dumps([asdict(x) for x in lines], indent=1) + "\n")
        write_page([r for some in groups.values() for r in some], arguments.table.with_suffix(".html"))
    return lines


if __name__ == "__main__":
    main()
