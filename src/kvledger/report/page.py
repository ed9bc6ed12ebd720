"""One HTML page, complete in itself: styles, pictures, data and the little script are inlined, nothing is fetched.

Everything that comes from records is escaped: Jinja escapes text, ElementTree escapes pictures, and the embedded data
cannot close its own element. A content policy in the page forbids the network even if something slipped through.
(no torch)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from kvledger.records import Record

from . import facets, svg, units
from .answers import Sheet, sample, sheets
from .columns import Value, columns
from .depth import heat_maps
from .differences import differences
from .facets import Choice, Keys, Panel, matches
from .figures import first_measure, numbers, pareto
from .footprints import grids
from .memory import lives
from .palette import Style, styles
from .pool import ALL
from .savings import savings
from .study import NO_KINDS, Study, collect
from .summary import EMPTY, Glance, describe, glances, notes, usual_keep
from .tables import Row
from .turns import by_turn

_MOST_PANELS, _MOST_LIVES, _MOST_ROWS, _MOST_GLANCED, _MOST_MAPS = 8, 8, 150, 20, 12
_DIGITS = 5  # significant ones of the numbers that the page carries


def write(records: Sequence[Record], path: str | Path, kinds: Mapping[str, str] = NO_KINDS) -> Path:
    """Writes the page and returns its path. No records give a page that says so. `kinds` (task -> kind): tasks of a kind
    are also shown as one."""
    return write_study(collect(records, kinds), path)


def write_study(study: Study, path: str | Path) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render(study), encoding="utf-8")
    return target


def render(study: Study) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"points": units.points, "soft": _soft, "keep": units.keep, "count": units.count}
    template = environment.from_string(_resource("page.html.j2"))
    shared = {
        "style": Markup(svg.style_sheet() + _resource("page.css")),
        "script": Markup(_resource("page.js")),
        "wording": facets.wording,
        "data": Markup(_embedded(_numbers(study))),
    }
    return template.render(**shared, **(_view(study) if study.rows else {"empty": EMPTY}))


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _numbers(study: Study) -> dict[str, Any]:
    """The full table: columns, and for each row a value, [value, low, high] or null a column. Marks of pictures know their
    row by its number, and the script writes both the table and what a pointer is told."""
    heads = columns(study.everything, study.places)
    facts = [{"head": h.head, "title": h.title, "kind": h.kind, "interval": h.interval} for h in heads]
    return {"columns": facts, "rows": [[_number(head.of(row)) for head in heads] for row in study.everything]}


def _number(value: Value) -> Any:
    if value.low is None:
        return _rounded(value.value)
    return [_rounded(part) for part in value]


def _rounded(value: float | str | None) -> float | str | None:
    if isinstance(value, str):
        return units.clean(value)
    return None if value is None or not math.isfinite(value) else _whole(float(f"{value:.{_DIGITS}g}"))


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _embedded(document: dict[str, Any]) -> str:
    """JSON for a script element: no character in it can end the element or start a comment."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _soft(text: str) -> Markup:
    """Escaped, and free to break before a bracket and after a slash, as the names of recipes and tasks are long."""
    escaped = escape(units.clean(text))
    for before, after in (("(", "<wbr>("), ("/", "/<wbr>"), ("_", "_<wbr>")):
        escaped = escaped.replace(before, Markup(after))
    return escaped


def _view(study: Study) -> dict[str, Any]:
    rows, every = study.rows, study.everything
    look = styles(row.line for row in rows if not row.full)
    keep, known = usual_keep(rows), numbers(every)
    apart = [row for row in study.pooled if row.setting.task == ALL]
    life_panels, only = lives(every, look, keep)
    first = {"task": ALL} if study.pooled else {}
    return {
        "empty": "",
        "run": describe(study),
        "notes": notes(study),
        "keys": [(line, Markup(_swatch(style)), style.css) for line, style in look.items()],
        "glances": _glance_section(glances(every, study.places), keep),
        "savings": savings(study.facts),
        "criticals": _critical_section(study, first_measure(rows).name),
        "methods": len(look),
        "pareto": _section("pareto", pareto(every, look, known), {"measure": first_measure(rows).name}, _MOST_PANELS),
        "differences": _section(
            "differences", differences(every, study.places, look, known), {"keep": keep}, _MOST_PANELS
        ),
        "turns": _section("turns", by_turn([*apart, *rows], look, known, keep), {"keep": keep}, _MOST_PANELS),
        "depth": _section("depth", heat_maps(study.facts), first, _MOST_MAPS),
        "lives": _section("lives", life_panels, {"keep": keep}, _MOST_LIVES) | {"only": only},
        "answers": _answer_section(sheets(study.facts), keep),
        "table": {"name": "table", "choices": _table_choices(every)},
        "shown_rows": _MOST_ROWS,
    }


