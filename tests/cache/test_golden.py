"""The meter against the closed forms of "Cache Me If You Can" (arXiv 2506.17121), as its published code counts them.

Ten heads of dimension one stand for all heads of a model: `10·h` of them stream and the others keep everything, or all of
them evict.  A real arena is read into chunk by chunk; decoding goes through the arena, too, except where it is thousands of
tokens long: there the same numbers of rows are told to the meter directly.  Scaled copies of the long ones run in full.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kvledger.cache.arena import Arena
from kvledger.cache.ledger import Ledger

HEADS, SINK, WINDOW, EXTRA = 10, 128, 1024, 64
HEAD_SPARSE = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
EVICTION = (0.1, 0.3, 0.5, 0.7, 0.9)
TABLE = [  # prompt, response, chunk; footprints of the two families in percent; peaks at h=.7 and s=.7
    (131052, 20, 32768, (92.6, 77.9, 63.2, 48.4, 33.7, 26.3), (92.6, 77.6, 62.6, 47.6, 32.6), (48.1, 47.6)),
    (131052, 20, 8192, (90.8, 72.4, 53.9, 35.5, 17.1, 7.9), (91.4, 72.6, 53.9, 35.1, 16.4), (35.0, 35.1)),
    (93000, 50, 32768, (93.5, 80.5, 67.6, 54.6, 41.6, 35.1), (93.5, 80.2, 66.9, 53.6, 40.3), (51.5, 50.8)),
    (38000, 10000, 32768, (94.9, 84.8, 74.7, 64.5, 54.4, 49.3), (95.4, 85.8, 76.2, 66.6, 57.1), (68.3, 68.3)),
    (12000, 1000, 32768, (98.7, 96.0, 93.3, 90.6, 87.9, 86.6), (98.7, 95.8, 93.0, 90.1, 87.3), (92.3, 92.3)),
    (6000, 3000, 6000, (95.3, 85.9, 76.5, 67.1, 57.7, 53.0), (96.0, 87.1, 78.3, 69.4, 60.5), (66.7, 66.7)),
    (6000, 3000, 32768, (95.3, 85.9, 76.5, 67.1, 57.7, 53.0), (96.0, 87.1, 78.3, 69.4, 60.5), (66.7, 66.7)),
]
Points = tuple[float, list[float]]  # area under the curve, entries at each point of the peak's curve


def chunks(n: int, chunk: int) -> list[int]:
    return [min(chunk, n - a) for a in range(0, n, chunk)]


# ---- the closed forms ------------------------------------------------------------------------------------------------


def full_head(n: int, m: int, chunk: int) -> Points:
    seen, points = 0, []
    for L in chunks(n, chunk):
        seen += L
        points.append(float(seen))
    return (n + m) * (n + m + 1) / 2, [*points, float(n + m)]


def streaming_head(n: int, m: int, chunk: int, sink: int = SINK, window: int = WINDOW) -> Points:
    past: Callable[[int], int] = lambda a: min(a, sink + window)  # noqa: E731
    area, points, a = 0.0, [], 0
    for L in chunks(n, chunk):
        area += L * (L + 1) / 2 + L * past(a)
        points.append(float(past(a) + L))
        a += L
    return area + sum(1 + past(t) for t in range(n, n + m)), [*points, 1.0 + past(n + m - 1)]


def evicting_head(n: int, m: int, chunk: int, s: float, extra: int = EXTRA) -> Points:
    area, points, R = 0.0, [], 0
    for L in chunks(n, chunk):
        area += L * (L + 1) / 2 + L * R
        points.append(float(R + L))
        R += min(round((1 - s) * L) + extra, L)
    return area + m * (m + 1) / 2 + m * R, [*points, float(R + m)]


def mixed(n: int, m: int, chunk: int, h: float, **sizes: int) -> tuple[float, float]:
    """Footprint and peak of a model whose share `h` of heads streams."""
    stream, full = streaming_head(n, m, chunk, **sizes), full_head(n, m, chunk)
    peak = max(h * a + (1 - h) * b for a, b in zip(stream[1], full[1])) / (n + m)
    return (h * stream[0] + (1 - h) * full[0]) / full[0], peak


def evicted(n: int, m: int, chunk: int, s: float, extra: int = EXTRA) -> tuple[float, float]:
    area, points = evicting_head(n, m, chunk, s, extra)
    return area / full_head(n, m, chunk)[0], max(points) / (n + m)


@pytest.mark.parametrize("n, m, chunk, heads, evictions, peaks", TABLE)
def test_the_closed_forms_print_the_golden_table(n, m, chunk, heads, evictions, peaks) -> None:
    rounding = 0.0501
    assert [100 * mixed(n, m, chunk, h)[0] for h in HEAD_SPARSE] == pytest.approx(heads, abs=rounding)
    assert [100 * evicted(n, m, chunk, s)[0] for s in EVICTION] == pytest.approx(evictions, abs=rounding)
    assert 100 * mixed(n, m, chunk, 0.7)[1] == pytest.approx(peaks[0], abs=rounding)
    assert 100 * evicted(n, m, chunk, 0.7)[1] == pytest.approx(peaks[1], abs=rounding)


# ---- the meter -------------------------------------------------------------------------------------------------------

Keep = Callable[[int, int, int], torch.Tensor]  # (head, rows, new rows) -> which rows stay


class Request:
    """One layer's arena and the ledger it reports to, driven by hand."""

    def __init__(self, keep: Keep, evict_in_decode: bool):
        self.ledger = Ledger()
        self.ledger.open_layer(0, 1, HEADS, HEADS, 8)
        self.arena = Arena(1, HEADS, lambda held: self.ledger.hold(0, held))
        self.keep, self.evict_in_decode = keep, evict_in_decode

    def forward(self, T: int, kind: str) -> None:
        self.ledger.kind = kind
        rows = torch.zeros(1, HEADS, T, 1)
        added = self.arena.append(rows, rows)
        self.ledger.forward(0, added, self.arena.length, self.arena.row_nbytes)
        if kind == "decode" and not self.evict_in_decode:
            return
        longest = min(self.arena.length)
        masks = torch.stack([self.keep(h, n, T)[n - longest :] for h, n in enumerate(self.arena.length)])
        dropped = self.arena.keep([masks])
        self.ledger.evict(0, self.arena.length, dropped)

    def decode_by_numbers(self, m: int, most: list[int | None]) -> None:
        """What `m` forwards of one token would tell the meter; `most[h]` rows are left in a head after each."""
        self.ledger.kind, length = "decode", list(self.arena.length)
        for _ in range(m):
            length = [n + 1 for n in length]
            self.ledger.forward(0, [1], length, self.arena.row_nbytes)
            if self.evict_in_decode:
                left = [n if cap is None else min(n, cap) for n, cap in zip(length, most)]
                self.ledger.evict(0, left, sum(length) - sum(left))
                length = left


