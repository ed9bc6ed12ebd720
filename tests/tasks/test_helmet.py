"""HELMET's generated tasks and look-alikes: what holds for all of them, and what each promises."""

import random
import re
import statistics
from collections import Counter
from functools import cache

import pytest
from tokenizers import Tokenizer

from kvledger import zoo
from kvledger.tasks import facts
from kvledger.tasks.helmet import ALIKE, JUDGED, REAL, ROWS, icl, ranked, scores, story, templates
from kvledger.tasks.words import syllables

TASKS = {task.name: task for task in ROWS if task.make is not None}
FORMS = ("small", "full")
EXTRACTED = [n for n in TASKS if n.split("/")[1].startswith(("json_kv", "niah", "rag", "longqa"))]
TOKENIZER = Tokenizer.from_file(str(zoo.path() / "tokenizer.json"))


def count(text):
    return len(TOKENIZER.encode(text, add_special_tokens=False).ids)


@cache
def make(name, form="small", seed=3, index=0, tokens=2048, turns=None):
    return TASKS[name].make(seed, index, tokens, count, turns or TASKS[name].turns, form)


def test_the_rows_are_the_published_sets_and_look_alikes_beside_them():
    assert Counter(task.category for task in REAL) == dict(Recall=4, RAG=4, Rerank=1, ICL=5, LongQA=3, Summ=2)
    assert all(task.real is not None and task.name.count("alike") == 0 for task in REAL)
    assert all(task.make and not task.real and task.name.endswith("_alike") for task in ALIKE)
    assert Counter(task.category for task in ALIKE) == dict(RAG=2, Rerank=1, ICL=1, LongQA=2, Summ=1)
    assert set(JUDGED) <= {task.name for task in ROWS}
    assert all(task.source and task.licence and task.lengths for task in ROWS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TASKS)
class TestEveryTask:
    def test_same_arguments_same_bytes_and_others_another_sample(self, name, form):
        make.cache_clear()
        first = make(name, form)
        make.cache_clear()
        assert make(name, form) == first
        assert make(name, form, seed=4).text != first.text
        assert make(name, form, index=1).text != first.text

    def test_fills_the_tokens(self, name, form):
        for tokens in (2048, 8192):
            made = make(name, form, tokens=tokens)
            assert tokens - 300 < count(made.text) <= tokens

    def test_the_gold_scores_full_marks_and_nothing_none(self, name, form):
        task = TASKS[name]
        for turn in make(name, form).turns:
            assert task.score(turn.gold, turn.golds) == task.legacy(turn.gold, turn.golds) == 1.0
            assert task.score("", turn.golds) == 0.0
            assert task.legacy("", turn.golds) == float(turn.golds[0] == "A")  # HELMET takes that letter for an article

    def test_another_samples_answer_scores_what_chance_does(self, name, form):
        task = TASKS[name]
        others = [turn.gold for index in range(1, 7) for turn in make(name, form, index=index).turns]
        mean = statistics.mean(task.score(gold, t.golds) for t in make(name, form).turns for gold in others)
        assert mean <= task.chance + 0.15

    def test_evidence_lies_in_the_text_and_says_the_depth(self, name, form):
        made = make(name, form)
        for turn in made.turns:
            assert turn.evidence
            assert turn.depth == turn.evidence[0][0] / len(made.text)
            assert all(0 <= start < end <= len(made.text) for start, end in turn.evidence)

    def test_questions_differ_and_too_small_a_budget_is_refused(self, name, form):
        questions = [turn.question for turn in make(name, form, tokens=8192, turns=2).turns]
        assert len(set(questions)) == 2
        with pytest.raises(ValueError, match="tokens are too few"):
            make(name, form, tokens=8)

    def test_prompt_lengths_of_an_answer_suffice(self, name, form):
        made = make(name, form)
        assert all(count(turn.gold) <= turn.max_new_tokens for turn in made.turns if form == "small")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EXTRACTED)
def test_what_is_extracted_stands_in_the_text_exactly_once_and_in_the_evidence(name, form):
    made = make(name, form, tokens=8192)
    for turn in made.turns:
        held = [made.text[start:end] for start, end in turn.evidence]
        for gold in turn.golds:
            assert len(re.findall(rf"(?<!\w){re.escape(gold)}(?!\w)", made.text)) == 1
            assert any(gold in text for text in held)
            assert gold not in turn.question


@pytest.mark.parametrize("name, form", [("json_kv", "small"), ("rag_alike", "small"), ("summ_alike", "full")])
def test_128k_tokens(name, form):
    made = make(f"helmet/{name}", form, tokens=131_072)
    assert 131_072 - 512 < count(made.text) <= 131_072
    assert TASKS[made.task].score(made.turns[0].gold, made.turns[0].golds) == 1.0


