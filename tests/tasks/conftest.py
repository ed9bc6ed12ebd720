"""The embedded model's tokenizer, loaded without torch, for the lengths of samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from kvledger import zoo
from kvledger.tasks.helmet import files


@pytest.fixture(scope="session")
def embedded() -> Callable[[str], int]:
    """Tokens of a text."""
    tokenizer = Tokenizer.from_file(str(zoo.path() / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture(autouse=True)
def _hand_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """HELMET's hashes are those of the published files, which hand-made rows stand in for."""
    monkeypatch.setattr(files, "SHA256", {})
