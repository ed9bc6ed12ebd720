"""HELMET's recall, RAG and re-ranking as published, on hand-made rows of every schema."""

import hashlib
import random
import re
from collections import Counter

import numpy as np
import pytest
from helmet_rows import HELMET, TASKS, count, kilt_row, kv_rows, rank_row, real, write

from kvledger.tasks.base import Unfit
from kvledger.tasks.helmet import cut, files


@pytest.fixture
def root(tmp_path):
    return tmp_path


# ---- recall ----------------------------------------------------------------------------------------------------------


def test_json_kv_keeps_helmets_prompt_and_order(root):
    write(root / HELMET / "data/json_kv/test_k50_dep6.jsonl", list(kv_rows()))
    order = [int(i) for i in np.random.default_rng(42).permutation(4)]
    for index in range(4):
        made, i = real("json_kv", root, index), order[index]
        turn = made.turns[0]
        assert turn.gold == f"value-{i}-5"
        assert turn.question == (
            "\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n"
            "Key: d0\nCorresponding value: v0\n\nKey: d1\nCorresponding value: v1\n\n"
            f"Key: key-{i}-5\nCorresponding value:"
        )
        assert made.text[slice(*turn.evidence[0])] == f'"key-{i}-5": "value-{i}-5"'
    with pytest.raises(Unfit, match="4 samples, there is no sample 4"):
        real("json_kv", root, 4)


@pytest.mark.parametrize("column", ["outputs", "answer"])
def test_needles_with_either_name_of_the_answers(root, column):
    needles = "\n".join(f"One of the special magic numbers for red-kite is: {n}." for n in ("11", "22"))
    row = {"context": f"noise\n{needles}\nnoise", "query": "red-kite", "type_needle_v": "numbers", column: ["11", "22"]}
    write(root / HELMET / "data/ruler/niah_multivalue/validation_4096.jsonl", [row])
    made = real("niah_mv", root)
    assert made.text.startswith("Some special magic numbers are hidden within the following text. Make sure to")
    assert made.turns[0].question.endswith("The special magic numbers for red-kite mentioned in the provided text are")
    assert [made.text[a:b][-2:] for a, b in made.turns[0].evidence] == ["11", "22"]
    assert TASKS["niah_mv"].legacy("22 and", made.turns[0].golds) == 0.5


