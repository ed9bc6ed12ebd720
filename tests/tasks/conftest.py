"""The embedded model's tokenizer, loaded without torch, for the lengths of samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from kvledger import zoo


@pytest.fixture(scope="session")
def embedded() -> Callable[[str], int]:
    """Tokens of a text."""
    tokenizer = Tokenizer.from_file(str(zoo.path() / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
