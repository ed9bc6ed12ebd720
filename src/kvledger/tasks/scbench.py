"""The rows of SCBench: its twelve tasks (arXiv 2412.10319, table 2), and the look-alikes that stand in for them offline.

SCBench's data come from its hub (`scbench_real.py`); no generator was ever published.  Five tasks are rebuilt from the
paper's configuration and bear the same name, the seven others are made of natural text, and what stands in for them is
named `_alike`.  The `full` form has SCBench's strings and prompt shapes, the `small` form the same tasks in syllables and
two-digit numbers.  Chance is the score of an answer of the right shape that was picked without reading, the baseline that
of the best guess; both in the small form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvledger.tasks import functions, metrics, overall, qa, repo, retrieval, scorers, summary
from kvledger.tasks.base import Task
from kvledger.tasks.draft import Build, maker, roomy
from kvledger.tasks.scbench_real import SETS

SUITE, MIT = "scbench", "MIT"
STRING, SEMANTIC, OVERALL, MIX = "string retrieval", "semantic retrieval", "global information", "multi-tasking"
LENGTHS = {
    "kv": 125_000, "prefix_suffix": 112_000, "vt": 124_000, "repoqa": 65_000, "qa_eng": 198_000, "qa_chn": 1_500_000,
    "choice_eng": 188_000, "mf": 120_000, "many_shot": 22_000, "summary": 104_000, "summary_with_needles": 105_000,
    "repoqa_and_kv": 68_000,
}  # fmt: skip
MIX_SUM = scorers.mixed_numbers(scorers.one_number, metrics.rouge_lsum)
MIX_SUM_LEGACY = scorers.mixed_numbers(scorers.legacy_passkey, metrics.rouge_lsum)
MIX_REPO = scorers.mixed_lines(functions.passes, scorers.exact_string)
MIX_REPO_LEGACY = scorers.mixed_lines(functions.passes, scorers.legacy_substring)


def _row(name: str, capability: str, metric: str, score: Any, legacy: Any, **rest: Any) -> Task:
    """A task of SCBench with its published data."""
    published = SETS[name]
    return Task(
        name=f"scbench/{name}",
        suite=SUITE,
        capability=capability,
        metric=metric,
        score=score,
        legacy=legacy,
        licence=MIT,
        lengths=(LENGTHS[name],),
        real=published.sample,
        rows=published.rows,
        **{"make": None, "chance": 0.0, **rest},
    )


def _made(name: str, build: Build, *least: Callable[[int], int]) -> dict[str, Any]:
    return {"make": maker(f"scbench/{name}", build, *least)}


def _words(turns: int) -> int:
    return overall.SHOTS_PER_WORD * max(turns, len(overall.LABELS))


def _alike(name: str, capability: str, metric: str, score: Any, legacy: Any, build: Build, **rest: Any) -> Task:
    """A generated task that stands in for one of SCBench's."""
    least: Callable[[int], int] = rest.pop("least", lambda turns: turns)
    return Task(
        name=f"scbench/{name}_alike",
        suite=SUITE,
        capability=capability,
        metric=metric,
        make=roomy(maker(f"scbench/{name}_alike", build, least)),
        score=score,
        legacy=legacy,
        lengths=(LENGTHS[name],),
        **{"chance": 0.0, "licence": "own", **rest},
    )


