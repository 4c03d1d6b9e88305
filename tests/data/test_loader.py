"""Batches of a feed: every accepted row once, the same ones every time, nothing left behind."""

import gc
import json
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from workbench.base.errors import BadFeed, BadInput, Unavailable
from workbench.base.records import runs
from workbench.data.contract import Column, Contract
from workbench.data.feed import Feed, write_parquet
from workbench.data.loader import Batches, shape_of
from workbench.data.packing import Piece, pack
from workbench.data.recipe import Recipe
from workbench.data.shuffle import quality

ROWS = 3000
CONTRACT = Contract(
    "numbers",
    {
        "row": Column("int"),
        "value": Column("float", nullable=True),
        "carrier": Column("str", isin=("AA", "UA")),
        "late": Column("bool", role="outcome"),
    },
    error_budget=0.5,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def table(rows: int = ROWS) -> pa.Table:
    return pa.table({"row": np.arange(rows), "half": np.arange(rows, dtype=np.float32) / 2})


def pieces(rows: int = ROWS, size: int = 100, pause_s: float = 0.0, seed: int = 0) -> list[Piece]:
    "Row groups, each of which takes its time."
    whole, rng = table(rows), random.Random(seed)

    def piece(at: int) -> Piece:
        part = whole.slice(at, size)

        def read(names: Any) -> pa.Table:
            time.sleep(rng.random() * pause_s)
            return part.select(list(names))

        return Piece("numbers.parquet", at // size, part.num_rows, read)

    return [piece(at) for at in range(0, rows, size)]


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    "Row groups of a hundred rows are units of their own."
    monkeypatch.setattr("workbench.data.packing.UNIT_ROWS", 100)


def loader(found: list[Piece], columns: Any = "row", **how: Any) -> Batches:
    packing = pack(table(1).schema, columns)
    return Batches(found, packing, shape_of(packing, False), **{"batch_size": 64, "device": "numpy", **how})


def drawn(batches: Any) -> list[int]:
    return (
        np.concatenate([np.asarray(batch).reshape(len(batch), -1)[:, 0] for batch in batches])
        .astype(int)
        .tolist()
    )


def left_over() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("workbench")]


# --- order


def test_threads_and_their_timing_do_not_show(small_units: None) -> None:
    calm = drawn(loader(pieces(), threads=1))
    for seed in range(4):
        assert (
            drawn(loader(pieces(pause_s=0.004, seed=seed), threads=3 - seed % 2, prefetch=1 + seed)) == calm
        )
    assert drawn(loader(pieces(), batch_size=500)) == calm  # nor does the batch size
    assert sorted(calm) == list(range(ROWS)) and calm != sorted(calm)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_row_once_over_ranks_with_as_many_batches(small_units: None, world: int) -> None:
    found = [list(loader(pieces(), rank=rank, world=world)) for rank in range(world)]
    assert Counter(sum(map(drawn, found), [])) == Counter(range(ROWS))
    assert {len(batches) for batches in found} == {len(loader(pieces(), world=world))}
    assert all(abs(len(a) - len(b)) <= 1 for batches in found for a, b in zip(batches, found[0], strict=True))


def test_drop_last_leaves_out_other_rows_each_epoch(small_units: None) -> None:
    batches = loader(pieces(), batch_size=700, drop_last=True)
    first, second = drawn(batches), drawn(batches)
    assert len(first) == len(second) == 2800 and set(first) != set(second)
    assert [len(batch) for batch in batches] == [700] * 4


def test_a_pass_is_an_epoch_and_epochs_differ(small_units: None) -> None:
    batches = loader(pieces())
    first, second = drawn(batches), drawn(batches)
    assert first != second and sorted(first) == sorted(second) and batches.epoch == 2
    assert second == drawn(loader(pieces(), epoch=1))


def test_without_shuffle_it_is_the_order_of_the_file(small_units: None) -> None:
    assert drawn(loader(pieces(), shuffle=False)) == list(range(ROWS))


@pytest.mark.parametrize("size", [64, 256])
def test_batches_are_well_shuffled(small_units: None, size: int) -> None:
    batches = [np.asarray(batch) for batch in loader(pieces(), batch_size=size)]
    assert quality(batches[:-1], ROWS) >= 0.9


@pytest.mark.parametrize("unit, cached", [(104, False), (104, True), (101, False)])
def test_rows_that_are_copied_together_may_be_cut_anywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unit: int, cached: bool
) -> None:
    "Units of whole turns of eight rows, and others: one order, whatever the batches and where it goes on."
    monkeypatch.setattr("workbench.data.packing.UNIT_ROWS", unit)
    found, how = pieces(unit * 30, unit), {"cache": tmp_path} if cached else {}
    whole = drawn(loader(found, batch_size=64, **how))
    assert sorted(whole) == list(range(unit * 30))
    for size, steps in ((7, 11), (8, 3), (33, 40), (500, 2)):
        batches = loader(found, batch_size=size, **how)
        passing = iter(batches)
        begun = np.concatenate([next(passing) for _ in range(steps)]).tolist()
        passing.close()
        assert begun == whole[: size * steps]
        assert drawn(loader(found, batch_size=50, **how).resume(batches.state())) == whole[size * steps :]


