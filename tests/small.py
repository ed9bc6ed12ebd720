"""Options of methods that fit the tests' short prompts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kvledger.recipe import registry

SMALL: dict[str, dict[str, Any]] = {
    "compactor": {"chunk": 8, "sinks": 2, "recent": 2},
    "expected_attention": {"sinks": 2},
    "dms": {"delay": 4},
    "kvzap": {"path": "random:0", "delay": 4},
    "locret": {"path": "random:0", "stabilizers": 4},
    "kvzip": {"chunk": 20, "sinks": 2},
    "lagkv": {"lag": 4, "sinks": 2},
    "streaming": {"sinks": 2},
    "fastgen": {"sinks": 2},
    "headkv": {"importance": "random:0"},
    "rkv": {"rows": 0, "every": 0, "when": "prompt"},
    "simlayerkv": {"sinks": 2, "local": 4},
    "triattention": {"rows": 0, "every": 0, "when": "prompt", "recent": 4},
}


def small(name: str, window: int = 4) -> dict[str, Any]:
    """What to add to the defaults of the method `name`."""
    cls = registry()[name]
    voters = {"window": window} if "window" in {f.name for f in fields(cls)} else {}
    return {**voters, **SMALL.get(name, {})}
