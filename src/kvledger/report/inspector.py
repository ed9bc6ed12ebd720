"""A page on which a reader sees which tokens each head still holds: the prompt as text, shaded, with a slider over keep.

Complete in itself, like the report's page. It is made of an inspection, the JSON document that `kvledger inspect` reads off
a model: its tokens, the questions with the places of their evidence, and for each keep a bit for each token in each head.
(no torch)
"""

from __future__ import annotations

import base64
import json
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from . import svg, units

FORMAT = "kvledger.inspection/1"


def write(inspection: str, out: str | Path) -> Path:
    """The page of an inspection. Returns its path."""
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(inspection), encoding="utf-8")
    return target


def page(inspection: str) -> str:
    """One HTML page. ValueError for a document that is no inspection, or whose parts do not fit together."""
    facts = json.loads(inspection)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"not an inspection: expected a JSON object whose format is {FORMAT!r}")
    _check(facts)
    layers = facts["levels"][0]["kept"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_resource("inspector.html.j2")).render(
        style=Markup(svg.style_sheet() + _resource("page.css") + _resource("inspector.css")),
        script=Markup(_resource("inspector.js")),
        data=Markup(_embedded(facts)),
        recipe=units.clean(facts["recipe"]),
        facts=[(name, units.clean(str(facts[name]))) for name in ("model", "task", "sample", "seed")],
        reading="in one shot" if not facts["chunk"] else f"in chunks of {units.tokens(facts['chunk'])}",
        tokens=units.count(len(facts["tokens"])),
        layers=len(layers),
        heads=max(map(len, layers)),
        turns=len(facts["turns"]),
        start=_own(facts),
        last=len(facts["levels"]) - 1,
    )


def _own(facts: dict[str, Any]) -> int:
    """The place of the recipe as it was given, where the slider starts."""
    return next((n for n, level in enumerate(facts["levels"]) if level["recipe"] == facts["recipe"]), 0)


def _check(facts: dict[str, Any]) -> None:
    count = len(facts["tokens"])
    if not facts["levels"] or not count:
        raise ValueError("the inspection is empty: it needs tokens and at least one keep")
    for level in facts["levels"]:
        if len(level["answers"]) != len(facts["turns"]):
            raise ValueError(f"{level['recipe']}: {len(level['answers'])} answers to {len(facts['turns'])} questions")
        for number, layer in enumerate(level["kept"]):
            if any(len(base64.b64decode(bits)) != (count + 7) // 8 for bits in layer):
                raise ValueError(f"{level['recipe']}, layer {number}: not a bit for each of the {count} tokens")


def kept_share(facts: dict[str, Any]) -> list[list[list[float]]]:
    """[levels][layers][heads]: the share of all tokens that each head holds, as the page's map shows it."""
    count = len(facts["tokens"])
    return [
        [
            [int.from_bytes(base64.b64decode(bits), "little").bit_count() / count for bits in layer]
            for layer in level["kept"]
        ]
        for level in facts["levels"]
    ]


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _embedded(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
