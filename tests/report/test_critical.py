"""The table of critical footprints: made of records alone, honest about what is missing, refusing what cannot be mixed."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from math import nan
from pathlib import Path

import pytest

from kvledger.cli import main
from kvledger.critical import Question
from kvledger.records import Log, Record
from kvledger.report.critical import PAPER, PAPER_COLUMNS, Table, document, markdown, show, tables, text

MakeRecord = Callable[..., Record]
CATEGORIES = {"kv": "retrieval", "vt": "retrieval", "prefix": "retrieval", "mf": "counting"}


def line(
    make: MakeRecord, task: str = "kv", method: str = "snapkv", samples: int = 30, lost: float = 1.0, **facts: object
) -> list[Record]:
    """One method at nine budgets on samples of two turns: right where the sample's number is below keep over `lost`."""
    records = []
    for keep, i, turn in product(range(1, 10), range(samples), (1, 2)):
        own = {"task": task, "method": method, "recipe": f"{method}(keep={keep / 10})", "keep": keep / 10, "sample": i}
        own |= {"cell": f"{method} {keep}", "turn": turn, "gold": f"{task} {i} {turn}", "footprint": 0.1 + 0.09 * keep}
        own |= {"score": float((i + 0.5) / samples < keep / 10 / lost), "byte_footprint": 0.05 + 0.045 * keep}
        records.append(make(**(own | facts)))
    return records


def full(make: MakeRecord, task: str = "kv", samples: int = 30, **facts: object) -> list[Record]:
    own = {"recipe": "full", "cell": "full", "task": task, "footprint": 1.0, "score": 1.0}
    turns = product(range(samples), (1, 2))
    return [make(**(own | {"sample": i, "turn": t, "gold": f"{task} {i} {t}"} | facts)) for i, t in turns]


def one(records: list[Record], **question: object) -> Table:
    (table,) = tables(records, Question(**question))  # type: ignore[arg-type]
    return table


def test_the_crossing_is_where_the_ratio_is_ninety_percent(make: MakeRecord) -> None:
    table = one([*full(make), *line(make, lost=0.8)])
    found = table.entries["snapkv", "kv"].found
    assert found is not None
    assert found.value.value == pytest.approx(0.1 + 0.9 * 0.9 * 0.8, abs=0.02)
    assert found.low.value < found.value.value < found.high.above
    assert table.rows() == [["snapkv", str(table.entries["snapkv", "kv"])]]


def test_another_target_and_axis_are_other_answers(make: MakeRecord) -> None:
    records = [*full(make), *line(make, lost=0.8)]
    half = one(records, target=0.5).entries["snapkv", "kv"].found
    assert half is not None
    assert half.value.value == pytest.approx(0.1 + 0.9 * 0.5 * 0.8, abs=0.02)
    in_bytes = one(records, axis="bytes").entries["snapkv", "kv"].found
    assert in_bytes is not None
    assert in_bytes.value.value == pytest.approx((0.1 + 0.9 * 0.9 * 0.8) / 2, abs=0.02)


def test_a_category_is_the_mean_of_its_tasks(make: MakeRecord) -> None:
    """On one task the method loses, on the other nothing; so the mean crosses where the first one is at 80 %."""
    records = [*full(make), *full(make, "vt"), *line(make), *line(make, "vt", lost=0.01)]
    table = one(records, categories=CATEGORIES)
    assert table.columns == ("retrieval",)
    found = table.entries["snapkv", "retrieval"].found
    assert found is not None
    assert found.value.value == pytest.approx(0.1 + 0.9 * 0.8, abs=0.02)
    assert any("prefix" in note and "not run" in note for note in table.notes)


def test_a_line_that_lacks_a_task_of_a_category_is_marked(make: MakeRecord) -> None:
    records = [*full(make), *full(make, "vt"), *line(make), *line(make, "vt"), *line(make, method="tova")]
    table = one(records, categories=CATEGORIES)
    assert str(table.entries["tova", "retrieval"]).endswith("†")
    assert not str(table.entries["snapkv", "retrieval"]).endswith("†")
    assert "† tova on retrieval is without vt" in table.notes