def stream(h: float, sink: int, window: int) -> Keep:
    def keep(head: int, rows: int, new: int) -> torch.Tensor:
        index = torch.arange(rows)
        return (index < sink) | (index >= rows - window) | torch.tensor(head >= round(10 * h))

    return keep


def cut(s: float, extra: int) -> Keep:
    def keep(head: int, rows: int, new: int) -> torch.Tensor:
        mask = torch.ones(rows, dtype=torch.bool)
        mask[rows - new : rows - min(round((1 - s) * new) + extra, new)] = False
        return mask

    return keep


def measure(n: int, m: int, chunk: int, keep: Keep, most: list[int | None] | None, by_numbers: bool) -> Ledger:
    request = Request(keep, evict_in_decode=most is not None)
    for L in chunks(n, chunk):
        request.forward(L, "read")
    if by_numbers:
        request.decode_by_numbers(m, most or [None] * HEADS)
    else:
        for _ in range(m):
            request.forward(1, "decode")
    return request.ledger


def caps(h: float, sink: int, window: int) -> list[int | None]:
    return [sink + window if head < round(10 * h) else None for head in range(HEADS)]


@pytest.mark.parametrize("n, m, chunk, heads, evictions, peaks", TABLE)
def test_the_meter_prints_the_golden_table(n, m, chunk, heads, evictions, peaks) -> None:
    by_numbers = m > 50
    for h, printed in zip(HEAD_SPARSE, heads):
        ledger = measure(n, m, chunk, stream(h, SINK, WINDOW), caps(h, SINK, WINDOW), by_numbers)
        footprint, peak = mixed(n, m, chunk, h)
        assert ledger.footprint == pytest.approx(footprint, rel=1e-9)
        assert ledger.peak == pytest.approx(peak, rel=1e-9)
        assert 100 * ledger.footprint == pytest.approx(printed, abs=0.1)
        assert h != 0.7 or 100 * ledger.peak == pytest.approx(peaks[0], abs=0.1)
    for s, printed in zip(EVICTION, evictions):
        ledger = measure(n, m, chunk, cut(s, EXTRA), None, by_numbers)
        footprint, peak = evicted(n, m, chunk, s)
        assert ledger.footprint == pytest.approx(footprint, rel=1e-9)
        assert ledger.peak == pytest.approx(peak, rel=1e-9)
        assert 100 * ledger.footprint == pytest.approx(printed, abs=0.1)
        assert s != 0.7 or 100 * ledger.peak == pytest.approx(peaks[1], abs=0.1)


@pytest.mark.parametrize("n, m, chunk", [(380, 100, 328), (120, 10, 328), (60, 30, 60), (61, 30, 16)])
def test_decoding_through_the_store_counts_the_same(n: int, m: int, chunk: int) -> None:
    """The rows of the table that decode for long, at a hundredth of their lengths, through the arena to the end."""
    sizes = {"sink": 2, "window": 10}
    for h in HEAD_SPARSE:
        ledger = measure(n, m, chunk, stream(h, 2, 10), caps(h, 2, 10), by_numbers=False)
        assert (ledger.footprint, ledger.peak) == pytest.approx(mixed(n, m, chunk, h, **sizes), rel=1e-9)
    for s in EVICTION:
        ledger = measure(n, m, chunk, cut(s, 1), None, by_numbers=False)
        assert (ledger.footprint, ledger.peak) == pytest.approx(evicted(n, m, chunk, s, extra=1), rel=1e-9)
