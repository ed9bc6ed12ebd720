"""The rows of HELMET (arXiv 2410.02694; code MIT, commit 4526dfb): its published sets, and look-alikes that need no download.

`json_kv` and the needles are generated as the published ones were.  Sets made of real text have `real` only; beside each
category stands a look-alike, `…_alike`, whose numbers are never to be printed next to published ones.
`score` is the strict reading: the first line that answers, whole words.  `legacy` is HELMET's own: the better of the whole
output and its parsed form, any substring.  HELMET's published numbers are those of `legacy`; for NarrativeQA and
the summaries it asks a judge (`kvledger judge`, see `JUDGED`), and ROUGE stands here under its own name.
Chance and baseline of generated tasks are those of the small form.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from kvledger.tasks.base import Task
from kvledger.tasks.draft import maker
from kvledger.tasks.helmet import books, icl, passages, published, ranked, recall, scores, story, templates
from kvledger.tasks.helmet.corpora import CORPORA, Corpus
from kvledger.tasks.helmet.files import TIERS
from kvledger.tasks.ruler.matching import string_match_all, value_set
from kvledger.tasks.ruler.niah import Needles

OURS = "own"
row = partial(Task, suite="helmet", lengths=TIERS[1:], turns=1)
KV: dict[str, Any] = dict(metric="substring match", score=scores.kv, legacy=scores.kv_legacy, chance=0.0)
QA: dict[str, Any] = dict(metric="substring match", score=scores.qa, legacy=scores.qa_legacy, chance=0.0)
ICL: dict[str, Any] = dict(metric="exact match", score=scores.label, legacy=scores.label_legacy)
RANK: dict[str, Any] = dict(metric="NDCG@10", score=scores.rerank, legacy=scores.rerank_legacy)
CHOICE: dict[str, Any] = dict(metric="exact match", score=scores.choice, legacy=scores.choice_legacy, chance=0.25)
ANSWER: dict[str, Any] = dict(
    metric="ROUGE-L F1", score=scores.rouge_answer, legacy=scores.rouge_answer_legacy, chance=0.0
)
SUMMARY: dict[str, Any] = dict(metric="ROUGE-L F1", score=scores.summary, legacy=scores.summary_legacy)

JUDGED = {
    "helmet/narrativeqa": "answer",
    "helmet/longqa_alike": "answer",
    "helmet/infbench_sum_eng": "summary",
    "helmet/multi_lexsum": "summary",
    "helmet/summ_alike": "summary",
}
"""Tasks that a judge can score, and what is judged."""


def _niah(name: str, folder: str, spec: Needles, cap: int) -> Task:
    return row(
        name=f"helmet/{name}",
        capability="recall",
        metric="F1 of values" if spec.plural else "substring match",
        make=maker(spec.task, recall.needles(spec, cap), lambda turns: turns),
        score=value_set if spec.plural else scores.needle,
        legacy=string_match_all,
        chance=4 / 90 if spec.plural else 0.0,
        baseline=4 / 90 if spec.plural else 0.0,
        source=f"HELMET {name} (RULER {folder})",
        licence="Apache-2.0",
        category="Recall",
        real=published.niah(f"helmet/{name}", folder, spec.plural, cap),
        rows=100,
    )


def _icl(corpus: Corpus, licence: str) -> Task:
    return row(
        name=f"helmet/icl_{corpus.name}",
        capability="ICL",
        make=None,
        chance=1 / corpus.labels,
        baseline=1 / corpus.labels,
        source=f"HELMET icl_{corpus.name}",
        licence=licence,
        category="ICL",
        real=corpus.real,
        rows=500,
        **ICL,
    )


def _kilt(name: str, source: str, licence: str, rows: int, threshold: str = "") -> Task:
    task = f"helmet/kilt_{name}{threshold}"
    return row(
        name=task,
        capability="RAG",
        make=None,
        source=f"HELMET kilt_{name}{threshold} ({source})",
        licence=licence,
        category="RAG",
        real=published.kilt(task, name),
        rows=rows,
        **QA,
    )


REAL: tuple[Task, ...] = (
    row(
        name="helmet/json_kv",
        capability="recall",
        make=maker("helmet/json_kv", recall.json_kv, lambda turns: max(2, turns)),
        source="HELMET json_kv",
        licence="unstated",
        category="Recall",
        real=published.json_kv,
        rows=100,
        **KV,
    ),
    _niah("niah_mk_2", "niah_multikey_2", Needles("helmet/niah_mk_2", "needles"), 50),
    _niah("niah_mk_3", "niah_multikey_3", Needles("helmet/niah_mk_3", "needles", key="uuid", value="uuid"), 100),
    _niah("niah_mv", "niah_multivalue", Needles("helmet/niah_mv", "prose", values=4), 50),
    _kilt("nq", "Natural Questions", "CC-BY-SA-3.0", 600),
    _kilt("triviaqa", "TriviaQA", "Apache-2.0", 600),
    _kilt("hotpotqa", "HotpotQA", "CC-BY-SA-4.0", 300),
    _kilt("popqa", "PopQA", "MIT", 600, "_3"),
    row(
        name="helmet/msmarco_rerank",
        capability="re-rank",
        make=None,
        chance=0.0,
        source="HELMET msmarco_rerank_psg",
        licence="non-commercial research",
        category="Rerank",
        real=published.msmarco,
        rows=300,
        **RANK,
    ),
    *(
        _icl(corpus, licence)
        for corpus, licence in zip(CORPORA, ("unknown", "unknown", "CC-BY-4.0", "CC-BY-3.0", "CC-BY-4.0"), strict=True)
    ),
    row(
        name="helmet/narrativeqa",
        capability="LongQA",
        make=None,
        source="HELMET narrativeqa",
        licence="Apache-2.0",
        category="LongQA",
        real=books.narrativeqa,
        rows=100,
        **ANSWER,
    ),
    row(
        name="helmet/infbench_qa_eng",
        capability="LongQA",
        make=None,
        source="HELMET infbench_qa_eng",
        licence="unstated",
        category="LongQA",
        real=books.infinite("helmet/infbench_qa_eng", "qa_eng", templates.STORY_TASK),
        rows=100,
        **ANSWER,
    ),
    row(
        name="helmet/infbench_choice_eng",
        capability="LongQA",
        make=None,
        source="HELMET infbench_choice_eng",
        baseline=0.25,
        licence="unstated",
        category="LongQA",
        real=books.infinite("helmet/infbench_choice_eng", "choice_eng", templates.CHOICE_TASK),
        rows=100,
        **CHOICE,
    ),
    row(
        name="helmet/infbench_sum_eng",
        capability="summarisation",
        make=None,
        chance=0.0,
        source="HELMET infbench_sum_eng",
        licence="unstated",
        category="Summ",
        real=books.infinite("helmet/infbench_sum_eng", "sum_eng", templates.BOOK_TASK),
        rows=100,
        **SUMMARY,
    ),
    row(
        name="helmet/multi_lexsum",
        capability="summarisation",
        make=None,
        chance=0.0,
        source="HELMET multi_lexsum",
        licence="ODC-BY",
        category="Summ",
        real=books.multi_lexsum,
        rows=100,
        **SUMMARY,
    ),
)

alike = partial(Task, suite="helmet", licence=OURS, lengths=TIERS[1:])
ALIKE: tuple[Task, ...] = (
    alike(
        name="helmet/rag_alike",
        capability="RAG",
        category="RAG",
        make=maker("helmet/rag_alike", passages.rag, lambda turns: max(2, turns)),
        source="after HELMET's RAG",
        **QA,
    ),
    alike(
        name="helmet/rag_hop_alike",
        capability="RAG",
        category="RAG",
        make=maker("helmet/rag_hop_alike", passages.rag_hop, lambda turns: max(2, turns)),
        source="after HELMET kilt_hotpotqa",
        **QA,
    ),
    alike(
        name="helmet/rerank_alike",
        capability="re-rank",
        category="Rerank",
        make=maker("helmet/rerank_alike", ranked.rerank, lambda turns: len(ranked.GRADES) * turns),
        chance=0.0,
        source="after HELMET msmarco_rerank_psg",
        turns=2,
        **RANK,
    ),
    alike(
        name="helmet/icl_alike",
        capability="ICL",
        category="ICL",
        make=maker("helmet/icl_alike", icl.icl, lambda turns: icl.CLASSES["small"]),
        chance=1 / icl.CLASSES["small"],
        baseline=1 / icl.CLASSES["small"],
        source="after HELMET's ICL",
        **ICL,
    ),
    alike(
        name="helmet/longqa_alike",
        capability="LongQA",
        category="LongQA",
        make=maker("helmet/longqa_alike", story.longqa, lambda turns: max(2, turns)),
        source="after HELMET infbench_qa_eng",
        **QA,
    ),
    alike(
        name="helmet/choice_alike",
        capability="LongQA",
        category="LongQA",
        make=maker("helmet/choice_alike", story.choice, lambda turns: max(4, turns)),
        baseline=0.25,
        source="after HELMET infbench_choice_eng",
        **CHOICE,
    ),
    alike(
        name="helmet/summ_alike",
        capability="summarisation",
        category="Summ",
        make=maker("helmet/summ_alike", story.summary, lambda turns: story.DEEDS["full"] * turns),
        metric="ROUGE-2 F1",
        score=scores.deeds,
        legacy=scores.summary_legacy,
        chance=0.2,
        baseline=0.2,
        source="after HELMET infbench_sum_eng",
        turns=2,
    ),
)

ROWS: tuple[Task, ...] = (*REAL, *ALIKE)