@pytest.mark.parametrize("size, cached", [(100, False), (100, True), (40, False)])
def test_arrays_keep_to_their_rows(small_units: None, tmp_path: Path, size: int, cached: bool) -> None:
    "Pictures and numbers of a row stay together, whatever a unit is made of."
    rows = np.arange(ROWS)
    pixels = ((rows[:, None] + np.arange(12)) % 251).astype(np.uint8)
    images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(12), ROWS, [None, pa.py_buffer(pixels.tobytes())])
    whole = pa.table({"row": rows, "image": images})
    found = [
        Piece(
            "pictures.parquet",
            at // size,
            size,
            lambda names, at=at: whole.slice(at, size).select(list(names)),
        )
        for at in range(0, ROWS, size)
    ]
    packing, seen = pack(whole.schema, {"row": "row", "image": "image"}), []
    batches = Batches(
        found, packing, shape_of(packing, True), 64, device="numpy", cache=tmp_path if cached else None
    )
    for _ in range(2):
        for batch in batches:
            assert np.array_equal(batch["image"], pixels[batch["row"]])
            seen += batch["row"].tolist()
    assert Counter(seen) == Counter(rows.tolist() * 2)


def test_batches_larger_than_the_data(small_units: None) -> None:
    assert [len(batch) for batch in loader(pieces(), batch_size=10**6)] == [ROWS]


# --- resume


@pytest.mark.parametrize("step", [1, 7, 20, 46])
def test_a_state_goes_on_bit_for_bit(small_units: None, step: int) -> None:
    whole = [batch.tolist() for batch in loader(pieces())]
    first = loader(pieces())
    passing = iter(first)
    assert [next(passing).tolist() for _ in range(step)] == whole[:step]
    state = json.loads(json.dumps(first.state()))
    passing.close()
    second = loader(pieces(pause_s=0.002)).resume(state)
    assert len(second) == len(whole) - step
    assert [batch.tolist() for batch in second] == whole[step:]
    assert second.epoch == 1


def test_states_over_other_ranks_and_batch_sizes(small_units: None) -> None:
    rng, seen = random.Random(0), Counter[int]()
    state = None
    for world in (2, 3, 1, 5, 5, 2):
        size = rng.choice([16, 33, 64])
        ranks = [loader(pieces(), rank=rank, world=world, batch_size=size) for rank in range(world)]
        steps, states = rng.randrange(2, 5), []
        for batches in ranks:
            batches.resume(state) if state else None
            passing = iter(batches)
            for _ in range(steps):
                seen.update(next(passing).tolist())
            passing.close()
            states.append(batches.state())
        assert all(other == states[0] for other in states)
        state = states[0]
    seen.update(drawn(loader(pieces()).resume(state)))
    assert seen == Counter(range(ROWS)) and len(json.dumps(state)) < 300


