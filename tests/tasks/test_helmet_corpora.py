"""HELMET's ICL sets, books and lawsuits, on hand-made rows of every schema."""

import random
import re
from collections import Counter

import pytest
from helmet_rows import HELMET, book_rows, llama2, real, write

from kvledger.tasks.base import Unfit
from kvledger.tasks.helmet import books, corpora, cut
from kvledger.tasks.hub import Data


@pytest.fixture
def root(tmp_path):
    return tmp_path


# ---- ICL -------------------------------------------------------------------------------------------------------------


def balanced(rows, shots, seed):
    """HELMET's rule, from its description, on (text, label) rows."""
    rand = random.Random(seed)
    groups = {}
    for row in rows:
        groups.setdefault(row[1], []).append(row)
    rounds = -(-shots // len(groups))
    columns = []
    for group in groups.values():
        picks = rand.sample(range(len(group)), rounds % len(group))
        while len(picks) < rounds:
            picks += rand.sample(range(len(group)), min(rounds - len(picks), len(group)))
        columns.append([group[i] for i in picks])
    found = []
    for turn in map(list, zip(*columns, strict=True)):
        rand.shuffle(turn)
        found += turn
    return found[:shots]


@pytest.mark.parametrize("shots", [5, 24, 100])
def test_balancing_follows_helmet(shots):
    rows = [(f"text {i}", i % 7 if i < 20 else 6) for i in range(60)]
    picks = corpora.balanced([label for _, label in rows], shots, 7)
    assert [rows[i] for i in picks] == balanced(rows, shots, 7)


def icl_rows(labels, column, count):
    return [{"text": f"utterance number {i} about {i % labels}", column: i % labels, "other": 1} for i in range(count)]


@pytest.mark.parametrize("corpus", corpora.CORPORA, ids=lambda corpus: corpus.name)
def test_icl_labels_are_renumbered_for_each_item(root, corpus):
    train = icl_rows(corpus.labels, corpus.label, 3 * corpus.labels)
    write(root / corpus.repo / corpus.train.replace(".parquet", ".jsonl"), train)
    if corpus.test:
        tested = [row | {"text": "asked " + row["text"]} for row in icl_rows(corpus.labels, corpus.label, 3)]
        write(root / corpus.repo / corpus.test.replace(".parquet", ".jsonl"), tested)
    mappings = []
    for index in range(2):
        made = real(f"icl_{corpus.name}", root, index, tokens=16_384)
        shots = re.findall(r"about (\d+)\nlabel: (\d+)", made.text)
        mapping = dict(shots)
        assert all(mapping[true] == shown for true, shown in shots)
        assert len(set(mapping.values())) == len(mapping)
        asked = re.search(r"about (\d+)\nlabel:$", made.turns[0].question).group(1)
        assert made.turns[0].gold == mapping[asked]
        assert all(f"about {asked}\n" in made.text[a:b] for a, b in made.turns[0].evidence)
        mappings.append(mapping)
    assert mappings[0] != mappings[1]


def test_a_large_test_set_is_balanced_to_500(root):
    corpus = corpora.CORPORA[0]
    write(root / corpus.repo / "default/train/0000.jsonl", icl_rows(6, "coarse_label", 60))
    tested = [{"text": f"t{i}", "coarse_label": 0 if i < 400 else i % 6} for i in range(700)]
    write(root / corpus.repo / "default/test/0000.jsonl", tested)
    _, test = corpus._parts(Data(str(root)), 42)
    assert max(Counter(label for _, label in test).values()) <= 84
    assert len(test) == 500


# ---- books -----------------------------------------------------------------------------------------------------------


def test_infinitebench_questions_are_cut_by_llama2_and_shown_with_two_others(root):
    llama2(root)
    write(root / "xinrongzhang2022/infinitebench/longbook_qa_eng.jsonl", list(book_rows()))
    made = real("infbench_qa_eng", root, tokens=4096)
    own = re.search(r"what (\d)", made.turns[0].question).group(1)
    assert made.segments[-1].text.startswith(f"book{own} word")
    assert made.segments[-1].text.endswith(cut.OMITTED)
    assert len(made.segments[-1].text.split()) == 4096 - 200 - 10 - 1  # its <s> is a token too
    shown = made.segments[1].text
    assert shown.startswith("For example:\n\n[story text]\nQuestion: what ")
    assert shown.endswith("Now, read the following story:\n\n")
    assert shown.count("[story text]") == 2
    assert f"what {own}?" not in shown
    assert made.turns[0].question == f"\n\nQuestion: what {own}?"


def test_infinitebench_choices_and_summaries(root):
    llama2(root)
    for split in ("choice_eng", "sum_eng"):
        write(root / f"xinrongzhang2022/infinitebench/longbook_{split}.jsonl", list(book_rows()))
    choice = real("infbench_choice_eng", root).turns[0]
    letter, option = choice.golds
    assert "ABCD".index(letter) == int(option[-1])
    assert f"\nOptions:\nA. option {option.split()[-2]} 0\nB." in choice.question
    summary = real("infbench_sum_eng", root)
    assert summary.turns[0].question == "\n\nNow summarize the book."
    assert re.search(r"\[story text\]\nSummary: option", summary.segments[1].text)


def narrative_rows(count=6):
    for i in range(count):
        text = f"story{i} " + "word " * (3000 if i % 2 else 100)
        yield dict(
            document=dict(id=str(i), text=text), question=dict(text=f"who {i}?"),
            answers=[dict(text=f"man {i}"), dict(text=f"he {i}")],
        )  # fmt: skip


def test_narrativeqa_asks_of_long_stories_only(root, monkeypatch):
    monkeypatch.setattr(books, "LONG", 2000)
    llama2(root)
    rows = list(narrative_rows())
    write(root / "deepmind/narrativeqa/data/test-00000-of-00008.jsonl", rows)
    write(root / "deepmind/narrativeqa/data/train-00000-of-00024.jsonl", [rows[0], rows[2], rows[4]])
    asked = set()
    for index in range(3):
        made = real("narrativeqa", root, index)
        number = int(re.search(r"who (\d)", made.turns[0].question).group(1))
        assert number % 2 == 1
        assert made.turns[0].golds == (f"man {number}", f"he {number}")
        assert made.segments[1].text.count("Answer: man") == 2
        asked.add(number)
    assert asked == {1, 3, 5}
    with pytest.raises(Unfit):
        real("narrativeqa", root, 3)


def test_multi_lexsum_reads_the_tarballs_long_cases(root, monkeypatch):
    monkeypatch.setattr(books, "LEXSUM_LEAST", 2000)
    llama2(root)
    rows = [
        {"sources": ["word " * (2500 if i % 2 else 100), f"end {i}"] * 2, "summary/short": f"The case {i} ended."}
        for i in range(4)
    ] + [{"sources": ["x"], "summary/short": None}]
    write(root / HELMET / "data/multi_lexsum/multi_lexsum_val.jsonl", rows)
    golds = {real("multi_lexsum", root, index).turns[0].gold for index in range(2)}
    assert golds == {"The case 1 ended.", "The case 3 ended."}
    made = real("multi_lexsum", root)
    assert made.segments[1].text.endswith("legal documents.\nLegal documents:\n")
    assert made.turns[0].gold not in made.text


def test_only_llama2_cuts_texts(root):
    llama2(root, hello=(5, 6))
    write(root / "xinrongzhang2022/infinitebench/longbook_qa_eng.jsonl", list(book_rows()))
    with pytest.raises(ValueError, match="not Llama-2's tokenizer"):
        real("infbench_qa_eng", root)
