"""A figure as a PDF page: the few SVG elements and style rules that our own figures use, in their light colours.

Not a general converter: it knows lines, rectangles, circles, paths of straight strokes and text in Helvetica, which every
reader of PDF has, so that nothing is embedded. A figure with another element is refused (ValueError).  (no torch)
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from . import cascade
from .cascade import Style

# Helvetica's widths in thousandths of the size (Adobe's font metrics), where they are not 556.
_WIDE = {278: " !,./:;I[\\]ft", 333: "()-`r", 222: "ijl", 500: "Jckvxyz", 667: "&ABEKPSVXY", 722: "CDHNRUw", 611: "FTZ",
         778: "GOQ", 833: "Mm", 944: "W", 1015: "@", 889: "%", 584: "+<=>~", 469: "^", 355: '"', 191: "'", 260: "|",
         334: "{}"}  # fmt: skip
_WIDTHS = {letter: width for width, letters in _WIDE.items() for letter in letters}
_SPELLED = {"\u202f": "\u00a0", "−": "–", "→": ">", "λ": "lambda "}  # what the standard encoding lacks
_ROUND = 0.5523  # of the radius: how far the handles of a quarter circle reach


def page(inline: str) -> bytes:
    """One PDF page of the size of the figure, 1 unit = 1 point. ValueError for an element it does not know."""
    root = ET.fromstring(inline)
    _, _, width, height = (float(x) for x in root.attrib["viewBox"].split())
    parts, shades = [f"1 0 0 -1 0 {height:g} cm 1 j"], []
    for element, style in cascade.styled(root):
        opacity = float(style.get("opacity", 1))
        shade = opacity, opacity * float(style.get("fill-opacity", 1))
        if drawn := _draw(element, style):
            shades += [shade] if shade not in shades else []
            parts.append(f"q /G{shades.index(shade)} gs {drawn} Q")
    return _file(width, height, "\n".join(parts), shades)


def _draw(element: ET.Element, style: Style) -> str:
    if element.tag in ("svg", "g"):
        return ""
    if element.tag == "text":
        return _text(element, style)
    fill, stroke = _colour(style.get("fill", "#000000")), _colour(style.get("stroke", "none"))
    dash = " ".join(style.get("stroke-dasharray", "").replace(",", " ").split())
    paint = {(True, True): "B", (True, False): "f", (False, True): "S"}.get((bool(fill), bool(stroke)), "n")
    width = style.get("stroke-width", "1").removesuffix("px")
    return f"{fill and fill + ' rg'} {stroke and f'{stroke} RG {width} w [{dash}] 0 d'} {_outline(element)} {paint}"


def _colour(value: str) -> str:
    """`#rrggbb` as three numbers; nothing for none."""
    return (
        ""
        if value in ("none", "transparent")
        else " ".join(f"{int(value[i : i + 2], 16) / 255:.3f}" for i in (1, 3, 5))
    )


def _outline(element: ET.Element) -> str:
    def at(*names: str) -> list[float]:
        return [float(element.get(name, 0)) for name in names]

    if element.tag == "line":
        return "{:g} {:g} m {:g} {:g} l".format(*at("x1", "y1", "x2", "y2"))
    if element.tag == "rect":
        return "{:g} {:g} {:g} {:g} re".format(*at("x", "y", "width", "height"))
    if element.tag == "circle":
        return _circle(*at("cx", "cy", "r"))
    if element.tag == "path":
        return _path(element.attrib["d"])
    raise ValueError(f"<{element.tag}> has no counterpart here; write the figure as SVG")


def _circle(x: float, y: float, r: float) -> str:
    """Four arcs, each (where it ends, how its handles lie), from the rightmost point round."""
    k, parts = r * _ROUND, [f"{x + r:.2f} {y:.2f} m"]
    for a, b in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        c, d = -b, a  # a quarter turn on
        handles = (x + r * a + k * c, y + r * b + k * d, x + r * c + k * a, y + r * d + k * b, x + r * c, y + r * d)
        parts.append(" ".join(f"{value:.2f}" for value in handles) + " c")
    return " ".join(parts) + " h"


def _path(text: str) -> str:
    x = y = 0.0
    parts = []
    for letter, rest in re.findall(r"([a-zA-Z])([^a-zA-Z]*)", text):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", rest)]
        if letter not in "MLlhvzZ":
            raise ValueError(f"a path with {letter!r} has no counterpart here; write the figure as SVG")
        if letter in "zZ":
            parts.append("h")
            continue
        flat = {"h": [(number, 0.0) for number in numbers], "v": [(0.0, number) for number in numbers]}
        for a, b in flat.get(letter) or zip(numbers[::2], numbers[1::2], strict=True):
            x, y = (a, b) if letter in "ML" else (x + a, y + b)
            parts.append(f"{x:.2f} {y:.2f} {'m' if letter == 'M' else 'l'}")
    return " ".join(parts)


def _text(element: ET.Element, style: Style) -> str:
    words = "".join(_SPELLED.get(letter, letter) for letter in element.text or "")
    size, bold = float(style.get("font-size", "10").removesuffix("px")), style.get("font-weight") == "600"
    width = sum(_WIDTHS.get(c, 556) for c in words) / 1000 * size * (1.06 if bold else 1)
    x = float(element.get("x", 0)) - width * {"end": 1.0, "middle": 0.5}.get(style.get("text-anchor", ""), 0.0)
    raw = (
        words.encode("cp1252", "replace")
        .replace(b"\\", b"\\\\")
        .replace(b"(", b"\\(")
        .replace(b")", b"\\)")
        .decode("cp1252")
    )
    shown = f"BT /{'B' if bold else 'F'} {size:g} Tf 1 0 0 -1 {x:.2f} {float(element.get('y', 0)):.2f} Tm"
    halo = f"{_colour(style['stroke'])} RG 3 w {shown} 1 Tr ({raw}) Tj ET " if "paint-order" in style else ""
    return f"{halo}{_colour(style.get('fill', '#000000'))} rg {shown} 0 Tr ({raw}) Tj ET"


def _file(width: float, height: float, content: str, shades: Sequence[tuple[float, float]]) -> bytes:
    """Objects, the table of where they lie, and the trailer."""
    stream = zlib.compress(content.encode("cp1252", "replace"), 9)
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica%s /Encoding /WinAnsiEncoding >>"
    states = " ".join(f"/G{n} << /CA {line:g} /ca {fill:g} >>" for n, (line, fill) in enumerate(shades))
    resources = f"<< /Font << /F 5 0 R /B 6 0 R >> /ExtGState << {states} >> >>"
    box = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width:g} {height:g}] /Contents 4 0 R /Resources {resources} >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        box.encode(),
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(stream), stream),
        font % b"",
        font % b"-Bold",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + trailer
