"""The scheduler at work: real processes, a real notebook, real alerts; the clock is the test's where a night must pass."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from workbench.base.errors import BadInput
from workbench.base.ledger import Ledger
from workbench.base.records import find
from workbench.cli.schedule import schedule
from workbench.jobs import control
from workbench.jobs.dues import attempts, dues, prepare
from workbench.jobs.exports import KINDS, export
from workbench.jobs.jobsfile import load_jobs
from workbench.jobs.scheduler import SETTLE_S, Scheduler

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()
ENDED = ("succeeded", "failed", "skipped", "cancelled")
CHEAP = """
import sys, time
from workbench.jobs.attempt import work
def job(due, ledger):
    with open("effects", "a") as file:
        file.write(f"{due.job} begin {time.time()}" + chr(10))
    time.sleep(float(due.rules.params.get("s", 0)))
    with open("effects", "a") as file:
        file.write(f"{due.job} end {time.time()}" + chr(10))
    if due.rules.params.get("fail", 0) >= due.tries:
        raise ValueError("as asked")
work(sys.argv[1], sys.argv[2], int(sys.argv[3]), job)
"""


class Clock:
    "A clock that the test turns; it goes on by itself where `runs`."

    def __init__(self, at: float, runs: bool = False) -> None:
        self.at, self.runs, self.began = at, runs, time.monotonic()

    def __call__(self) -> float:
        return self.at + (time.monotonic() - self.began if self.runs else 0)


Make = Callable[..., Scheduler]


@pytest.fixture
def make(project: Path, ledger: Ledger, write) -> Iterator[Make]:
    "make(toml, clock): a scheduler of cheap jobs in this process."
    made: list[Scheduler] = []
    write("s: float = 0.0", name="a.ipynb")

    def start(toml: str, clock: Callable[[], float] = time.time, cheap: bool = True) -> Scheduler:
        (project / "jobs.toml").write_text(toml)
        command = [sys.executable, "-c", CHEAP] if cheap else None
        made.append(Scheduler(ledger=ledger, clock=clock, command=command))
        return made[-1]

    yield start
    for scheduler in made:
        for child, _ in scheduler._children.values():
            child.kill()
            child.wait()
        if scheduler._courier:
            scheduler._courier.join(10)


def drive(scheduler: Scheduler, done: Callable[[], bool], within_s: float = 30) -> None:
    until = time.monotonic() + within_s
    scheduler.step()
    while not done():
        assert time.monotonic() < until, [str(due) for due in dues(scheduler.ledger)]
        time.sleep(min(0.05, scheduler.step()))
    scheduler.step()


def settled(ledger: Ledger) -> Callable[[], bool]:
    return lambda: all(due.status in ENDED for due in dues(ledger, limit=100_000))


def statuses(ledger: Ledger, job: str = "a") -> list[str]:
    return [due.status for due in reversed(dues(ledger, "job=?", job))]


def toml(name: str = "a", **rules: object) -> str:
    lines = {"notebook": "a.ipynb", "cron": "0 * * * *", **rules}
    shown = {
        key: value if isinstance(value, str) and value.startswith("{") else json.dumps(value)
        for key, value in lines.items()
    }
    return f"[jobs.{name}]\n" + "".join(f"{key} = {value}\n" for key, value in shown.items())


@pytest.mark.parametrize(("policy", "expected"), [("none", 0), ("latest", 1), ("all", 3)])
def test_a_laptop_asleep_for_eight_hours(make: Make, ledger: Ledger, policy: str, expected: int) -> None:
    clock = Clock(NOON + 1)
    one = make(toml(catch_up=policy, catch_up_cap=3), clock)
    one.step()
    clock.at += 8 * 3600 + 600
    drive(one, lambda: bool(dues(ledger)) and settled(ledger)())
    assert statuses(ledger) == ["skipped"] * (8 - expected) + ["succeeded"] * expected
    assert all("missed by" in due.reason for due in dues(ledger, "status='skipped'"))


def test_clock_steps_repeat_nothing_and_lose_nothing(make: Make, ledger: Ledger) -> None:
    clock = Clock(NOON + 1)
    one = make(toml(cron="*/30 * * * *", catch_up="all"), clock)
    one.step()
    for step in (1800, 1800, -3600, 1800, 3600):
        clock.at += step
        drive(one, settled(ledger))
    while clock.at < NOON + 7200:
        clock.at += 1800
        drive(one, settled(ledger))
    had = sorted(due.due_at for due in dues(ledger))
    assert had == sorted(set(had)) and set(statuses(ledger)) == {"succeeded"}
    assert {NOON + 1800 * n for n in range(1, 5)} <= set(had)
    assert len(Path("effects").read_text().split("\n")) - 1 == 2 * len(had)


def test_a_wrong_clock_of_a_year_does_not_silence_the_job(make: Make, ledger: Ledger) -> None:
    clock = Clock(NOON + 1)
    one = make(toml(), clock)
    one.step()
    clock.at += 366 * 86_400
    drive(one, settled(ledger))
    clock.at = NOON + 2 * 3600 + 1
    one.step()
    clock.at += 3600
    drive(one, lambda: settled(ledger)() and bool(dues(ledger, "due_at=?", NOON + 3 * 3600)))
    assert dues(ledger, "due_at=?", NOON + 3 * 3600)[0].status == "succeeded"


def _never_two(text: str) -> dict[str, int]:
    "Begun runs of each job; fails where one begins while another of the same job is at work."
    begun: Counter[str] = Counter()
    for name in {line.split()[0] for line in text.splitlines()}:
        events = [line.split()[1:] for line in text.splitlines() if line.startswith(name + " ")]
        begun[name] = sum(kind == "begin" for kind, _ in events)
        kinds = [kind for kind, _ in sorted(events, key=lambda event: float(event[1]))]
        if name != "cancel":  # a cancelled run has no end
            assert kinds == ["begin", "end"] * (len(kinds) // 2) + ["begin"] * (len(kinds) % 2), name
    return dict(begun)


@pytest.mark.slow
@pytest.mark.parametrize("period_s", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_runs_longer_than_their_period_are_never_two_at_once(
    make: Make, ledger: Ledger, period_s: int
) -> None:
    one = make(
        "".join(
            toml(name, cron="*/2 * * * * *", overlap=name, params="{s = 2.3}")
            for name in ("skip", "queue", "cancel")
        )
    )
    until = time.monotonic() + period_s
    drive(one, lambda: time.monotonic() > until, period_s + 10)
    Path("jobs.toml").write_text(Path("jobs.toml").read_text().replace("*/2 * * * * *", "0 0 1 1 *"))
    drive(one, settled(ledger), 120)
    begun = _never_two(Path("effects").read_text())
    assert set(statuses(ledger, "skip")) <= {"succeeded", "skipped"} and "skipped" in statuses(ledger, "skip")
    assert set(statuses(ledger, "queue")) == {"succeeded"} and begun["queue"] == len(
        statuses(ledger, "queue")
    )
    assert statuses(ledger, "cancel")[-1] == "succeeded" and "cancelled" in statuses(ledger, "cancel")
    assert "overlap = cancel" in dues(ledger, "status='cancelled'")[0].reason


def test_a_paused_job_records_what_it_did_not_run(
    make: Make, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(NOON + 1)
    monkeypatch.setattr("workbench.jobs.control.time.time", clock)  # the verbs use the same clock
    one = make(toml(), clock)
    one.step()
    assert control.pause(["a"], ledger=ledger) == ["a"]
    clock.at += 3 * 3600
    drive(one, settled(ledger))
    clock.at += 3600
    assert control.resume([], ledger=ledger) == ["a"]
    clock.at += 3600
    drive(one, lambda: len(dues(ledger)) == 5 and settled(ledger)())
    assert statuses(ledger) == ["skipped"] * 4 + ["succeeded"]
    assert {due.reason for due in dues(ledger, "status='skipped'")} == {"the job is paused"}


def test_what_waits_for_a_removed_job_is_skipped_and_a_bad_file_changes_nothing(
    make: Make, ledger: Ledger
) -> None:
    clock = Clock(NOON + 1)
    one = make(toml(overlap="queue", catch_up="all", params="{s = 3}"), clock)
    one.step()
    clock.at += 3 * 3600
    one.step()
    Path("jobs.toml").write_text("[jobs.a")
    one.step()
    time.sleep(SETTLE_S)
    one.step()
    assert "is not TOML" in control.status(ledger).problems[0] and list(one.jobs) == ["a"]
    Path("jobs.toml").write_text(toml("b"))
    drive(one, settled(ledger))
    assert statuses(ledger) == ["succeeded", "skipped", "skipped"]
    assert dues(ledger)[0].reason == "the job is no longer in jobs.toml"
    assert control.status(ledger).problems == []


def test_a_file_that_is_being_written_skips_nothing(make: Make, ledger: Ledger) -> None:
    clock = Clock(NOON + 1)
    one = make(toml(overlap="queue", catch_up="all", params="{s = 0.6}"), clock)
    one.step()
    clock.at += 3 * 3600
    one.step()
    Path("jobs.toml").write_text("")  # as an editor leaves it for a moment, whole TOML with no job in it
    one.step()
    time.sleep(SETTLE_S / 2)
    one.step()
    Path("jobs.toml").write_text(toml("b") + toml(overlap="queue", catch_up="all", params="{s = 0.6}"))
    drive(one, lambda: list(one.jobs) == ["b", "a"] and settled(ledger)())
    assert statuses(ledger) == ["succeeded"] * 3


def test_new_data_is_one_due_time(make: Make, ledger: Ledger, project: Path) -> None:
    (project / "in").mkdir()
    (project / "in/1.csv").write_text("1")
    one = make('[jobs.a]\nnotebook = "a.ipynb"\non_new_data = "in/*.csv"\n')

    look = partial(looks, one)
    look()
    assert dues(ledger) == []  # what was there first is the start
    (project / "in/1.csv").touch()
    look()
    assert dues(ledger) == []
    (project / "in/2.csv").write_text("2")
    look()
    drive(one, settled(ledger))
    look()
    assert [(due.kind, due.status) for due in dues(ledger)] == [("data", "succeeded")]
    for path in (project / "in").iterdir():
        path.unlink()
    look()
    assert len(dues(ledger)) == 1  # files that are gone are no data


def test_the_first_file_that_comes_is_new_data(make: Make, ledger: Ledger, project: Path) -> None:
    (project / "in").mkdir()
    one = make('[jobs.a]\nnotebook = "a.ipynb"\non_new_data = "in/*.csv"\n')
    looks(one)
    assert dues(ledger) == []
    (project / "in/1.csv").write_text("1")
    looks(one)
    drive(one, settled(ledger))
    assert [(due.kind, due.status) for due in dues(ledger)] == [("data", "succeeded")]


def looks(one: Scheduler) -> None:
    for _ in range(3):
        one.step()
        one._watched["a"]._looked_s = float("-inf")
        one._watched["a"].settled()
        one._watched["a"]._thread.join()


def test_a_job_that_is_not_in_the_file_is_not_launched_before_that_is_sure(
    make: Make, ledger: Ledger
) -> None:
    one = make(toml(catch_up="all"))
    assert control.backfill("a", "2026-06-01..2026-06-01", ledger=ledger)
    Path("jobs.toml").write_text(toml("b", cron="0 0 1 1 *"))
    other = make(toml("b", cron="0 0 1 1 *"))
    drive(other, settled(ledger))
    assert set(statuses(ledger)) == {"skipped"} and one is not other


def test_a_due_time_that_is_still_to_come_is_not_used_up(make: Make, ledger: Ledger) -> None:
    make(toml())
    with pytest.raises(BadInput, match="is still to come"):
        control.run_now("a", "2126-06-01T13:00:00Z", ledger=ledger)
    assert dues(ledger) == []


def test_a_launch_that_cannot_begin_is_tried_ten_times_and_has_failed(make: Make, ledger: Ledger) -> None:
    clock = Clock(NOON + 1)
    one = make(toml(), clock)
    one.command = [sys.executable, "-c", "print('no such module'); raise SystemExit(3)"]
    one.step()
    clock.at += 3600

    def ended() -> bool:
        with ledger.change() as db:
            db.execute("update dues set next_at=0 where next_at is not null")
        return bool(dues(ledger)) and settled(ledger)()

    drive(one, ended)
    due = dues(ledger)[0]
    assert (due.status, due.interruptions) == ("failed", 10)
    assert "before it began: no such module" in due.reason


class Told(BaseHTTPRequestHandler):
    "A chat that keeps what it is told."

    messages: list[dict] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.messages.append({"path": self.path, **json.loads(body)})
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict]]:
    Told.messages = []
    server = HTTPServer(("127.0.0.1", 0), Told)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("TEAM_CHAT", f"json://robot:hunter2@127.0.0.1:{server.server_port}/team")
    yield Told.messages
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.filterwarnings("default::DeprecationWarning")  # of apprise's own imports
def test_a_real_notebook_fails_is_retried_told_and_recovers(
    make: Make, ledger: Ledger, project: Path, write, chat: list[dict], capfd: pytest.CaptureFixture[str]
) -> None:
    body = """import os
