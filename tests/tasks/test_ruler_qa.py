"""RULER's question answering: the published prompt, one document or two, and rows as HELMET's tarball has them."""

import json
import re

import pytest
from helmet_rows import HELMET, count, write

from kvledger.tasks import TASKS, suite
from kvledger.tasks.hub import Data

PROMPT = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\nAnswer the question based on the given documents. Only give me the "
    "answer and do not output any other words.\n\nQuestion: {query} Answer:"
)


def make(name, form="full", index=0, turns=3):
    return TASKS[name].make(3, index, 3000, count, turns, form)


def test_all_thirteen_tasks_are_there():
    kinds = ["single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3", "multivalue", "multiquery"]
    published = {f"ruler/niah_{kind}" for kind in kinds} | {f"ruler/{name}" for name in ("vt", "cwe", "fwe")}
    assert {task.name for task in suite("ruler")} == published | {"ruler/qa_1_alike", "ruler/qa_2_alike"}
    assert {task.name for task in suite("ruler", real=True)} == {"ruler/qa_1", "ruler/qa_2"}


@pytest.mark.parametrize("name", ["ruler/qa_1_alike", "ruler/qa_2_alike"])
def test_the_full_form_has_rulers_prompt(name):
    made = make(name)
    context = made.segments[1].text
    for turn in made.turns:
        query = re.search(r"Question: (.+) Answer:$", turn.question)[1]
        assert made.text + turn.question == PROMPT.format(context=context, query=query)
        assert turn.max_new_tokens == 32
    numbers = re.findall(r"^Document (\d+):$", context, re.MULTILINE)
    assert numbers == [str(i + 1) for i in range(len(numbers))]
    assert len(numbers) > 20


def document(made, span):
    """The number of the document that a span lies in."""
    return made.text.count("Document ", 0, span[0])


@pytest.mark.parametrize("form", ["small", "full"])
def test_one_document_answers_or_two_that_a_teacher_joins(form):
    for index in range(3):
        one, two = make("ruler/qa_1_alike", form, index), make("ruler/qa_2_alike", form, index)
        for turn in one.turns:
            ((start, end),) = turn.evidence
            assert turn.golds[0] in one.text[start:end]
            assert one.text[start:end].split(" ")[0] in turn.question
        for turn in two.turns:
            held = [two.text[start:end] for start, end in turn.evidence]
            teacher = next(text for text in held if "was taught by" in text)
            answer = next(text for text in held if turn.golds[0] in text)
            pupil, name = re.fullmatch(r"(.+) was taught by (.+)\.", teacher).groups()
            assert f"the teacher of {pupil}" in turn.question
            assert name not in turn.question
            assert answer.startswith(name)
            assert len({document(two, span) for span in turn.evidence}) == 2


def test_right_answers_are_whole_words_of_the_first_line():
    task = TASKS["ruler/qa_1_alike"]
    assert task.score(" It is Velora.\n", ("Velora",)) == task.legacy("It is Velora.", ("Velora",)) == 1
    assert task.score("Velorania", ("Velora",)) == 0 < task.legacy("Velorania", ("Velora",))
    assert task.score("Rome\nVelora", ("Velora",)) == 0 < task.legacy("Rome\nVelora", ("Velora",))
    assert (
        task.score("Old Town", ("Rome", "the old town")) == task.legacy("the OLD town", ("Rome", "the old town")) == 1
    )


@pytest.mark.parametrize("keys", [("question", "answer"), ("query", "outputs")])
def test_rows_of_the_tarball_are_read(tmp_path, keys):
    file = tmp_path / HELMET / "data/ruler/qa_1/validation_4096.jsonl"
    rows = [
        {"context": f"Document 1:\nHe was {i}.", keys[0]: f"who {i}?", keys[1]: [f"a{i}", "other"]} for i in range(3)
    ]
    write(file, rows)
    made = [TASKS["ruler/qa_1"].real(Data(str(tmp_path)), 0, i, 4096, count, 1) for i in range(3)]
    assert {one.turns[0].golds[0] for one in made} == {"a0", "a1", "a2"}
    for one in made:
        number = int(one.turns[0].golds[0][1])
        assert one.text + one.turns[0].question == PROMPT.format(
            context=rows[number]["context"], query=f"who {number}?"
        )
        assert TASKS["ruler/qa_1"].score(one.turns[0].gold, one.turns[0].golds) == 1
    with pytest.raises(ValueError, match="there is no sample 3"):
        TASKS["ruler/qa_1"].real(Data(str(tmp_path)), 0, 3, 4096, count, 1)
    write(file, [{k: v for k, v in rows[0].items() if k != "context"}])
    with pytest.raises(ValueError, match="row 1: column 'context' is missing; it has " + ", ".join(keys)):
        TASKS["ruler/qa_1"].real(Data(str(tmp_path)), 0, 0, 4096, count, 1)
    assert json.loads(file.read_text())
