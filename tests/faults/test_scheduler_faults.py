"""The scheduler killed, stopped and doubled over due runs: nothing missed, nothing run twice to success, nothing stuck."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workbench.base.ledger import Ledger
from workbench.jobs.dues import attempts, dues, prepare
from workbench.jobs.lead import Lead, members
from workbench.jobs.schedule import due_times

NOTHING_LOST = {"missed": 0, "twice": 0, "without effect": 0, "stuck": 0}
POINTS = ("claimed", "launched", "started", "finished")
# An attempt that works for a moment, then writes its key: two lines of one key are two effects.
ATTEMPT = """
import sys, time
from workbench.jobs.attempt import work
def job(due, ledger):
    time.sleep(0.1)
    with open({effects!r}, "a") as file:
        file.write(due.key + chr(10))
work(sys.argv[1], sys.argv[2], int(sys.argv[3]), job)
"""
# A scheduler that kills itself at the n-th time it comes to a point.
SCHEDULER = """
import os, signal, sys
from workbench.base import events
from workbench.jobs.scheduler import Scheduler
point, count, attempt = sys.argv[1], int(sys.argv[2]), sys.argv[3]
seen = 0
def hook(at):
    global seen
    seen += at == point
    if at == point and seen == count:
        os.kill(os.getpid(), signal.SIGKILL)
