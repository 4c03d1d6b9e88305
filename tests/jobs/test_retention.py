"""What the schedule forgets: old ends with their logs; never what is open, and never so that it could run again."""

from pathlib import Path

import pytest

from workbench.base.errors import BadInput, BadSetting
from workbench.base.ledger import Ledger
from workbench.base.settings import load_settings
from workbench.jobs import control
from workbench.jobs.dues import alert, claim, dues, prepare
from workbench.jobs.jobsfile import Job
from workbench.jobs.lead import Fenced, Lead
from workbench.jobs.retention import KEPT_EACH, log_path, prune
from workbench.jobs.schedule import Decision
from workbench.jobs.scheduler import settle

DAY = 86_400.0
START = 1_735_711_200.0  # 2025-01-01 06:00 UTC
JOB = Job(name="a", notebook="a.ipynb", cron="0 6 * * *", alerts=["env:CHAT"])


@pytest.fixture
def lead(ledger: Ledger, write) -> Lead:
    "A hundred days of a daily job that succeeded, each with its log and its alert."
    write("n = 0", name="a.ipynb")
    Path("jobs.toml").write_text('[jobs.a]\nnotebook = "a.ipynb"\ncron = "0 6 * * *"\n')
    one = Lead(prepare(ledger))
    with ledger.change() as db:
        for day in range(100):
            at = START + day * DAY
            key = claim(db, JOB, Decision(at, "run"), "cron", at)
            alert(db, JOB, key, "recovered", "it succeeded again", at)
            db.execute("update dues set status='succeeded', ended_at=? where key=?", (at + 60, key))
            db.execute(
                "insert into due_attempts (key, launch, status, started_at) values (?,1,'succeeded',?)",
                (key, at),
            )
            path = log_path(ledger, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("done")
    assert one.renew()
    return one


def count(ledger: Ledger, table: str) -> int:
    return ledger.query(f"select count(*) from {table}")[0][0]


def test_what_is_old_goes_with_all_that_belongs_to_it(lead: Lead) -> None:
    now = START + 99.5 * DAY
    assert prune(lead, 90, now) == 10 and prune(lead, 90, now) == 0
    assert prune(lead, 1, now) == 90 - KEPT_EACH
    assert {count(lead.ledger, table) for table in ("dues", "due_attempts", "due_alerts")} == {KEPT_EACH}
    assert len(list(lead.ledger.store.path("schedule", "logs").iterdir())) == KEPT_EACH
    assert min(due.due_at for due in dues(lead.ledger)) == START + 80 * DAY


def test_what_has_not_ended_stays_however_old(lead: Lead) -> None:
    with lead.ledger.change() as db:
        for day, status in enumerate(("queued", "retrying", "interrupted", "launching", "running")):
            db.execute("update dues set status=? where due_at=?", (status, START + day * DAY))
    assert prune(lead, 1, START + 999 * DAY) == 75
    assert sorted(due.due_at for due in dues(lead.ledger))[:5] == [START + day * DAY for day in range(5)]


def test_nothing_that_was_forgotten_runs_again(lead: Lead, write) -> None:
    prune(lead, 1, START + 999 * DAY)
    with lead.ledger.change() as db:
        for kind in ("cron", "backfill", "hand"):
            assert claim(db, JOB, Decision(START + 79 * DAY, "run"), kind, START) == ""
        db.execute(
            "insert into due_jobs (job, cron, tz, since_at) values ('a', ?, 'UTC', ?)",
            (JOB.cron, START - 9 * DAY),
        )
        assert settle(db, JOB, START + 99.5 * DAY) == []  # a clock that went back a hundred days
    for days in ("2025-01-01", "2024-12-01..2025-12-31", "2025-03-21..2025-03-22"):
        with pytest.raises(
            BadInput, match="until 2025-03-21 is forgotten .keep_due_days.: it might run twice"
        ):
            control.backfill("a", days, ledger=lead.ledger)
    with pytest.raises(BadInput, match="is forgotten"):
        control.run_now("a", "2025-01-05T06:00:00", ledger=lead.ledger)
    assert control.backfill("a", "2025-03-22..2025-04-10", ledger=lead.ledger) == []  # they have succeeded
    assert control.run_now("a", "2025-04-01T06:00:00", ledger=lead.ledger).status == "succeeded"
    assert len(control.backfill("a", "2025-04-11..2025-04-12", ledger=lead.ledger)) == 2


def test_one_that_leads_no_longer_forgets_nothing(lead: Lead) -> None:
    with lead.ledger.change() as db:
        db.execute("update schedule_lead set fence=fence+1, owner='another'")
    with pytest.raises(Fenced):
        prune(lead, 1, START + 999 * DAY)
    assert count(lead.ledger, "dues") == 100


def test_a_scheduler_at_work_forgets(lead: Lead, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.jobs.scheduler import Scheduler

    lead.leave()
    with lead.ledger.change() as db:
        db.execute("delete from due_alerts")
    monkeypatch.setenv("WORKBENCH_KEEP_DUE_DAYS", "30")
    scheduler = Scheduler(ledger=lead.ledger, clock=lambda: START + 99.5 * DAY)
    scheduler.step()
    assert count(lead.ledger, "dues") == 30
    scheduler.lead.leave()


def test_the_setting(project: Path) -> None:
    assert load_settings().keep_due_days == 90
    (project / "settings.ini").write_text("[laptop]\nkeep_due_days = 0\n")
    with pytest.raises(BadSetting, match="keep_due_days = '0'"):
        load_settings()
