"""EM, SubEM, F1, ROUGE and NDCG against values of the packages that HELMET uses, and on output that no model should give."""

import json
import random
from pathlib import Path

import pytest

from kvledger.tasks import metrics
from kvledger.tasks.stem import stem

GOLDEN = json.loads((Path(__file__).parent / "golden_metrics.json").read_text())
ROUGE = (metrics.rouge_1, metrics.rouge_2, metrics.rouge_l, metrics.rouge_lsum)
HUGE = 10_000_000


@pytest.mark.parametrize("said, gold, one, two, longest, lines", GOLDEN["rouge"])
def test_rouge_is_that_of_rouge_score(said, gold, one, two, longest, lines):
    assert [rouge(said, (gold,)) for rouge in ROUGE] == pytest.approx([one, two, longest, lines], abs=1e-11)


def test_stems_are_those_of_nltk():
    assert {word: stem(word) for word in GOLDEN["stems"]} == GOLDEN["stems"]


def table(rows, columns):
    """Lengths of longest common subsequences, the slow way."""
    lengths = [[0] * (len(columns) + 1) for _ in range(len(rows) + 1)]
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            step = lengths[i][j] + 1 if row == column else 0
            lengths[i + 1][j + 1] = max(step, lengths[i][j + 1], lengths[i + 1][j])
    return lengths


def followed(rows, columns):
    """The rows of one longest common subsequence: back through the table, leftwards only where that is strictly longer."""
    lengths, taken = table(rows, columns), set()
    i, j = len(rows), len(columns)
    while i and j:
        if rows[i - 1] == columns[j - 1]:
            i, j = i - 1, j - 1
            taken.add(i)
        elif lengths[i][j - 1] > lengths[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return taken


@pytest.mark.parametrize("seed", range(60))
def test_the_fast_table_says_what_the_slow_one_says(seed):
    rng = random.Random(seed)
    rows, columns = (rng.choices("abcde", k=rng.randint(1, 25)) for _ in range(2))
    assert metrics._columns(rows, columns)[-1].bit_count() == table(rows, columns)[-1][-1]
    assert metrics._followed(rows, columns) == followed(rows, columns)


def test_the_best_gold_counts():
    assert metrics.rouge_l("the red boat", ("a green house", "red boat")) == pytest.approx(0.8)
    assert metrics.f1("the red boat", ("a green house", "red boat")) == 1.0


# ---- rankings --------------------------------------------------------------------------------------------------------


def reference_ndcg(ranked, labels):
    """From the definition: every rank to 10 adds its label over the logarithm; the best order adds most."""
    import numpy as np

    discount = 1 / np.log2(np.arange(2, 12))
    gains = np.array([labels.get(item, 0) for item in ranked[:10]] + [0] * (10 - len(ranked[:10])))
    best = np.array((sorted(labels.values(), reverse=True) + [0] * 10)[:10])
    return float(gains @ discount / (best @ discount))


@pytest.mark.parametrize("ranked, labels, expected", GOLDEN["ndcg"])
def test_ndcg_is_that_of_trec_eval(ranked, labels, expected):
    assert metrics.ndcg(ranked, labels) == pytest.approx(expected, abs=1e-11)


def test_ndcg_equals_a_reference_on_400_random_rankings():
    rng = random.Random(3)
    for _ in range(400):
        labels = {str(i): rng.choice((0, 0, 1, 2, 3)) for i in range(rng.randint(1, 40))} | {"0": 1}
        ranked = list(dict.fromkeys(str(rng.randint(0, 60)) for _ in range(rng.randint(1, 40))))
        text = "Ranking: " + rng.choice((" > ", ">", " >\n")).join(f"[ID: {item}]" for item in ranked)
        assert metrics.ranking(text) == ranked
        assert metrics.ndcg(ranked, labels) == pytest.approx(reference_ndcg(ranked, labels), abs=1e-12)


@pytest.mark.parametrize(
    ("text", "ranked"),
    [
        ("Ranking: ID3 > ID1 > ID2", ["3", "1", "2"]),
        ("[ID: 7] > [ID: 7] > [ID: 9]", ["7", "9"]),
        ("1, 2, 3", ["1"]),  # HELMET reads no commas
        ("first 5 > 6, then 1 > 2 > 3", ["1", "2", "3"]),
        ("12345678 and 1 > 2", ["12345678"]),  # the longest chain is the one of most characters
        ("none of them", []),
        ("", []),
    ],
)
def test_a_ranking_is_the_longest_chain(text, ranked):
    assert metrics.ranking(text) == ranked


def test_ndcg_of_nothing_is_nothing():
    assert metrics.ndcg([], {"1": 3}) == 0.0
    assert metrics.ndcg(["1"], {"1": 0}) == 0.0


# ---- strings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "gold", "em", "sub", "strict"),
    [
        ("Paris", "paris", 1, 1, 1),
        ("The  Paris.", "Paris", 1, 1, 1),
        ("It is Paris, of course", "Paris", 0, 1, 1),
        ("comparison", "Paris", 0, 1, 0),  # a substring of a word
        ("London", "Paris", 0, 0, 0),
        ("London", "The A", 0, 1, 0),  # a gold that normalises to nothing is found by HELMET in anything
        ("“Paris”", "Paris", 0, 1, 0),  # only ASCII punctuation is dropped
        ("", "Paris", 0, 0, 0),
    ],
)
def test_equality_and_containment(said, gold, em, sub, strict):
    assert metrics.exact_match(said, (gold,)) == em
    assert metrics.sub_em(said, (gold,)) == sub
    assert metrics.answer_in(said, (gold,)) == strict


