"""RULER's generators and scorers: every task in both forms, the published template, chance by simulation."""

import json
import os
import random
import re
from itertools import islice
from pathlib import Path

import pytest

from kvledger.tasks import prose
from kvledger.tasks.ruler import NEEDLES, ROWS, counting, niah, tracking
from kvledger.tasks.ruler.matching import string_match_all, string_match_part, value_set, words_named

TASKS = {task.name: task for task in ROWS if task.make}
FORMS = ("small", "full")
REFERENCE = Path(os.environ.get("KVLEDGER_REFDATA", Path(__file__).parents[2].parent / "shared" / "data")) / "ruler"
ROWS_4K = REFERENCE / "niah_multikey_3_4096_first100.jsonl"


def count(text: str) -> int:
    """Stand-in for a tokenizer: words, pairs of digits or capitals, marks."""
    return len(re.findall(r"[A-Z]{2}|\d\d|[a-z]+|\S", text))


def make(name, form="small", tokens=2048, turns=2, seed=3, index=0):
    return TASKS[name].make(seed, index, tokens, count, turns, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TASKS)
class TestEveryTask:
    def test_same_arguments_same_sample_and_other_seed_other_sample(self, name, form):
        assert make(name, form) == make(name, form)
        assert make(name, form).text != make(name, form, seed=4).text
        assert make(name, form).text != make(name, form, index=1).text

    @pytest.mark.parametrize("tokens", [2048, 8192])
    def test_fills_the_tokens(self, name, form, tokens):
        assert 0.95 * tokens < count(make(name, form, tokens, turns=1).text) <= tokens

    def test_evidence_holds_the_golds(self, name, form):
        made = make(name, form)
        for turn in made.turns:
            held = [made.text[start:end] for start, end in turn.evidence]
            assert turn.evidence == tuple(sorted(turn.evidence))
            assert all(any(gold in text for text in held) for gold in turn.golds)
            assert turn.depth == turn.evidence[0][0] / len(made.text)

    def test_perfect_answer_scores_one_and_that_of_another_sample_none(self, name, form):
        task = TASKS[name]
        scores = []
        for i in range(12):
            mine, other = make(name, form, 1200, 1, index=i).turns[0], make(name, form, 1200, 1, index=i + 50).turns[0]
            assert task.score(mine.gold, mine.golds) == task.legacy(mine.gold, mine.golds) == 1
            assert task.score("", mine.golds) == task.legacy("", mine.golds) == 0
            scores.append(task.score(other.gold, mine.golds))
        assert sum(scores) / len(scores) <= task.chance + 0.1

    def test_too_few_tokens_or_turns_are_refused(self, name, form):
        with pytest.raises(ValueError, match="tokens are too few"):
            make(name, form, tokens=5)
        with pytest.raises(ValueError, match="turns"):
            make(name, form, turns=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spec", NEEDLES, ids=lambda spec: spec.task)
def test_each_gold_is_in_the_context_once_and_each_key_as_often_as_it_has_values(spec, form):
    made = make(spec.task, form, 4096)
    assert "\n" not in made.segments[1].text or spec.haystack != "prose"
    for turn in made.turns:
        assert all(len(re.findall(rf"\b{gold}\b", made.text)) == 1 for gold in turn.golds)
        for start, end in turn.evidence:
            key = re.search(r"(?:for|of) (\S+) is", made.text[start:end]).group(1)
            assert len(re.findall(rf"(?:for|of) {key} is", made.text)) == spec.values
            assert key in turn.question
        assert all(gold not in turn.question for gold in turn.golds)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["ruler/niah_multivalue", "ruler/cwe"])
def test_what_has_no_order_is_told_in_that_of_the_text(name, form):
    """In the order in which it was drawn, a history of gold answers would say something that the text does not."""
    for index in range(5):
        made = make(name, form, 4096, turns=1, index=index)
        text = made.segments[-1].text
        places = [re.search(rf"\b{gold}\b", text).start() for gold in made.turns[0].golds]
        assert places == sorted(places)


def test_a_long_context_is_made_with_few_counts():
    for name in ("ruler/niah_multikey_2", "ruler/cwe"):
        calls = []

        def counted(text, calls=calls):
            calls.append(1)
            return count(text)

        made = TASKS[name].make(0, 0, 131072, counted, 1, "small")
        assert 130_000 < count(made.text) <= 131072
        assert len(calls) < 12


def test_depths_cover_the_text_and_say_nothing_about_the_turn():
    depths = [[turn.depth for turn in make("ruler/niah_multikey_3", turns=5, index=i).turns] for i in range(30)]
    assert all(min(row) < 0.35 and max(row) > 0.65 for row in depths)
    means = [sum(column) / 30 for column in zip(*depths, strict=True)]
    assert max(means) - min(means) < 0.3


