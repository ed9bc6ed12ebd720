"""The meter by hand: small requests whose sums can be checked on paper."""

from __future__ import annotations

import pytest
import torch

from kvledger.cache.arena import Arena
from kvledger.cache.ledger import Ledger, triangle

ROW = 32  # bytes of a row of a full KV head


def opened(layers: int = 1, heads: int = 2, stored: int | None = None, batch: int = 1) -> Ledger:
    ledger = Ledger()
    for layer in range(layers):
        ledger.open_layer(layer, batch, batch * (stored or heads), heads, ROW)
    return ledger


def forward(ledger: Ledger, T: int, alive: list[list[int]], kind: str = "read", row: int = ROW, probe: int = 0) -> None:
    """`alive[layer][s]` rows after `T` new tokens; the bytes held are just theirs."""
    ledger.kind = kind
    for layer, rows in enumerate(alive):
        ledger.hold(layer, sum(rows) * row)
        ledger.forward(layer, [T] * ledger.layers[layer].sequences, rows, row, probe)


def test_the_toy_of_the_paper() -> None:
    """Eight tokens, one head; the fourth row is followed by dropping two entries, the sixth by dropping one."""
    ledger = opened(heads=1)
    alive = 0
    for t in range(1, 9):
        alive += 1
        forward(ledger, 1, [[alive]], "decode")
        drop = {4: 2, 6: 1}.get(t, 0)
        alive -= drop
        ledger.evict(0, [alive], drop)
    area = 1 + 2 + 3 + 4 + 3 + 4 + 4 + 5
    assert ledger.footprint == area / 36
    assert ledger.dropped == 3


@pytest.mark.parametrize("parts", [[12], [5, 7], [1] * 12, [4, 4, 4]])
def test_a_full_cache_is_one_however_it_is_read(parts: list[int]) -> None:
    ledger, seen = opened(layers=2), 0
    for T in parts:
        seen += T
        forward(ledger, T, [[seen, seen]] * 2)
    assert ledger.footprint == ledger.byte_footprint == ledger.peak == 1
    assert ledger.footprint_by_head == [[1, 1], [1, 1]]
    assert ledger.stored_bytes == ledger.full_bytes == ledger.peak_bytes == ledger.full_peak_bytes == 4 * 12 * ROW
    assert sum(book.full_area for book in ledger.layers.values()) == 2 * triangle(12, 0)


def test_each_head_has_its_own_figure() -> None:
    ledger = opened(layers=2)
    forward(ledger, 10, [[10, 10]] * 2)
    for layer, left in enumerate(([4, 10], [0, 1])):
        ledger.hold(layer, sum(left) * ROW)
        ledger.evict(layer, left, 20 - sum(left))
    forward(ledger, 2, [[6, 12], [2, 3]], "ask")
    full = triangle(12, 0)
    expected = [[(55 + 3 + 2 * P) / full for P in layer] for layer in ((4, 10), (0, 1))]
    assert ledger.footprint_by_head == expected
    assert ledger.footprint == pytest.approx(sum(map(sum, expected)) / 4)
    assert ledger.dropped == 6 + 19
    assert ledger.bytes_read_per_step == (0, 0)


