"""The rows of the SCBench look-alikes: generator, scorers and chance of each (arXiv 2412.10319, table 2).

SCBench's data come from its hub; these are rebuilt from the paper's configuration and run offline at any length.  The
`full` form has SCBench's strings and prompt shapes, the `small` form the same tasks in syllables and two-digit numbers.
Chance is the score of an answer of the right shape that was picked without reading, in the small form.
"""

from __future__ import annotations

from kvledger.tasks import overall, retrieval, scorers
from kvledger.tasks.base import Task
from kvledger.tasks.draft import maker

SUITE = "scbench"
MIX_RIGHT = scorers.mixed(scorers.one_letter, scorers.exact_string)
MIX_LEGACY = scorers.mixed(scorers.legacy_letter, scorers.legacy_substring)

ROWS: tuple[Task, ...] = (
    Task(
        name="scbench/kv",
        suite=SUITE,
        capability="string retrieval",
        metric="exact match",
        make=maker("scbench/kv", retrieval.kv, lambda turns: max(2, turns)),
        score=scorers.exact_string,
        legacy=scorers.legacy_substring,
        chance=0.0,
        source="SCBench Retr.KV",
    ),
    Task(
        name="scbench/prefix_suffix",
        suite=SUITE,
        capability="string retrieval",
        metric="exact match",
        make=maker("scbench/prefix_suffix", retrieval.prefix_suffix, lambda turns: 3 * turns),
        score=scorers.exact_string,
        legacy=scorers.legacy_substring,
        chance=0.01,
        source="SCBench Retr.Prefix-Suffix",
    ),
    Task(
        name="scbench/vt",
        suite=SUITE,
        capability="string retrieval",
        metric="F1 of names",
        make=maker("scbench/vt", retrieval.vt, lambda turns: 1),
        score=scorers.name_set,
        legacy=scorers.legacy_names,
        chance=0.03,
        source="SCBench Retr.MultiHop, RULER variable tracking",
    ),
    Task(
        name="scbench/mf",
        suite=SUITE,
        capability="global information",
        metric="exact match",
        make=maker("scbench/mf", overall.mf, lambda turns: 12),
        score=scorers.one_number,
        legacy=scorers.legacy_number,
        chance=0.01,
        source="SCBench Math.Find",
    ),
    Task(
        name="scbench/many_shot",
        suite=SUITE,
        capability="global information",
        metric="exact match",
        make=maker("scbench/many_shot", overall.many_shot, lambda turns: overall.SHOTS_PER_WORD * max(turns, 6)),
        score=scorers.one_letter,
        legacy=scorers.legacy_letter,
        chance=1 / 6,
        source="SCBench ICL.ManyShot",
    ),
    Task(
        name="scbench/mix",
        suite=SUITE,
        capability="multi-tasking",
        metric="exact match",
        make=maker("scbench/mix", overall.mix, lambda turns: overall.SHOTS_PER_WORD * max(turns, 6)),
        score=MIX_RIGHT,
        legacy=MIX_LEGACY,
        chance=1 / 12,
        source="after SCBench Mix.RepoQA+KV",
    ),
)
