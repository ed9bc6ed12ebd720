"""What was answered, word for word, on the first sample of each setting.  (no torch)"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kvledger.records import Record

from .tables import Setting, is_full, setting_of, setting_order

LONGEST = 140
_MOST_SHEETS = 24
_MOST_TURNS = 10
_MOST_ANSWERS = 2000


@dataclass(frozen=True)
class Answer:
    turn: int
    text: str
    score: float


@dataclass(frozen=True)
class Script:
    """The answers of one recipe to the turns of a sheet; None where a turn has no record."""

    recipe: str
    keep: float
    full: bool
    answers: tuple[Answer | None, ...]


@dataclass(frozen=True)
class Sheet:
    """One sample of one setting: its gold answers and every recipe's."""

    setting: Setting
    sample: int
    golds: tuple[str, ...]
    scripts: tuple[Script, ...]


def sample(found: Sequence[Sheet], keep: float) -> list[Sheet]:
    """Sheets that a page can hold: all of them, or where that is too much, the full cache and one keep alone."""
    if sum(len(script.answers) for sheet in found for script in sheet.scripts) <= _MOST_ANSWERS:
        return list(found)
    kept = [
        replace(sheet, scripts=tuple(script for script in sheet.scripts if script.full or script.keep == keep))
        for sheet in found
    ]
    return kept[: max(1, _MOST_ANSWERS // max(1, max(len(s.scripts) * len(s.golds) for s in kept)))]


def sheets(facts: Sequence[Record]) -> list[Sheet]:
    """The first sample of each setting, with the answers of every recipe."""
    groups: dict[Setting, list[Record]] = defaultdict(list)
    for record in facts:
        groups[setting_of(record)].append(record)
    return [_sheet(setting, groups[setting]) for setting in sorted(groups, key=setting_order)][:_MOST_SHEETS]


def _sheet(setting: Setting, group: Sequence[Record]) -> Sheet:
    seed, sample = min((record.seed, record.sample) for record in group)
    facts = [record for record in group if (record.seed, record.sample) == (seed, sample)]
    turns = sorted({record.turn for record in facts})[:_MOST_TURNS]
    golds = {record.turn: record.gold for record in facts}
    recipes: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in facts:
        recipes[record.recipe][record.turn] = record
    scripts = [_script(answered, turns) for answered in recipes.values()]
    scripts.sort(key=lambda script: (not script.full, -script.keep, script.recipe))
    return Sheet(setting, sample, tuple(shorten(golds[turn]) for turn in turns), tuple(scripts))


def _script(answered: Mapping[int, Record], turns: Sequence[int]) -> Script:
    head = next(iter(answered.values()))
    answers = [
        Answer(turn, shorten(answered[turn].prediction), answered[turn].score) if turn in answered else None
        for turn in turns
    ]
    return Script(head.recipe, head.keep, is_full(head), tuple(answers))


def shorten(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "…"