def test_several_turns_are_one_sum() -> None:
    ledger = opened(heads=1)
    forward(ledger, 10, [[10]])
    ledger.evict(0, [3], 7)
    forward(ledger, 4, [[7]], "ask")
    forward(ledger, 1, [[8]], "decode")
    forward(ledger, 5, [[13]], "ask")
    forward(ledger, 1, [[14]], "decode")
    area = 55 + (10 + 4 * 3) + 8 + (15 + 5 * 8) + 14
    assert ledger.footprint == area / triangle(21, 0)
    assert ledger.peak == 14 / 21
    assert ledger.bytes_read_per_step == ((8 + 14) * ROW // 2, (15 + 21) * ROW // 2)
    assert ledger.curve() == (
        (10, 10.0, "read"),
        (10, 3.0, "evict"),
        (14, 7.0, "ask"),
        (15, 8.0, "decode"),
        (20, 13.0, "ask"),
        (21, 14.0, "decode"),
    )


def test_the_floor_is_what_the_chunks_alone_cost() -> None:
    ledger = opened(heads=1)
    forward(ledger, 8, [[8]])
    ledger.evict(0, [6], 2)
    forward(ledger, 4, [[10]])
    ledger.evict(0, [7], 3)
    forward(ledger, 1, [[8]], "decode")
    assert ledger.floor == (36 + 10 + 1) / triangle(13, 0)
    assert ledger.floor < ledger.footprint


def test_rolling_back_keeps_the_cost_and_forgets_the_tokens() -> None:
    ledger = opened(heads=1)
    forward(ledger, 6, [[6]])
    for n in (7, 8):
        forward(ledger, 1, [[n]], "decode")
    ledger.rollback(0, [6], 2)
    assert ledger.full_bytes == 6 * ROW
    forward(ledger, 3, [[9]], "ask")
    full = 21 + 7 + 8 + triangle(3, 6)
    assert ledger.layers[0].full_area == full
    assert ledger.footprint == 1


def test_probes_cost_here_and_not_in_the_full_cache() -> None:
    ledger = opened(heads=1)
    forward(ledger, 6, [[6]], probe=2)
    ledger.rollback(0, [4], 2, probe=True)
    assert ledger.footprint == triangle(6, 0) / triangle(4, 0)
    assert ledger.full_bytes == 4 * ROW
    assert ledger.peak == 6 / 4


def test_a_fork_has_its_own_books() -> None:
    trunk = opened()
    forward(trunk, 5, [[5, 5]])
    twin = trunk.fork()
    forward(twin, 3, [[8, 8]], "ask")
    assert (trunk.full_bytes, twin.full_bytes) == (10 * ROW, 16 * ROW)
    assert len(trunk.steps) == 1
    assert trunk.layers[0].full_area == triangle(5, 0)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rows_stored_per_query_head_cost_their_number(groups: int) -> None:
    ledger = opened(heads=2, stored=2 * groups)
    forward(ledger, 7, [[7] * 2 * groups])
    assert ledger.footprint == ledger.byte_footprint == groups
    assert ledger.stored_bytes == groups * ledger.full_bytes
    assert ledger.footprint_by_head == [[1.0] * 2 * groups]


def test_metadata_and_slack_count_in_bytes_only() -> None:
    ledger = opened(heads=1)
    ledger.hold(0, 10 * (ROW + 2) + 100)
    ledger.forward(0, [10], [10], ROW + 2)
    assert ledger.footprint == 1
    assert ledger.byte_footprint == (55 * (ROW + 2) + 10 * 100) / (55 * ROW)


def test_padded_sequences_count_their_own_tokens() -> None:
    ledger = opened(heads=1, batch=2)
    ledger.forward(0, [6, 2], [6, 2], ROW)
    ledger.forward(0, [1, 1], [7, 3], ROW)
    assert ledger.layers[0].full_area == triangle(7, 0) + triangle(3, 0)
    assert ledger.footprint == 1
    assert ledger.full_bytes == 10 * ROW


def test_bytes_left_alone_are_on_both_sides() -> None:
    ledger = opened(heads=1)
    forward(ledger, 4, [[4]])
    ledger.hold_other(1000)
    assert ledger.stored_bytes == 4 * ROW + 1000
    assert ledger.full_bytes == 4 * ROW + 1000
    assert ledger.peak_bytes == ledger.full_peak_bytes == 4 * ROW + 1000


def test_the_curve_keeps_the_ends_of_long_answers() -> None:
    ledger = opened(heads=1)
    forward(ledger, 3, [[3]])
    for n in range(4, 40):
        forward(ledger, 1, [[n]], "decode")
    assert ledger.curve() == ((3, 3.0, "read"), (4, 4.0, "decode"), (39, 39.0, "decode"))


def test_what_the_store_tells_is_what_it_holds() -> None:
    ledger = opened(heads=2)
    arena = Arena(1, 2, lambda held: ledger.hold(0, held))
    k = torch.randn(1, 2, 50, 4)
    arena.append(k, k)
    ledger.forward(0, [50], arena.length, arena.row_nbytes)
    arena.keep([torch.arange(50)[None].expand(2, -1) % 5 == 0])
    ledger.evict(0, arena.length, 80)
    assert arena.position is not None
    assert ledger.stored_bytes == arena.k.nbytes + arena.v.nbytes + arena.position.nbytes == 20 * (ROW + 2)
    assert ledger.peak_bytes >= 2 * 50 * ROW + 20 * ROW // 2


def test_an_unused_ledger_is_all_zeros() -> None:
    ledger = Ledger()
    assert (ledger.footprint, ledger.byte_footprint, ledger.peak, ledger.floor) == (0, 0, 0, 0)
    assert (ledger.stored_bytes, ledger.full_bytes, ledger.dropped, ledger.curve()) == (0, 0, 0, ())
