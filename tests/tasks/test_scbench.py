"""What holds for every generator in both forms, and what holds for one."""

import itertools
import random
import re
import statistics

import pytest

from kvledger.tasks import TASKS, get, scbench, suite, words
from kvledger.tasks.draft import stratify

FORMS = ("small", "full")
REBUILT = [task.name for task in (*scbench.PUBLISHED, scbench.MIXED) if task.make]
MADE = [task.name for task in scbench.ROWS if task.make]
TOKENS = {"small": 700, "full": 5000}


def count(text: str) -> int:
    """Stand-in for a tokenizer: words, syllables and marks. Two digits or two capitals a token, so grains are short."""
    return len(re.findall(r"[A-Z]{2}|\d\d|[a-z]+|\S", text))


def make(name, form="small", seed=3, index=0, tokens=None, turns=5):
    return TASKS[name].make(seed, index, tokens or TOKENS[form], count, turns, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REBUILT)
class TestEveryTask:
    def test_same_arguments_same_sample_and_other_seed_other_sample(self, name, form):
        assert make(name, form) == make(name, form)
        assert make(name, form).text != make(name, form, seed=4).text
        assert make(name, form).text != make(name, form, index=1).text

    def test_fills_the_tokens_up_to_one_grain(self, name, form):
        tokens, grain = TOKENS[form], {"small": 24, "full": 350}[form]
        used = count(make(name, form).text)
        assert tokens - grain < used <= tokens

    def test_evidence_holds_the_gold_and_depth_is_where_it_starts(self, name, form):
        made = make(name, form)
        for turn in made.turns:
            if turn.subtask in ("dates", "objects"):  # the question says it all: the shots teach the form
                assert not turn.evidence
                continue
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
    assert len(suite("scbench")) == len(suite("scbench", real=True)) == 12
    assert all(task.make for task in suite("scbench"))
    assert all(task.real for task in suite("scbench", real=True))
    assert suite("scbench/vt") == (TASKS["scbench/vt"],)
    with pytest.raises(ValueError, match="scbench/kv"):
        get("scbench/kvv")
    with pytest.raises(ValueError, match="scbench"):
        suite("scbensh")


def test_more_names_than_there_are_is_an_error_and_no_endless_search() -> None:
    with pytest.raises(ValueError, match="not 4 different names"):
        words.distinct(lambda: random.choice("abc"), 4)
    assert sorted(words.distinct(lambda: random.choice("abc"), 3)) == ["a", "b", "c"]


@pytest.mark.parametrize("tokens", [2048, 8192])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MADE)
def test_lengths_are_met_in_the_embedded_models_tokens(name, form, tokens, embedded):
    made = TASKS[name].sample(5, 0, tokens, embedded, TASKS[name].turns, form)
    grain = 0.7 if "repoqa" in name else 0.85  # whole functions
    assert grain * tokens < embedded(made.text) <= tokens
    assert len(made.turns) == TASKS[name].turns


@pytest.mark.parametrize("name", ["kv", "mf", "qa_eng_alike", "repoqa_alike"])
def test_a_long_context_takes_few_counts(name, embedded):
    """128K tokens, in the form that the embedded tokenizer stands for; a count of the whole is what costs."""
    long = [0]

    def count(text: str) -> int:
        tokens = embedded(text)
        long[0] += tokens > 100_000
        return tokens

    made = TASKS[f"scbench/{name}"].sample(5, 0, 131_072, count, 5, "small")
    assert 0.95 * 131_072 < embedded(made.text) <= 131_072
    assert long[0] <= 6


@pytest.mark.parametrize("name", MADE)
def test_another_samples_answers_are_worth_no_more_than_chance(name, embedded):
    task = TASKS[name]
    for form in FORMS:
        scores = []
        for index in range(3):
            one, other = (task.sample(7, i, 2500, embedded, 4, form) for i in (index, index + 100))
            scores += [task.score(there.gold, here.golds) for here in one.turns for there in other.turns]
        assert statistics.mean(scores) <= max(task.chance, task.baseline) * 1.6 + 0.03


@pytest.mark.parametrize("name", MADE)
def test_every_scorer_survives_ten_megabytes_and_control_characters(name, embedded):
    task = TASKS[name]
    turns = task.sample(0, 0, 2500, embedded, 2, "small").turns
    long = ("9" * 10_000_000, "A " * 2_000_000)
    for text in (
        *long,
        "\n" * 100_000,
        "\x00\x1b[2J\x7f\ud800",
        '"' * 100_000,
        "is " + " " * 10**5,
        "```" * 50_000,
        "{" * 10**5,
    ):
        for turn in turns[:1] if text in long else turns:
            assert 0.0 <= task.score(text, turn.golds) <= 1.0
            assert 0.0 <= task.legacy(text, turn.golds) <= 1.0


def test_the_best_guess_at_math_find_is_the_baseline():
    from kvledger.tasks import overall

    rng = random.Random(0)
    seen = {
        rank: [overall._values(rng, overall.SMALL_RANKS, "small")[0][rank] for _ in range(4000)]
        for rank in overall.SMALL_RANKS
    }
    best = statistics.mean(max(values.count(v) for v in set(values)) / len(values) for values in seen.values())
    assert best == pytest.approx(TASKS["scbench/mf"].baseline, abs=0.015)


def test_dates_and_objects_are_solved_right():
    kinds = set()
    for index in range(12):
        made = make("scbench/many_shot", "full", index=index)
        for turn in made.turns:
            kinds.add(turn.subtask)
            if turn.subtask == "objects":
                assert _played(turn.question) == turn.gold
            if turn.subtask == "dates":
                assert _counted(turn.question) == turn.gold
    assert kinds == {"", "dates", "objects"}


def _played(question: str) -> str:
    """The letter, by moving the things from hand to hand."""
    held = dict(re.findall(r"(\w+) has (an? \w+(?: ball)?)", question))
    for one, other in re.findall(r"(\w+) and (\w+) swap", question):
        held[one], held[other] = held[other], held[one]
    who = re.search(r"what does (\w+) hold", question).group(1)
    return next(letter for letter, what in re.findall(r"\((\w)\) (.+)", question) if what == held[who])


def _counted(question: str) -> str:
    from datetime import datetime, timedelta

    said, step = re.search(r"Today is (.+?)\. What is the date (.+?) in MM", question).groups()
    days = {
        "tomorrow": 1,
        "yesterday": -1,
        "one week from today": 7,
        "one week ago": -7,
        "10 days ago": -10,
        "in 30 days": 30,
    }
    day = datetime.strptime(said, "%B %d, %Y") + timedelta(days=days.get(step, 1))
    return next(letter for letter, what in re.findall(r"\((\w)\) (.+)", question) if what == f"{day:%m/%d/%Y}")
