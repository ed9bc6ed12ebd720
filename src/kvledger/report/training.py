"""The page of a training run: its curves, and which heads it let forget.  (no torch)

Complete in itself, like the report's page: styles, pictures and the little script are inlined, nothing is fetched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from . import svg, units
from .training_figures import Line, curves, heads, smooth

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Heads:
    """What a gate file says, as plain data. scores [layers][KV heads] in [0, 1]; full: which heads stay full."""

    scores: Table
    full: tuple[tuple[bool, ...], ...]
    model: str = ""
    facts: tuple[tuple[str, str], ...] = ()


def write(log: str | Path, gates: str | Path, out: str | Path) -> Path:
    """The page of a run from its log and its `gates.json`. Returns its path."""
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(Path(log), read_heads(Path(gates))), encoding="utf-8")
    return target


def read_heads(path: Path) -> Heads:
    """Scores and facts of a `gates.json`; the full heads are those at the sparsity it was trained for."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    scores = tuple(tuple(float(score) for score in row) for row in facts["scores"])
    shown = {"objective": "objective", "data": "data", "target": "target sparsity", "sink": "sink", "window": "window"}
    shown |= {"steps": "steps", "seed": "seed", "revision": "revision", "version": "kvledger"}
    told = tuple((name, str(facts[key])) for key, name in shown.items() if facts.get(key) not in (None, ""))
    return Heads(scores, top(scores, 1 - float(facts.get("target", 0.0))), str(facts.get("model", "")), told)


def top(scores: Table, keep: float) -> tuple[tuple[bool, ...], ...]:
    """The rule by which gates are executed: round(keep · heads) of the highest scores, equal ones by place."""
    places = [(-score, layer, head) for layer, row in enumerate(scores) for head, score in enumerate(row)]
    chosen = {place[1:] for place in sorted(places)[: math.floor(keep * len(places) + 0.5 + 1e-9)]}
    return tuple(tuple((layer, head) in chosen for head in range(len(row))) for layer, row in enumerate(scores))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a training log by step. Of a step that was done again after a resume the later line counts; a line that
    cannot be read (the last one of a killed run) is left out."""
    steps: dict[float, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and _number(entry.get("step")) is not None:
            steps[float(entry["step"])] = entry
    return [steps[step] for step in sorted(steps)]


def page(log: Path, gates: Heads) -> str:
    """One HTML page, complete in itself. A log that is empty or missing leaves the curves out and says so."""
    entries = read_log(log)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    picture, width = heads(gates.scores, gates.full)
    full, every = sum(map(sum, gates.full)), len(gates.scores) * len(gates.scores[0])
    return environment.from_string(_resource("training.html.j2")).render(
        style=Markup(svg.style_sheet() + _resource("page.css")),
        script=Markup(_resource("page.js")),
        model=units.clean(gates.model) or "this model",
        facts=[(name, units.clean(value)) for name, value in (*gates.facts, *_summary(entries))],
        full=full,
        every=every,
        layers=len(gates.scores),
        panels=[(caption, Markup(panel)) for caption, panel in _panels(entries)],
        steered=bool(_column(entries, "expected")),
        heads=Markup(picture),
        width=width,
    )


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _number(value: object) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None  # type: ignore[arg-type]


def _column(entries: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    found = [(float(entry["step"]), _number(entry.get(name))) for entry in entries]
    return [(step, value) for step, value in found if value is not None]


def _summary(entries: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    speeds = sorted(value for _, value in _column(entries, "tokens_per_second"))
    seconds = _column(entries, "seconds")
    told = [("tokens a second, median", units.count(round(speeds[len(speeds) // 2])))] if speeds else []
    return told + ([("time", _clock(seconds[-1][1]))] if seconds else [])


def _clock(seconds: float) -> str:
    if seconds < 60:
        return units.seconds(seconds)
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _panels(entries: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(caption, picture) of each curve that the log has values for."""
    loss, speed = _column(entries, "loss"), _column(entries, "tokens_per_second")
    sparsity = [
        Line("target", "var(--ink)", _column(entries, "target"), "dashed"),
        Line("expected", "var(--c6)", _column(entries, "expected")),
        Line("realised", "var(--c1)", _column(entries, "realised")),
    ]
    lambdas = [Line(f"λ{n}", f"var(--c{c})", _column(entries, f"lambda{n}")) for n, c in ((1, 0), (2, 2))]
    drawn: list[tuple[str, str, str, list[Line], Any, float | None]] = [
        ("loss", "Loss", "loss", _noisy("loss", "var(--c0)", loss), _three, None),
        ("sparsity", "Sparsity", "streaming heads, %", sparsity, lambda mark: f"{mark * 100:.3g}", 0.0),
        ("lambda", "Multipliers", "λ", lambdas, _three, None),
        ("speed", "Speed", "tokens a second", _noisy("tokens/s", "var(--c5)", speed), _thousands, 0.0),
    ]
    return [
        (caption, curves(name, caption, axis, lines, form, low))
        for name, caption, axis, lines, form, low in drawn
        if any(line.spots for line in lines)
    ]


def _noisy(name: str, colour: str, spots: list[tuple[float, float]]) -> list[Line]:
    return [Line("", colour, spots, "faint"), Line(name, colour, smooth(spots))]


def _three(value: float) -> str:
    return f"{value:.3g}".replace("-", units.MINUS)


def _thousands(value: float) -> str:
    return f"{value / 1000:.3g}k" if value >= 10_000 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