# ---- RAG -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_id", [False, True])
@pytest.mark.parametrize("name", ["nq", "triviaqa", "hotpotqa"])
def test_kilt_asks_100_questions_at_all_their_depths_with_two_hashed_demonstrations(root, name, with_id):
    rows = [kilt_row(i, depth, with_id) for depth in (0, 1, 2) for i in range(120)]
    write(root / HELMET / files.kilt_file(name, 20), rows)
    write(root / HELMET / files.kilt_file(name, 3, demos=True), [kilt_row(1000 + i // 2, i % 2) for i in range(12)])
    keys = sorted({row["id"] if with_id else row["question"] for row in rows})
    chosen = set(random.Random(42).sample(keys, 100))
    golds, demos = Counter(), {}
    for index in range(0, 300, 7):
        made = real(f"kilt_{name}", root, index)
        turn, number = made.turns[0], int(made.turns[0].gold.removeprefix("gold"))
        assert (number if with_id else f"which {number}?") in chosen
        assert "gold" in made.text[slice(*turn.evidence[0])]
        assert turn.question == f"\n\nQuestion: which {number}?\nAnswer:"
        shown = made.segments[1].text
        assert len(set(re.findall(r"Answer: gold(\d+)", shown))) == 2
        assert demos.setdefault(number, shown) == shown  # the same for every copy of a question
        golds[number] += 1
    assert max(golds.values()) <= 3
    assert len(set(demos.values())) > 3
    with pytest.raises(Unfit):
        real(f"kilt_{name}", root, 300)


def test_demonstrations_are_those_of_datasets_shuffle(root):
    write(root / HELMET / files.kilt_file("nq", 20), [kilt_row(1)])
    write(root / HELMET / files.kilt_file("nq", 3, demos=True), [kilt_row(100 + i // 2) for i in range(12)])
    seed = int(hashlib.sha256(b"which 1?").hexdigest(), 16) % 2**31
    order = [100 + int(i) // 2 for i in np.random.default_rng(seed).permutation(12)]
    made = real("kilt_nq", root)
    assert re.findall(r"Answer: gold(\d+)", made.segments[1].text) == [str(n) for n in dict.fromkeys(order)][:2]
    assert made.segments[1].text.startswith("Document (Title: Gold): the answer is gold")


def test_popqa_asks_the_unpopular_only_and_never_shows_the_question_itself(root):
    rows = [kilt_row(i, s_pop=10 ** (1 + i % 4)) for i in range(12)]
    write(root / HELMET / files.kilt_file("popqa", 20), rows)
    write(root / HELMET / files.kilt_file("popqa", 3), rows)
    asked = set()
    for index in range(6):
        made = real("kilt_popqa_3", root, index)
        number = int(made.turns[0].gold.removeprefix("gold"))
        assert number % 4 < 2
        shown = [int(n) for n in re.findall(r"Answer: gold(\d+)", made.segments[1].text)]
        assert all(n % 4 < 2 and n != number for n in shown)
        asked.add(number)
    assert len(asked) == 6


def test_a_prompt_that_is_too_long_loses_the_end_of_its_context_only(root):
    long = kilt_row(1)
    long["ctxs"] = [dict(title=f"T{n}", text="many words of text " * 20) for n in range(100)] + long["ctxs"]
    write(root / HELMET / files.kilt_file("nq", 20), [long])
    write(root / HELMET / files.kilt_file("nq", 3, demos=True), [kilt_row(100 + i) for i in range(3)])
    made = real("kilt_nq", root)
    used = count(made.text) + count(made.turns[0].question) + 20
    assert 4096 - cut.SLACK - 1 <= used <= 4096
    assert made.turns[0].evidence == ()  # the gold passage was cut away
    assert made.segments[1].text.count("Answer: gold") == 2
    assert made.turns[0].question.endswith("which 1?\nAnswer:")


# ---- re-ranking ------------------------------------------------------------------------------------------------------


def test_msmarco_is_shown_with_two_whole_rankings_and_graded(root):
    rows = [rank_row(f"q{i}", [0, 3, "1", 0, 2]) for i in range(3)]
    write(root / HELMET / "data/msmarco/test_reranking_data_k14_dep3.jsonl", rows)
    write(
        root / HELMET / "data/msmarco/test_reranking_data_k10_dep3.jsonl",
        [rank_row(f"q{i}", [0, 1, 2]) for i in range(3)],
    )
    made = real("msmarco_rerank", root)
    turn = made.turns[0]
    assert turn.golds == ("101:3", "104:2", "102:1")
    assert turn.gold == "101 > 104 > 102"
    assert [made.text[a:b][:9] for a, b in turn.evidence] == ["[ID: 101]", "[ID: 102]", "[ID: 104]"]
    assert made.segments[1].text.count("Ranking: 102 > 101 > 100\n\n") == 2
    own = turn.question.removeprefix("\n\nQuery: ").removesuffix("\nRanking:")
    assert own not in made.segments[1].text


def test_ranked_passages_have_a_title_where_the_data_have_one(root):
    rows = [rank_row(f"q{i}", [1, 0], title="Salt") for i in range(3)]
    write(root / HELMET / "data/msmarco/test_reranking_data_k14_dep3.jsonl", rows)
    write(root / HELMET / "data/msmarco/test_reranking_data_k10_dep3.jsonl", rows)
    assert "[ID: 100] Document (Title: Salt): text" in real("msmarco_rerank", root).segments[-1].text


def test_a_ranking_without_labels_is_left_out(root):
    rows = [rank_row(f"q{i}", [0, 0]) for i in range(3)]
    write(root / HELMET / "data/msmarco/test_reranking_data_k14_dep3.jsonl", rows)
    write(root / HELMET / "data/msmarco/test_reranking_data_k10_dep3.jsonl", rows)
    with pytest.raises(Unfit, match="no passage with a label"):
        real("msmarco_rerank", root)
