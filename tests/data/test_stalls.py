"""The stall meter: injected stalls are found, with their share, whoever's loader it is; what hangs is named."""

import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from workbench.base import events
from workbench.base.records import Ledger, start
from workbench.data.loader import Batches, shape_of
from workbench.data.packing import Piece, pack
from workbench.data.stalls import Span, Stalls, blame, stage, stalls, stuck

POINTS = 0.05


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    text = io.StringIO()
    events.configure("json", text)
    yield text
    events.configure("text")


def busy(seconds: float) -> None:
    "Work, not sleep, for so much time of this thread."
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(500))


class Slow:
    "A packing that is slow where a test wants it."

    def __init__(self, packing: Any, decode_s: float) -> None:
        self.inner, self.columns, self.fields, self.decode_s = (
            packing,
            packing.columns,
            packing.fields,
            decode_s,
        )

    def open(self, table: pa.Table) -> Any:
        time.sleep(self.decode_s)
        return self.inner.open(table)


def feed(monkeypatch: pytest.MonkeyPatch, units: int, read_s: float = 0.0, decode_s: float = 0.0) -> Batches:
    "A hundred rows a unit; one reader."
    monkeypatch.setattr("workbench.data.packing.UNIT_ROWS", 100)
    table = pa.table({"row": range(100)})

    def read(names: Any) -> pa.Table:
        time.sleep(read_s)
        return table

    packing = pack(table.schema, "row")
    pieces = [Piece("numbers.parquet", number, 100, read) for number in range(units)]
    return Batches(
        pieces, Slow(packing, decode_s), shape_of(packing, False), 100, threads=1, lanes=1, device="numpy"
    )


@pytest.mark.parametrize("guilty", ["read", "decode"])
def test_stalls_of_our_loader_are_found(monkeypatch: pytest.MonkeyPatch, guilty: str) -> None:
    "25 units of 20 ms behind 10 ms of compute each: half of the time is waiting."
    batches = feed(monkeypatch, 25, **{f"{guilty}_s": 0.02})
    with stalls(show=False) as s:
        began, waited = time.perf_counter(), 0.0
        passing = iter(batches)
        for _ in range(25):
            asked = time.perf_counter()
            next(passing)
            waited += time.perf_counter() - asked
            time.sleep(0.01)
        passing.close()
        truth = waited / (time.perf_counter() - began)
    assert s.guilty == guilty and s.batches == 25
    assert s.share == pytest.approx(truth, abs=POINTS) and 0.2 < truth < 0.9  # a busy machine waits more
    assert truth - 3 * POINTS <= s.shares()[guilty] <= truth + POINTS  # on a busy machine the rest waits too


@pytest.mark.parametrize("guilty", ["shuffle", "copy"])
def test_stalls_of_the_gathering_thread_are_found(monkeypatch: pytest.MonkeyPatch, guilty: str) -> None:
    batches = feed(monkeypatch, 10)
    batches.batch_size = 100

    class Landing:
        def room(self, packing: Any, rows: int) -> Any:
            with stage(guilty):
                time.sleep(0.03)
            return [field.empty(rows) for field in packing.fields]

        def send(self, arrays: Any) -> Any:
            return arrays

        receive = send

    monkeypatch.setattr("workbench.data.loader.CHUNK", 100)
    monkeypatch.setattr("workbench.data.loader.CHUNK_ROWS", 100)
    batches._landing = Landing()
    with stalls(show=False) as s:
        for _batch in batches:
            time.sleep(0.01)
    assert s.guilty == guilty and s.shares()[guilty] == pytest.approx(s.share, abs=POINTS)
    assert s.share == pytest.approx(0.67, abs=0.15)


def test_stages_of_the_loop_itself() -> None:
    with stalls(show=False) as s:
        for _ in range(5):
            with s.stage("check"):
                time.sleep(0.02)
            with s.stage("copy"):
                time.sleep(0.01)
            with s.stage("checkpoint"):
                time.sleep(0.03)
            time.sleep(0.04)
    truth = {"check": 0.2, "copy": 0.1, "checkpoint": 0.3, "compute": 0.4}
    assert {name: s.shares()[name] for name in truth} == pytest.approx(truth, abs=POINTS)
    assert s.share == pytest.approx(0.3, abs=POINTS) and sum(s.shares().values()) == pytest.approx(1)


def test_a_loader_that_says_nothing_and_one_with_threads_that_do() -> None:
    waits: list[float] = []

    def foreign() -> Iterator[int]:
        for _ in range(5):
            asked = time.perf_counter()
            time.sleep(0.03)
            waits.append(time.perf_counter() - asked)
            yield 1

    with stalls(show=False) as s:
        for _ in s.watch(foreign()):
            time.sleep(0.02)
    assert s.guilty == "load" and s.batches == 5
    assert s.share == pytest.approx(sum(waits) / s.wall_s, abs=POINTS)
    waits.clear()

    def worker(done: threading.Event) -> None:
        with stage("decode"):
            time.sleep(0.03)
        done.set()

    def threaded() -> Iterator[int]:
        for _ in range(5):
            asked, done = time.perf_counter(), threading.Event()
            threading.Thread(target=worker, args=(done,)).start()
            done.wait()
            waits.append(time.perf_counter() - asked)
            yield 1

    with stalls(show=False) as s:
        for _ in s.watch(threaded()):
            time.sleep(0.02)
    assert s.guilty == "decode"
    assert s.shares()["decode"] == pytest.approx(sum(waits) / s.wall_s, abs=POINTS)


