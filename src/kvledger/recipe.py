"""Recipes: what is done to the cache, as a string that round-trips to frozen dataclasses; and the one registry.  (no torch)

    snapkv(keep=0.3, window=64)      a registered method
    my_package.mine.Mine(keep=0.3)   any dataclass by its dotted path
    a + b                            parts side by side

Outside packages register by the entry-point group `kvledger.methods` (a module that calls `register` when imported).
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import entry_points
from math import prod
from typing import Any

BUILT_IN = "kvledger.methods"  # imported by name, so that this module depends on nobody


@dataclass(frozen=True)
class Row:
    """A line of `kvledger methods`. `stage` is SCBench's: generation, compression, retrieval or loading."""

    name: str
    stage: str
    scope: str
    needs: str
    paper: str
    summary: str


REGISTRY: dict[str, type] = {}


def register(row: Row) -> Callable[[type], type]:
    """Class decorator: make a frozen dataclass available under `row.name`."""

    def add(cls: type) -> type:
        cls.row = row  # type: ignore[attr-defined]
        REGISTRY[row.name] = cls
        return cls

    return add


def registry() -> dict[str, type]:
    """All methods by name: the built-in ones and those of installed packages."""
    importlib.import_module(BUILT_IN)
    for point in _points():
        point.load()
    return REGISTRY


@functools.cache  # looking through all installed packages takes milliseconds, and a sweep parses thousands of recipes
def _points() -> tuple[Any, ...]:
    return tuple(entry_points(group="kvledger.methods"))


def nearest(word: str, choices: Iterable[str]) -> str:
    """The tail of every error about a name: what was nearest, and what there is."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    return f"{hint} (choices: {', '.join(known)})" if not close else hint


ROLES = {
    "source": "source",
    "pattern": "prefill pattern",
    "compression": "compression method",
    "profile": "head profile",
    "protection": "protection",
    "format": "storage format",
    "reader": "reader",
}


@dataclass(frozen=True)
class Recipe:
    """Parts that work together on one cache, at most one of each role: what is made of the prompt before it is read ("source"),
    what its queries look at ("pattern"), which rows stay ("compression"), heads that need no more than a window ("profile"),
    spans that stay ("protection"), how rows are stored ("format"), and what a decode step reads of them ("reader").
    ValueError for two of a role."""

    parts: tuple[Any, ...]

    def __post_init__(self) -> None:
        for role, what in ROLES.items():
            rivals = [name_of(part) for part in self.parts if part.role == role]
            if len(rivals) > 1:
                raise ValueError(f"{' and '.join(rivals)} are two {what}s, and one cache can follow one: name one")
        if self.profile is not None and self.method.heads == "query":
            raise ValueError(
                f"{name_of(self.profile)} knows KV heads, so heads='query' of {name_of(self.method)} has no place"
            )
        if self.profile is not None and getattr(self.method, "every_head", False):
            raise ValueError(
                f"{name_of(self.method)} shares rows among all heads, so {name_of(self.profile)} has no place beside it"
            )
        if self.pattern is not None and self.method.drops and getattr(self.method, "tally", "") == "mass":
            raise ValueError(
                f"{name_of(self.method)} adds up the attention of all queries to all rows, which {name_of(self.pattern)} does "
                "not compute: take another compression method beside it"
            )
        if self.protection is not None and not (self.method.drops or getattr(self.source, "must_drop", False)):
            raise ValueError("there is nothing to protect from: add a compression method to the recipe")
        for part in self.parts:
            if hasattr(part, "check"):
                part.check(self)

    def _part(self, role: str) -> Any:
        return next((part for part in self.parts if part.role == role), None)

    @property
    def method(self) -> Any:
        """The compression method; the full cache where none is named."""
        return self._part("compression") or registry()["full"]()

    @property
    def profile(self) -> Any:
        return self._part("profile")

    @property
    def protection(self) -> Any:
        return self._part("protection")

    @property
    def source(self) -> Any:
        return self._part("source")

    @property
    def pattern(self) -> Any:
        return self._part("pattern")

    @property
    def format(self) -> Any:
        return self._part("format")

    @property
    def reader(self) -> Any:
        return self._part("reader")

    @property
    def drops(self) -> bool:
        """Whether anything is ever dropped."""
        return bool(self.method.drops or (self.profile is not None and self.profile.drops))

    @property
    def keep(self) -> float:
        """The kept fractions of all parts, multiplied: where a recipe stands among those of its name."""
        return float(prod(getattr(part, "keep", 1.0) for part in self.parts))

    @property
    def name(self) -> str:
        """The recipe without its `keep`: what one line of a plot has in common, `snapkv` or `snapkv(when='chunk')`."""
        return " + ".join(_show(part, hidden=("keep",)) for part in self.parts)

    @property
    def fingerprint(self) -> str:
        """Fingerprints of the files that the parts read: gates, importance, scorers."""
        return " ".join(filter(None, (getattr(part, "fingerprint", "") for part in self.parts)))

    def __str__(self) -> str:
        return " + ".join(_show(part) for part in self.parts)


def parse(text: str) -> Recipe:
    """A Recipe from its string. ValueError names what is wrong and the nearest thing that is right."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(f"cannot read the recipe {text!r}: write it like 'snapkv(keep=0.3)'") from None
    parts = tuple(_build(node, text) for node in _terms(tree))
    try:
        return Recipe(parts)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _terms(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_terms(node.left), *_terms(node.right)]
    return [node]


