"""One colour and one marker a method, the same in every figure.  (no torch)

Colours are CSS variables (`--c0` .. `--c7`, light and dark values in figure.css), chosen to stay apart for the common
kinds of colour blindness; the marker repeats the message for everyone else, and for print.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

COLOURS = 8
SHAPES = ("circle", "square", "diamond", "up", "down")


class Style(NamedTuple):
    colour: int
    shape: str

    @property
    def css(self) -> str:
        return f"var(--c{self.colour})"


_FIXED = {
    "snapkv": Style(0, "circle"),
    "streaming": Style(1, "square"),
    "kvzip": Style(2, "diamond"),
    "adakv": Style(3, "up"),
    "pyramidkv": Style(4, "down"),
    "h2o": Style(5, "square"),
    "headgate": Style(6, "circle"),
    "tova": Style(7, "up"),
    "kivi": Style(5, "diamond"),
    "quest": Style(6, "square"),
    "minference": Style(7, "diamond"),
    "pyramid": Style(4, "down"),
    "prulong": Style(6, "circle"),
    "duo": Style(1, "diamond"),
}


def styles(lines: Iterable[str]) -> dict[str, Style]:
    """A style for each line. Names without a fixed one take those left over, in the order of their names."""
    names = sorted(set(lines))
    chosen = {name: _FIXED[name] for name in names if name in _FIXED}
    taken = {style.colour for style in chosen.values()}
    order = [c for c in range(COLOURS) if c not in taken] + [c for c in range(COLOURS) if c in taken]
    spare = [Style(c, s) for s in (SHAPES[2], SHAPES[3], SHAPES[0], SHAPES[1], SHAPES[4]) for c in order]
    spare = [style for style in spare if style not in chosen.values()]
    unnamed = [name for name in names if name not in chosen]
    return chosen | {name: spare[number % len(spare)] for number, name in enumerate(unnamed)}