def test_twenty_random_places_resume_over_other_ranks(small_units: None) -> None:
    "From each, what is drawn before and after is every row once, and the same again."
    rng = random.Random(20)
    for _ in range(20):
        before, after, size = rng.randrange(1, 5), rng.randrange(1, 6), rng.choice([16, 50, 64])
        ranks = [loader(pieces(), rank=rank, world=before, batch_size=size) for rank in range(before)]
        steps, seen = rng.randrange(1, len(ranks[0])), Counter[int]()
        for batches in ranks:
            passing = iter(batches)
            for _ in range(steps):
                seen.update(next(passing).tolist())
            passing.close()
        state = ranks[0].state()
        rest = [
            [drawn(loader(pieces(), rank=rank, world=after).resume(state)) for rank in range(after)]
            for _ in range(2)
        ]
        assert rest[0] == rest[1] and seen + Counter(sum(rest[0], [])) == Counter(range(ROWS))


def test_the_last_row_is_dealt_to_each_of_more_ranks(small_units: None) -> None:
    alone = loader(pieces(), batch_size=ROWS - 1)
    passing = iter(alone)
    first = next(passing).tolist()
    passing.close()
    ranks = [loader(pieces(), rank=rank, world=3).resume(alone.state()) for rank in range(3)]
    rest = [drawn(batches) for batches in ranks]
    assert rest == [rest[0]] * 3 and sorted(first + rest[0]) == list(range(ROWS))
    assert [batches.epoch for batches in ranks] == [1] * 3


def test_a_dropped_pass_counts_for_nothing(small_units: None) -> None:
    batches = loader(pieces())
    one = next(iter(batches)).tolist()
    assert drawn(batches)[:64] == one


def test_a_state_of_other_data_is_refused() -> None:
    state = loader(pieces()).state()
    with pytest.raises(BadInput, match="other data"):
        loader(pieces(rows=2900)).resume(state)
    with pytest.raises(BadInput, match="version 7"):
        loader(pieces()).resume({**state, "version": 7})


# --- ends


def test_errors_of_readers_reach_the_loop_where_they_belong(small_units: None) -> None:
    def broken(names: Any) -> pa.Table:
        raise OSError("Unexpected end of stream")

    found = pieces()
    found[7] = Piece("numbers.parquet", 7, 100, broken)
    with pytest.raises(BadFeed, match="numbers.parquet, row group 7: OSError: Unexpected end of stream"):
        drawn(loader(found))
    found[7] = Piece("numbers.parquet", 7, 101, pieces()[7].read)
    with pytest.raises(BadFeed, match="row group 7: 100 rows came, 101 were announced"):
        drawn(loader(found))
    assert not left_over()


def test_nothing_is_left_of_an_iterator_that_is_dropped(small_units: None) -> None:
    for _ in range(3):
        for _batch in loader(pieces(pause_s=0.01), prefetch=1):
            break
        gc.collect()
        assert not left_over()
    with pytest.raises(KeyboardInterrupt):
        for _batch in loader(pieces()):
            raise KeyboardInterrupt
    gc.collect()
    assert not left_over()


def test_a_unit_of_many_slow_pieces_ends_at_the_next_piece() -> None:
    began_at = time.monotonic()
    passing = loader(pieces(pause_s=0.0, size=10), threads=1)
    passing.units = [
        tuple(
            Piece(p.file, p.number, p.rows, lambda names, p=p: time.sleep(0.05) or p.read(names))
            for p in unit
        )
        for unit in passing.units
    ]
    running = iter(passing)
    with pytest.raises(Unavailable):
        passing.timeout_s = 0.2
        next(running)
    assert time.monotonic() - began_at < 3 and not left_over()


