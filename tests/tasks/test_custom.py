"""Users' own data: what a line may hold, and what is said of a line that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvledger.tasks import Unfit, custom, get, suite
from kvledger.tasks.hub import Data

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_task.jsonl"
LINE = {"context": "Ann lives in Oslo. Bob lives in Rome.", "turns": [{"question": "Where is Ann?", "answer": "Oslo"}]}


def write(folder, *lines):
    path = folder / "my.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return str(path)


def read(name, index=0, tokens=1000, turns=5):
    return get(name).sample(0, index, tokens, len, turns, "real", Data(""))


def test_the_example_runs_as_it_stands():
    task = get(str(EXAMPLE))
    assert task.rows >= 2
    for index in range(task.rows):
        for turn in read(str(EXAMPLE), index, 10_000).turns:
            assert task.score(turn.gold, turn.golds) == 1.0
            assert task.score("", turn.golds) == 0.0


def test_a_line_becomes_a_sample(tmp_path):
    turns = [
        {
            "question": "Where is Ann?",
            "answer": ["Oslo", "in Norway"],
            "evidence": ["Ann lives in Oslo."],
            "max_new_tokens": 9,
        },
        {"question": "And Bob?", "answer": "Rome"},
    ]
    name = write(tmp_path, "", {**LINE, "turns": turns, "instruction": "Ann lives in Oslo. Answer.", "scorer": "exact"})
    made, task = read(name), get(name)
    assert made.text == f"Ann lives in Oslo. Answer.\n\n{LINE['context']}\n\n"
    assert [segment.role for segment in made.segments] == ["instruction", "context"]
    first, second = made.turns
    assert (first.gold, first.golds, first.max_new_tokens) == ("Oslo", ("Oslo", "in Norway"), 9)
    ((start, end),) = first.evidence
    assert start > 20
    assert made.text[start:end] == "Ann lives in Oslo."
    assert second.max_new_tokens == custom.CAP
    assert (task.suite, task.turns, task.rows, task.offline) == ("own data", 2, 1, False)
    assert task.score("In Norway.", first.golds) == 1.0
    assert task.score("It is Oslo", first.golds) == 0.0
    assert len(read(name, turns=1).turns) == 1


def test_the_file_decides_the_fingerprint_and_a_change_is_seen(tmp_path):
    name = write(tmp_path, LINE)
    data = Data("")
    get(name).sample(0, 0, 1000, len, 5, "real", data)
    name = write(tmp_path, {**LINE, "context": "Ann lives in Bonn."}, LINE)
    again = Data("")
    made = get(name).sample(0, 0, 1000, len, 5, "real", again)
    assert "Bonn" in made.text
    assert data.fingerprint != again.fingerprint != ""
    assert suite(name) == suite(name, real=True) == (get(name),)


def test_too_long_a_line_and_too_high_a_number_are_unfit(tmp_path):
    name = write(tmp_path, LINE)
    with pytest.raises(Unfit, match="sample 0 has 39 tokens, more than the 20 of --context: left out, not cut"):
        read(name, tokens=20)
    with pytest.raises(Unfit, match="1 lines, there is no sample 1"):
        read(name, 1)


def turned(**changes):
    return {**LINE, "turns": [{**LINE["turns"][0], **changes}]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"context": ', "line 2: not JSON"),
        ("[1, 2]", "line 2: a row must be a JSON object, not list"),
        ("[" * 100_000, "line 2: not JSON"),
        ('{"context": "a\x00b"}', "line 2: not JSON"),
        ({"turns": LINE["turns"]}, "line 2: 'context' is missing; it has turns"),
        ({"context": "x"}, "line 2: 'turns' is missing"),
        ({**LINE, "context": " \n"}, "line 2: the context is empty"),
        ({**LINE, "context": 3}, "line 2: context must be a text, not int"),
        ({**LINE, "turns": []}, "line 2: there are no turns"),
        ({**LINE, "turns": {}}, "line 2: turns must be a list, not dict"),
        ({**LINE, "turns": ["?"]}, "line 2, turn 1: a turn must be an object, not str"),
        ({**LINE, "turn": []}, "line 2: unknown field 'turn'; did you mean 'turns'"),
        ({**LINE, "scorer": "f2"}, "line 2: unknown scorer 'f2'; choices: contains, exact"),
        ({**LINE, "scorer": "exact"}, "all lines must have one scorer, not contains, exact"),
        (turned(answer=3), "line 2, turn 1: answer must be a text or a list, not int"),
        (turned(answer=[]), "line 2, turn 1: answer must be a text, or a list of texts, and not empty"),
        (turned(answer=["a", 1]), "line 2, turn 1: answer must be a text, or a list of texts"),
        (turned(answer=" "), "line 2, turn 1: answer must be a text"),
        (turned(question=""), "line 2, turn 1: the question is empty"),
        (turned(max_new_tokens=0), "line 2, turn 1: max_new_tokens=0 must be at least 1"),
        (turned(max_new_tokens=True), "line 2, turn 1: max_new_tokens must be a whole number, not bool"),
        (
            turned(evidence=["not there"]),
            "line 2, turn 1: evidence must be quotes from the context; 'not there' is none",
        ),
    ],
)
def test_a_line_that_is_wrong_is_named_by_its_number(tmp_path, line, said):
    with pytest.raises(ValueError) as raised:
        get(write(tmp_path, LINE, line))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_empty_or_no_text(tmp_path):
    with pytest.raises(ValueError, match=r"no file 'no\.jsonl'"):
        get("no.jsonl")
    with pytest.raises(ValueError, match="has no lines"):
        get(write(tmp_path, ""))
    (tmp_path / "latin.jsonl").write_bytes('{"context": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="line 1: not JSON"):
        get(str(tmp_path / "latin.jsonl"))
