"""LongProc's published rows: the procedures write the reference texts character for character, scorers give their values."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from kvledger.tasks.hub import Data
from kvledger.tasks.longproc import ROWS, countdown, path_traversal, rows, tom_tracking, travel_planning
from kvledger.tasks.longproc.published import GITHUB, SHA256, trip_of
from kvledger.tasks.longproc.trip import Search, procedure

REFERENCE = Path(os.environ.get("KVLEDGER_REFDATA", Path(__file__).parents[2].parent / "shared" / "data")) / "longproc"
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no reference data at {REFERENCE}")
TASKS = {task.name: task for task in ROWS}
PROCEDURES = ("55c8662f190fbd2f", "badd63e345a603d0")
"""SHA-256 of what LongProc's own program writes for the two worked examples (the data hold only their plans)."""


def read(name):
    return json.loads((REFERENCE / name).read_text(encoding="utf-8"))


def test_the_files_here_are_those_that_are_pinned():
    """What is cut to its first rows is another file."""
    for name, digest in SHA256.items():
        task, file = name.split("/")
        held = REFERENCE / (file if file.endswith("json") else f"{task}_{file}")
        if held.exists():
            assert hashlib.sha256(held.read_bytes()).hexdigest() == digest, name
        else:
            assert "0.5k" not in file or task == "path_traversal"


def test_countdown_traces_and_solutions():
    for row in read("countdown_0.5k.json"):
        search = countdown.Search(row["nums"], row["target"])
        shown = (
            row["demonstration"]
            .replace("<Search Procedure>", "# Search Procedure")
            .replace("</Search Procedure>\n", "")
        )
        assert countdown.trace(search) == shown
        assert "\n".join(search.equations) == row["solution_text"]
        assert countdown.given(shown) == (row["nums"], row["target"])
        golds = (shown,)
        assert countdown.solution(f"<Solution>\n{row['solution_text']}\n</Solution>", golds) == 1
        cut = shown.split("\n\nNow we")[0]
        lines = cut.count("\n") - 1
        assert countdown.solution(cut, golds) == 0
        assert countdown.partial(cut, golds) == pytest.approx((lines - 1) / lines)
        low, high = countdown.LINES["full"]["0.5k"]
        assert low <= len(search.lines) <= high


def test_path_traversal_routes():
    for row in read("path_traversal_0.5k_first100.json"):
        start, goal = row["question_repr"]
        assert path_traversal.follow(row["context_nl"], start, goal) == row["answer_nl"]
        for edge in row["context_repr"]:
            assert path_traversal.stated((edge["src"], edge["dst"], edge["transit"])) in row["context_nl"]
        assert row["answer_nl"].count("\n") + 1 in path_traversal.STEPS


def test_tom_tracking_traces():
    for row in read("tom_tracking_0.5k.json"):
        trace = tom_tracking.track(row["story"], row["question"])
        assert trace == row["solution"]
        assert (
            tom_tracking.trace_and_answer(trace, (row["solution"],))
            == tom_tracking.trace(trace, (row["solution"],))
            == 1
        )


def test_travel_planning_procedures_and_partial_credit():
    for row, digest, credit in zip(
        read("travel_planning_icl_examples_first2.json"), PROCEDURES, (0.8667, 0.8462), strict=True
    ):
        trip = trip_of(row, REFERENCE)
        text = procedure(Search(trip))
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest
        assert f"<Plan>\n{row['ground_truth_plan'].split(chr(10) * 2)[1]}\n</Plan>" in text
        golds = (text, travel_planning.requirements(trip))
        assert travel_planning.valid_plan(text, golds) == travel_planning.gold_plan(text, golds) == 1
        without = text.split("\n\nOutput the plan")[0]
        assert travel_planning.gold_plan(without, golds) == travel_planning.valid_plan(without, golds) == 0
        assert travel_planning.partial(without, golds) == pytest.approx(credit, abs=5e-5)


def test_html_to_tsv_scores_of_the_gold_and_of_its_variants():
    shipped = read("html_to_tsv_0.5k.json")
    for row in shipped:
        for answer in (row["gt"], f"Here:\n```tsv\n{row['gt']}\n```"):
            assert rows.longproc_f1(answer, (row["gt"],)) == rows.row_f1(answer, (row["gt"],)) == 1
    gold = shipped[0]["gt"]
    header, *records = gold.split("\n")  # the last is empty, and a row of the wrong width unless it stays last
    variants = {
        "first 18 of 35": ([header, *records[:18]], 36 / 53, 36 / 53),
        "reversed": ([header, *records[::-1]], 0.9859, 0.9859),
        "twice": ([header, *records, *records], 0.9929, 2 * 35 / (35 + 71)),
        "other header": (["a\tb", *records], 1.0, 1.0),
        "a column more": ([f"{line}\tx" for line in gold.strip().split("\n")], 0.0, 0.0),
        "header alone": ([header], 0.0, 0.0),
    }
    for name, (lines, published, right) in variants.items():
        assert rows.longproc_f1("\n".join(lines), (gold,)) == pytest.approx(published, abs=5e-5), name
        assert rows.row_f1("\n".join(lines), (gold,)) == pytest.approx(right, abs=5e-5), name


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("countdown_0.5k", "countdown_0.5k.json"),
        ("path_traversal_0.5k", "path_traversal_0.5k_first100.json"),
        ("tom_tracking_0.5k", "tom_tracking_0.5k.json"),
    ],
)
def test_a_checkout_is_read_and_its_prompts_put_together(tmp_path, monkeypatch, task, file):
    base = task.rsplit("_", 1)[0]
    if "first100" in file:
        monkeypatch.delitem(SHA256, f"{base}/{task}.json")
    folder = tmp_path / GITHUB / "data" / base
    folder.mkdir(parents=True)
    shutil.copyfile(REFERENCE / file, folder / f"{task}.json")
    shutil.copyfile(REFERENCE / f"{base}_prompts.yaml", folder / "prompts.yaml")
    data, spec, held = Data(str(tmp_path)), TASKS[f"longproc/{task}"], read(file)
    golds = set()
    for index in range(len(held)):
        made = spec.real(data, 0, index, 10**6, len)
        (turn,) = made.turns
        assert spec.score(turn.gold, turn.golds) == 1
        assert turn.max_new_tokens == 1024
        prompt = made.text + turn.question
        assert prompt.startswith("[TASK]")
        assert not any(
            f"{{{name}}}" in prompt for name in ("demonstration", "nums", "city_context", "src_city", "story")
        )
        golds.add(turn.golds)
    assert len(golds) == len(held)
    assert data.fingerprint
