"""Measures of drift -> tables by turn, the shift after turn 1, and a page with a curve for each method.  (no torch)"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid

from kvledger.records import Record, read

from . import svg, units
from .drift_facts import MEASURES, PHASES, Agreement, Fact, Setting, agreements, by_step, curves, excesses, facts_of
from .drift_figures import Line, panel
from .interval import Estimate

FORMAT = "kvledger.drift.report/1"
SAID = (("answer", "held"), ("answer", "context"))  # on a terminal; the page has all
MOST_STEPS = 12  # columns of the table by step
KINDS = [(phase, measure) for phase in PHASES for measure in MEASURES]


class Table(NamedTuple):
    """Words and numbers as they are shown; the first column names the row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _span(estimate: Estimate | None) -> str:
    if estimate is None:
        return units.NONE
    mean = units.points(estimate.mean, signed=True)
    if estimate.low is None or estimate.high is None:
        return mean
    return f"{mean} [{units.points(estimate.low, signed=True)}, {units.points(estimate.high, signed=True)}]"


def _title(phase: str, measure: str) -> str:
    return f"{PHASES[phase].capitalize()}: {MEASURES[measure]}, %"


def tables(facts: Sequence[Fact]) -> list[Table]:
    """By turn for each phase and measure, the shifts with and without the first question in sight, and by decode step."""
    return [table for table in (*_by_turn(facts, KINDS), *_shifts(facts, KINDS), _by_step(facts)) if table.rows]


def _by_turn(facts: Sequence[Fact], kinds: Sequence[tuple[str, str]]) -> list[Table]:
    drawn = curves(facts)
    last = max(turn for curve in drawn for turn, _, _ in curve.turns)
    head = ("recipe", "task", "question", *(f"turn {turn}" for turn in range(1, last + 1)), "later − first")
    made = []
    for phase, measure in kinds:
        rows = []
        for curve in (c for c in drawn if (c.phase, c.measure) == (phase, measure)):
            means = {turn: units.points(mean.mean) for turn, _, mean in curve.turns}
            by_turn = [means.get(turn, units.NONE) for turn in range(1, last + 1)]
            rows.append((curve.recipe, curve.setting.task, curve.setting.visibility, *by_turn, _span(curve.shift)))
        made.append(Table(_title(phase, measure), head, tuple(rows)))
    return made


def _shifts(facts: Sequence[Fact], kinds: Sequence[tuple[str, str]]) -> list[Table]:
    found, made = excesses(facts), []
    head = ("recipe", "task", "first question visible", "hidden", "visible − hidden")
    for kind in kinds:
        some = [one for one in found if (one.phase, one.measure) == kind]
        rows = tuple((e.recipe, e.task, _span(e.visible), _span(e.hidden), _span(e.difference)) for e in some)
        made.append(Table(f"Shift after turn 1. {_title(*kind)}", head, rows))
    return made


def _by_step(facts: Sequence[Fact]) -> Table:
    found = by_step(facts)
    steps = range(1, min(MOST_STEPS, max(step for means in found.values() for step in means)) + 1)
    rows = []
    for (setting, recipe), means in found.items():
        cells = (units.points(means[step][1].mean) if step in means else units.NONE for step in steps)
        rows.append((recipe, setting.task, setting.visibility, *cells))
    title = f"By token of the answer, all turns: {MEASURES['held']}, %"
    return Table(title, ("recipe", "task", "question", *map(str, steps)), tuple(rows))


def correlation_table(found: Sequence[Agreement]) -> Table:
    rows = [
        (a.task, a.phase, MEASURES[a.measure], str(a.turns), f"{a.r:+.2f}".replace("-", units.MINUS)) for a in found
    ]
    return Table("Correlation with the score of the turn", ("task", "tokens of", "measure", "turns", "r"), tuple(rows))


class Figure(NamedTuple):
    """A panel. `name` is unique on the page, and that of its file."""

    name: str
    caption: str
    svg: str


