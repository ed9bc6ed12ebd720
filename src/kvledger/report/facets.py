"""How settings are told apart: which facts vary, what they are called, and what is shown at first.  (no torch)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from . import units
from .tables import Setting, setting_order

Keys = Mapping[str, str]
ORDER = ("model", "task", "mode", "visibility", "context", "chunk", "history", "keep", "measure")
_OPEN_FIRST = ("mode", "visibility", "task", "context", "chunk", "model", "history")


@dataclass(frozen=True)
class Panel:
    """One picture and the facts it can be chosen by."""

    keys: Keys
    caption: str
    svg: str


@dataclass(frozen=True)
class Choice:
    """A selector of a section: `chosen` is one of `options` (value, text), or empty for all of them."""

    key: str
    options: tuple[tuple[str, str], ...]
    chosen: str
    allow_all: bool


def wording(key: str, value: object) -> str:
    if key == "context":
        return f"{units.tokens(float(str(value)))} tokens"
    if key == "chunk":
        return f"chunks of {units.tokens(float(str(value)))}" if str(value) != "0" else "one shot"
    if key == "keep":
        return f"keep {value}" if value else "full cache"

    if key in ("visibility", "history"):
        return f"{'question' if key == 'visibility' else 'history'} {value}"
    return units.clean(str(value))


def keys_of(setting: Setting, **more: str) -> dict[str, str]:
    return {name: units.clean(str(getattr(setting, name))) for name in Setting._fields} | more


def varying(settings: Iterable[Setting]) -> list[str]:
    """The facts that differ among `settings`, in the order in which captions name them."""
    distinct = set(settings)
    names = [name for name in ORDER if name in Setting._fields]
    return [name for name in names if len({getattr(setting, name) for setting in distinct}) > 1]


def caption(setting: Setting, names: Sequence[str]) -> str:
    """The task always, and whatever else tells panels apart."""
    shown = [name for name in ORDER if name in names or name == "task"]
    return " · ".join(wording(name, getattr(setting, name)) for name in shown)


def in_order(settings: Iterable[Setting]) -> list[Setting]:
    return sorted(set(settings), key=setting_order)


def choices(items: Sequence[Keys], single: Mapping[str, str], limit: int) -> list[Choice]:
    """Selectors for the facts that vary among `items`.

    `single` facts (key -> first choice) show one value at a time. The others start on their first value and are opened
    to all, the telling ones first, for as long as at most `limit` items are shown.
    """
    options = {key: tuple(dict.fromkeys(item[key] for item in items if item.get(key))) for key in ORDER}
    chosen = {key: single.get(key, values[0]) for key, values in options.items() if values}
    for key in _OPEN_FIRST:
        if key in chosen and key not in single:
            opened = chosen | {key: ""}
            chosen = opened if sum(matches(item, opened) for item in items) <= limit else chosen
    return [
        Choice(key, tuple((value, wording(key, value)) for value in values), chosen[key], key not in single)
        for key, values in options.items()
        if len(values) > 1
    ]


def matches(item: Keys, chosen: Keys) -> bool:
    """An item without a fact (the full cache has no keep) belongs to every choice of it."""
    return all(not value or not item.get(key) or item[key] == value for key, value in chosen.items())