def _build(node: ast.expr, text: str) -> Any:
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"options of {text!r} need their names, like 'snapkv(keep=0.3)'")
    cls = _find(ast.unparse(call.func))
    options: dict[str, Any] = {}
    for keyword in call.keywords:
        assert keyword.arg is not None
        if keyword.arg in options:
            raise ValueError(f"{text!r} names the option {keyword.arg!r} twice")
        options[keyword.arg] = _value(cls, keyword, text)
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r}: {error}") from None


KINDS: dict[type, str] = {float: "a number", int: "a whole number", str: "a text", bool: "True or False"}


def _value(cls: type, keyword: ast.keyword, text: str) -> Any:
    """The value of an option, of the type of its default (a whole number will do for a fraction)."""
    known = {f.name: f.default for f in fields(cls) if f.init}  # type: ignore[arg-type]
    if keyword.arg not in known:
        raise ValueError(f"unknown option {keyword.arg!r} in {text!r}{nearest(str(keyword.arg), known)}")
    try:
        value = ast.literal_eval(keyword.value)
    except (ValueError, TypeError):
        raise ValueError(f"option {keyword.arg} of {text!r} must be a plain value") from None
    default = known[keyword.arg]
    if type(default) is float and type(value) is int:
        return float(value)
    if type(default) in KINDS and type(value) is not type(default):
        raise ValueError(f"{text!r}: {keyword.arg}={value!r} must be {KINDS[type(default)]}, like {default!r}")
    return value


def _find(name: str) -> type:
    if "." not in name:
        known = registry()
        if name not in known:
            raise ValueError(f"unknown method {name!r}{nearest(name, known)}")
        return known[name]
    module, _, attribute = name.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import the method {name!r}: {error}") from None
    if not (isinstance(cls, type) and is_dataclass(cls) and getattr(cls, "role", "") in ROLES):
        raise ValueError(f"{name!r} is not a method: it must be a dataclass that extends kvledger.Method")
    return cls


def name_of(part: Any) -> str:
    """The registered name; of an unregistered class its dotted path (and not its parent's name)."""
    cls = type(part)
    own = cls.__dict__.get("row")
    return own.name if own is not None else f"{cls.__module__}.{cls.__qualname__}"


def _show(part: Any, hidden: tuple[str, ...] = ()) -> str:
    """The canonical string: options that differ from their defaults, and always `keep` where that is the budget."""
    name = name_of(part)
    by_keep = name != "full" and not getattr(part, "rows", 0) and not getattr(part, "bytes", 0)
    shown = [
        f"{f.name}={getattr(part, f.name)!r}"
        for f in fields(part)
        if f.init and f.name not in hidden and (getattr(part, f.name) != f.default or (f.name == "keep" and by_keep))
    ]
    return f"{name}({', '.join(shown)})" if shown else name
