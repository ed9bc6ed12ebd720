"""The rows of LongProc (arXiv 2501.05414): six tasks in up to three tiers of answer length. Contexts have one question.

Generated at any length, or read from the published data with `--data`; the pseudocode that people wrote has a look-alike.
arXiv 2506.17121 uses HTML to TSV in its three tiers and travel planning at 2K.  Chance is 0 throughout: an answer is a long
text that has to be right in every line (of HTML to TSV: in a whole row), and so is what can be had without the context.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kvledger.tasks.base import Sample, Score, Task
from kvledger.tasks.longproc import (
    countdown,
    html_to_tsv,
    path_traversal,
    programs,
    pseudo_to_code,
    rows,
    tom_tracking,
    travel_planning,
)
from kvledger.tasks.longproc.frame import Tier, capped
from kvledger.tasks.longproc.published import COUNTS, reader

TIERS: tuple[Tier, ...] = ("0.5k", "2k", "8k")
CODE: tuple[Tier, ...] = ("0.5k", "2k")  # of pseudocode to C++
LENGTHS = {"html_to_tsv": (131072,), "travel_planning": (32768,)}


def _tiers(
    task: str,
    metric: str,
    build: Callable[..., Sample] | None,
    score: Score,
    legacy: Score,
    tiers: tuple[Tier, ...] = TIERS,
    least: Callable[[int], int] = lambda turns: turns,
    category: Callable[[Tier], str] = lambda tier: "",
) -> tuple[Task, ...]:
    return tuple(
        Task(
            name=f"longproc/{task}_{tier}",
            suite="longproc",
            capability="long procedures",
            metric=metric,
            make=capped(f"longproc/{task}_{tier}", tier, partial(build, tier), least) if build else None,
            score=score,
            legacy=legacy,
            chance=0.0,
            source=f"LongProc {task.replace('_', ' ')}, answers of {tier.upper()} tokens",
            licence="Apache-2.0; web pages of others" if task == "html_to_tsv" else "Apache-2.0",
            lengths=LENGTHS.get(task, (8192,)),
            turns=1,
            category=category(tier),
            real=reader(task, tier),
            rows=COUNTS[f"{task}_{tier}"],
            runs_code=build is None,
        )
        for tier in tiers
    )


def _programs(tier: Tier) -> Task:
    """The look-alike of pseudocode to C++."""
    name = f"longproc/pseudo_to_code_{tier}_alike"
    return Task(
        name=name,
        suite="longproc",
        capability="long procedures",
        metric="tests passed, in a sandbox",
        make=capped(name, tier, partial(programs.build, tier), lambda turns: turns),
        score=pseudo_to_code.passes,
        legacy=pseudo_to_code.passes,
        chance=0.0,
        source=f"after LongProc pseudo to code, {tier.upper()}",
        licence="own",
        lengths=(8192,),
        turns=1,
        runs_code=True,
    )


ROWS: tuple[Task, ...] = (
    *_tiers(
        "html_to_tsv",
        "F1 of rows",
        html_to_tsv.build,
        rows.row_f1,
        rows.longproc_f1,
        category=lambda tier: "HTML to TSV",
    ),
    *_tiers(
        "travel_planning",
        "valid plan",
        travel_planning.build,
        travel_planning.valid_plan,
        travel_planning.gold_plan,
        tiers=("2k", "8k"),
        category=lambda tier: "Travel planning" if tier == "2k" else "",
    ),
    *_tiers("path_traversal", "exact route", path_traversal.build, path_traversal.exact, path_traversal.exact),
    *_tiers("tom_tracking", "exact trace", tom_tracking.build, tom_tracking.trace_and_answer, tom_tracking.trace),
    *_tiers("countdown", "valid solution", countdown.build, countdown.solution, countdown.solution),
    *_tiers(
        "pseudo_to_code", "tests passed, in a sandbox", None, pseudo_to_code.passes, pseudo_to_code.passes, tiers=CODE
    ),
    *map(_programs, CODE),
)