# ---- chance, by playing it -------------------------------------------------------------------------------------------


def guess(name, rng, turn):
    """An answer of the right shape, from somebody who has not read the text."""
    short = name.split("/")[1]
    if short == "niah_mv":
        return " ".join(str(n) for n in rng.sample(range(10, 100), 4))
    if short == "rerank_alike":
        return " > ".join(str(n) for n in rng.sample(range(1000, 10_000), 10))
    if short == "icl_alike":
        return str(rng.randrange(icl.CLASSES["small"]))
    if short == "choice_alike":
        return rng.choice("ABCD")
    if short == "summ_alike":
        who = re.search(r"what (\w+) did", turn.question).group(1)  # the name and "left" come for free
        deeds = story.DEEDS["small"]
        return "\n".join(f"{who} left {syllables(rng, 2)} in {syllables(rng, 2)}." for _ in range(deeds))
    return syllables(rng, 2)


@pytest.mark.parametrize("name", TASKS)
def test_chance_and_baseline_are_what_a_guess_scores(name):
    rng, task = random.Random(9), TASKS[name]
    turns = [turn for index in range(4) for turn in make(name, index=index).turns]
    mean = statistics.mean(task.score(guess(name, rng, t), t.golds) for t in turns for _ in range(4000 // len(turns)))
    assert mean == pytest.approx(task.chance, abs=0.025)
    assert task.baseline <= max(task.chance, 0.25)


# ---- each task -------------------------------------------------------------------------------------------------------


def test_json_kv_is_one_json_object_in_its_full_form():
    import json

    made = make("helmet/json_kv", "full")
    pairs = json.loads(made.text)
    for turn in made.turns:
        assert pairs[turn.question.split("\nKey: ")[-1].split("\n")[0].removeprefix("Key: ")] == turn.gold
        demos = re.findall(r"Key: (\S+)\nCorresponding value: (\S+)", turn.question)
        assert len(demos) == 2
        assert not set(dict(demos)) & set(pairs)


@pytest.mark.parametrize(
    ("name", "template", "kind", "cap"),
    [
        ("niah_mk_2", templates.NIAH_ASK, "number", 50),
        ("niah_mk_3", templates.NIAH_ASK, "uuid", 100),
        ("niah_mv", templates.NIAH_ASK_MANY, "numbers", 50),
    ],
)
def test_needles_are_asked_as_helmet_does_in_the_full_form(name, template, kind, cap):
    made = make(f"helmet/{name}", "full")
    (turn,) = made.turns
    query = re.search(r" for (\S+) mentioned", turn.question).group(1)
    assert turn.question == template.format(kind=kind, query=query)
    lead = templates.NIAH_TASK_MANY if name == "niah_mv" else templates.NIAH_TASK
    assert made.text.startswith(lead.format(kind=kind))
    assert turn.max_new_tokens == cap


def test_a_hop_needs_both_passages():
    made = make("helmet/rag_hop_alike")
    for turn in made.turns:
        pupil = re.search(r"the teacher of (\w+)", turn.question).group(1)
        first, second = (made.text[start:end] for start, end in turn.evidence)
        assert pupil in first
        assert turn.gold not in first
        assert re.search(r"taught by (\w+)\.", first).group(1) in second


def test_half_a_name_finds_nobody_in_the_full_form():
    world = facts.people(random.Random(0), 60, "full", 1, set())
    firsts = Counter(person.name.split()[0] for person in world)
    assert statistics.mean(firsts.values()) > 2
    assert len({person.name for person in world}) == 60


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_a_ranking_count_what_is_asked_for(form):
    made = make("helmet/rerank_alike", form, tokens=8192)
    offers = dict(re.findall(r"\[ID: (\d+)\] Document: (.*)", made.segments[-1].text))
    for turn in made.turns:
        wanted = re.search(r"Who offers (\w+), (\w+) and (\w+)\?", turn.question).groups()
        labels = {id_: sum(bool(re.search(rf"\b{good}\b", text)) for good in wanted) for id_, text in offers.items()}
        assert set(turn.golds) == {f"{id_}:{label}" for id_, label in labels.items() if label}
        assert sorted(labels.values(), reverse=True)[:10] == list(ranked.GRADES)
        assert scores.rerank(" > ".join(reversed(turn.gold.split(" > "))), turn.golds) < 1


def test_more_queries_than_goods_are_refused():
    with pytest.raises(ValueError, match="at most 11"):
        make("helmet/rerank_alike", tokens=8192, turns=12)


@pytest.mark.parametrize("form", FORMS)
def test_icl_labels_are_balanced_consistent_and_new_in_each_sample(form):
    seen = set()
    for index in range(3):
        made = make("helmet/icl_alike", form, index=index)
        labels = Counter(re.findall(r"label: (\d+)", made.segments[-1].text))
        assert max(labels.values()) - min(labels.values()) <= 1
        assert set(map(int, labels)) <= set(range(icl.CLASSES[form]))
        shots = dict(re.findall(r"(.+)\nlabel: (\d+)", made.segments[-1].text))
        for turn in made.turns:
            asked = turn.question.strip().split("\n")[0]
            assert asked not in shots
            shown = [made.text[start:end] for start, end in turn.evidence]
            assert {text.split("label: ")[1] for text in shown} == {turn.gold}
        seen.add(tuple(turn.gold for turn in made.turns))
    assert len(seen) == 3


@pytest.mark.parametrize("form", FORMS)
def test_a_choice_shows_four_places_of_the_story_and_the_letter_is_the_true_one(form):
    letters = set()
    for index in range(6):
        made = make("helmet/choice_alike", form, index=index)
        for turn in made.turns:
            options = dict(re.findall(r"([A-D])\. (.+)", turn.question))
            held = made.text[slice(*turn.evidence[0])]
            assert [letter for letter, place in options.items() if held.endswith(f"in {place}.")] == [turn.gold]
            assert all(f"in {place}." in made.text for place in options.values())
            assert turn.golds == (turn.gold, f"{turn.gold}. {options[turn.gold]}")
            letters.add(turn.gold)
    assert letters == set("ABCD")


@pytest.mark.parametrize("form", FORMS)
def test_a_summary_is_all_that_one_person_did_in_order(form):
    made = make("helmet/summ_alike", form, tokens=8192)
    for turn in made.turns:
        who = re.search(r"what (\w+) did", turn.question).group(1)
        told = re.findall(rf"\b{who} \w+ [^.]+ in \w+\.", made.text)
        assert "\n".join(told) == turn.gold
        assert [made.text[start:end] for start, end in turn.evidence] == told


# ---- scorers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scorer", "said", "golds", "right", "legacy"),
    [
        ("qa", "It is Paris.\nAnswer: London", ("London",), 0, 1),  # later lines
        ("qa", "Answer: comparison", ("Paris",), 0, 1),  # part of a word
        ("qa", "in the town of Paris", ("Paris",), 1, 1),
        ("needle", "ab-12.", ("ab-12",), 1, None),
        ("needle", "none\nab-12", ("ab-12",), 0, None),
        ("kv", "Corresponding value: ab-12", ("ab-12",), 1, 1),
        ("kv", "xab-12x", ("ab-12",), 0, 1),
        ("label", " 12", ("12",), 1, 1),
        ("label", "label: 12", ("12",), 1, 1),
        ("label", "12 or 13", ("12",), 0, 0),
        ("label", "\n12", ("12",), 1, 0),  # HELMET parses the cue's own line only
        ("choice", "B", ("B", "B. Rome"), 1, 1),
        ("choice", "(B) Rome", ("B", "B. Rome"), 1, 1),
        ("choice", "The answer is (B)", ("B", "B. Rome"), 1, 0),
        ("choice", "I do not know", ("A", "A. Rome"), 0, 0),
        ("choice", "", ("A", "A. Rome"), 0, 1),  # the letter A is an article, which normalising drops
        ("choice", "A, though B. Rome is near", ("B", "B. Rome"), 0, 1),
        ("choice", "Answer: B. Rome", ("B", "B. Rome"), 1, 1),
        ("rerank", "ID1 > ID2", ("1:3", "2:1"), 1, 1),
    ],
)
def test_strict_scores_beside_helmets(scorer, said, golds, right, legacy):
    assert getattr(scores, scorer)(said, golds) == right
    if legacy is not None:
        assert getattr(scores, f"{scorer}_legacy")(said, golds) == legacy


@pytest.mark.parametrize("task", {t.score: t for t in ROWS}.values(), ids=lambda t: t.name)
def test_every_scorer_survives_ten_megabytes(task):
    golds = ("3:1",) if task.metric == "NDCG@10" else ("A", "A. quiet place")  # every kind of score once
    for text in ("word the 3 > 4 A. \x00\x1b" * 500_000, "\n" * 10_000_000, "A" * 10_000_000):
        assert 0 <= task.score(text, golds) <= 1
        assert 0 <= task.legacy(text, golds) <= 1
