"""Scorer files."""

from __future__ import annotations

from pathlib import Path

import pytest
from scorers import scorer


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    made = {kind: str(tmp_path / f"{kind}.safetensors") for kind in ("kvzap", "locret")}
    for kind, path in made.items():
        scorer(kind).save(path)
    return made