def test_a_data_loader_of_torch_is_watched() -> None:
    import torch

    class Rows(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, row: int) -> int:
            time.sleep(0.01)
            return row

    waited = 0.0
    with stalls(show=False) as s:
        began = asked = time.perf_counter()
        for _ in s.watch(torch.utils.data.DataLoader(Rows(), batch_size=4)):
            waited += time.perf_counter() - asked
            time.sleep(0.04)
            asked = time.perf_counter()
        truth = waited / (time.perf_counter() - began)
    assert s.guilty == "load" and s.batches == 6 and s.share == pytest.approx(truth, abs=POINTS)


def test_batches_are_counted_once_when_our_loader_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    with stalls(show=False) as s:
        for _ in s.watch(feed(monkeypatch, 7)):
            pass
    assert s.batches == 7


def test_reading_is_sleep_and_decoding_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    "One call that reads and decodes is told apart by what the thread did."
    batches = feed(monkeypatch, 8)
    table = pa.table({"row": range(100)})

    def read(names: Any) -> pa.Table:
        time.sleep(0.02)
        busy(0.02)
        return table

    batches.units = [(Piece("numbers.parquet", n, 100, read),) for n in range(8)]
    with stalls(show=False) as s:
        list(batches)
    assert s.stages["read"] > 0.1 and s.stages["decode"] > 0.1  # seconds, of 0.16 each


def test_nested_stages_count_each_second_once() -> None:
    with stalls(show=False) as s, stage("read"):
        time.sleep(0.02)
        with stage("decode"):
            time.sleep(0.04)
        time.sleep(0.02)
    assert s.seconds["read"] == pytest.approx(0.04, abs=0.02) and s.seconds["decode"] == pytest.approx(
        0.04, abs=0.02
    )


def test_blame_is_by_time_of_others_during_the_wait() -> None:
    wait = Span(1, "load", 10.0, 12.0)
    newest_first = [
        Span(2, "read", 11.0, 13.0),
        Span(3, "decode", 10.0, 11.0),
        Span(1, "copy", 10, 11),
        Span(2, "x", 9, 10),
    ]
    assert blame(wait, newest_first) == {"read": 1.0, "decode": 1.0}
    assert blame(wait, []) == {"load": 2.0}


def test_what_hangs_is_named_while_it_hangs(log: io.StringIO) -> None:
    gate, begun = threading.Event(), threading.Event()

    def hangs() -> None:
        with stage("read", "s3://x/part 3"):
            begun.set()
            gate.wait(20)

    thread = threading.Thread(target=hangs)
    thread.start()
    begun.wait(20)
    time.sleep(0.2)  # it hangs for longer than the loop's patience when the loop begins

    def loop() -> Iterator[int]:
        while "has not moved" not in log.getvalue():
            time.sleep(0.01)
        gate.set()
        thread.join()
        yield 1

    with stalls("training", quiet_s=0.1, show=False) as s:
        for _ in s.watch(loop()):
            pass
    assert s.notes and s.notes[0].startswith("read of s3://x/part 3 has not moved for")
    assert '"what": "training"' in log.getvalue() and not stuck(0)


def test_a_step_that_hangs_is_compute(log: io.StringIO) -> None:
    with stalls(quiet_s=0.05, show=False) as s:
        while not s.notes:
            time.sleep(0.01)
    assert s.notes[0].startswith("compute has not moved")


def test_it_is_in_the_run_and_on_the_display(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.data.stalls.SHOW_EVERY_S", 0.0)
    with start("fit", "x", ledger=ledger) as run, stalls("loop") as s:
        for _ in s.watch(range(3)):
            with s.stage("checkpoint"):
                time.sleep(0.01)
        state = s._tracker.state
    assert run.metrics["waiting"] < 0.5 < run.metrics["stall_checkpoint"]
    assert state.done == 3 and "waiting for data" in state.stage and state.curves["waiting"]


def test_stop_stops_any_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.base.errors import Stopped

    monkeypatch.setattr("workbench.data.stalls.SHOW_EVERY_S", 0.0)
    with pytest.raises(Stopped), stalls() as s:
        for _ in s.watch(range(100)):
            s._tracker.stop()
    assert not [t for t in threading.enumerate() if t.name == "workbench-stalls"]


def test_it_shows_itself() -> None:
    with Stalls("<b>loop</b>", show=False) as s:
        with s.stage("read"):
            time.sleep(0.01)
    assert "waiting for data" in str(s) and "<b>loop" not in s._repr_html_() and "read" in s._repr_html_()
