"""Suites and tiers: what a name stands for, with published data and without."""

from __future__ import annotations

from collections import Counter

import pytest

from kvledger.tasks import TASKS, TIERS, get, sandbox, suite, suites

CATEGORIES = {
    "Recall": 4,
    "RAG": 4,
    "Rerank": 1,
    "ICL": 5,
    "LongQA": 3,
    "Summ": 2,
    "HTML to TSV": 1,
    "Travel planning": 1,
}


def test_every_row_says_where_it_comes_from_and_what_a_guess_is_worth():
    assert len(TASKS) == len({task.name for task in TASKS.values()})
    for task in TASKS.values():
        assert all((task.source, task.licence, task.metric, task.capability))
        assert task.turns >= 1
        assert 0.0 <= task.chance < 1.0
        assert 0.0 <= task.baseline < 1.0
        assert task.make is not None or task.real is not None
        assert task.name.split("/")[0] == task.suite or task.suite == "zoo"


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", suites.names(TASKS.values()))
def test_a_suite_is_all_generated_or_all_published(name, real, monkeypatch):
    monkeypatch.setenv(sandbox.SWITCH, "1")
    inside = [task for task in TASKS.values() if (task.category if name == suites.PRULONG else task.suite == name)]
    wanted = [task for task in inside if (task.real if real else task.make)]
    if wanted:
        assert suite(name, real) == tuple(wanted)
    else:
        with pytest.raises(ValueError, match="no task of the suite"):
            suite(name, real)


def test_prulong_is_21_data_sets_in_8_categories_and_has_something_generated_in_each():
    published = suite("prulong", real=True)
    assert Counter(task.category for task in published) == {**CATEGORIES, "HTML to TSV": 3}  # one set, in three lengths
    assert sum(CATEGORIES.values()) == 21
    generated = suite("prulong")
    assert {task.category for task in generated} == set(CATEGORIES)
    assert not any(task.runs_code for task in generated)


def test_names_that_are_none_are_told_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'scbench/kv'"):
        get("scbench/kw")
    with pytest.raises(ValueError, match="did you mean 'scbench'"):
        suite("scbensh")


def test_tiers_grow_and_a_published_set_has_no_more_than_its_rows():
    assert [tier.count(0) for tier in TIERS.values()] == [10, 50, 100]
    assert [tier.count(35) for tier in TIERS.values()] == [10, 35, 35]
    assert [tier.count(500) for tier in TIERS.values()] == [10, 50, 500]
    assert len({tier.rule for tier in TIERS.values()}) == 3


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_table_and_the_document_say_the_same(task):
    shown, facts = suites.shown(task), suites.facts(task)
    assert shown["task"] == facts["name"]
    assert (shown["samples"] in ("made", "both")) == facts["offline"]
    assert (shown["samples"] in ("data", "both")) == facts["published"]
    assert not callable(facts["metric"])
    assert "make" not in facts
