"""The training log as a picture: `python -m kvledger.zoo.curve docs/zoo/log.jsonl docs/zoo/curve.svg`.  (no torch)"""

from __future__ import annotations

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 340, 52, 34, 150, 46
COLOURS = {
    "kv": "#1b6ca8",
    "prefix_suffix": "#c8553d",
    "vt": "#588157",
    "mf": "#8e5ea2",
    "many_shot": "#d69e2e",
    "mix": "#4a5568",
}


def draw(entries: list[dict]) -> str:
    """Share of answers right in training, by task, over minutes; a rule and a length where a stage begins."""
    last = max(entry["seconds"] for entry in entries)

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / last

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = [
        _text(
            LEFT, 18, "Answers right in training, by task; a dashed rule where rows become longer (tokens)", 12, "600"
        )
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line(LEFT, y(share), WIDTH - RIGHT, y(share), "#e2e8f0"))
        parts.append(_text(LEFT - 8, y(share) + 4, f"{share:.2f}", 11, anchor="end"))
    free = 0.0  # labels that would overlap are left out
    for before, entry in zip([{}, *entries], entries, strict=False):
        if before.get("stage") != entry["stage"]:
            parts.append(_line(x(entry["seconds"]), TOP, x(entry["seconds"]), HEIGHT - BOTTOM, "#a0aec0", "3 3"))
            if x(entry["seconds"]) >= free:
                parts.append(_text(x(entry["seconds"]) + 3, TOP - 2, str(entry["length"]), 10))
                free = x(entry["seconds"]) + 28
    ends = []
    for task, colour in COLOURS.items():
        points = [(x(e["seconds"]), y(e["right"][task])) for e in entries if task in e["right"]]
        if points:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
            ends.append((points[-1][1], task, colour))
    lowest = float(TOP)
    for height, task, colour in sorted(ends):
        lowest = max(height + 4, lowest + 13)
        parts.append(_text(WIDTH - RIGHT + 8, lowest, task, 11, colour=colour))
    minutes = last / 60
    for minute in range(0, int(minutes) + 1, 10):
        parts += [_text(x(minute * 60), HEIGHT - BOTTOM + 16, str(minute), 11, anchor="middle")]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "minutes on two CPU cores", 11, anchor="middle"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _text(
    x: float, y: float, text: str, size: int, weight: str = "400", anchor: str = "start", colour: str = "#2d3748"
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{text}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "none") -> str:
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {place} stroke="{colour}" stroke-dasharray="{dash}"/>'


def main() -> None:
    log, picture = map(Path, sys.argv[1:3])
    picture.write_text(draw([json.loads(line) for line in log.read_text().splitlines()]), encoding="utf-8")


if __name__ == "__main__":
    main()
