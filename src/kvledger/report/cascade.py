"""Which style each element of one of our figures has: what a browser does with figure.css, for writers without one.

Rules of one or more classes, `var()`, inheritance, in the light theme; later rules win, and those of the element itself over
all.  (no torch)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

from . import svg

_INHERITED = ("fill", "stroke", "stroke-width", "stroke-dasharray", "fill-opacity", "font-size", "font-weight",
              "text-anchor", "paint-order", "--c")  # fmt: skip
Style = dict[str, str]


def styled(root: ET.Element) -> Iterator[tuple[ET.Element, Style]]:
    """The drawn elements in their order, each with its resolved style."""
    rules, variables = _sheet(svg.style_sheet())
    for element, style in _walk(root, {}, rules, ()):
        yield element, {name: _resolve(value, style, variables) for name, value in style.items()}


def _sheet(text: str) -> tuple[list[tuple[list[str], Style]], Style]:
    """(class selector, declarations) in their order, and the variables of the light theme."""
    found = [(selector.strip(), _declarations(body)) for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", text)]
    parts = [(part.strip(), style) for selector, style in found for part in selector.split(",")]
    rules = [(part.split()[1:], style) for part, style in parts if part.startswith("svg.plot ")]
    return rules, next(style for selector, style in found if selector == ":root")


def _declarations(text: str) -> Style:
    return {
        name.strip(): value.strip() for name, _, value in (part.partition(":") for part in text.split(";")) if value
    }


def _walk(
    element: ET.Element, inherited: Style, rules: Sequence[tuple[list[str], Style]], above: tuple[set[str], ...]
) -> Iterator[tuple[ET.Element, Style]]:
    """Every drawn element with what it inherits, what its classes say and what it says itself."""
    if element.tag in ("title", "desc"):
        return
    path = (*above, {element.tag, *(f".{name}" for name in element.get("class", "").split())})
    style = dict(inherited)
    for selector, declared in rules:
        style |= declared if _matches(selector, path) else {}
    style |= {name: element.attrib[name] for name in _INHERITED if name in element.attrib}
    style |= _declarations(element.get("style", ""))
    yield element, style
    for child in element:
        yield from _walk(child, {name: style[name] for name in _INHERITED if name in style}, rules, path)


def _matches(selector: Sequence[str], path: Sequence[set[str]]) -> bool:
    """Whether the last element of a path is the one that `.a.b .c` or `.a text` means."""
    if not set(re.findall(r"\.?[\w-]+", selector[-1])) <= path[-1]:
        return False
    return len(selector) == 1 or any(_matches(selector[:-1], path[:end]) for end in range(1, len(path)))


def _resolve(value: str, style: Style, variables: Style) -> str:
    while (found := re.fullmatch(r"var\((--[\w-]+)\)", value)) is not None:
        value = style.get(found[1]) or variables[found[1]]
    return value
