"""What the CUDA reader does on the host, which needs neither GPU nor Triton: its work list, and the rule of coded rows."""

from __future__ import annotations

import torch

from kvledger.cache import kernels
from kvledger.cache.arena import Arena
from kvledger.cache.kernels.codes import Codes
from kvledger.cache.kernels.plan import FOREVER, make_plan, plan_for, tile_rows

CPU = torch.device("cpu")


def test_tiles_fill_the_processors_and_are_not_too_many() -> None:
    assert tile_rows(rows=8 * 131072, longest=131072, blocks=1, processors=132) == 1024
    assert tile_rows(rows=315_000, longest=131072, blocks=1, processors=132) == 512
    assert tile_rows(rows=64, longest=8, blocks=1, processors=132) == 128
    assert tile_rows(rows=8 * 131072, longest=131072, blocks=256, processors=132) == 131072  # a chunk: nothing to split


def test_every_segment_has_its_tiles_and_an_empty_one_has_one() -> None:
    plan = make_plan([0, 300, 300], [300, 0, 10], [300, 0, 16], [None, None, (4, 6)], 128, CPU, [300])
    assert plan.tiles.tolist() == [[0, 0], [0, 128], [0, 256], [1, 0], [2, 0]]
    assert plan.first.tolist() == [0, 3, 4, 5]
    assert plan.segments.tolist() == [[0, 300, 300], [300, 0, 10], [0, 0, 4], [FOREVER, FOREVER, 6]]
    assert (plan.seen.tolist(), plan.grown.tolist()) == ([300], [0])


def test_a_list_is_made_again_only_when_it_must_be() -> None:
    arena, rows = Arena(2, 2), torch.zeros(2, 2, 40, 8)
    arena.append(rows, rows)
    one = rows[:, :, :1]
    arena.append(one, one)  # leaves slack
    plan, gained = plan_for(arena, 0, 2, None, 1)
    mark = arena.mark()
    arena.append(one, one)
    again = plan_for(arena, 0, 2, None, 1)
    assert again[0] is plan
    assert (gained, again[1]) == (0, 1)
    arena.rollback([seen - 1 for seen in mark])
    assert plan_for(arena, 0, 2)[1] == -1
    assert arena.fork().plan is None
    arena.slide(1, 2, 20)  # one head alone
    other = plan_for(arena, 0, 2, None, 1)[0]
    assert other is not plan
    assert plan_for(arena, 0, 2, [(2, 20), None], 1)[0] is not other
    assert plan_for(arena, 0, 2)[0] is arena.plan  # where segments lie does not depend on what heads see
    for s in range(4):  # all heads alike, but no token came: positions would be wrong
        arena.slide(s, 2, 5)
    assert plan_for(arena, 0, 2, None, 1)[1] == 0


def test_codes_stand_for_scaled_and_shifted_numbers() -> None:
    code = torch.arange(16, dtype=torch.uint8).view(4, 4)
    scale, zero = torch.tensor([[1.0, 10.0], [2.0, 20.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.5]])
    packed = Codes(code[:, ::2] | code[:, 1::2] << 4, scale, zero, 2, 2, bits=4)
    assert packed.dim == 4
    expected = code.float() * scale.repeat_interleave(2, 0).repeat_interleave(2, 1)
    expected += zero.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(packed.plain(), expected)
    by_row = Codes(torch.tensor([[-3, 5]], dtype=torch.int8), torch.tensor([[0.5]]))
    assert by_row.plain().tolist() == [[-1.5, 2.5]]


def test_the_kernels_are_for_gpus() -> None:
    assert not kernels.usable(torch.zeros(1, 64))
    assert not kernels.usable(torch.zeros(1, 64, device="meta"))
