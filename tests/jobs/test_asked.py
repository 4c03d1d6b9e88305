"""What was asked for in a dialog is run beside the jobs of the file, by whichever scheduler leads."""

import sys
import time
from pathlib import Path

import pytest

from workbench.base.errors import BadInput, NotFound
from workbench.base.ledger import Ledger
from workbench.jobs import asked, control
from workbench.jobs.beside import Beside
from workbench.jobs.dues import Due, dues
from workbench.jobs.lead import Fenced, Lead, members
from workbench.jobs.scheduler import Scheduler

CHEAP = "import sys\nfrom workbench.jobs.attempt import work\nwork(sys.argv[1], sys.argv[2], int(sys.argv[3]), lambda due, ledger: None)"
FILE = '[jobs.always]\nnotebook = "a.ipynb"\ncron = "* * * * * *"\n'


@pytest.fixture
def project_file(project: Path, write) -> Path:
    write("n: int = 0", name="a.ipynb")
    (project / "jobs.toml").write_text(FILE)
    return project / "jobs.toml"


def steps(scheduler: Scheduler, within_s: float, done=lambda: False) -> None:
    until = time.monotonic() + within_s
    while not done() and time.monotonic() < until:
        time.sleep(min(scheduler.step(), 0.2))


def ended_all(scheduler: Scheduler) -> None:
    for child, _ in scheduler._children.values():
        child.wait(60)


def of(ledger: Ledger, job: str) -> list[Due]:
    return dues(ledger, "job=?", job)


def test_one_that_gives_way_leads_only_while_there_is_no_other(ledger: Ledger) -> None:
    small, whole = Lead(ledger, gives_way=True), Lead(ledger)
    assert small.renew() and whole.renew()
    with pytest.raises(Fenced), small.change():
        raise AssertionError("it has lost the lead")
    small.renewed_s = 0.0
    assert not small.renew() and whole.leads
    whole.leave()
    small.renewed_s = 0.0
    assert small.renew()


def test_the_lab_runs_what_was_asked_for_and_leaves_the_file_to_others(
    ledger: Ledger, project_file: Path
) -> None:
    rules = {"notebook": "a.ipynb", "cron": "* * * * * *"}
    made = asked.define("Always!", rules, ledger=ledger)
    assert (made.job.name, asked.define("always", rules, ledger=ledger).job.name) == ("Always", "always-2")
    once = asked.ask("Once", {"notebook": "a.ipynb", "params": {"n": "5"}}, ledger=ledger)
    scheduler = Scheduler(ledger=ledger, command=[sys.executable, "-c", CHEAP], asked_only=True)
    ended = ("succeeded", "failed")
    steps(scheduler, 60, lambda: of(ledger, once.job)[0].status in ended and of(ledger, "Always"))
    assert of(ledger, once.job)[0].status == "succeeded" and not of(ledger, "always")
    asked.undefine("Always", ledger)
    asked.undefine("always-2", ledger)
    assert not [due for due in of(ledger, "Always") if due.status in ("queued", "retrying")]
    ended_all(scheduler)
    whole = Scheduler(ledger=ledger, command=[sys.executable, "-c", CHEAP])
    steps(whole, 60, lambda: bool(of(ledger, "always")))
    assert whole.lead.leads and of(ledger, "always")
    (project_file).write_text(
        ""
    )  # the job has gone from the file: what waits is skipped, what was asked for stays
    waits = asked.ask("Later", {"notebook": "a.ipynb"}, ledger=ledger)
    steps(whole, 60, lambda: of(ledger, waits.job)[0].status in ended)
    assert of(ledger, waits.job)[0].status == "succeeded"
    ended_all(whole)


def test_what_is_asked_for_is_checked_and_once(ledger: Ledger, project_file: Path) -> None:
    rules = {"notebook": "a.ipynb"}
    for wrong, error, said in (
        ({"params": {"n": "x"}}, BadInput, "parameter n = 'x' is not int"),
        ({"notebook": "b.ipynb"}, NotFound, "no notebook at 'b.ipynb'|no notebook at"),
        ({"tz": "Europe/Berlim"}, BadInput, "did you mean Europe/Berlin"),
        ({"cron": "nonsense"}, BadInput, "cron = 'nonsense'"),
        ({"timeout": 5}, BadInput, "timeout"),
    ):
        with pytest.raises(error, match=said):
            asked.ask("A", rules | wrong, ledger=ledger)
    with pytest.raises(BadInput, match="has no schedule"):
        asked.define("A", rules, ledger=ledger)
    first = asked.ask("A", rules, token="t", ledger=ledger)
    assert asked.ask("A", rules, token="t", ledger=ledger).key == first.key
    assert len({asked.ask("A", rules, ledger=ledger).key for _ in range(5)} | {first.key}) == 6
    assert asked.cancel(first.key, "no", ledger) and not asked.cancel(first.key, "no", ledger)
    with pytest.raises(NotFound, match="no definition 'A'"):
        asked.redefine("A", {}, ledger=ledger)


def test_definitions_are_listed_paused_and_changed_as_those_of_the_file(
    ledger: Ledger, project_file: Path
) -> None:
    asked.define("Night", {"notebook": "a.ipynb", "cron": "0 6 * * *"}, ledger=ledger)
    assert {line.job.name for line in control.listing(ledger=ledger)} == {"always", "Night"}
    assert control.pause(["Night"], ledger=ledger) == ["Night"]
    assert {line.job.name: line.paused for line in control.listing(ledger=ledger)} == {
        "always": False,
        "Night": True,
    }
    asked.redefine("Night", {"cron": "0 7 * * *", "tz": "Europe/Berlin"}, "Later", ledger)
    assert [row["key"][:6] for row in control.upcoming("none.toml", 1, ledger=ledger)] == ["Night@"]
    project_file.unlink()
    assert list(asked.all_jobs(ledger=ledger)) == ["Night"]


def test_the_scheduler_beside_ends_with_its_owner(ledger: Ledger) -> None:
    beside = Beside(ledger)
    pid = beside.ensure()
    assert beside.ensure() == pid
    until = time.monotonic() + 60
    while pid not in [one["pid"] for one in members(ledger)] and time.monotonic() < until:
        time.sleep(0.1)
    assert [one["pid"] for one in members(ledger)] == [pid]
    beside.stop(within_s=60)
    assert not members(ledger)
