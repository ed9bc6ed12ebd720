"""One HTML page, complete in itself: styles, pictures, data and the little script are inlined, nothing is fetched.

Everything that comes from records is escaped: Jinja escapes text, ElementTree escapes pictures, and the embedded data
cannot close its own element. A content policy in the page forbids the network even if something slipped through.
(no torch)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from kvledger.records import Record

from . import facets, svg, units
from .answers import Sheet, sheets
from .columns import columns
from .document import document
from .facets import Choice, Keys, Panel, matches
from .figures import MEASURES, pareto
from .memory import lives
from .palette import Style, styles
from .study import Study, collect
from .summary import EMPTY, Glance, describe, glances, notes
from .tables import Row
from .turns import by_turn

_MOST_PANELS, _MOST_LIVES, _MOST_ROWS, _MOST_GLANCED = 8, 8, 150, 20


def write(records: Sequence[Record], path: str | Path) -> Path:
    """Writes the page and returns its path. No records give a page that says so."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render(records), encoding="utf-8")
    return target


def render(records: Sequence[Record]) -> str:
    study = collect(records)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"points": units.points, "soft": _soft, "keep": units.keep, "count": units.count}
    template = environment.from_string(_resource("page.html.j2"))
    shared = {
        "style": Markup(svg.style_sheet() + _resource("page.css")),
        "script": Markup(_resource("page.js")),
        "wording": facets.wording,
        "data": Markup(_embedded(document(study))),
    }
    return template.render(**shared, **(_view(study) if study.rows else {"empty": EMPTY}))


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


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
    rows = study.rows
    look = styles(row.line for row in rows if not row.full)
    life_panels, only = lives(rows, look)
    keep = _usual_keep(rows)
    return {
        "empty": "",
        "run": describe(study),
        "notes": notes(study),
        "keys": [(line, Markup(_swatch(style)), style.css) for line, style in look.items()],
        "glances": _glance_section(glances(rows), keep),
        "methods": len(look),
        "pareto": _section("pareto", pareto(rows, look), {"measure": MEASURES[0].name}, _MOST_PANELS),
        "turns": _section("turns", by_turn(rows, look), {"keep": keep}, _MOST_PANELS),
        "lives": _section("lives", life_panels, {"keep": keep}, _MOST_LIVES) | {"only": only},
        "answers": _answer_section(sheets(study.facts), keep),
        "table": _table(rows),
    }


def _usual_keep(rows: Sequence[Row]) -> str:
    """The keep at which most recipes were run; of several the one in the middle."""
    counts = Counter(row.keep for row in rows if not row.full)
    usual = sorted(keep for keep, count in counts.items() if count == max(counts.values()))
    return units.keep(usual[(len(usual) - 1) // 2]) if usual else ""


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


def _keep_choice(keeps: Sequence[float], chosen: str) -> list[Choice]:
    """A selector for the rows inside of tables, which may also show all keeps."""
    options = facets.choices([{"keep": units.keep(keep)} for keep in keeps], {}, 0)
    return [replace(choice, chosen=chosen, allow_all=True) for choice in options]


def _scope_words(key: Keys, chosen: Sequence[Choice]) -> str:
    return " · ".join(facets.wording(choice.key, key[choice.key]) for choice in chosen if choice.key in key)


def _answer_section(found: Sequence[Sheet], keep: str) -> dict[str, Any]:
    keys = [facets.keys_of(sheet.setting) for sheet in found]
    keeps = sorted({script.keep for sheet in found for script in sheet.scripts if not script.full})
    chosen = facets.choices(keys, {}, 1) + _keep_choice(keeps, keep)
    items = [
        {"keys": key, "sheet": sheet, "shown": _shown(key, chosen)} for key, sheet in zip(keys, found, strict=True)
    ]
    return {"name": "answers", "choices": chosen, "items": items, "keep": keep}


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    heads = columns(rows)
    keys = [facets.keys_of(row.setting, keep="" if row.full else units.keep(row.keep)) for row in rows]
    chosen = facets.choices(keys, {}, _MOST_ROWS)
    chosen = [replace(choice, chosen="") if choice.key == "keep" else choice for choice in chosen]
    items = [
        {"keys": key, "row": row, "cells": [head.cell(row) for head in heads], "shown": _shown(key, chosen)}
        for key, row in zip(keys, rows, strict=True)
    ]
    return {"name": "table", "choices": chosen, "heads": heads, "items": items}
