"""The states of a run: how it gets into each, who may take it, and a ledger of the version before."""

import multiprocessing
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.base import records
from workbench.base.errors import BadInput, JobFailed, JobKilled, JobTimedOut, Stopped
from workbench.base.ledger import SCHEMA_VERSION, Ledger
from workbench.base.store import Store

VERSION_1 = """
create table if not exists runs (
  id text primary key, kind text not null, name text not null, status text not null,
  started_at real not null, ended_at real, user text, host text, pid integer, pid_started real,
  params text, metrics text, parents text, cost text, identity text, artifacts text,
  error text, mirrored_at real, mirror_id text);
create index if not exists runs_by_start on runs(started_at);
create table if not exists points (run text not null, name text not null, step integer not null, value real,
  primary key (run, name, step)) without rowid;
pragma user_version = 1;
"""


@pytest.fixture
def old(store: Store) -> Path:
    "A ledger as version 1 wrote it, with a finished run, a dead one and a curve."
    path = store.root / "ledger.db"
    db = sqlite3.connect(path)
    db.executescript(VERSION_1)
    row = "insert into runs (id, kind, name, status, started_at, ended_at, host, pid, pid_started, params, error) "
    db.execute(row + "values ('a', 'fit', 'flights', 'failed', 1.0, 2.0, 'h', 1, 1.0, '{\"n\": 1}', 'no')")
    host = os.uname().nodename
    db.execute(
        row + f"values ('b', 'fit', 'flights', 'running', 3.0, null, '{host}', 4194305, 1.0, '{{}}', '')"
    )
    db.execute("insert into points values ('a', 'loss', 1, 0.5)")
    db.commit()
    db.close()
    return path


def test_a_ledger_of_version_1_is_brought_up_to_date_with_all_it_holds(old: Path, store: Store) -> None:
    ledger = Ledger(store)
    assert ledger.query("pragma user_version")[0][0] == SCHEMA_VERSION == 2
    assert {c["name"] for c in ledger.query("pragma table_info(runs)")} >= {"cause", "heartbeat_at"}
    was = records.find("a", ledger)
    assert (was.status, was.error, was.params, was.cause, was.curve("loss")) == (
        "failed", "no", {"n": 1}, "", [(1, 0.5)]
    )  # fmt: skip
    assert (records.find("b", ledger).status, records.find("b", ledger).cause) == ("killed", "process died")
    with records.start("fit", "flights", ledger=ledger) as run:
        run.beat()
    assert records.find(run.id, ledger).heartbeat_at


def _open(root: Path) -> int:
    return Ledger(Store(root)).query("select count(*) from runs")[0][0]


def test_many_processes_bring_it_up_to_date_at_once(old: Path, store: Store) -> None:
    with multiprocessing.get_context("forkserver").Pool(4) as pool:
        assert pool.map(_open, [store.root] * 8) == [2] * 8


@pytest.mark.parametrize(
    ("raised", "status", "cause", "code"),
    [
        (JobFailed("cell 2 raised", "look"), "failed", "error", 7),
        (JobTimedOut("60 s were not enough", "", "timeout"), "timed_out", "timeout", 9),
        (JobKilled("the kernel is gone", "", "signal SIGKILL"), "killed", "signal SIGKILL", 10),
        (JobKilled("the kernel is gone", "", "out of memory"), "killed", "out of memory", 10),
        (Stopped("stopped"), "killed", "user", 130),
        (MemoryError("x"), "failed", "out of memory", None),
        (ValueError("x"), "failed", "error", None),
    ],
)
def test_a_run_says_how_it_ended_and_why(ledger: Ledger, raised, status: str, cause: str, code: int) -> None:
    with pytest.raises(type(raised)), records.start("job", "x", ledger=ledger) as run:
        raise raised
    found = records.find(run.id, ledger)
    assert (found.status, found.cause) == (status, cause) == (run.status, run.cause)
    assert getattr(raised, "exit_code", None) == code