def test_a_full_cache_without_score_is_said_and_not_divided_by(make: MakeRecord) -> None:
    table = one([*full(make, score=0.0), *line(make)])
    assert table.rows() == [["snapkv", "–"]]
    assert any("scores nothing" in note for note in table.notes)


def test_a_missing_full_cache_and_scores_that_are_no_numbers_are_said(make: MakeRecord) -> None:
    assert any("no full cache" in note for note in one(line(make)).notes)
    broken = [*full(make), *line(make, method="tova", score=nan), *line(make)]
    table = one(broken)
    assert table.entries["tova", "kv"].found is None
    assert table.entries["snapkv", "kv"].found is not None
    assert any("no finite score" in note for note in table.notes)
    some = [*full(make), *line(make)]
    some[0] = make(recipe="full", task="kv", sample=0, turn=1, footprint=1.0, gold="kv 0 1", score=nan)
    assert "snapkv on kv: 9 turns without a finite score are left out" in one(some).notes


def test_two_samples_have_a_wide_interval_and_a_warning(make: MakeRecord) -> None:
    table = one([*full(make, samples=2), *line(make, samples=2, lost=0.5)])
    found = table.entries["snapkv", "kv"].found
    assert found is not None
    assert found.width > 0.5
    assert "snapkv on kv rests on 2 samples: it says little" in table.notes


def test_two_versions_of_a_task_are_not_mixed(make: MakeRecord) -> None:
    other = [*full(make, versions="kvledger 0.2.0, torch 2.13"), *line(make)]
    with pytest.raises(ValueError, match=r"two versions of kv, of kvledger 0\.2\.0 and of kvledger 0\.1\.0"):
        one(other)
    with pytest.raises(ValueError, match="two versions of kv: sample 0, turn 1 asks for 'x'"):
        one([*full(make, gold="x"), *line(make)])


def test_a_full_cache_of_other_chunks_lends_its_answers(make: MakeRecord) -> None:
    table = one([*full(make, chunk=0, visibility="visible"), *line(make)])
    assert table.entries["snapkv", "kv"].found is not None
    assert len(tables([*full(make, mode="multi-request"), *line(make)], Question())) == 1
    assert one([*full(make, mode="multi-request"), *line(make)]).entries["snapkv", "kv"].found is None


def test_lines_can_be_given_and_variants_of_a_method_kept_apart(make: MakeRecord) -> None:
    lines = {f"snapkv(keep={k / 10})": "mine" for k in range(1, 10)}
    assert one([*full(make), *line(make)], lines=lines).lines == ("mine",)


def test_the_papers_numbers_stand_below_where_model_and_chunk_are_the_papers(make: MakeRecord) -> None:
    facts = {"model": "meta-llama/Llama-3.1-8B-Instruct", "chunk": 32768}
    records = [*full(make, **facts), *line(make, **facts)]
    rows = one(records, categories={"kv": "recall"}).rows()
    assert ["PruLong (paper)", "46"] in rows
    assert len(one(records).rows()) == 1, "a task is not the paper's category"
    assert all(len(cells) == len(PAPER_COLUMNS) for cells in PAPER.values())


def test_it_is_shown_as_text_markdown_and_json(make: MakeRecord, capsys: pytest.CaptureFixture[str]) -> None:
    records = [*full(make), *line(make, lost=0.8)]
    table = one(records)
    cell = str(table.entries["snapkv", "kv"])
    assert cell in text(table)
    assert f"| snapkv | {cell} |" in markdown(table)
    (entry,) = document([table])["tables"][0]["entries"]
    assert entry["value"]["side"] == "="
    assert [p["samples"] for p in entry["points"]] == [30] * 9
    show(records, Question(), ["a note"], as_json=True)
    assert json.loads(capsys.readouterr().out)["notes"] == ["a note"]
    with pytest.raises(ValueError, match="nothing to compare"):
        show(full(make), Question())


def test_the_command_reads_the_records_of_any_run(
    make: MakeRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log(tmp_path)
    for record in [*full(make, samples=4), *line(make, samples=4, lost=0.5)]:
        log.append(record)
    log.close()
    assert main(["critical", str(tmp_path), "--rule", "lasting", "--axis", "peak", "--target", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "snapkv" in printed
    assert "peak" in printed
    assert "lasting crossing" in printed