@pytest.mark.skipif(not ROWS_4K.exists(), reason=f"no reference data at {ROWS_4K}")
def test_published_rows_are_rendered_letter_by_letter():
    spec = next(spec for spec in NEEDLES if spec.task.endswith("multikey_3"))
    rows = [json.loads(line) for line in ROWS_4K.read_text().splitlines()]
    depths = []
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        pairs = re.findall(r"uuids for (\S+) is: (\S+)\.", row["input"])
        (query,) = re.findall(r"uuid for (\S+) mentioned in the provided text\?", row["input"])
        body = "\n".join(niah.needle(spec, "full", *pair) for pair in pairs)
        assert niah.instruction(spec, "full", 1) + body + niah.question(spec, "full", [query]) == row["input"]
        assert len(pairs) == 51
        golds = tuple(row["outputs"])
        assert golds == (dict(pairs)[query],)
        assert TASKS[spec.task].score(golds[0], golds) == string_match_all(golds[0], golds) == 1
        assert TASKS[spec.task].score(other["outputs"][0], golds) == 0
        depths.append([key for key, _ in pairs].index(query) / 51)
    assert 0.4 < sum(depths) / len(depths) < 0.55
    ours = make(spec.task, "full", turns=1)
    assert niah.instruction(spec, "full", 1) == ours.segments[0].text
    assert all(
        re.fullmatch(r"One of the special magic uuids for \S{36} is: \S{36}\.", x)
        for x in ours.segments[1].text.split("\n")
    )


def test_links_of_a_chain_are_in_order_and_point_to_the_one_before():
    for form in FORMS:
        made = make("ruler/vt", form)
        for turn in made.turns:
            links = [made.text[start:end] for start, end in turn.evidence]
            assert links == tracking.links(list(turn.golds), re.search(r"the value (\d+)", turn.question).group(1))


def test_the_words_asked_for_are_the_most_common():
    for form, times, common in (("small", 6, 3), ("full", 30, 10)):
        made = make("ruler/cwe", form, 8192, turns=1)
        tally: dict[str, int] = {}
        for word in re.findall(r"[A-Za-z]{3,}", made.segments[-1].text):
            tally[word] = tally.get(word, 0) + 1
        ranked = sorted(tally, key=tally.get, reverse=True)
        assert set(ranked[:common]) == set(made.turns[0].golds)
        assert tally[ranked[common - 1]] == times > tally[ranked[common]]


@pytest.mark.parametrize("size", [60, 66, 83, 200, 1000])
def test_the_codes_asked_for_are_the_most_frequent_but_the_dots(size):
    made = counting.fwe(random.Random(0), size, 2, "full")
    for part, turn in zip(made.segments[1].text.split("\n"), made.turns, strict=True):
        words = part.split(": ")[1].split(" ")
        ranked = sorted(set(words), key=words.count, reverse=True)
        assert ranked[0] == "..."
        assert tuple(ranked[1:4]) == turn.golds
        assert words.count(ranked[3]) > words.count(ranked[4])


def test_chance_is_what_guessing_gives():
    rng = random.Random(0)
    values = [str(n) for n in range(10, 100)]
    guesses = {
        "ruler/niah_single_1": lambda golds: TASKS["ruler/niah_single_1"].score(rng.choice(values), golds),
        "ruler/niah_multivalue": lambda golds: TASKS["ruler/niah_multivalue"].score(
            " ".join(rng.sample(values, 4)), golds
        ),
        "ruler/vt": lambda golds: TASKS["ruler/vt"].score(" ".join(rng.sample(counting_syllables(), 5)), golds),
    }
    for name, guess in guesses.items():
        golds = [make(name, tokens=700, turns=1, index=i).turns[0].golds for i in range(40)]
        mean = sum(guess(gold) for gold in golds for _ in range(200)) / 8000
        assert mean == pytest.approx(TASKS[name].chance, abs=0.01)


def counting_syllables():
    from kvledger.tasks.words import SYLLABLES

    return list(SYLLABLES)


class TestScorers:
    def test_one_value_must_be_the_answer(self):
        score = TASKS["ruler/niah_single_2"].score
        assert score(" 1234567.", ("1234567",)) == 1
        assert score("The special magic number is 1234567.", ("1234567",)) == 1
        assert score("9991234567", ("1234567",)) == 0
        assert string_match_all("9991234567", ("1234567",)) == 1

    def test_several_values_are_a_set(self):
        golds = ("11", "22", "33", "44")
        assert value_set("11, 22, 33, and 44.", golds) == 1
        assert value_set("The values are 44 33 22 11", golds) == 1
        assert value_set("11 22", golds) == pytest.approx(2 / 3)
        assert value_set("11 22 33 44 55 66 77 88", golds) == pytest.approx(2 / 3)
        assert value_set("BA BA KO", ("BAKO", "KO")) == pytest.approx(0.5)
        assert string_match_all("11 22 55", golds) == 0.5
        assert string_match_part("11 22 55", golds) == 1

    def test_words_count_among_the_first_named(self):
        assert words_named("1. bako 2. timu", ("bako", "timu")) == 1
        assert words_named("bakoo timu", ("bako", "timu")) == 0.5
        flood = " ".join(f"w{i}x" for i in range(99))
        assert words_named(f"{flood} bako timu", ("bako", "timu")) == 0
        assert string_match_all(f"{flood} bako timu", ("bako", "timu")) == 1

    @pytest.mark.parametrize(
        "text", ["a\n" * 5_000_000, "12 " * 3_333_333, "\x00\x1b\t-" * 2_500_000, "-" * 10_000_000]
    )
    def test_ten_megabytes_and_control_characters(self, text):
        for score in (string_match_all, string_match_part, value_set, words_named):
            assert 0 <= score(text, ("1234567", "7654321")) <= 1


def test_prose_is_seeded_plain_and_varied():
    text = list(islice(prose.sentences(random.Random(1)), 500))
    assert text == list(islice(prose.sentences(random.Random(1)), 500))
    assert len(set(text)) > 490
    assert all(re.fullmatch(r"[A-Z][a-z ,;]+(?:, [A-Za-z ,;]+)*\.", line) for line in text)
