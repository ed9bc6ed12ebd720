"""Every pair of text and ground that the pages use meets WCAG 2.2 AA (4.5 : 1), in the light and in the dark theme."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources

import pytest

from kvledger.report.palette import COLOURS
from kvledger.report.svg import cell, style_sheet

THEMES = dict(zip(("light", "dark"), re.findall(r":root \{(.*?)\}", style_sheet(), re.S), strict=True))
AA_TEXT, AA_SHAPE = 4.5, 3.0
Colour = tuple[float, float, float]


def colours(theme: str) -> dict[str, Colour]:
    found = re.findall(r"--(\w+): #(\w\w)(\w\w)(\w\w);", THEMES[theme])
    return {name: (int(r, 16) / 255, int(g, 16) / 255, int(b, 16) / 255) for name, r, g, b in found}


def luminance(colour: Colour) -> float:
    """WCAG 2.2, "relative luminance"."""
    r, g, b = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: Colour, other: Colour) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def mix(top: Colour, ground: Colour, share: float) -> Colour:
    r, g, b = (share * a + (1 - share) * b for a, b in zip(top, ground, strict=True))
    return r, g, b


def test_the_measure_itself() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) == 1


@pytest.mark.parametrize("theme", THEMES)
def test_words_can_be_read_on_their_ground(theme: str) -> None:
    given = colours(theme)
    pairs = [
        ("ink", "paper"),
        ("soft", "paper"),
        ("paper", "ink"),
        ("ink", "band"),
        ("ink", "ask"),
        ("soft", "band"),
        ("soft", "ask"),
    ]
    pairs += [(f"c{n}", ground) for n in range(COLOURS) for ground in ("paper", "band")]
    low = {pair: round(found, 2) for pair in pairs if (found := contrast(given[pair[0]], given[pair[1]])) < AA_TEXT}
    assert low == {}


@pytest.mark.parametrize("theme", THEMES)
def test_numbers_can_be_read_on_every_tint_of_a_heat_map(theme: str) -> None:
    given = colours(theme)
    for share in range(101):
        assert contrast(given["ink"], mix(given["heat"], given["paper"], share / 100)) >= AA_TEXT


@pytest.mark.parametrize("theme", THEMES)
def test_tints_of_a_heat_map_can_be_told_apart(theme: str) -> None:
    given = colours(theme)
    assert contrast(given["heat"], given["paper"]) > 2


def rules(name: str) -> Iterator[tuple[str, str]]:
    text = (resources.files("kvledger.report") / name).read_text(encoding="utf-8")
    yield from re.findall(r"([^{}]+)\{([^{}]*)\}", text)


@pytest.mark.parametrize("name", ["figure.css", "page.css", "inspector.css"])
def test_colours_are_named_once_and_nowhere_else(name: str) -> None:
    """So that the pairs above are all there are."""
    assert [s for s, body in rules(name) if "#" in body and ":root" not in s] == []


def test_a_heat_map_is_tinted_by_the_colour_that_was_tested() -> None:
    from xml.etree import ElementTree as ET

    group = ET.Element("g")
    cell(group, (0, 0, 10, 10), 1.0)
    assert float(group[0].get("fill-opacity", "nan")) <= 1
    assert (".cells", "fill: var(--heat);") in [
        (s.split()[-1], b.strip()) for s, b in rules("figure.css") if s.strip().endswith(".cells")
    ]
