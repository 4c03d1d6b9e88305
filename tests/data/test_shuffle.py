"""The order of an epoch: every row once, whatever the ranks, the batches and the interruptions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data.shuffle import (
    RUN,
    TILE,
    TURN,
    Cut,
    Leg,
    Order,
    Plan,
    bounds,
    deal,
    dealt,
    left,
    packed,
    quality,
    run_order,
    share,
    tiles,
    woven,
)

units = st.lists(st.integers(1, 3000), min_size=1, max_size=40)


def draw(order: Order, plan: Plan) -> list[tuple[int, int]]:
    "(unit, row) of a rank's rows, in its order."
    cuts = [cut for lane in plan.lanes for cut in lane]
    rows = np.concatenate([order.unit_order(c.unit)[c.start : c.stop] + (c.unit << 32) for c in cuts])
    begin = np.cumsum([0, *(sum(c.rows for c in lane) for lane in plan.lanes)])[:-1]
    windows = zip(plan.taken, plan.taken[1:], strict=False)
    found = rows[np.concatenate([dealt(begin + a, b - a) for a, b in windows])]
    return [(int(x) >> 32, int(x) & 0xFFFFFFFF) for x in found]


def everything(rows: list[int]) -> list[tuple[int, int]]:
    return [(unit, row) for unit, count in enumerate(rows) for row in range(count)]


@given(units, st.sampled_from([1, 2, 3, 5]), st.booleans(), st.integers(1, 16))
@settings(max_examples=40, deadline=None)
def test_every_row_comes_once(rows: list[int], world: int, shuffle: bool, lanes: int) -> None:
    order = Order(tuple(rows), 3, 1, shuffle, lanes)
    work = order.work([])
    if sum(rows) < world:
        return
    drawn = [draw(order, order.plan(work, world, rank)) for rank in range(world)]
    assert sorted(sum(drawn, [])) == everything(rows)
    assert max(map(len, drawn)) - min(map(len, drawn)) <= 1


@given(units, st.lists(st.tuples(st.sampled_from([1, 2, 3, 5]), st.floats(0, 1)), max_size=3))
@settings(max_examples=40, deadline=None)
def test_an_epoch_goes_on_with_other_ranks(rows: list[int], past: list[tuple[int, float]]) -> None:
    order, legs, drawn = Order(tuple(rows), 5), [], []
    for world, part in past:
        work = order.work(legs)
        have = sum(cut.rows for cut in work)
        if have // world < 2:
            break
        legs.append(Leg(world, int(part * (have // world - 1))))
        for rank in range(world):
            drawn += draw(order, order.plan(work, world, rank))[: legs[-1].rows]
    drawn += draw(order, order.plan(order.work(legs), 1, 0))
    assert sorted(drawn) == everything(rows)


@given(units)
@settings(max_examples=20, deadline=None)
def test_blocks_are_there_while_they_are_needed(rows: list[int]) -> None:
    order = Order(tuple(rows))
    plan = order.plan(order.work([]), 1, 0)
    for block in plan.blocks():
        stop = block.at + block.cut.rows
        needed = np.flatnonzero(
            (plan.taken[1:, block.lane] > block.at) & (plan.taken[:-1, block.lane] < stop)
        )
        assert (needed[0], needed[-1]) == (block.first, block.last)


def test_not_shuffled_is_the_order_of_the_files() -> None:
    order = Order((5, 3, 4), shuffle=False)
    assert draw(order, order.plan(order.work([]), 1, 0)) == everything([5, 3, 4])


def test_seed_and_epoch_decide() -> None:
    def first(seed: int, epoch: int) -> list[tuple[int, int]]:
        order = Order((400,) * 9, seed, epoch)
        return draw(order, order.plan(order.work([]), 1, 0))

    assert first(1, 0) == first(1, 0) and first(1, 0) != first(2, 0) and first(1, 0) != first(1, 1)


@given(st.integers(1, 9000), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_a_unit_order_is_a_permutation(rows: int, unit: int) -> None:
    assert sorted(Order((rows,) * 10, 4, 2).unit_order(unit)) == list(range(rows))


def test_any_tile_comes_from_all_of_its_unit() -> None:
    rows, found = np.arange(64 * TILE), np.empty(64 * TILE, np.int64)
    packed(rows, run_order(len(rows)), 0, found)
    assert sorted(found) == rows.tolist()
    assert all(np.ptp(part) > 0.9 * len(rows) for part in found.reshape(64, TILE))
    assert min(part.std() for part in found.reshape(64, TILE)) > 0.98 * found.std()


@pytest.mark.parametrize("rows", [5, RUN, 3 * RUN + 7, TILE, 2 * TILE + RUN + 1])
def test_tiles_are_packed_one_by_one(rows: int) -> None:
    "Any tile by itself is what it is in the whole, for rows of any shape."
    place, runs = np.arange(rows * 6).reshape(rows, 2, 3), run_order(rows)
    whole = np.empty_like(place)
    packed(place, runs, 0, whole)
    for first, order in tiles(rows, seed=1, epoch=2, unit=3):
        out = np.empty((len(order), 2, 3), np.int64)
        packed(place, runs, first, out)
        assert np.array_equal(out, whole[first : first + len(order)])
    assert np.array_equal(np.sort(whole[:, 0, 0]), place[:, 0, 0])


@given(st.lists(st.lists(st.integers(0, 20), max_size=3), min_size=1, max_size=6), st.sampled_from([1, TURN]))
@settings(max_examples=60, deadline=None)
def test_lanes_are_woven_in_turn_whatever_their_parts(sizes: list[list[int]], turn: int) -> None:
    lanes, at = [], 0
    for parts in sizes:
        lanes.append([np.arange(at + sum(parts[:k]), at + sum(parts[: k + 1])) for k in range(len(parts))])
        at += sum(parts)
    queues, want = [np.concatenate([[], *parts]).tolist() for parts in lanes], []
    starts, counts = np.array([queue[0] if queue else 0 for queue in queues]), np.array([*map(len, queues)])
    while any(queues):
        want += [queue.pop(0) for queue in queues for _ in range(min(turn, len(queue)))]
    assert woven(lanes, turn).tolist() == want
    assert turn != TURN or dealt(starts, counts).tolist() == want


def test_unit_orders_are_unlike_each_other_and_the_source() -> None:
    order = Order((4096,) * 20)
    orders = [order.unit_order(unit) for unit in range(20)] + [np.arange(4096)]
    matrix = np.abs(np.corrcoef(orders)) - np.eye(21)
    assert matrix.max() < 0.08  # 5 deviations of a perfect shuffle


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("rows", [5, 17, 96, 97, 1000])
def test_ranks_have_as_many_batches_of_nearly_one_size(rows: int, world: int, drop_last: bool) -> None:
    for batch_size in (1, 4, 16):
        sizes = [np.diff(bounds(rows, world, rank, batch_size, drop_last)) for rank in range(world)]
        assert len({len(found) for found in sizes}) == 1
        assert all((found > 0).all() and (found <= batch_size + (not drop_last)).all() for found in sizes)
        assert all(abs(a - b) <= 1 for found in sizes for a, b in zip(found, sizes[0], strict=True))
        total = sum(int(found.sum()) for found in sizes)
        assert total == rows if not drop_last else rows - total < world * (batch_size + 1)


def test_fewer_rows_than_ranks_are_one_batch_of_every_rank() -> None:
    assert [bounds(2, 3, rank, 1).tolist() for rank in range(3)] == [[0, 2]] * 3
    assert [share(2, 3, rank) for rank in range(3)] == [(0, 2)] * 3
    assert bounds(2, 3, 0, 1, drop_last=True).tolist() == [0]


@pytest.mark.parametrize("size", [8192, 1024, 256])
def test_shuffle_quality(size: int) -> None:
    order = Order((4096,) * 100)
    found = draw(order, order.plan(order.work([]), 1, 0))
    places = np.array([unit * 4096 + row for unit, row in found])
    assert quality(np.split(places, range(size, len(places), size)), len(places)) >= 0.9


def test_cuts_on_a_border_go_to_both_ranks() -> None:
    assert deal([Cut(0, 0, 5), Cut(1, 0, 6)], 2, 0) == [Cut(0, 0, 5), Cut(1, 0, 1)]
    assert deal([Cut(0, 0, 5), Cut(1, 0, 6)], 2, 1) == [Cut(1, 1, 6)]
    assert left(Plan([Cut(0, 0, 5)]), 2) == [Cut(0, 2, 5)]
