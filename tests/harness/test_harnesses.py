"""Stock tasks of lm-eval and inspect_ai through a compressed cache, in an environment of their own.

Set KVLEDGER_HARNESS_PYTHON to an interpreter that has lm-eval (with nltk and wonderwords), inspect_ai and kvledger.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("KVLEDGER_HARNESS_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="set KVLEDGER_HARNESS_PYTHON to run lm-eval and inspect_ai")


@pytest.mark.parametrize("harness", ["lm_eval", "inspect"])
def test_a_stock_task_through_a_compressed_cache(harness: str, tmp_path: Path) -> None:
    """A full cache gives the harness's own model's outputs, letter for letter; a compressed one ran on every request."""
    script = Path(__file__).with_name(f"run_{harness}.py")
    done = subprocess.run([PYTHON, str(script)], capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["requests"] > 0
    assert found["full"] == found["own"]
    assert 0 < found["footprint"] < 1
    assert found["compressed"] != found["full"]
    assert found["refused"]
