"""How numbers are written, once for the terminal, the figures and the page.  (no torch)"""

from __future__ import annotations

import math

NONE = "–"
MINUS = "−"
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
_CONTROL = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127))


def clean(text: str) -> str:
    """Without control characters, which neither XML nor a terminal should be given."""
    return text.translate(_CONTROL)


def points(score: float | None, signed: bool = False) -> str:
    """A score of 0..1 on the 0..100 scale with one decimal."""
    if score is None or not math.isfinite(score):
        return NONE
    text = f"{abs(score) * 100:.1f}"
    sign = "" if text == "0.0" else (MINUS if score < 0 else "+" if signed else "")
    return sign + text


def percent(fraction: float | None, decimals: int = 1) -> str:
    if fraction is None or not math.isfinite(fraction):
        return NONE
    return f"{fraction * 100:.{decimals}f}\u202f%"


def size(count: float | None) -> str:
    """Bytes in binary units with three significant digits."""
    if count is None or not math.isfinite(count):
        return NONE
    unit = 0
    while abs(count) >= 1000 and unit < len(_BYTES) - 1:  # 1000, not 1024: never four digits before the point
        count, unit = count / 1024, unit + 1
    digits = 0 if unit == 0 or abs(count) >= 100 else 1 if abs(count) >= 10 else 2
    return f"{count:.{digits}f}\u202f{_BYTES[unit]}"


def seconds(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    if value < 1:
        return f"{value * 1000:.0f}\u202fms"
    return f"{value:.2f}\u202fs" if value < 10 else f"{value:.1f}\u202fs" if value < 100 else f"{value:.0f}\u202fs"


def tokens(count: float) -> str:
    """Token counts: 512, 8K for 8192, 8.2k for 8200. K is 1024 and only written where it is exact."""
    whole = round(count)
    if whole >= 1024 and whole % 1024 == 0:
        return f"{whole // 1024}K"
    if whole < 10_000:
        return f"{whole:,}".replace(",", "\u202f") if whole >= 1000 else str(whole)
    return f"{whole / 1000:.4g}k"


def keep(value: float) -> str:
    return f"{value:g}"


def count(value: int) -> str:
    """Thousands apart by a narrow space, from five digits on."""
    return f"{value:,}".replace(",", "\u202f") if value >= 10_000 else str(value)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