from workbench.jobs import result
print("reading", day)
ran = open("tries", "a").write("x") and len(open("tries").read())
if day.isoformat() == "2026-05-31" :
    print("0 rows")
    raise ValueError("no rows")
result(key=os.environ["WORKBENCH_RUN_KEY"])"""
    write("from datetime import date\nday: date = date(2013, 1, 1)", body, name="real.ipynb")
    clock = Clock(datetime(2026, 6, 1, 6, 59, tzinfo=UTC).timestamp())
    rules = {
        "notebook": "real.ipynb",
        "cron": "0 7 * * *",
        "params": '{day = "{date-1}"}',
        "retries": 1,
        "backoff_s": 0,
    }
    one = make(toml(**rules, alerts=["env:TEAM_CHAT"]), clock, cheap=False)
    one.step()
    clock.at += 120
    drive(one, lambda: statuses(ledger) == ["failed"], 60)
    due = dues(ledger)[0]
    assert [attempt.status for attempt in attempts(ledger, due.key)] == ["failed", "failed"]
    assert due.tries == 2 and find(due.run, ledger).status == "failed"
    clock.at += 86_400
    drive(one, lambda: statuses(ledger) == ["failed", "succeeded"] and len(chat) == 2, 60)
    good = dues(ledger)[0]
    assert find(good.run, ledger).metrics == {"key": "a@2026-06-02T07:00:00Z"} == {"key": good.key}
    assert find(good.run, ledger).params == {"day": "2026-06-01"}
    assert [message["title"] for message in chat] == ["a failed", "a works again"]
    told = chat[0]["message"]
    assert "cell 3 of 3" in told and "0 rows" in told and "ValueError: no rows" in told and due.run in told
    files = [path for path in project.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]
    said = capfd.readouterr()
    assert "hunter2" not in said.out + said.err


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_missed_and_slow_are_told_and_what_cannot_be_told_is_shown(
    make: Make, ledger: Ledger, chat: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(NOON + 1)
    one = make(toml(catch_up="none", alerts=["env:TEAM_CHAT"], params="{s = 2}"), clock)
    one.step()
    clock.at += 3 * 3600 + 600
    drive(one, lambda: len(chat) == 1)
    assert (
        chat[0]["title"] == "a missed"
        and "and 2 more due times not run: missed by 2 h 10 min" in chat[0]["message"]
    )
    with ledger.change() as db:  # five earlier runs of ten seconds
        db.execute("update dues set status='succeeded', started_at=due_at, ended_at=due_at+10")
        for n in range(5):
            db.execute(
                "insert into dues (key, job, due_at, kind, status, spec, claimed_at, started_at, ended_at)"
                " select ?, job, ?, kind, status, spec, claimed_at, ?, ? from dues limit 1",
                (f"old{n}", n, n, n + 10),
            )
    clock.at += 3000
    drive(one, lambda: bool(dues(ledger, "status='running'")))
    with ledger.change() as db:
        db.execute("update dues set started_at=? where status='running'", (clock.at - 600,))
    drive(one, lambda: len(chat) == 2)
    assert (
        "longer than usual" in chat[1]["title"] and "at work for 10 min, usually 10 s" in chat[1]["message"]
    )
    monkeypatch.delenv("TEAM_CHAT")
    with ledger.change() as db:
        db.execute("update due_alerts set sent_at=null, tries=1, error='env:TEAM_CHAT did not take it'")
    assert "undelivered alert, a slow: env:TEAM_CHAT did not take it" in control.status(ledger).problems


@pytest.mark.slow
def test_the_verbs_start_backfill_run_and_stop(project: Path, ledger: Ledger, write) -> None:
    write("from datetime import date\nday: date = date(2013, 1, 1)", "print(day)", name="a.ipynb")
    Path("jobs.toml").write_text(toml(cron="0 7 * * *", params='{day = "{date}"}'))

    def typed(*words: str) -> tuple[int, dict]:
        done = CliRunner().invoke(schedule, [*words, "--json"], catch_exceptions=False)
        return done.exit_code, json.loads(done.stdout)

    code = "from workbench.cli.schedule import main; main()"
    command = [sys.executable, "-c", code, "run", "a", "--due", "2026-05-01T07:00:00", "--json"]
    runs = [subprocess.run(command, capture_output=True, text=True, timeout=60) for _ in range(2)]
    assert [(run.returncode, json.loads(run.stdout[run.stdout.index("{\n") :])["tries"]) for run in runs] == [
        (0, 1),
        (0, 1),
    ]
    assert typed("start", "--background")[1]["pid"] in [
        one["pid"] for one in typed("status")[1]["schedulers"]
    ]
    assert typed("backfill", "a", "2026-04-30..2026-05-01")[1]["queued"] == [
        "a@2026-04-30T07:00:00Z",
    ]
    until = time.monotonic() + 60
    while not settled(ledger)():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert statuses(ledger) == ["succeeded"] * 2
    assert typed("list")[1][0]["last"] == "succeeded" and len(typed("next", "-n", "3")[1]) == 3
    assert len(typed("stop")[1]["stopped"]) == 1 and typed("status")[1]["schedulers"] == []


def test_exports_hold_every_job_and_say_what_they_cannot(project: Path, write) -> None:
    write("1", name="a.ipynb", tagged=0)
    rules = toml("good", tz="Europe/Berlin", retries=2) + toml("seconds", cron="*/5 * * * * *")
    Path("jobs.toml").write_text(rules + '[jobs.data]\nnotebook = "a.ipynb"\non_new_data = "in/*"\n')
    jobs = load_jobs()
    texts = {kind: export(kind, jobs, Path("/srv/100% it's")) for kind in KINDS}
    compile(texts["airflow"], "dag.py", "exec")
    for kind in ("crontab", "kubernetes", "airflow"):
        assert "schedule run good" in texts[kind].replace('", "', " ") and "Europe/Berlin" in texts[kind]
        assert (
            "# seconds: not here" in texts[kind] and "# data: not here, it is due on new data" in texts[kind]
        )
    assert (
        "100\\%" in texts["crontab"]
        and "100%%" in texts["systemd"]
        and "KillMode=process" in texts["systemd"]
    )
    import yaml

    found = [part for part in yaml.safe_load_all(texts["kubernetes"]) if part]
    assert (
        found[0]["spec"]["timeZone"] == "Europe/Berlin"
        and found[0]["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 2
    )


def test_the_tables_are_made_once(ledger: Ledger) -> None:
    assert prepare(prepare(ledger)) is ledger and dues(ledger) == []


def test_alerts_that_reach_nobody_are_said_when_the_file_is_read(
    make: Make, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOBODY", raising=False)
    make(toml(alerts=["env:NOBODY"]), Clock(NOON + 1)).step()
    said = "alerts of a reach nobody: secret 'env:NOBODY': the variable is not set"
    assert control.status(ledger).problems[0].endswith(said)


def test_a_job_whose_notebook_is_gone_is_listed_as_such(make: Make, ledger: Ledger) -> None:
    make(toml(), Clock(NOON + 1))
    (line,) = control.listing(ledger=ledger)
    assert "is not there" not in str(line)
    Path(line.job.notebook).unlink()
    assert str(line).endswith(f"{line.job.notebook} (is not there)")
