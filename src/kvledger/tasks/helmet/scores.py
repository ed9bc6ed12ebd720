"""How HELMET's answers are scored: strictly (`score`), and as HELMET does (`legacy`). Pure `(prediction, golds) -> [0, 1]`.

Strict: the first line that has text, without the cue, is the answer, and a gold must stand in it in whole words.  HELMET:
no newline ever ends an answer (its option is misspelt), so any later line is credited too, as is a gold inside a word; the
better of the raw and the parsed output counts.
"""

from __future__ import annotations

from kvledger.tasks import metrics, scorers
from kvledger.tasks.helmet.templates import ICL_CUE, KV_CUE, QA_CUE, SUMMARY_CUE
from kvledger.tasks.metrics import Golds, answer_line, best_reading, ndcg, ranking

CHOICES, CHOICE_READ = "ABCD", 4000  # letters, and the characters in which one is looked for

kv_legacy = best_reading(metrics.sub_em, KV_CUE)
qa_legacy = best_reading(metrics.sub_em, QA_CUE)


def kv(prediction: str, golds: Golds) -> float:
    return metrics.answer_in(answer_line(prediction, KV_CUE), golds)


def needle(prediction: str, golds: Golds) -> float:
    return metrics.answer_in(answer_line(prediction, ""), golds)


def qa(prediction: str, golds: Golds) -> float:
    return metrics.answer_in(answer_line(prediction, QA_CUE), golds)


def label(prediction: str, golds: Golds) -> float:
    return metrics.exact_match(answer_line(prediction, ICL_CUE), golds)


def label_legacy(prediction: str, golds: Golds) -> float:
    return metrics.exact_match(metrics.after_cue(ICL_CUE + prediction, ICL_CUE), golds)


def rerank(prediction: str, golds: Golds) -> float:
    """NDCG@10; golds are `id:label`. What is not among them has label 0."""
    labels = {id_: int(label_) for id_, _, label_ in (gold.rpartition(":") for gold in golds)}
    return ndcg(ranking(prediction), labels)


def rerank_legacy(prediction: str, golds: Golds) -> float:
    return round(rerank(prediction, golds), 5)


def rouge_answer(prediction: str, golds: Golds) -> float:
    """ROUGE-L F1 of the answer line."""
    return metrics.rouge_l(answer_line(prediction, QA_CUE), golds)


def rouge_answer_legacy(prediction: str, golds: Golds) -> float:
    return max(metrics.rouge_l(prediction, golds), metrics.rouge_l(metrics.after_cue(prediction, QA_CUE), golds))


def choice(prediction: str, golds: Golds) -> float:
    """1 if the letter answered is the gold's; `golds` are the letter, and the letter with its option."""
    line = answer_line(prediction[:CHOICE_READ], QA_CUE)
    return float(scorers.letter(line, CHOICES) == golds[0])


def choice_legacy(prediction: str, golds: Golds) -> float:
    """HELMET: equality of the raw or parsed output, or "B. option" anywhere in it. Since normalising drops articles, no
    answer at all is right where the letter is A."""
    readings = (prediction, metrics.after_cue(prediction, QA_CUE))
    equal = any(metrics.exact_match(text, golds) for text in readings)
    return float(equal or golds[-1].lower() in prediction[: metrics.READ].lower())


def summary(prediction: str, golds: Golds) -> float:
    """ROUGE-L F1 of the whole output."""
    return metrics.rouge_l(prediction, golds)


def summary_legacy(prediction: str, golds: Golds) -> float:
    parsed = metrics.after_cue(prediction, SUMMARY_CUE)
    return max(metrics.rouge_l(prediction, golds), metrics.rouge_l(parsed, golds))


def deeds(prediction: str, golds: Golds) -> float:
    """ROUGE-2 F1: of sentences of one pattern, pairs of words tell more than words."""
    return metrics.rouge_2(prediction, golds)
