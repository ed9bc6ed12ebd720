"""docs/tasks.md: its commands run, its example line is read, its error is the one that is shown, its scorers are all there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from kvledger.cli import main
from kvledger.records import read
from kvledger.tasks import custom, get

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
SMALL = ["--samples", "1", "--turns", "1", "--chunk", "128"]


def block(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = [shlex.split(line) for text in block("bash") for line in text.strip().splitlines()]
    assert len(commands) == 2
    for program, *words in commands:
        assert program == "kvledger"
        length = [] if "--context" in words else ["--context", "300"]
        assert main([*words, *length, *SMALL]) == 0
    assert (tmp_path / "results" / "own" / "report.html").exists()
    assert {record.task for record in read(Path("results/own"))[0]} == {"examples/own_task.jsonl"}


def test_the_example_line_is_read_and_the_error_is_the_one_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (text,) = block("json")
    good = json.dumps(json.loads(text))
    Path("my.jsonl").write_text(f"{good}\n{good}\n")
    assert get("my.jsonl").rows == 2
    bad = json.loads(text)
    bad["turns"][0]["answer"] = 42
    Path("my.jsonl").write_text(f"{good}\n{good}\n{json.dumps(bad)}\n")
    assert main(["run", "--recipes", "full", "--tasks", "my.jsonl", "--out", "out"]) == 2
    (shown,) = block("text")
    assert capsys.readouterr().err == shown


def test_all_scorers_are_explained():
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(custom.SCORERS) <= named