Scheduler("jobs.toml", command=[sys.executable, "-c", attempt], hook=hook, max_running=3).run()
"""


class House:
    "A project with jobs that are due every few seconds, and the schedulers on it."

    def __init__(self, project: Path, ledger: Ledger, jobs: int, every_s: int) -> None:
        self.ledger, self.jobs, self.cron = prepare(ledger), jobs, f"*/{every_s} * * * * *"
        self.effects, self.log = project / "effects", (project / "schedulers.log").open("ab")
        self.attempt = ATTEMPT.format(effects=str(self.effects))
        cell = '{"cell_type": "code", "source": "1", "metadata": {}, "outputs": []}'
        (project / "a.ipynb").write_text(f'{{"cells": [{cell}], "metadata": {{}}, "nbformat": 4}}')
        rules = f'notebook = "a.ipynb"\ncron = "{self.cron}"\noverlap = "queue"\ncatch_up = "all"\ncatch_up_cap = 1000\n'
        (project / "jobs.toml").write_text("\n".join(f"[jobs.j{n}]\n{rules}" for n in range(jobs)))
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, point: str = "", count: int = 0) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SCHEDULER, point, str(count), self.attempt]
        self.processes.append(subprocess.Popen(command, stdout=self.log, stderr=self.log))
        return self.processes[-1]

    def count(self, where: str = "1") -> int:
        return self.ledger.query(f"select count(*) from dues where {where}")[0][0]

    def wait(self, until: Callable[[], bool], within_s: float, what: str) -> float:
        begin = time.monotonic()
        while not until():
            assert time.monotonic() - begin < within_s, f"{what}: not within {within_s} s"
            time.sleep(0.02)
        return time.monotonic() - begin

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def close(self) -> None:
        for process in self.processes:
            self.kill(process)
        for due in dues(self.ledger, "status in ('running','launching')"):
            if due.pid:
                try:
                    os.kill(due.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.log.close()


@pytest.fixture
def house(project: Path) -> Iterator[Callable[[int, int], House]]:
    made: list[House] = []

    def make(jobs: int, every_s: int) -> House:
        made.append(House(project, Ledger(), jobs, every_s))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _killed_over(house: House, runs: int, kills: int, seed: int) -> dict[str, int]:
    "Kill schedulers, at random and at each named point, until `runs` are due; then let the last one finish."
    chance = random.Random(seed)
    for kill in range(kills):
        point = POINTS[kill // 2 % len(POINTS)] if kill % 2 else ""
        process = house.start(point, chance.randint(1, 3))
        until = time.monotonic() + (
            20 if point else chance.uniform(0.4, 2.0 * runs / kills / house.jobs + 0.6)
        )
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        house.kill(process)
    last = house.start()
    house.wait(lambda: house.count() >= runs, 300, f"{runs} due runs")
    house.wait(lambda: _leaders(house.ledger) == [last.pid], 20, "the last one to lead")
    return _settled(house, last) | {"kills": kills}


def _settled(house: House, last: subprocess.Popen[bytes]) -> dict[str, int]:
    "Nothing more comes due; once all that did has ended: what became of it."
    rules = Path("jobs.toml").read_text()
    Path("jobs.toml").write_text(rules.replace(house.cron, "0 0 0 1 1 *"))
    house.wait(
        lambda: not house.count("status not in ('succeeded','failed','skipped','cancelled')"),
        120,
        "all to end",
    )
    last.terminate()
    assert last.wait(timeout=20) == 0
    return _account(house)


def _account(house: House) -> dict[str, int]:
    effects = Counter(house.effects.read_text().split())
    missed = 0
    for row in house.ledger.query(
        "select job, min(due_at) as first, max(due_at) as last from dues group by job"
    ):
        expected, _ = due_times(house.cron, "UTC", row["first"] - 1, row["last"], limit=100_000)
        had = {due.due_at for due in dues(house.ledger, "job=?", row["job"], limit=100_000)}
        missed += len(set(expected) - had)
    found = dues(house.ledger, limit=100_000)
    successes = Counter(
        due.key for due in found for one in attempts(house.ledger, due.key) if one.status == "succeeded"
    )
    return {
        "due": len(found),
        "missed": missed + sum(due.status != "succeeded" for due in found),
        "twice": sum(count > 1 for count in successes.values())
        + sum(count > 1 for count in effects.values()),
        "without effect": len({due.key for due in found} - effects.keys()),
        "stuck": house.count("status in ('running','launching','queued','retrying','interrupted')"),
    }


@pytest.mark.long
def test_killed_schedulers_miss_nothing_and_run_nothing_twice(house: Callable[[int, int], House]) -> None:
    figures = _killed_over(house(2, 1), runs=16, kills=8, seed=7)
    assert figures["due"] >= 16 and figures.items() >= NOTHING_LOST.items(), figures


@pytest.mark.slow
def test_fifty_kills_over_two_hundred_due_runs(house: Callable[[int, int], House]) -> None:
    figures = _killed_over(house(3, 1), runs=200, kills=50, seed=20)
    print(figures)
    assert figures["due"] >= 200 and figures.items() >= NOTHING_LOST.items(), figures


@pytest.mark.long
def test_a_full_disk_delays_and_loses_nothing(
    tiny_disk: Path, house: Callable[[int, int], House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_STORE", str(tiny_disk / "store"))
    one = house(2, 1)
    last = one.start()
    one.wait(lambda: one.count("status='succeeded'") > 2, 60, "runs before the disk is full")
    with (tiny_disk / "fill").open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    begun = one.log.tell()
    one.wait(
        lambda: b"cannot write" in Path("schedulers.log").read_bytes()[begun:], 20, "the scheduler to notice"
    )
    time.sleep(2)
    assert last.poll() is None
    (tiny_disk / "fill").unlink()
    ended = one.count("status='succeeded'")
    one.wait(lambda: one.count("status='succeeded'") > ended + 2, 60, "runs after there is room")
    figures = _settled(one, last)
    assert figures.items() >= NOTHING_LOST.items(), figures


def test_a_killed_run_is_shown_and_tried_again_under_the_same_key(house: Callable[[int, int], House]) -> None:
    one = house(1, 1)
    one.attempt = one.attempt.replace("time.sleep(0.1)", "time.sleep(0.1 if due.interruptions else 30)")
    one.start()
    one.wait(lambda: one.count("status='running'") > 0, 20, "a run")
    due = dues(one.ledger, "status='running'")[0]
    os.kill(due.pid or 0, signal.SIGKILL)
    one.wait(lambda: one.count("status='succeeded'") > 0, 20, "the second try")
    again = dues(one.ledger, "key=?", due.key)[0]
    assert (again.status, again.interruptions, again.tries) == ("succeeded", 1, 1)
    assert [(each.status, "killed" in each.error) for each in attempts(one.ledger, due.key)] == [
        ("interrupted", True),
        ("succeeded", False),
    ]


def _leaders(ledger: Ledger) -> list[int]:
    return [row["pid"] for row in members(ledger) if row["leads"] and row["answers"]]


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_of_schedulers_started_together_one_leads(house: Callable[[int, int], House], times: int) -> None:
    one = house(1, 30)
    for _ in range(times):
        pair = [one.start(), one.start()]
        one.wait(
            lambda pair=pair: {row["pid"] for row in members(one.ledger)} >= {p.pid for p in pair}, 60, "both"
        )
        one.wait(lambda: bool(_leaders(one.ledger)), 10, "a leader")
        fence = one.ledger.query("select fence from schedule_lead")[0][0]
        time.sleep(0.3)
        assert len(_leaders(one.ledger)) == 1
        assert (
            one.ledger.query("select fence from schedule_lead")[0][0] == fence
        )  # nobody took it from anybody
        for process in pair:
            one.kill(process)


def test_a_killed_leader_is_followed_within_five_seconds(house: Callable[[int, int], House]) -> None:
    one = house(1, 30)
    pair = {process.pid: process for process in (one.start(), one.start())}
    one.wait(lambda: len(members(one.ledger)) == 2 and bool(_leaders(one.ledger)), 60, "both")
    old = _leaders(one.ledger)[0]
    one.kill(pair[old])
    took_s = one.wait(lambda: _leaders(one.ledger) not in ([], [old]), 10, "a new leader")
    assert took_s <= 5


def test_a_stopped_leader_that_wakes_cannot_write(house: Callable[[int, int], House]) -> None:
    one = house(1, 1)
    old = one.start()
    one.wait(one.effects.exists, 60, "a run")
    other = one.start()
    one.wait(lambda: len(members(one.ledger)) == 2, 60, "the other to stand by")
    old.send_signal(signal.SIGSTOP)
    assert one.wait(lambda: _leaders(one.ledger) == [other.pid], 30, "the other to lead") <= 5
    fence = one.ledger.query("select fence from schedule_lead")[0][0]
    old.send_signal(signal.SIGCONT)
    time.sleep(1.5)
    assert one.ledger.query("select fence from schedule_lead")[0][0] == fence
    assert _leaders(one.ledger) == [other.pid]
    assert old.poll() in (None, -signal.SIGKILL)  # killed where it was stopped in the middle of a write
    counts = Counter(one.effects.read_text().split())
    assert counts and max(counts.values()) == 1


def test_a_leader_stopped_in_the_middle_of_a_write_keeps_nobody_waiting(ledger: Ledger) -> None:
    code = (
        "import os, signal\nfrom workbench.base.ledger import Ledger\nfrom workbench.jobs.lead import Lead\n"
        "lead = Lead(Ledger())\nlead.renew()\nwith lead.change() as db:\n"
        "    db.execute('delete from schedule_lead')\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    other = Lead(prepare(ledger))
    old = subprocess.Popen([sys.executable, "-c", code])
    try:
        begin = time.monotonic()
        while not other.leads and time.monotonic() - begin < 10:
            if ledger.query("select fence from schedule_lead")[0][0]:
                other.renew()
            time.sleep(0.05)
        assert other.leads and time.monotonic() - begin <= 5 + 1
        assert old.wait(timeout=5) == -signal.SIGKILL
    finally:
        old.kill()
        old.wait()


def test_a_fenced_write_leaves_nothing(ledger: Ledger) -> None:
    from workbench.jobs.lead import Fenced

    one, two = Lead(prepare(ledger)), Lead(ledger)
    assert one.renew() and not two.renew()
    one.leave()
    two.renewed_s = 0
    assert two.renew()
    one.fence = two.fence - 1
    with pytest.raises(Fenced), one.change() as db:
        db.execute("delete from schedule_lead")
    assert ledger.query("select owner from schedule_lead")[0][0] == two.owner


def test_a_claim_is_unique_in_the_database_itself(ledger: Ledger) -> None:
    prepare(ledger)
    row = "insert into dues (key, job, due_at, kind, status, spec, claimed_at) values (?,'j',1,'cron','queued','{}',1)"
    with ledger.change() as db:
        db.execute(row, ("a",))
    with pytest.raises(sqlite3.IntegrityError), ledger.change() as db:
        db.execute(row, ("b",))
