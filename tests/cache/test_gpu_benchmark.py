"""`benchmarks/gpu.py` runs, at toy sizes and with whatever reader this machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_part_runs_at_toy_sizes(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert {name: part["error"] for name, part in found.items() if isinstance(part, dict) and "error" in part} == {}
    assert found["step"]["throughput"]["keep 0.3"]["requests"] > 2 * found["step"]["throughput"]["keep 1.0"]["requests"]
    assert found["attention"]["keep 0.3"]["bytes"] < 0.31 * found["attention"]["keep 1.0"]["bytes"]
    assert found["reading"]["evicting, chunks"]["kept_bytes"] < 0.35 * found["reading"]["full, chunks"]["kept_bytes"]
