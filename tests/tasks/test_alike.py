"""The look-alikes of SCBench's natural tasks: nothing is known without reading, and every answer is there once."""

from __future__ import annotations

import itertools
import statistics

import pytest

from kvledger.tasks import TASKS, scbench
from kvledger.tasks.repo import files, functions

FORMS = ("small", "full")
NAMES = [task.name for task in scbench.ALIKE]


def make(name, count, form="full", seed=3, index=0, tokens=6000, turns=6):
    return TASKS[name].sample(seed, index, tokens, count, turns, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
class TestEveryLookAlike:
    def test_same_seed_same_bytes(self, name, form, embedded):
        assert make(name, embedded, form) == make(name, embedded, form)
        assert make(name, embedded, form).text != make(name, embedded, form, seed=4).text
        assert make(name, embedded, form).text != make(name, embedded, form, index=1).text

    def test_a_perfect_answer_scores_one_and_none_scores_nothing(self, name, form, embedded):
        task = TASKS[name]
        for turn in make(name, embedded, form).turns:
            assert task.score(turn.gold, turn.golds) == 1.0
            assert task.score("", turn.golds) == task.legacy("", turn.golds) == 0.0
            assert task.score("I do not know.", turn.golds) == 0.0

    def test_what_is_looked_for_stands_in_the_evidence_and_in_the_text_once(self, name, form, embedded):
        made = make(name, embedded, form)
        for turn in made.turns:
            held = [made.text[start:end] for start, end in turn.evidence]
            for gold in _extracted(turn):
                assert made.text.count(gold) == 1
                assert any(gold in text for text in held)
            assert turn.depth == turn.evidence[0][0] / len(made.text)

    def test_no_question_tells_its_answer(self, name, form, embedded):
        for turn in make(name, embedded, form).turns:
            if turn.subtask != "choice":
                assert not any(gold in turn.question for gold in _extracted(turn))


def _extracted(turn):
    """The strings that the answer takes from the text."""
    if turn.subtask == "choice":
        return [turn.golds[1]]
    if turn.subtask == "repoqa":
        return [turn.golds[0]]
    return list(turn.golds[1:]) if turn.subtask == "summary" else list(turn.golds)


@pytest.mark.parametrize("name", ["qa_eng", "qa_chn", "choice_eng"])
def test_every_second_question_goes_over_a_bridge(name, embedded):
    made = make(f"scbench/{name}_alike", embedded)
    sentences = [len(turn.evidence) for turn in made.turns]
    assert sentences[::2] == [1, 1, 1]
    assert sentences[1::2] == [2, 2, 2]
    for turn in made.turns:
        people = [made.text[start:end] for start, end in turn.evidence]
        shared = set.intersection(*(set(text.replace(".", "").split()) for text in people))
        assert name == "qa_chn" or len([word for word in shared if word[0].isupper()]) >= 2, "both tell of one person"


def test_options_are_all_told_in_the_text_and_the_letter_is_random(embedded):
    letters = []
    for index in range(8):
        made = make("scbench/choice_eng_alike", embedded, index=index)
        for turn in made.turns:
            lines = [line for line in turn.question.splitlines() if line[1:3] == ". "]
            assert len(lines) == 4
            assert all(made.text.count(line[3:]) == 1 for line in lines)
            assert lines["ABCD".index(turn.gold)][3:] == turn.golds[1]
            letters.append(turn.gold)
    assert set(letters) == set("ABCD")
    assert TASKS["scbench/choice_eng_alike"].chance == 0.25


def test_chance_of_chinese_answers_is_what_other_names_score(embedded):
    task = TASKS["scbench/qa_chn_alike"]
    turns = [turn for index in range(10) for turn in make(task.name, embedded, index=index).turns]
    scores = [task.score(one.gold, other.golds) for one in turns for other in turns if one is not other]
    assert statistics.mean(scores) == pytest.approx(task.chance, abs=0.01)


@pytest.mark.parametrize("name", ["summary_with_needles", "repoqa_and_kv"])
def test_the_mixes_ask_both_kinds_in_turn(name, embedded):
    kinds = [turn.subtask for turn in make(f"scbench/{name}_alike", embedded, turns=8, tokens=8000).turns]
    assert len(set(kinds)) == 2
    assert all(one != other for one, other in itertools.pairwise(kinds))


def test_copying_the_reports_brings_no_summary(embedded):
    task = TASKS["scbench/summary_alike"]
    made = make(task.name, embedded)
    for turn in made.turns:
        assert task.score(made.text, turn.golds) <= 0.5
        half = ". ".join(turn.gold.split(". ")[:2])
        assert task.score(half, turn.golds) == 0.5
        assert task.score(turn.gold + " and so on and on", turn.golds) == 1.0


def test_functions_come_without_their_docstrings_and_are_described_by_them(embedded):
    made = make("scbench/repoqa_alike", embedded)
    for turn in made.turns:
        about = turn.question.split("Function description: ")[1].strip()
        name = turn.golds[0].split("def ")[1].split("(")[0]
        assert about not in made.text
        assert name not in about
        assert len(turn.golds) == len(made.turns), "the rivals are the other functions that are asked for"


def test_modules_are_taken_in_an_order_of_the_seed():
    assert len(files()) > 100
    first = [next(functions(seed / 10, 8)).source for seed in range(6)]
    assert len(set(first)) > 2
    assert first == [next(functions(seed / 10, 8)).source for seed in range(6)]
