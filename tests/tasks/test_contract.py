"""What every task of every suite that is generated promises, in one place; a new row of the registry is tested by existing."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest
from tokenizers import Tokenizer

from kvledger import zoo
from kvledger.tasks import TASKS, sandbox, suite

MADE = [name for name, task in TASKS.items() if task.make is not None]
TOKENIZER = Tokenizer.from_file(str(zoo.path() / "tokenizer.json"))
AGAIN = {"scbench/mf", "scbench/many_shot", "scbench/mix", "helmet/icl_alike", "ruler/cwe", "ruler/fwe"}
"""Tasks of counting and of examples: what answers them stands in the text several times, all of which are evidence."""
DIGESTS = """
import hashlib, json
from kvledger.tasks import TASKS
found = {}
for name, task in TASKS.items():
    for form in ("small", "full") if task.make else ():
        try:
            made = task.sample(5, 2, 12_000, len, task.turns, form)
        except ValueError as error:
            made = error
        found[name + form] = hashlib.sha256(repr(made).encode()).hexdigest()[:12]
print(json.dumps(found))
"""


def count(text: str) -> int:
    return len(TOKENIZER.encode(text, add_special_tokens=False).ids)


@cache
def make(name: str, index: int = 0):
    return TASKS[name].sample(5, index, 2048, count, TASKS[name].turns, "small")


def looked_for(task, turn):
    """The strings that an answer takes out of the text."""
    if task.name in AGAIN or task.suite == "longproc" or task.name in ("scbench/vt", "ruler/vt"):
        return ()  # counted, or written by following the evidence
    if task.score("A", turn.golds) in (0.0, 1.0) and turn.gold in "ABCD":
        return (turn.golds[1].removeprefix(f"{turn.gold}. "),)
    if "rerank" in task.name:
        return tuple(f"[ID: {gold.split(':')[0]}]" for gold in turn.golds)
    if turn.subtask == "summary":
        return turn.golds[1:]
    return turn.golds[0].split("\n") if "summ_alike" in task.name else turn.golds[:1] if turn.subtask else turn.golds


def times(needle: str, text: str) -> int:
    """How often it stands there, not inside a longer word (of which Chinese has none)."""
    if not needle.isascii():
        return text.count(needle)
    return len(re.findall(rf"(?<!\w){re.escape(needle)}(?!\w)", text))


def test_all_suites_are_covered_and_a_task_without_a_generator_has_a_look_alike():
    assert {name.split("/")[0] for name in MADE} == {"scbench", "helmet", "longproc", "ruler"}
    alike = {name.removesuffix("_alike") for name in MADE if name.endswith("_alike")}
    for name, task in TASKS.items():
        if task.make is None and task.suite != "helmet":
            assert name in alike
    categories = {task.category for task in TASKS.values() if task.suite == "helmet"}
    assert categories == {TASKS[name].category for name in MADE if TASKS[name].suite == "helmet"}


def test_same_seed_same_bytes_in_another_process():
    """Whatever order Python's sets have there."""
    runs = [
        subprocess.run(
            [sys.executable, "-c", DIGESTS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (json.loads(run.stdout) for run in runs)
    assert first == second
    assert len(first) == 2 * len(MADE)


@pytest.mark.parametrize("name", MADE)
class TestEveryTask:
    def test_it_fills_2k_tokens_and_the_questions_come_with_evidence(self, name):
        made = make(name)
        assert 2048 - 300 < count(made.text) <= 2048
        assert len(made.turns) == TASKS[name].turns
        assert all(turn.evidence and turn.max_new_tokens >= count(turn.gold) for turn in made.turns)
        assert make(name, 1).text != made.text

    def test_what_answers_stands_in_the_text_once_and_in_the_evidence(self, name):
        made = make(name)
        for turn in made.turns:
            held = Counter(made.text[start:end] for start, end in turn.evidence)
            if name not in AGAIN:
                assert set(held.values()) == {1}
            for text, often in held.items():
                assert times(text, made.text) == often
            for needle in looked_for(TASKS[name], turn):
                assert times(needle, made.text) == 1
                assert any(needle in text for text in held)

    def test_a_perfect_answer_scores_one_and_another_samples_what_chance_does(self, name, monkeypatch):
        task = TASKS[name]
        if task.runs_code:
            monkeypatch.setenv(sandbox.SWITCH, "1")
            if not shutil.which("g++"):
                pytest.skip("no g++")
        samples = range(1, 2 if task.runs_code else 6)
        mine, others = make(name).turns, [turn for index in samples for turn in make(name, index).turns]
        assert all(task.score(turn.gold, turn.golds) == 1.0 for turn in mine)
        guess = max(task.chance, task.baseline)
        wrong = [
            task.score(other.gold, turn.golds)
            for turn in mine
            for other in others
            if guess or other.gold != turn.gold  # one library has the functions of all samples
        ]
        assert statistics.mean(wrong) <= (guess + 0.12 if guess else 0.004)


def test_programs_of_a_model_are_left_out_of_suites_and_refused_by_name_until_they_are_allowed(monkeypatch):
    code = {name for name in MADE if TASKS[name].runs_code}
    assert code == {"longproc/pseudo_to_code_0.5k_alike", "longproc/pseudo_to_code_2k_alike"}
    monkeypatch.delenv(sandbox.SWITCH, raising=False)
    for real in (False, True):
        assert not any(task.runs_code for task in suite("longproc", real))
    for name in code:
        with pytest.raises(ValueError, match="set KVLEDGER_RUN_CODE=1"):
            suite(name)
    monkeypatch.setenv(sandbox.SWITCH, "1")
    assert code <= {task.name for task in suite("longproc")}
    assert [suite(name)[0].name for name in code] == list(code)