PUBLISHED: tuple[Task, ...] = (
    _row(
        "kv", STRING, "exact match", scorers.exact_string, scorers.legacy_substring, source="Retr.KV",
        **_made("kv", retrieval.kv, lambda turns: max(2, turns)),
    ),
    _row(
        "prefix_suffix", STRING, "exact match", scorers.exact_string, scorers.legacy_substring, chance=0.01,
        source="Retr.Prefix-Suffix", **_made("prefix_suffix", retrieval.prefix_suffix, lambda turns: 3 * turns),
    ),
    _row(
        "vt", STRING, "F1 of names", scorers.name_set, scorers.legacy_names, chance=0.03, baseline=0.03,
        source="Retr.MultiHop, after RULER", **_made("vt", retrieval.vt, lambda turns: 1),
    ),
    _row("repoqa", SEMANTIC, "pass@1, BLEU 0.8", functions.passes, functions.passes, source="Code.RepoQA"),
    _row("qa_eng", SEMANTIC, "F1 of words", scorers.token_f1, scorers.legacy_answer, source="En.QA"),
    _row("qa_chn", SEMANTIC, "F1 of characters", scorers.character_f1, scorers.legacy_chinese, source="Zh.QA"),
    _row(
        "choice_eng", SEMANTIC, "exact match", scorers.choice, scorers.legacy_choice, chance=1 / 4, baseline=1 / 4,
        source="En.MultiChoice",
    ),
    _row(
        "mf", OVERALL, "exact match", scorers.one_number, scorers.legacy_number, chance=0.01, baseline=0.08, turns=6,
        source="Math.Find", **_made("mf", overall.mf, lambda turns: 12),
    ),
    _row(
        "many_shot", OVERALL, "exact match", scorers.one_letter, scorers.legacy_letter, chance=1 / 6, baseline=1 / 6,
        source="ICL.ManyShot",
        **_made("many_shot", overall.many_shot, _words, lambda turns: overall.SHOTS_PER_WORD),
    ),
    _row("summary", OVERALL, "ROUGE-Lsum", metrics.rouge_lsum, metrics.rouge_lsum, source="En.Sum"),
    _row(
        "summary_with_needles", MIX, "ROUGE-Lsum, exact", MIX_SUM, MIX_SUM_LEGACY, turns=8, source="Mix.Sum+NIAH"
    ),
    _row("repoqa_and_kv", MIX, "pass@1, exact", MIX_REPO, MIX_REPO_LEGACY, turns=8, source="Mix.RepoQA+KV"),
)  # fmt: skip

ALIKE: tuple[Task, ...] = (
    _alike(
        "repoqa", SEMANTIC, "pass@1, BLEU 0.8", functions.passes, functions.passes, repo.repoqa, licence="PSF",
        source=f"after Code.RepoQA; {repo.SOURCE}",
    ),
    _alike(
        "qa_eng", SEMANTIC, "F1 of words", scorers.token_f1, scorers.legacy_answer, qa.qa("en"), source="after En.QA"
    ),
    _alike(
        "qa_chn", SEMANTIC, "F1 of characters", scorers.character_f1, scorers.legacy_chinese, qa.qa("zh"), chance=0.03,
        baseline=0.03, source="after Zh.QA",
    ),
    _alike(
        "choice_eng", SEMANTIC, "exact match", scorers.choice, scorers.legacy_choice, qa.qa("en", choices=True),
        chance=1 / 4, baseline=1 / 4, least=lambda turns: max(20, turns), source="after En.MultiChoice",
    ),
    _alike(
        "summary", OVERALL, "share of facts", scorers.facts, metrics.rouge_lsum, summary.summary, source="after En.Sum"
    ),
    _alike(
        "summary_with_needles", MIX, "share of facts, exact", scorers.mixed_numbers(scorers.one_number, scorers.facts),
        MIX_SUM_LEGACY, summary.with_needles, turns=8, source="after Mix.Sum+NIAH",
    ),
    _alike(
        "repoqa_and_kv", MIX, "pass@1, exact", MIX_REPO, MIX_REPO_LEGACY, repo.repoqa_and_kv, turns=8, licence="PSF",
        least=lambda turns: (turns + 1) // 2,
        source=f"after Mix.RepoQA+KV; {repo.SOURCE}",
    ),
)  # fmt: skip

MIXED = Task(
    name="scbench/mix",
    suite="zoo",
    capability=MIX,
    metric="exact match",
    make=maker("scbench/mix", overall.mix, _words, lambda turns: 2 * overall.SHOTS_PER_WORD),
    score=scorers.mixed(scorers.one_letter, scorers.exact_string),
    legacy=scorers.mixed(scorers.legacy_letter, scorers.legacy_substring),
    chance=1 / 12,
    baseline=1 / 12,
    source="after Mix.RepoQA+KV",
    licence="own",
)

ROWS: tuple[Task, ...] = (*PUBLISHED, *ALIKE, MIXED)