@pytest.mark.parametrize(
    ("said", "gold", "expected"),
    [
        ("red boat", "the red boat", 1.0),
        ("red", "red boat", 2 / 3),
        ("red red red", "red boat", 0.4),
        ("yes", "yes it is", 0.0),  # yes and no count whole
        ("yes", "yes", 1.0),
        ("", "", 0.0),
    ],
)
def test_f1_of_words(said, gold, expected):
    assert metrics.f1(said, (gold,)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("said", "helmet", "strict"),
    [
        ("Paris\nLondon", "Paris", "Paris"),
        ("Answer: Paris", "Paris", "Paris"),
        ("answer: Answer: Paris", "Paris", "Answer: Paris"),
        ("It is Paris.\nAnswer: London", "London", "It is Paris."),
        ("Answer:\nParis", "", "Paris"),
        ("\n\n Paris ", "", "Paris"),
        ("İİİ Answer: Paris", "Paris", "İİİ Answer: Paris"),  # a letter that grows when it is made small
        ("", "", ""),
    ],
)
def test_what_is_read_as_the_answer(said, helmet, strict):
    assert metrics.after_cue(said, "Answer:") == helmet
    assert metrics.answer_line(said, "Answer:") == strict


def test_helmet_credits_whatever_follows():
    score = metrics.best_reading(metrics.sub_em, "Answer:")
    assert score("It is Paris.\nAnswer: London", ("Paris",)) == 1.0
    assert score("It is Rome.", ("Paris",)) == 0.0


MONSTERS = {
    "words": "word the other\x00 " * (HUGE // 16),
    "one word": "wo" * (HUGE // 2),
    "spaces": "1" + " " * HUGE,
    "chains": "1 > 22 > " * (HUGE // 9),
    "cues": "Answer: " * (HUGE // 8),
    "control": "".join(map(chr, range(32))) * (HUGE // 32),
    "lines": "\n" * HUGE,
}
METRICS = (*ROUGE, metrics.exact_match, metrics.sub_em, metrics.answer_in, metrics.f1)


@pytest.mark.parametrize("name", MONSTERS)
def test_ten_megabytes_are_scored(name):
    said, golds = MONSTERS[name], ("a quiet word\nabout other things",)
    for metric in METRICS:
        assert 0 <= metric(said, golds) <= 1
    assert metrics.ndcg(metrics.ranking(said), {"22": 1}) <= 1
    assert len(metrics.after_cue(said, "Answer:")) <= metrics.READ
    assert len(metrics.answer_line(said, "Answer:")) <= metrics.READ
