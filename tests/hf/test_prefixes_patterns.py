"""Contexts that go on from a common beginning, under patterns: what only a prompt's last chunk sees is never shared."""

from __future__ import annotations

import pytest
from hf.test_prefixes import CHUNK, SNAP, same, store, text

PATTERNS = [
    "trishape(sinks=2, window=6, last=5)",
    "trishape(sinks=2, window=6, last=20)",  # more dense queries than a chunk has
    "ashape(sinks=2, window=6)",
    "minference(vertical=4, slash=6, queries=6, block=4)",
    "xattention(threshold=0.4, stride=2, block=4)",
    "moba(block=4, top=3)",
    "nsa(compress=4, stride=2, block=4, select=4, window=4)",
]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_going_on_under_a_pattern_is_as_read_afresh(pattern: str, dense: bool) -> None:
    recipe = f"{pattern} + {SNAP if dense else 'full'}"
    held = store("llama", recipe, dense)
    for context in (text(0, 1, more=3), text(0, 1, 2, more=5), text(0, 1), text(0, 1, 2, more=5), text(0, 3)):
        same(held.session(context), "llama", recipe, context)
    assert (held.misses, held.continued, held.hits) == (1, 3, 1)
    assert held.reused > 4 * CHUNK
