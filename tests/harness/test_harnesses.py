"""Stock tasks of lm-eval and inspect_ai through a compressed cache, and the library llmlingua, in environments of their own.

Set KVLEDGER_HARNESS_PYTHON to an interpreter that has lm-eval (with nltk and wonderwords), inspect_ai and kvledger, and
KVLEDGER_LLMLINGUA_PYTHON to one that has llmlingua (with accelerate, nltk and tiktoken) and kvledger.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

PYTHON = os.environ.get("KVLEDGER_HARNESS_PYTHON", "")
LINGUA = os.environ.get("KVLEDGER_LLMLINGUA_PYTHON", "")


def run(python: str, script: str, folder: Path) -> dict[str, Any]:
    """What a script beside this file prints last, by another interpreter."""
    command = [python, str(Path(__file__).with_name(script))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return abs(one - other) < 0.002 if isinstance(one, float) else one == other  # type: ignore[no-any-return]


@pytest.mark.skipif(not PYTHON, reason="set KVLEDGER_HARNESS_PYTHON to run lm-eval and inspect_ai")
@pytest.mark.parametrize("harness", ["lm_eval", "inspect"])
def test_a_stock_task_through_a_compressed_cache(harness: str, tmp_path: Path) -> None:
    """A full cache gives the harness's own model's outputs, letter for letter, and its log-likelihoods up to the rounding of
    another order of summation; a compressed one ran on every request."""
    found = run(PYTHON, f"run_{harness}.py", tmp_path)
    assert found["requests"] > 0
    assert same(found["full"], found["own"])
    assert 0 < found["footprint"] < 1
    assert found["compressed"] != found["full"]
    assert found["refused"]


@pytest.mark.skipif(not LINGUA, reason="set KVLEDGER_LLMLINGUA_PYTHON to run the library llmlingua")
def test_the_real_llmlingua_shortens_what_a_session_reads(tmp_path: Path) -> None:
    """With a random encoder: fewer words in their order, the protected ones whole, and the books of what was left out."""
    found = run(LINGUA, "run_llmlingua.py", tmp_path)
    before, after = found["words"]
    assert 0.3 * before < after < 0.6 * before
    assert found["in order"]
    assert found["guarded"] == "w40 w41 w42"
    whole, own = found["tokens"]
    assert found["left out"] == whole - own == before - after
    assert found["answers"][0] == found["answers"][1]
    assert 0 < found["footprint"] < 1
