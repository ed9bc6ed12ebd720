"""The command line as a script sees it: JSON documents, one-line errors, exit statuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvledger.cli import DEMO, main
from kvledger.recipe import parse

RUN = ["run", "--recipes", "full", "--tasks", "scbench/kv", "--out", "x"]


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    try:
        status = main(list(argv))
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_the_package_is_a_command_too() -> None:
    told = subprocess.run([sys.executable, "-m", "kvledger", "--help"], capture_output=True, text=True, check=True)
    assert "usage: kvledger" in told.stdout


def test_methods_and_tasks_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    methods = json.loads(capsys.readouterr().out)
    assert {m["name"] for m in methods} >= {"full", "random", "streaming", "snapkv", "pyramidkv", "adakv"}
    assert all({"name", "stage", "scope", "needs", "paper"} <= set(m) for m in methods)
    assert main(["tasks", "--json"]) == 0
    tasks = json.loads(capsys.readouterr().out)
    assert len({task["name"] for task in tasks}) == len(tasks) > 20
    assert all({"name", "suite", "capability", "metric", "offline"} <= set(t) for t in tasks)


@pytest.mark.parametrize(
    "argv, hint",
    [
        (["rnu"], "'run'"),
        (["run", "--recipes", "full", "--tasks", "scbench/kv", "--out", "x", "--sampels", "3"], "'--samples'"),
        (["run", "--recipes", "full", "--tasks", "scbench/vk", "--out", "x"], "scbench/kv"),
        (["run", "--recipes", "snpkv", "--tasks", "scbench/kv", "--out", "x"], "snapkv"),
        (["report", "nowhere"], "no records in nowhere"),
        ([*RUN, "--engine", "rey"], "did you mean 'ray'"),
        ([*RUN, "--shard", "3/2"], "shard '3/2': i/n with i from 1 to n"),
        ([*RUN, "--workers", "0"], "workers=0"),
        ([*RUN, "--devices", "99"], "devices=99: this machine has"),
        ([*RUN, "--engine", "ray"], "pip install 'kvledger[ray]'"),
    ],
)
def test_bad_input_is_one_line_with_what_was_nearest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    assert hint in error_of(capsys, *argv)
    assert not list(tmp_path.iterdir()), "nothing is made before the input is known to be good"


def test_the_demo_shows_at_least_six_recipes_at_two_keeps_on_two_tasks_in_two_modes() -> None:
    keeps: dict[str, set[float]] = {}
    for recipe in map(parse, DEMO["recipes"]):
        if recipe.drops:
            keeps.setdefault(recipe.name, set()).add(recipe.keep)
    assert len(keeps) >= 6
    assert all(len(found) == 2 for found in keeps.values())
    assert len(DEMO["tasks"]) == len(DEMO["modes"]) == 2