def test_a_read_that_hangs_is_named(small_units: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.data.loader.JOIN_S", 0.1)
    gate = threading.Event()

    def hangs(names: Any) -> pa.Table:
        gate.wait(20)
        return table(100)

    found = [Piece("numbers.parquet", 3, 100, hangs)]
    with pytest.raises(
        Unavailable, match=r"no batch for 0.2 s: read of numbers.parquet, row group 3 has not moved"
    ):
        try:
            drawn(loader(found, timeout_s=0.2))
        finally:
            gate.set()


def test_batches_that_are_kept_stay_as_they_are(small_units: None) -> None:
    kept = list(loader(pieces(), device="cpu"))
    copies = [batch.clone() for batch in loader(pieces(), device="cpu")]
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    assert sorted(torch.cat(kept).tolist()) == list(range(ROWS))


def test_memory_is_used_again(small_units: None) -> None:
    places = {batch.data_ptr() for batch in loader(pieces(20_000), batch_size=8192, device="cpu", prefetch=1)}
    batches = loader(pieces(800_000, 8000), batch_size=8192, device="cpu", prefetch=1)
    assert len({batch.data_ptr() for batch in batches}) < len(batches) / 2 and places


@pytest.mark.parametrize(
    "how",
    [{"batch_size": 0}, {"batch_size": 1.5}, {"rank": 2, "world": 2}, {"world": 0}, {"world": ROWS + 1}],
)
def test_what_cannot_be(how: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        loader(pieces(), **how)


# --- cache


def test_the_cache_changes_nothing_and_reads_nothing(small_units: None, tmp_path: Path) -> None:
    plain = loader(pieces())
    expected = [drawn(plain) for _ in range(2)]
    cached = loader(pieces(), cache=tmp_path / "c")
    assert [drawn(cached) for _ in range(2)] == expected
    unread = [Piece(p.file, p.number, p.rows, lambda names: pytest.fail("read")) for p in pieces()]
    assert drawn(loader(unread, cache=tmp_path / "c", epoch=1)) == expected[1]


def test_damage_in_the_cache_is_read_again(
    small_units: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    expected = drawn(loader(pieces(), cache=tmp_path))
    files = sorted(tmp_path.glob("*.rows"))
    assert len(files) == 30 and not list(tmp_path.glob(".*"))
    for number, file in enumerate(files[:6]):
        data = bytearray(file.read_bytes())
        data = [data[:-9], data[:1], bytearray(len(data)), b"", data + b"x"][number % 5] if number else data
        if not number:
            data[400] ^= 1
        file.write_bytes(data)
    assert drawn(loader(pieces(), cache=tmp_path)) == expected
    unread = [Piece(p.file, p.number, p.rows, lambda names: pytest.fail("read")) for p in pieces()]
    assert drawn(loader(unread, cache=tmp_path)) == expected


def test_a_full_disk_costs_the_cache_only(
    small_units: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, view: memoryview) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workbench.data.cache._write", full)
    assert sorted(drawn(loader(pieces(), cache=tmp_path / "c"))) == list(range(ROWS))
    assert not list((tmp_path / "c").iterdir())


# --- feeds


def frame(rows: int = ROWS, bad: int = 40) -> pl.DataFrame:
    at = np.arange(rows)
    carriers = np.array(["AA", "UA"])[at % 2].astype(object)
    carriers[:: rows // bad] = "ZZ"
    values = pl.Series([None if x % 7 == 0 else float(x) for x in at], dtype=pl.Float64)
    return pl.DataFrame({"row": at, "value": values, "carrier": carriers.astype(str), "late": at % 3 == 0})


@pytest.fixture(params=["parquet", "csv", "jsonl"])
def feed(request: pytest.FixtureRequest, project: Path) -> Feed:
    path = project / f"numbers.{request.param}"
    match request.param:
        case "parquet":
            write_parquet(path, frame())
        case "csv":
            frame().write_csv(path)
        case _:
            frame().write_ndjson(path)
    return Feed(path, CONTRACT)


def test_refused_rows_never_come_out(feed: Feed) -> None:
    x, label = zip(*feed.batches(256, ["row", "value"], "late", device="numpy"), strict=True)
    rows = np.concatenate(x)
    good = frame().filter(pl.col("carrier") != "ZZ")
    assert sorted(rows[:, 0].astype(int).tolist()) == good["row"].to_list()
    assert feed.report.refused == ROWS - len(rows) > 0
    assert np.array_equal(np.isnan(rows[:, 1]), rows[:, 0] % 7 == 0)
    assert np.array_equal(np.concatenate(label), (rows[:, 0] % 3 == 0).astype(np.float32))


def test_the_check_is_done_once(feed: Feed) -> None:
    for epoch in range(3):
        next(iter(feed.batches(64, ["row"], epoch=epoch)))
    assert len(runs(kind="check")) == 1


def test_filters_hold(feed: Feed) -> None:
    rows = drawn(feed.where("row < 500 and late").batches(64, "row", device="numpy"))
    assert rows and max(rows) < 500 and all(row % 3 == 0 for row in rows)


def test_what_is_asked_for_is_what_comes(feed: Feed) -> None:
    asked = {"x": ["value", "row"], "code": "carrier", "late": "late"}
    batch = next(iter(feed.batches(128, asked)))
    assert {name: (t.dtype, tuple(t.shape)) for name, t in batch.items()} == {
        "x": (torch.float32, (128, 2)), "code": (torch.int64, (128,)), "late": (torch.bool, (128,)),
    }  # fmt: skip
    assert torch.equal(batch["code"], batch["x"][:, 1].long() % 2 + 1)
    assert set(next(iter(feed.batches(128, ["row"]))).shape) == {128, 1}


@pytest.mark.parametrize(
    "how, says",
    [
        ({"columns": ["rwo"]}, "no column 'rwo'"),
        ({"columns": {"label": "row"}}, "called 'label'"),
        ({"columns": {"v": "value", "r": []}}, "names no column"),
        ({"lane": 3}, "no 'lane'"),
        ({"device": "tpu9"}, "tpu9"),
    ],
)
def test_what_cannot_be_asked_for(feed: Feed, how: dict[str, Any], says: str) -> None:
    with pytest.raises((BadInput, RuntimeError), match=says):
        feed.batches(**how)


def numbers(columns: Any) -> dict[str, np.ndarray]:
    return {"value": columns["value"], "carrier": columns["carrier"]}


def is_late(columns: Any) -> np.ndarray:
    return columns["late"]


def test_a_recipe_gives_what_it_gives_on_the_whole_feed(feed: Feed) -> None:
    recipe = Recipe(f"{__name__}:numbers", f"{__name__}:is_late", ("value",), ("carrier",)).fit(
        feed.columns()
    )
    x, y = zip(*feed.batches(256, label="recipe", recipe=recipe, shuffle=False, device="numpy"), strict=True)
    assert np.array_equal(np.concatenate(x), recipe.encode(feed.columns()))
    assert np.array_equal(np.concatenate(y), recipe.labels(feed.columns()))
    cached = feed.batches(256, recipe=recipe, cache=True, device="numpy")
    assert drawn(cached) == drawn(feed.batches(256, recipe=recipe, device="numpy"))


def test_pictures_are_tensors_of_bytes(project: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (500, 4, 6), np.uint8)
    images = pa.array([picture.tobytes() for picture in pixels], pa.binary(24))
    write_parquet(project / "p.parquet", pa.table({"image": images, "row": np.arange(500)}))
    contract = Contract("pictures", {"image": Column("image", shape=(4, 6)), "row": Column("int")})
    for batch in Feed("p.parquet", contract).batches(64, {"image": "image", "row": "row"}):
        assert batch["image"].dtype == torch.uint8
        assert np.array_equal(batch["image"].numpy(), pixels[batch["row"].numpy()])


def test_missing_whole_numbers_are_refused_beforehand(project: Path) -> None:
    write_parquet(project / "n.parquet", pl.DataFrame({"n": [1, None, 3]}))
    feed = Feed("n.parquet", Contract("n", {"n": Column("int", nullable=True)}))
    with pytest.raises(BadInput, match="'n' may be missing"):
        feed.batches(2, ["n"])


def test_it_says_what_it_is() -> None:
    batches = loader(pieces(), world=2, rank=1)
    assert str(batches) == "Batches of 64 from 3,000 rows in 1 units, epoch 0, rank 1 of 2"
    assert "row" in batches._repr_html_()
