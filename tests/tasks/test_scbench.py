"""What holds for every generator in both forms, and what holds for one."""

import itertools
import random
import re
import statistics

import pytest

from kvledger.tasks import TASKS, get, suite, words
from kvledger.tasks.draft import stratify

FORMS = ("small", "full")
TOKENS = {"small": 700, "full": 5000}


def count(text: str) -> int:
    """Stand-in for a tokenizer: words, syllables and marks. Two digits or two capitals a token, so grains are short."""
    return len(re.findall(r"[A-Z]{2}|\d\d|[a-z]+|\S", text))


def make(name, form="small", seed=3, index=0, tokens=None, turns=5):
    return TASKS[name].make(seed, index, tokens or TOKENS[form], count, turns, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TASKS)
class TestEveryTask:
    def test_same_arguments_same_sample_and_other_seed_other_sample(self, name, form):
        assert make(name, form) == make(name, form)
        assert make(name, form).text != make(name, form, seed=4).text
        assert make(name, form).text != make(name, form, index=1).text

    def test_fills_the_tokens_up_to_one_grain(self, name, form):
        tokens, grain = TOKENS[form], {"small": 24, "full": 160}[form]
        used = count(make(name, form).text)
        assert tokens - grain < used <= tokens

    def test_evidence_holds_the_gold_and_depth_is_where_it_starts(self, name, form):
        made = make(name, form)
        for turn in made.turns:
            held = [made.text[start:end] for start, end in turn.evidence]
            assert held
            if (name == "scbench/many_shot" and form == "full") or "Options" in turn.question:
                assert all(turn.question.split("\n")[2] in text for text in held)
            else:
                assert all(any(gold in text for text in held) for gold in turn.golds)
            assert turn.depth == turn.evidence[0][0] / len(made.text)

    def test_gold_scores_full_marks_and_an_empty_answer_none(self, name, form):
        task = TASKS[name]
        for turn in make(name, form).turns:
            assert task.score(turn.gold, turn.golds) == task.legacy(turn.gold, turn.golds) == 1.0
            assert task.score("", turn.golds) == task.legacy("", turn.golds) == 0.0

    def test_questions_differ_and_never_tell_the_answer(self, name, form):
        made = make(name, form, turns=4)
        assert len({turn.question for turn in made.turns}) == 4
        if name in ("scbench/kv", "scbench/prefix_suffix"):
            assert all(turn.gold not in turn.question for turn in made.turns)

    def test_too_few_tokens_or_turns_are_refused(self, name, form):
        with pytest.raises(ValueError, match="tokens are too few"):
            make(name, form, tokens=5)
        with pytest.raises(ValueError, match="turns"):
            make(name, form, turns=0)


@pytest.mark.parametrize("name", ["scbench/kv", "scbench/prefix_suffix", "scbench/vt"])
def test_depths_cover_the_text_and_say_nothing_about_the_turn(name):
    depths = [[turn.depth for turn in make(name, index=i).turns] for i in range(40)]
    for row in depths:
        assert min(row) < 0.35
        assert max(row) > 0.65
    means = [statistics.mean(column) for column in zip(*depths, strict=True)]
    assert max(means) - min(means) < 0.3


def test_stratify_takes_one_place_from_each_bin():
    picks = stratify(random.Random(0), 100, 5)
    assert sorted(pick // 20 for pick in picks) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["scbench/kv", "scbench/prefix_suffix"])
def test_gold_strings_occur_exactly_once(name, form):
    made = make(name, form)
    assert all(made.text.count(f'"{turn.gold}"') == 1 for turn in made.turns)


@pytest.mark.parametrize("form", FORMS)
def test_prefix_or_suffix_alone_do_not_identify_the_string(form):
    made = make("scbench/prefix_suffix", form)
    strings = re.findall(r'"([^" ,]+)"', made.text)
    for turn in made.turns:
        prefix, suffix = re.findall(r'"([^"]+)"', turn.question)
        assert [s for s in strings if s.startswith(prefix) and s.endswith(suffix)] == [turn.gold]
        assert sum(s.startswith(prefix) for s in strings) > 1
        assert sum(s.endswith(suffix) for s in strings) > 1


@pytest.mark.parametrize("form", FORMS)
def test_chains_are_in_order_and_each_link_points_to_the_one_before(form):
    made = make("scbench/vt", form)
    for turn in made.turns:
        links = [made.text[start:end] for start, end in turn.evidence]
        assert turn.evidence == tuple(sorted(turn.evidence))
        assert links[0].split(" = ")[1] in turn.question
        for before, link in zip(turn.golds, links[1:], strict=False):
            assert link.endswith(f"VAR {before}")


@pytest.mark.parametrize("form", FORMS)
def test_math_find_ranks_are_true_and_differ_from_row_to_row(form):
    answers = set()
    for index in range(12):
        made = make("scbench/mf", form, index=index)
        values = sorted(set(map(int, re.findall(r"\d+", made.segments[-1].text))))
        for turn in made.turns:
            rank = re.search(r"The ((?:second |third )?)(largest|smallest)", turn.question)
            place = {"": 0, "second ": 1, "third ": 2}[rank.group(1)]
            assert form == "small" or len(turn.evidence) == 1
            assert int(turn.gold) == (values[-1 - place] if rank.group(2) == "largest" else values[place])
            if rank.group() == "The largest":
                answers.add(turn.gold)
    assert len(answers) > 6


def test_many_shot_labels_are_balanced_and_random():
    letters: list[str] = []
    for index in range(10):
        made = make("scbench/many_shot", index=index)
        label = dict(re.findall(r"(\w+) -> \((\w)\)", made.text))
        shares = [list(label.values()).count(c) for c in "ABCDEF"]
        assert max(shares) - min(shares) <= 1
        letters.append(label.get("BA", "") + label.get("KO", ""))
    assert len(set(letters)) > 3


def test_the_mix_asks_both_kinds_in_turn():
    made = make("scbench/mix", turns=6)
    kinds = [turn.subtask for turn in made.turns]
    assert set(kinds) == {"kv", "many_shot"}
    assert all(a != b for a, b in itertools.pairwise(kinds))
    assert {segment.role for segment in made.segments} == {"instruction", "demos", "context"}


def test_lookup_of_names_and_suites():
    assert get("scbench/kv").name == "scbench/kv"
    assert len(suite("scbench")) == 6
    assert suite("scbench/vt") == (TASKS["scbench/vt"],)
    with pytest.raises(ValueError, match="scbench/kv"):
        get("scbench/kvv")
    with pytest.raises(ValueError, match="scbench"):
        suite("scbensh")


def test_more_names_than_there_are_is_an_error_and_no_endless_search() -> None:
    with pytest.raises(ValueError, match="not 4 different names"):
        words.distinct(lambda: random.choice("abc"), 4)
    assert sorted(words.distinct(lambda: random.choice("abc"), 3)) == ["a", "b", "c"]