def _swatch(style: Style) -> str:
    root = svg.ET.Element("svg", {"viewBox": "0 0 26 12", "class": "plot swatch", "aria-hidden": "true"})
    group = svg.put(root, "g", style=f"--c:{style.css}")
    svg.put(group, "path", class_="line", d="M1,6L25,6")
    svg.marker(group, style.shape, 13, 6, class_="mark on")
    return svg.text_of(root)


def _section(name: str, panels: Sequence[Panel], single: Keys, limit: int) -> dict[str, Any]:
    chosen = facets.choices([panel.keys for panel in panels], single, limit)
    items = [{"panel": panel, "svg": Markup(panel.svg), "shown": _shown(panel.keys, chosen)} for panel in panels]
    return {"name": name, "choices": chosen, "items": items}


def _shown(keys: Keys, chosen: Sequence[Choice]) -> bool:
    return matches(keys, {choice.key: choice.chosen for choice in chosen})


def _glance_section(tables: Sequence[Glance], keep: str) -> dict[str, Any]:
    """One table at a time, and one keep where all of them would no longer be a glance."""
    keys = [{name: str(value) for name, value in table.scope._asdict().items()} for table in tables]
    keeps = sorted({row.keep for table in tables for row in table.rows if not row.full})
    long = max(len(table.rows) for table in tables) > _MOST_GLANCED
    chosen = facets.choices(keys, {}, 1) + _keep_choice(keeps, keep if long else "")
    items = [
        {"keys": key, "table": table, "shown": _shown(key, chosen), "caption": _scope_words(key, chosen)}
        for key, table in zip(keys, tables, strict=True)
    ]
    return {"name": "glance", "choices": chosen, "items": items, "keep": keep if long else ""}


def _critical_section(study: Study, measure: str) -> dict[str, Any]:
    """One table at a time; of the axes, the one that the plots start with."""
    found, problem = grids(study)
    chosen = facets.choices([grid.keys for grid in found], {"measure": measure}, 1)
    items = [
        {
            "keys": grid.keys,
            "grid": grid,
            "shown": _shown(grid.keys, chosen),
            "caption": _scope_words(grid.keys, chosen),
        }
        for grid in found
    ]
    return {"name": "critical", "choices": chosen, "items": items, "problem": problem}


def _keep_choice(keeps: Sequence[float], chosen: str) -> list[Choice]:
    """A selector for the rows inside of tables, which may also show all keeps."""
    options = facets.choices([{"keep": units.keep(keep)} for keep in keeps], {}, 0)
    return [replace(choice, chosen=chosen, allow_all=True) for choice in options]


def _scope_words(key: Keys, chosen: Sequence[Choice]) -> str:
    return " · ".join(facets.wording(choice.key, key[choice.key]) for choice in chosen if choice.key in key)


def _answer_section(every: Sequence[Sheet], keep: str) -> dict[str, Any]:
    found = sample(every, float(keep or 1))
    keys = [facets.keys_of(sheet.setting) for sheet in found]
    keeps = sorted({script.keep for sheet in found for script in sheet.scripts if not script.full})
    chosen = facets.choices(keys, {}, 1) + _keep_choice(keeps, keep)
    items = [
        {"keys": key, "sheet": sheet, "shown": _shown(key, chosen)} for key, sheet in zip(keys, found, strict=True)
    ]
    cut = sum(len(s.scripts) for s in found) < sum(len(s.scripts) for s in every)
    return {"name": "answers", "choices": chosen, "items": items, "keep": keep, "cut": cut}


def _table_choices(rows: Sequence[Row]) -> list[Choice]:
    keys = [facets.keys_of(row.setting, keep="" if row.full else units.keep(row.keep)) for row in rows]
    return [replace(choice, chosen="", allow_all=True) for choice in facets.choices(keys, {}, _MOST_ROWS)]
