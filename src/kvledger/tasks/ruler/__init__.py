"""The rows of RULER's 13 tasks (arXiv 2404.06654): needles in a haystack, variable tracking, word counting, question answering.

All but question answering are generated as published, at any length.  That needs SQuAD and HotpotQA, which come with `--data`;
look-alikes stand in for it.  Chance is the score of an answer of the right shape that was picked without reading, in the
small form.
"""

from __future__ import annotations

from functools import partial

from kvledger.tasks import scorers
from kvledger.tasks.base import Score, Task
from kvledger.tasks.draft import maker
from kvledger.tasks.ruler import counting, questions, tracking
from kvledger.tasks.ruler.matching import answered, string_match_all, string_match_part, value_set, words_named
from kvledger.tasks.ruler.niah import Needles

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
row = partial(
    Task, suite="ruler", legacy=string_match_all, licence="Apache-2.0 (code); the data are ours", lengths=LENGTHS
)
NEEDLES = (
    Needles("ruler/niah_single_1", "noise"),
    Needles("ruler/niah_single_2", "prose"),
    Needles("ruler/niah_single_3", "prose", value="uuid"),
    Needles("ruler/niah_multikey_1", "prose", others=3),
    Needles("ruler/niah_multikey_2", "needles"),
    Needles("ruler/niah_multikey_3", "needles", key="uuid", value="uuid"),
    Needles("ruler/niah_multivalue", "prose", values=4),
    Needles("ruler/niah_multiquery", "prose", asked=4),
)


def _needles(spec: Needles) -> Task:
    metric: str = "F1 of values" if spec.plural else "exact match"
    score: Score = value_set if spec.plural else scorers.exact_string
    digits = spec.value == "number" and spec.haystack != "needles"
    return row(
        name=spec.task,
        capability="string retrieval",
        metric=metric,
        make=maker(spec.task, spec.build, lambda turns: turns),
        score=score,
        chance=(4 / 90 if spec.plural else 1 / 90) if digits else 0.0,
        baseline=(4 / 90 if spec.plural else 1 / 90) if digits else 0.0,
        source=f"RULER {spec.task.removeprefix('ruler/')}",
    )


def _questions(name: str, hops: int, source: str) -> tuple[Task, Task]:
    """RULER's QA as published, and its look-alike."""
    qa = partial(
        row,
        capability="question answering",
        metric="answer named",
        score=answered,
        legacy=string_match_part,
        chance=0.0,
    )
    alike = f"ruler/{name}_alike"
    return (
        qa(
            name=f"ruler/{name}",
            make=None,
            real=questions.published(name),
            rows=100,
            turns=1,
            source=f"RULER {name} ({source}), from HELMET's tarball",
            licence="CC-BY-SA-4.0",
        ),
        qa(
            name=alike,
            make=maker(alike, questions.qa(alike, hops), lambda turns: max(2, turns)),
            source=f"after RULER {name}",
            licence="own",
        ),
    )


ROWS: tuple[Task, ...] = (
    *map(_needles, NEEDLES),
    row(
        name=tracking.TASK,
        capability="string retrieval",
        metric="F1 of names",
        make=maker(tracking.TASK, tracking.build, lambda turns: turns),
        score=scorers.name_set,
        chance=0.05,
        baseline=0.05,
        source="RULER variable tracking, 1 chain of 4 hops a question",
    ),
    row(
        name="ruler/cwe",
        capability="global information",
        metric="share of words",
        make=counting.make_cwe,
        score=words_named,
        chance=0.0,
        turns=1,
        source="RULER common words extraction",
    ),
    row(
        name="ruler/fwe",
        capability="global information",
        metric="share of words",
        make=maker("ruler/fwe", counting.fwe, lambda turns: 60),
        score=words_named,
        chance=0.0,
        turns=1,
        source="RULER frequent words extraction",
    ),
    *_questions("qa_1", 1, "SQuAD"),
    *_questions("qa_2", 2, "HotpotQA"),
)