def test_a_queued_run_is_no_running_one_and_is_taken_once(ledger: Ledger) -> None:
    waiting = records.queue("job", "x", params={"n": 1}, ledger=ledger)
    assert records.recover(ledger) == [] and records.find(waiting.id, ledger).status == "queued"
    with records.start("job", "x", run_id=waiting.id, params={"n": 1}, ledger=ledger):
        assert records.find(waiting.id, ledger).status == "running"
        with pytest.raises(BadInput, match="already: running"):
            with records.start("job", "x", run_id=waiting.id, ledger=ledger):
                pytest.fail("a run was taken twice")
    found = records.find(waiting.id, ledger)
    assert found.status == "succeeded" and len(records.runs(ledger)) == 1
    with pytest.raises(BadInput, match="already: succeeded"):
        records.skip("job", "x", "late", run_id=waiting.id, ledger=ledger)
    with pytest.raises(BadInput, match="already: succeeded"):
        records.queue("job", "x", run_id=waiting.id, ledger=ledger)


def _take(root: Path, run_id: str) -> bool:
    try:
        with records.start("job", "x", run_id=run_id, ledger=Ledger(Store(root))):
            time.sleep(0.3)
        return True
    except BadInput:
        return False


def test_of_many_that_would_take_it_one_does(ledger: Ledger) -> None:
    waiting = records.queue("job", "x", ledger=ledger)
    with multiprocessing.get_context("forkserver").Pool(4) as pool:
        took = pool.starmap(_take, [(ledger.store.root, waiting.id)] * 4)
    assert sorted(took) == [False, False, False, True]


def test_a_skipped_run_says_why(ledger: Ledger) -> None:
    waiting = records.queue("job", "x", ledger=ledger)
    records.skip("job", "x", "unchanged", run_id=waiting.id, ledger=ledger)
    found = records.find(waiting.id, ledger)
    assert (found.status, found.cause, found.wall_s) == ("skipped", "unchanged", 0)
    assert "skipped" in found._repr_html_()


@pytest.mark.parametrize(("silent_s", "status"), [(10, "running"), (1000, "killed")])
def test_a_run_of_another_host_is_lost_by_its_silence(ledger: Ledger, silent_s: int, status: str) -> None:
    def tell(run: records.Run) -> None:
        with ledger.change() as db:
            values = ("elsewhere", 1, time.time() - silent_s, run.id)
            db.execute("update runs set host=?, pid=?, heartbeat_at=? where id=?", values)

    check: Callable[[records.Run], str] = lambda run: records.find(run.id, ledger).status  # noqa: E731
    with records.start("job", "x", ledger=ledger) as run:
        tell(run)
        assert check(run) == status
    assert check(run) == "succeeded"  # it was only silent: what it says itself is what counts


def test_beating_is_cheap(ledger: Ledger) -> None:
    with records.start("job", "x", ledger=ledger) as run:
        run.beat()
        first = run.heartbeat_at
        for _ in range(1000):
            run.beat()
    assert run.heartbeat_at == first


def _work_until_killed(root: str, began: Any) -> None:
    with records.start("fit", "x", ledger=Ledger(Store(Path(root)))) as run:
        began.put(run.id)
        while True:
            sum(range(100_000))


def test_a_killed_run_ends_where_it_was_last_heard_of_with_what_it_had_cost(ledger: Ledger) -> None:
    apart = multiprocessing.get_context("forkserver")
    began = apart.SimpleQueue()
    worker = apart.Process(target=_work_until_killed, args=(str(ledger.store.root), began))
    worker.start()
    run_id = began.get()
    while not records.find(run_id, ledger).heartbeat_at:
        time.sleep(0.05)
    worker.kill()
    worker.join()
    found = records.find(run_id, ledger)
    assert (found.status, found.ended_at) == ("killed", found.heartbeat_at)
    assert found.wall_s > 0.5 and found.cost["cpu_s"] > 0 and found.cost["usd"] > 0
