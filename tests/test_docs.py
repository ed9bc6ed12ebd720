"""The pages that a newcomer follows are run, at tiny size: their commands and their Python, in order, in one folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kvledger.cli import main

DOCS = Path(__file__).parents[1] / "docs"
TINY = {"--steps": "2", "--seq-len": "256", "--context": "300", "--samples": "1", "--turns": "1", "--window": "32"}


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def small(words: list[str]) -> list[str]:
    """The same command with small numbers."""
    return [TINY.get(before, word) for before, word in zip(["", *words], words)]


def test_the_page_on_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    commands = 0
    for language, text in blocks("gates.md"):
        if language == "python":
            exec(compile(text, "gates.md", "exec"), {})
            continue
        for line in text.strip().splitlines():
            program, *words = shlex.split(line)
            assert program == "kvledger"
            assert main(small(words)) == 0, line
            commands += 1
    assert commands == 3
    assert (tmp_path / "gates" / "prulong.json").exists()
    assert (tmp_path / "gates" / "prulong.html").exists()
    assert (tmp_path / "results" / "gates" / "report.html").exists()
    shown = capsys.readouterr().out
    assert "headgate(path='random:0'" in shown


def test_the_page_of_methods_is_what_the_registry_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--markdown"]) == 0
    written = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == written, "run `kvledger methods --markdown > docs/methods.md`"


OUTSIDE = """
import kvledger.recipe as recipe
from kvledger.cli import main
assert "value_norm" in recipe.registry(), sorted(recipe.registry())
assert str(recipe.parse("value_norm(keep=0.5, order=1)")) == "value_norm(keep=0.5, order=1.0)"
assert main(["methods", "--markdown"]) == 0
print(recipe.parse("examples.value_norm.ValueNorm(keep=0.3)"))
"""


def test_a_method_of_another_package_works_by_entry_point_and_by_dotted_path(tmp_path: Path) -> None:
    """As installed: the package's code on the path, and its metadata as pip would write it."""
    root = Path(__file__).parents[1]
    package = root / "examples" / "kvledger-value-norm"
    facts = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = tmp_path / "kvledger_value_norm-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {facts['name']}\nVersion: {facts['version']}\n")
    points = "".join(f"{k} = {v}\n" for k, v in facts["entry-points"]["kvledger.methods"].items())
    (info / "entry_points.txt").write_text("[kvledger.methods]\n" + points)
    paths = os.pathsep.join([str(tmp_path), str(package), str(root)])
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("examples.value_norm.ValueNorm(keep=0.3)")
    assert "value_norm" not in done.stdout.replace("examples.value_norm", "")  # the page tells of our own methods
