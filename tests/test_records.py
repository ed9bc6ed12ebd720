"""Cells and records: keys, lines, torn files. No torch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvledger.records import Cell, Log, Record, parse, read

CELL = Cell("m", "full", "scbench/kv", "multi-turn", "hidden", 512, 128, 5, 10, 0)


def record(**change: object) -> Record:
    facts: dict[str, object] = dict(
        cell="c", model="m", recipe="full", method="full", keep=1.0, task="scbench/kv", mode="multi-turn",
        visibility="hidden", history="gold", context=512, chunk=128, seed=0, sample=0, turn=0, depth=0.5, prompt_tokens=500,
        new_tokens=3, prediction="“quoted”\n", gold="g", score=1.0, legacy_score=1.0, footprint=1.0, byte_footprint=1.0,
        floor=1.0, peak=1.0, peak_bytes=10, stored_bytes=10, full_bytes=10, full_peak_bytes=10, bytes_read_per_step=1,
        full_read_per_step=1, ttft_seconds=0.1, seconds=0.2, curve=((128, 128.0, "read"), (256, 60.5, "evict")), versions="v",
    )  # fmt: skip
    return Record(**{**facts, **change})  # type: ignore[arg-type]


def test_a_record_survives_its_line() -> None:
    assert parse(record().line()) == record()
    assert "\n" not in record().line()


CHANGES = {"recipe": "x", "context": 1, "chunk": 1, "turns": 1, "seed": 1, "form": "full", "weights": "w", "version": "9",
           "history": "model", "visibility": "visible"}  # fmt: skip


@pytest.mark.parametrize("field, value", CHANGES.items())
def test_the_key_tells_apart_whatever_changes_an_answer(field: str, value: object) -> None:
    assert replace(CELL, **{field: value}).key != CELL.key  # type: ignore[arg-type]


def test_more_samples_are_the_same_cell() -> None:
    assert replace(CELL, samples=99).key == CELL.key


@pytest.mark.parametrize("line", ["{", "[]", "{}", json.dumps({"recipe": "full"}), record().line()[:-20]])
def test_a_damaged_line_is_an_error(line: str) -> None:
    with pytest.raises(ValueError):
        parse(line)


def test_a_torn_line_damages_no_other(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append(record(turn=0))
    log.close()
    with log.path.open("a") as file:
        file.write(record(turn=1).line()[:30])
    log = Log(tmp_path)
    log.append(record(turn=1))
    log.append(record(turn=1, score=0.0))  # a duplicate: the first counts
    log.close()
    records, damaged = read(tmp_path)
    assert [(r.turn, r.score) for r in records] == [(0, 1.0), (1, 1.0)]
    assert len(damaged) == 1
    assert "turns.jsonl:2" in damaged[0]


def test_what_is_not_text_is_kept_all_the_same(tmp_path: Path) -> None:
    log = Log(tmp_path)
    odd = replace(record(), prediction="a\udc80b\x00\u2028\n")
    log.append(odd)
    log.close()
    assert read(tmp_path) == ([odd], [])


def test_records_from_before_questions_were_kept_are_read() -> None:
    facts = json.loads(record().line())
    del facts["question"], facts["golds"]
    assert parse(json.dumps(facts)).golds == ()