def figures(facts: Sequence[Fact]) -> list[tuple[str, list[Figure]]]:
    """(title, panels) for each phase and measure; a panel for each setting."""
    drawn, made = curves(facts), []
    everyone = [curve.recipe for curve in drawn]
    for phase, measure in KINDS:
        some = [curve for curve in drawn if (curve.phase, curve.measure) == (phase, measure)]
        panels = []
        for number, setting in enumerate(dict.fromkeys(curve.setting for curve in some)):
            lines = [Line(c.recipe, [(t, m.mean) for t, _, m in c.turns]) for c in some if c.setting == setting]
            task = re.sub(r"[^A-Za-z0-9]+", "-", setting.task).strip("-")
            name = f"{phase}-{measure}-{number}-{task}-{setting.visibility}"
            panels.append(Figure(name, caption(setting), panel(name, caption(setting), lines, everyone)))
        made.append((_title(phase, measure), panels))
    return [(title, panels) for title, panels in made if panels]


def caption(setting: Setting) -> str:
    return f"{setting.task} · first question {setting.visibility} · {units.tokens(setting.context)} tokens"


def document(facts: Sequence[Fact], records: Iterable[Record] = ()) -> dict[str, Any]:
    """Everything as one JSON document; shares are 0..1, estimates [mean, low, high] with 95 % intervals."""
    steps = [
        {"setting": _plain(key[0]), "recipe": key[1], "held": {step: _plain(mean) for step, (_, mean) in means.items()}}
        for key, means in by_step(facts).items()
    ]
    found: dict[str, Sequence[Any]] = {
        "curves": curves(facts),
        "shifts": excesses(facts),
        "correlations": agreements(facts, records),
    }
    return {"format": FORMAT, **{name: [_plain(one) for one in ones] for name, ones in found.items()}, "steps": steps}


def _plain(one: Any) -> Any:
    """Dataclasses and settings as objects, tuples as lists, four digits."""
    if isinstance(one, Setting):
        return dict(one._asdict())
    if isinstance(one, Estimate):
        return _plain([one.mean, one.low, one.high])
    if is_dataclass(one) and not isinstance(one, type):
        return {field.name: _plain(getattr(one, field.name)) for field in fields(one)}
    if isinstance(one, tuple | list):
        return [_plain(item) for item in one]
    return round(one, 4) if isinstance(one, float) else one


def page(facts: Sequence[Fact], records: Sequence[Record] = ()) -> str:
    """One HTML page, complete in itself."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = (resources.files(__package__) / "drift.html.j2").read_text(encoding="utf-8")
    together = agreements(facts, records)
    return environment.from_string(text).render(
        style=Markup(svg.style_sheet() + (resources.files(__package__) / "page.css").read_text(encoding="utf-8")),
        script=Markup((resources.files(__package__) / "page.js").read_text(encoding="utf-8")),
        models=", ".join(sorted({units.clean(fact.setting.model) for fact in facts})),
        samples=len({(fact.setting.task, fact.sample) for fact in facts}),
        recipes=len({fact.recipe for fact in facts}),
        sections=[(title, [(one.caption, Markup(one.svg)) for one in panels]) for title, panels in figures(facts)],
        tables=[*tables(facts), *([correlation_table(together)] if together else [])],
    )


def show(out: Path, scores: str | None = None) -> None:
    """Tables on the terminal, `out/drift.html`, `out/drift.json` and `out/figures`. ValueError for a folder without measures,
    or for `scores` that belong to none of them."""
    facts, damaged = facts_of(out)
    records, more = read(Path(scores)) if scores else ([], [])
    for line in (*damaged, *more):
        print(f"kvledger: {line}", file=sys.stderr)
    together = agreements(facts, records)
    if scores and not together:
        raise ValueError(f"no scores in {scores} go with these measures: `kvledger run` needs the same options")
    for table in (*_by_turn(facts, SAID), *_shifts(facts, SAID), correlation_table(together)):
        if table.rows:
            _print(table)
    (out / "drift.json").write_text(json.dumps(document(facts, records), ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "drift.html").write_text(page(facts, records), encoding="utf-8")
    (out / "figures").mkdir(exist_ok=True)
    for figure in (figure for _, panels in figures(facts) for figure in panels):
        (out / "figures" / f"{figure.name}.svg").write_text(svg.standalone(figure.svg), encoding="utf-8")
    print(f"page: {out / 'drift.html'}")


def _print(table: Table) -> None:
    grid = Grid(title=table.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in table.head:
        grid.add_column(name, no_wrap=True)
    for row in table.rows:
        grid.add_row(*row)
    console = Console()
    Console(width=console.width if console.is_terminal else 160).print(grid)
