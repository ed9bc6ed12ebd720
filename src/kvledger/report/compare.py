"""Two runs side by side: what changed beyond the noise.  (no torch)

Recipes are compared on the turns that both runs answered of the same samples, so that only what changed between the runs (a
method, a version, a machine) can make a difference. Runs that are alike in everything differ by nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import units
from .facets import caption, varying
from .interval import Contrast, contrast, pooled
from .pool import groups
from .ranks import LEAST
from .study import Study
from .tables import Row, SampleKey, Setting, pairs, score_table

FORMAT = "kvledger.comparison/1"
Pairs = Mapping[SampleKey, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Change:
    """One recipe in one setting, before and after. `changed`: the interval of the difference does not reach zero, over at
    least `LEAST` contexts. `stored` and `footprint` are fractions of the full cache."""

    setting: Setting
    recipe: str
    before: float
    after: float
    samples: int
    score: Contrast
    stored: tuple[float, float]
    footprint: tuple[float, float]

    @property
    def changed(self) -> bool:
        gap = self.score.difference
        return self.samples >= LEAST and gap.low is not None and gap.high is not None and (gap.low > 0 or gap.high < 0)


def changes(before: Study, after: Study) -> list[Change]:
    """Of all that both have in common, several tasks together first. ValueError where that is nothing."""
    old, new = score_table(before.facts), score_table(after.facts)
    shared = {key: pairs(new[key], old[key]) for key in new if key in old}
    shared = {key: both for key, both in shared.items() if both}
    if not shared:
        raise ValueError(
            "the two runs have no answer in common: they must share a model, a task, a recipe and samples (seed, context)"
        )
    rows = {(row.setting, row.recipe): row for row in before.everything}
    tasks = groups(list(dict.fromkeys(setting.task for setting, _ in shared)), after.kinds)
    found = []
    for row in after.everything:
        parts = [
            (row.setting._replace(task=task), row.recipe) for task in tasks.get(row.setting.task, (row.setting.task,))
        ]
        if (row.setting, row.recipe) in rows and all(key in shared for key in parts):
            found.append(_change(rows[row.setting, row.recipe], row, [shared[key] for key in parts]))
    return found


def _change(before: Row, after: Row, strata: Sequence[Pairs]) -> Change:
    score = pooled(strata) if len(strata) > 1 else contrast(strata[0])
    assert score is not None  # there are pairs
    return Change(
        setting=after.setting,
        recipe=after.recipe,
        before=score.full,
        after=score.full + score.difference.mean,
        samples=sum(map(len, strata)),
        score=score,
        stored=(before.memory.stored, after.memory.stored),
        footprint=(before.memory.footprint, after.memory.footprint),
    )


def print_changes(found: Sequence[Change], console: Console | None = None) -> None:
    """What changed, the largest first, and how much did not."""
    out = console or Console()
    changed = sorted((c for c in found if c.changed), key=lambda c: -abs(c.score.difference.mean))
    few = sum(c.samples < LEAST for c in found)
    out.print(
        f"{units.plural(len(found), 'score')} in common, {len(changed)} changed beyond the noise.", highlight=False
    )
    if few:
        out.print(f"{few} rest on fewer than {LEAST} contexts, and are not judged.", highlight=False)
    if changed:
        out.print(_table(changed, varying(c.setting for c in found)))


def _table(changed: Sequence[Change], names: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("recipe", "where", "before", "after", "difference", "stored %", "footprint %"):
        table.add_column(head, justify="left" if head in ("recipe", "where") else "right", overflow="fold")
    for c in changed:
        gap = c.score.difference
        span = f"{units.points(gap.mean, True)} [{units.points(gap.low, True)}, {units.points(gap.high, True)}]"
        cells = [units.clean(c.recipe), caption(c.setting, names), units.points(c.before), units.points(c.after), span]
        cells += [f"{units.points(a)} → {units.points(b)}" for a, b in (c.stored, c.footprint)]
        table.add_row(*map(Text, cells))
    return table


def document(found: Sequence[Change]) -> dict[str, Any]:
    """As JSON: scores 0..1, memory as fractions of the full cache's."""
    return {
        "format": FORMAT,
        "changes": [
            {**c.setting._asdict(), "recipe": c.recipe, "before": c.before, "after": c.after, "samples": c.samples,
             "difference": [c.score.difference.mean, c.score.difference.low, c.score.difference.high],
             "changed": c.changed, "stored": list(c.stored), "footprint": list(c.footprint)}
            for c in found
        ],
    }  # fmt: skip
