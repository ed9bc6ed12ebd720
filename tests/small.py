"""Options of methods that fit the tests' short prompts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kvledger.recipe import registry

SMALL: dict[str, dict[str, Any]] = {
    "streaming": {"sinks": 2},
    "fastgen": {"sinks": 2},
    "simlayerkv": {"sinks": 2, "recent": 4},
}


def small(name: str, window: int = 4) -> dict[str, Any]:
    """What to add to the defaults of the method `name`."""
    cls = registry()[name]
    voters = {"window": window} if "window" in {f.name for f in fields(cls)} else {}
    return {**voters, **SMALL.get(name, {})}
