"""No row is lost or torn but by a kill, and then only what was not due yet."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from conftest import CONTRACT, GOOD

from workbench.base.errors import BadInput, NotFound
from workbench.base.store import Store
from workbench.data.contract import Column, Contract
from workbench.serve.requestlog import RequestLog, read


@pytest.fixture
def log(store: Store):
    made = RequestLog("flights", CONTRACT, store=store, run="r1", flush_s=3600)
    yield made
    made.close()


def test_every_type_comes_back_as_it_was_asked(log: RequestLog, store: Store) -> None:
    log.add("a", 1, [GOOD, {**GOOD, "distance": 7, "wind": 2.5, "flight": "AA 1"}], [0.25, 0.5])
    log.add("b", 2, [{**GOOD, "at": "2013-01-31T18:05:00+01:00"}], [1.0])
    assert log.flush()
    frame = read("flights", store)
    assert frame["request"].to_list() == ["a", "a", "b"] and frame["position"].to_list() == [0, 1, 0]
    assert frame["prediction"].to_list() == [0.25, 0.5, 1.0] and frame["version"].to_list() == [1, 1, 2]
    rows = frame["row"].to_list()
    assert rows[0] == {**GOOD, "flight": None, "at": datetime(2013, 1, 31, 17, 5)}
    assert rows[1]["distance"] == 7.0 and rows[1]["wind"] == 2.5 and rows[1]["flight"] == "AA 1"
    assert rows[2]["at"] == datetime(2013, 1, 31, 17, 5) and "late" not in rows[0]
    assert abs((datetime.now(UTC) - frame["at"][0]).total_seconds()) < 60
    assert CONTRACT.parse_frame(frame.select("row").unnest("row"))["seats"].tolist() == [150] * 3
    modes = {path.stat().st_mode & 0o777 for path in log.folder.glob("*/*")}
    assert modes == {0o600}


def test_versions_with_other_columns_are_read_together(log: RequestLog, store: Store) -> None:
    log.add("a", 1, [GOOD], [0.25])
    assert log.flush()
    wider = {**CONTRACT.columns, "seats": Column("float"), "gust": Column("float")}
    second = RequestLog("flights", Contract("flights", wider), store=store, flush_s=3600)
    second.add("b", 2, [{**GOOD, "seats": 7.5, "gust": 3.0}], [0.5])
    second.close()
    rows = read("flights", store)["row"].to_list()
    assert [(row["seats"], row["gust"], row["distance"]) for row in rows] == [
        (150.0, None, 733.0), (7.5, 3.0, 733.0),
    ]  # fmt: skip


def test_a_disk_that_refuses_costs_nothing_until_memory_is_full(store: Store) -> None:
    log = RequestLog("flights", CONTRACT, store=store, flush_s=3600, max_pending=3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log.add("a", 1, [GOOD], [0.5])
    log.add("b", 1, [GOOD], [0.5])
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        assert not log.flush()
        log.add("c", 1, [GOOD], [0.5])
        log.add("d", 1, [GOOD], [0.5])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (log.pending.rows, log.pending.lost, log.pending.failures) == (3, 1, 1)
    assert list(log.folder.rglob("*.parquet")) == [] and list(log.folder.rglob("*.part")) == []
    log.close()
    assert read("flights", store)["request"].to_list() == ["a", "b", "c"]
    assert str(log) == "RequestLog flights: 3 rows written, 0 waiting, 1 lost"


def test_closing_on_a_full_disk_counts_what_is_lost(store: Store) -> None:
    log = RequestLog("flights", CONTRACT, store=store, flush_s=3600)
    log.folder.parent.mkdir(parents=True)
    log.folder.write_text("in the way")
    log.add("a", 1, [GOOD, GOOD], [0.5, 0.5])
    log.close()
    assert (log.pending.lost, log.pending.rows) == (2, 0)


def test_a_row_that_cannot_be_written_costs_itself_only(log: RequestLog, store: Store) -> None:
    for i in range(20):
        log.add(f"{i:02}", 1, [{**GOOD, "carrier": "\ud800"} if i == 7 else GOOD], [0.5])
    assert log.flush()
    assert read("flights", store)["request"].to_list() == [f"{i:02}" for i in range(20) if i != 7]
    assert (log.pending.written, log.pending.lost, log.pending.rows) == (19, 1, 0)


def test_many_threads_and_a_flush_by_size_lose_and_repeat_nothing(store: Store) -> None:
    log = RequestLog("flights", CONTRACT, store=store, flush_rows=50, flush_s=3600)

    def ask(who: int) -> None:
        for i in range(200):
            log.add(f"{who}-{i}", 1, [GOOD], [0.5])

    threads = [threading.Thread(target=ask, args=(who,)) for who in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    deadline = time.monotonic() + 10
    while log.pending.written == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.pending.written >= 50, "the size alone makes a part due"
    log.close()
    found = read("flights", store)["request"]
    assert len(found) == 800 and found.n_unique() == 800
    assert not [thread for thread in threading.enumerate() if thread.name == "request-log"]


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import CONTRACT, GOOD
from workbench.serve.requestlog import RequestLog
log = RequestLog("flights", CONTRACT, flush_rows=20, flush_s=0.001)
i, told = 0, False
while True:
    log.add(str(i), 1, [GOOD] * 10, [0.5] * 10)
    i += 1
    if log.pending.written and not told:
        told = not print("busy", flush=True)
    if log.pending.rows > 5000:
        log.flush()
"""


@pytest.mark.parametrize("wait_s", [0.0, 0.05, 0.13])
def test_kill_leaves_whole_files_only(store: Store, wait_s: float) -> None:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout.readline() == b"busy\n"
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
    parts = list(store.path("requests", "flights").rglob("*.parquet"))
    assert parts and all(len(pl.read_parquet(part)) % 10 == 0 for part in parts)
    found = sorted({int(request) for request in read("flights", store)["request"]})
    assert found == list(range(len(found))), "what was written is what came first"


def test_only_stale_remains_are_swept(store: Store) -> None:
    day = store.path("requests", "flights", "2026-01-01")
    day.mkdir(parents=True)
    old, new = day / ".a.parquet.1.part", day / ".b.parquet.2.part"
    old.write_text("half"), new.write_text("half")
    os.utime(old, (0, 0))
    RequestLog("flights", CONTRACT, store=store).close()
    assert [path.name for path in day.iterdir()] == [new.name]


@pytest.mark.parametrize("name", ["../../etc", "/etc", "a\0b", ""])
def test_a_name_never_leaves_the_store(store: Store, name: str) -> None:
    with pytest.raises(BadInput):
        RequestLog(name, CONTRACT, store=store) if name else store.path("requests", "..")


def test_nothing_logged_is_said(store: Store) -> None:
    with pytest.raises(NotFound, match="no requests are logged for 'flights'"):
        read("flights", store)


def test_writing_loads_no_pandas(store: Store) -> None:
    code = """
import sys
from workbench.data.contract import Column, Contract
from workbench.serve.requestlog import RequestLog
log = RequestLog("tiny", Contract("tiny", {"a": Column("float"), "b": Column("str", nullable=True)}))
log.add("one", 1, [{"a": 1.5, "b": "x"}, {"a": 2.5}], [0.1, 0.2])
log.close()
print(log.pending.written, "pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"], done.stderr
    assert read("tiny", store)["row"].struct.field("b").to_list() == ["x", None]
