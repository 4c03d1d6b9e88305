"""Runs: recorded from their start, nested, recovered, and shared by many processes."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.base import records
from workbench.base.errors import Corrupt, FeedRefused, NotFound, Stopped, Unavailable, WorkbenchError
from workbench.base.ledger import Ledger
from workbench.base.store import Store


@pytest.mark.parametrize(
    ("raised", "status", "error"),
    [
        (None, "succeeded", ""),
        (FeedRefused("41% refused", "raise the budget"), "failed", "41% refused"),
        (ZeroDivisionError("division by zero"), "failed", "ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), "killed", "stopped by the user"),
        (Stopped("fit was stopped"), "killed", "stopped by the user"),
        (SystemExit(3), "failed", "SystemExit: 3"),
    ],
)
def test_a_run_ends_as_its_block_ends(ledger: Ledger, raised, status: str, error: str) -> None:
    try:
        with records.start("fit", "flights", ledger=ledger) as run:
            if raised:
                raise raised
    except BaseException as caught:
        assert caught is raised
        if isinstance(caught, WorkbenchError):
            assert caught.run == run.id
    found = records.find(run.id, ledger)
    assert found.status == status and error in found.error
    assert found.cost["wall_s"] >= 0 and found.cost["usd"] >= 0


def test_a_run_inside_a_run_has_a_parent_and_the_same_code(ledger: Ledger) -> None:
    with records.start("job", "train", ledger=ledger, params={"epochs": 2}, seed=7) as outer:
        with records.start("check", "flights", data="f00d") as inner:
            assert records.current() is inner
        assert records.current() is outer
    found = records.find(inner.id, ledger)
    assert found.parents == [outer.id]
    assert found.identity["data"] == "f00d" and found.identity["code"] == outer.identity["code"]
    assert [run.id for run in records.runs(ledger, parent=outer.id)] == [inner.id]


_CHILD = """
import sys, time
from workbench.base import records
with records.start("fit", "flights") as run:
    print(run.id, flush=True)
    time.sleep(60)
"""


def test_a_run_whose_process_was_killed_is_not_running(ledger: Ledger) -> None:
    child = subprocess.Popen([sys.executable, "-c", _CHILD], stdout=subprocess.PIPE, text=True)
    run_id = child.stdout.readline().strip()
    assert records.find(run_id, ledger).status == "running"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    found = records.find(run_id, ledger)
    assert (found.status, found.error) == ("killed", "its process died")


def _many(root: Path) -> int:
    ledger = Ledger(Store(root))
    with records.start("fit", "flights", ledger=ledger) as run:
        for step in range(25):
            run.log(step=step, loss=float(step))
    return len(run.curve("loss"))


def test_eight_writers_lose_nothing(ledger: Ledger) -> None:
    with multiprocessing.get_context("forkserver").Pool(8) as pool:
        assert pool.map(_many, [ledger.store.root] * 8) == [25] * 8
    assert len(records.runs(ledger, kind="fit")) == 8


def test_find_by_prefix_and_what_it_says_when_it_cannot(ledger: Ledger) -> None:
    with records.start("fit", "a", ledger=ledger, run_id="20130901-aaa"):
        pass
    with records.start("fit", "b", ledger=ledger, run_id="20130901-aab"):
        pass
    assert records.find("20130901-aab", ledger).name == "b"
    with pytest.raises(NotFound, match="several runs start with"):
        records.find("20130901-", ledger)
    for unknown in ("nope", "", "%"):
        with pytest.raises(NotFound, match="no run is called"):
            records.find(unknown, ledger)


def test_markup_in_a_record_is_escaped(ledger: Ledger) -> None:
    with records.start("fit", "<script>alert(1)</script>", ledger=ledger, params={"<b>": "<i>"}) as run:
        pass
    shown = run._repr_html_()
    assert "<script>" not in shown and "<i>" not in shown and "<b>&lt;" not in shown


def test_a_broken_ledger_is_named(store: Store) -> None:
    (store.root / "ledger.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(Corrupt, match="ledger.db"):
        Ledger(store)


def test_a_ledger_of_a_later_version_is_left_alone(ledger: Ledger) -> None:
    ledger.create("pragma user_version = 99;")
    with pytest.raises(Unavailable, match="schema 99"):
        Ledger(ledger.store)


def test_the_mirror_copies_runs_and_ends_with_its_owner(store: Store, monkeypatch) -> None:
    child = "from workbench.base import records\n"
    child += "with records.start('job', 'train', params={'epochs': 2}) as run:\n"
    child += "    with records.start('fit', 'flights') as inner: inner.log(step=1, auc=0.71)\n"
    env = {**os.environ, "WORKBENCH_TRACK": "true"}
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", child], check=True, env=env)
    assert time.monotonic() - began < 2.5, "the run waited for its mirror"
    ledger, deadline = Ledger(store), time.monotonic() + 120
    while ledger.query("select 1 from runs where mirrored_at is null") and time.monotonic() < deadline:
        time.sleep(0.2)
    with sqlite3.connect(store.root / "mlflow.db") as mlflow:
        names = dict(mlflow.execute("select name, status from runs").fetchall())
        tags = mlflow.execute("select count(*) from tags where key='mlflow.parentRunId'").fetchone()[0]
        auc = mlflow.execute("select value from latest_metrics where key='auc'").fetchone()[0]
    mlflow.close()
    assert names == {"job train": "FINISHED", "fit flights": "FINISHED"}
    assert (tags, auc) == (1, 0.71)
    while _mirrors(store) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _mirrors(store) == []


def _mirrors(store: Store) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode()
        except OSError:
            continue
        found += [text] if "base.mirror" in text and str(store.root) in text else []
    return found
