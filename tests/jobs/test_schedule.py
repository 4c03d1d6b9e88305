"""When a job is due, and what becomes of each due time: nothing runs here."""

import zoneinfo
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.base.errors import BadSetting, NotFound
from workbench.jobs.jobsfile import Job, load_jobs, run_key
from workbench.jobs.schedule import (
    QUEUE_LIMIT,
    Decision,
    decide,
    due_times,
    next_due,
    retry_wait_s,
    slow_after_s,
    spoken,
)

HOUR = 3600.0
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()
# Days on which the clock changes: forward, back. Half an hour in Lord Howe, at midnight in Cairo and Beirut.
CHANGES = {
    "Europe/Berlin": (date(2026, 3, 29), date(2026, 10, 25)),
    "America/New_York": (date(2026, 3, 8), date(2026, 11, 1)),
    "Australia/Lord_Howe": (date(2026, 10, 4), date(2026, 4, 5)),
    "Africa/Cairo": (date(2026, 4, 24), date(2026, 10, 30)),
    "America/St_Johns": (date(2026, 3, 8), date(2026, 11, 1)),
    "Asia/Beirut": (date(2026, 3, 29), date(2026, 10, 25)),
}


def job(**rules: object) -> Job:
    return Job(**{"name": "j", "notebook": "a.ipynb", "cron": "0 * * * *", **rules})


def actions(found: list[Decision]) -> list[str]:
    return [decision.action for decision in found]


@pytest.mark.parametrize("tz", CHANGES)
@pytest.mark.parametrize("which", [0, 1])
def test_a_daily_job_runs_once_a_day_when_the_clock_changes(tz: str, which: int) -> None:
    zone = zoneinfo.ZoneInfo(tz)
    first = CHANGES[tz][which] - timedelta(days=2)
    after = datetime.combine(first, datetime.min.time(), zone).timestamp() - 1
    for minute in range(0, 24 * 60, 10):
        cron = f"{minute % 60} {minute // 60} * * *"
        found, left = due_times(cron, tz, after, after + 5.2 * 86_400)
        days = Counter(datetime.fromtimestamp(moment, zone).date() for moment in found)
        assert left is None
        assert all(days[first + timedelta(days=n)] == 1 for n in range(5)), (cron, days)


@pytest.mark.parametrize("tz", CHANGES)
@pytest.mark.parametrize("which", [0, 1])
def test_a_job_every_quarter_hour_goes_on_in_real_time(tz: str, which: int) -> None:
    day = CHANGES[tz][which] - timedelta(days=1)
    after = datetime.combine(day, datetime.min.time(), zoneinfo.ZoneInfo(tz)).timestamp()
    found, _ = due_times("*/15 * * * *", tz, after, after + 3 * 86_400)
    assert {b - a for a, b in zip(found, found[1:], strict=False)} == {900.0}
    assert len(found) == 3 * 96


def test_the_days_of_the_changes_are_the_days_of_the_changes() -> None:
    for tz, days in CHANGES.items():
        for day in days:
            noon = datetime.combine(day, datetime.min.time(), zoneinfo.ZoneInfo(tz)).replace(hour=12)
            before = noon - timedelta(days=1)
            assert noon.utcoffset() != before.utcoffset(), (tz, day)


def test_two_readings_that_fall_on_one_moment_are_one_due_time() -> None:
    start = datetime(2026, 3, 29, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")).timestamp()
    found, _ = due_times("0,30 2,3 * * *", "Europe/Berlin", start, start + 86_400)
    shown = [datetime.fromtimestamp(m, zoneinfo.ZoneInfo("Europe/Berlin")).strftime("%H:%M") for m in found]
    assert shown == ["03:00", "03:30"]


def test_leap_day_month_end_and_last_friday() -> None:
    start = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    end = datetime(2029, 1, 1, tzinfo=UTC).timestamp()
    for cron, count in (("0 6 29 2 *", 1), ("0 6 L * *", 24), ("0 6 * * FRI#1", 24), ("0 6 31 * *", 14)):
        assert len(due_times(cron, "UTC", start, end)[0]) == count, cron


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        ["*/7 * * * *", "5 */3 * * *", "30 2 * * *", "0,30 1-3 * * *", "0 0 * * SUN", "*/20 * * * * *"]
    ),
    st.sampled_from(list(CHANGES)),
    st.integers(0, 365 * 24),
    st.lists(st.floats(0.001, 1), min_size=1, max_size=6),
)
def test_due_times_are_the_same_however_often_one_looks(
    cron: str, tz: str, hour: int, looks: list[float]
) -> None:
    "Cutting a span at any moment neither loses nor repeats a due time; next_due gives the same ones."
    begin = datetime(2026, 1, 1, tzinfo=UTC).timestamp() + hour * HOUR
    end = begin + (2 * 86_400 if cron.count(" ") == 4 else 600)
    whole, _ = due_times(cron, tz, begin, end)
    pieces, at = [], begin
    for cut in sorted(begin + share * (end - begin) for share in looks) + [end]:
        pieces += due_times(cron, tz, at, cut)[0]
        at = cut
    assert pieces == whole == sorted(set(whole))
    at, walked = begin, []
    for _ in whole[:20]:
        at = next_due(cron, tz, at)
        walked.append(at)
    assert walked == whole[:20]


def test_of_very_many_the_newest_are_listed_and_the_rest_is_said() -> None:
    found, left = due_times("* * * * * *", "UTC", NOON - 10 * 86_400, NOON)
    assert (len(found), found[-1], left) == (1000, NOON, NOON - 10 * 86_400)
    decided = decide(
        job(cron="* * * * * *", catch_up="all", catch_up_cap=5, overlap="queue"),
        found,
        NOON,
        left_out_from=left,
    )
    assert decided[0].since_at == left and "every due time before it since 2026-05-22" in decided[0].reason
    assert len(decided) == 1000
    found, left = due_times("* * * * * *", "UTC", NOON - 1000, NOON)
    assert (len(found), left) == (1000, None)


@pytest.mark.parametrize(
    ("policy", "cap", "run"),
    [("none", 24, 0), ("latest", 24, 1), ("all", 24, 8), ("all", 3, 3), ("all", 1, 1)],
)
def test_asleep_for_eight_hours(policy: str, cap: int, run: int) -> None:
    now = NOON + 1800  # half past: the last due time is late as well
    due, _ = due_times("0 * * * *", "UTC", now - 8 * HOUR, now)
    found = decide(job(catch_up=policy, catch_up_cap=cap), due, now)
    assert actions(found) == ["skip"] * (8 - run) + ["run"] * run
    assert [decision.due_at for decision in found] == due
    assert all(decision.reason for decision in found) and all(decision.missed for decision in found)


def test_what_is_due_now_stands_for_what_was_missed() -> None:
    due, _ = due_times("0 * * * *", "UTC", NOON - 8 * HOUR, NOON)
    found = decide(job(catch_up="latest"), due, NOON + 5)
    assert actions(found) == ["skip"] * 7 + ["run"] and found[-1].due_at == NOON and not found[-1].missed
    caught_up = decide(job(catch_up="all", overlap="skip"), due, NOON + 5)
    assert actions(caught_up) == ["run"] * 8  # a run that is caught up does not push out what is due now


@pytest.mark.parametrize(
    ("overlap", "busy", "expected"),
    [
        ("skip", "", ["run", "skip", "skip"]),
        ("skip", "j@x", ["skip", "skip", "skip"]),
        ("queue", "", ["run", "run", "run"]),
        ("queue", "j@x", ["run", "run", "run"]),
        ("cancel", "", ["skip", "skip", "run"]),
        ("cancel", "j@x", ["skip", "skip", "run"]),
    ],
)
def test_overlap(overlap: str, busy: str, expected: list[str]) -> None:
    found = decide(job(overlap=overlap), [NOON - 20, NOON - 10, NOON], NOON, busy=busy)
    assert actions(found) == expected
    assert all(decision.reason for decision in found if decision.action == "skip")


def test_a_queue_has_an_end_and_a_pause_is_said() -> None:
    full = decide(job(overlap="queue"), [NOON], NOON, busy="j@x", queued=QUEUE_LIMIT)
    assert actions(full) == ["skip"] and full[0].missed and "wait already" in full[0].reason
    paused = decide(job(), [NOON - HOUR, NOON], NOON, paused=True)
    assert [(d.action, d.reason, d.missed) for d in paused] == [("skip", "the job is paused", False)] * 2


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 100_000), unique=True, max_size=30).map(sorted),
    st.sampled_from(["skip", "queue", "cancel"]),
    st.sampled_from(["none", "latest", "all"]),
    st.integers(1, 10),
    st.sampled_from(["", "j@x"]),
    st.booleans(),
)
def test_every_due_time_has_one_decision_with_a_reason(
    ages: list[int], overlap: str, catch_up: str, cap: int, busy: str, paused: bool
) -> None:
    due = sorted(NOON - age for age in ages)
    rules = job(overlap=overlap, catch_up=catch_up, catch_up_cap=cap)
    found = decide(rules, due, NOON, busy=busy, paused=paused)
    assert [decision.due_at for decision in found] == due
    assert all(decision.reason for decision in found if decision.action == "skip")
    late = [decision for decision in found if NOON - decision.due_at > rules.grace_s]
    assert sum(d.action == "run" for d in late) <= {"none": 0, "latest": 1, "all": cap}[catch_up]


def test_waits_before_a_retry_double_up_to_an_hour() -> None:
    assert [retry_wait_s(30, tries) for tries in (1, 2, 3, 20, 100)] == [30, 60, 120, 3600, 3600]
    assert retry_wait_s(7200, 3) == 7200 and retry_wait_s(0, 5) == 0
    assert slow_after_s([10] * 4) is None and slow_after_s([10] * 5) == 90
    assert [spoken(s) for s in (3, 61, 8 * HOUR + 180, 90_000)] == [
        "3 s",
        "1 min 1 s",
        "8 h 3 min",
        "1 d 1 h",
    ]


def write(folder: Path, text: str) -> Path:
    path = folder / "jobs.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("line", "said", "hint"),
    [
        ('cron = "0 25 * * *"', "cron = '0 25 * * *': Bad hour", "five fields"),
        ('cron = "0 6 * *"', "Wrong number of fields", "five fields"),
        ('cron = "0 6 30 2 *"', "cron = '0 6 30 2 *'", "five fields"),
        ('tz = "Europe/Berln"', "did you mean Europe/Berlin", "a zone like"),
        ('tz = "../../etc/passwd"', "no such zone", "a zone like"),
        ('overlap = "sometimes"', "overlap = 'sometimes'", "skip, queue or cancel"),
        ('catch_up = "some"', "catch_up = 'some'", "none, latest or all"),
        ("catch_up_cap = 0", "catch_up_cap = 0", "1 to 1000"),
        ('retries = "3"', "retries = '3'", "whole number, 0 to 100"),
        ("retries = true", "retries = True", "whole number"),
        ("retry = 3", "unknown key 'retry' = 3", "did you mean 'retries'"),
        ("timeout_s = -1", "timeout_s = -1", "seconds the notebook may take"),
        ("cell_timeout_s = 0", "cell_timeout_s = 0", "seconds each cell may take"),
        ('params = {day = "{dat}"}', "{dat} is no mark", "keep one"),
        ('cron = "0 6 * * *"\non_new_data = "a/*"', "both given", "keep one"),
    ],
)
def test_a_mistake_is_said_with_file_job_key_value_and_form(
    project: Path, line: str, said: str, hint: str
) -> None:
    path = write(project, f'[jobs.night]\nnotebook = "a.ipynb"\n{line}\n')
    with pytest.raises(BadSetting) as error:
        load_jobs(path, notebooks=False)
    assert f"{path} [jobs.night]" in error.value.what and said in error.value.what
    assert hint in error.value.hint


def test_a_url_among_the_alerts_is_refused_and_not_repeated(project: Path) -> None:
    path = write(
        project,
        '[jobs.night]\nnotebook = "a.ipynb"\nalerts = ["env:CHAT", "mailto://me:hunter2@example.org"]\n',
    )
    with pytest.raises(BadSetting) as error:
        load_jobs(path, notebooks=False)
    assert "hunter2" not in str(error.value) and "env:NAME or file:PATH" in error.value.hint


def test_other_mistakes(project: Path) -> None:
    with pytest.raises(NotFound, match="no jobs file"):
        load_jobs()
    for text, said in (
        ("[jobs.a", "is not TOML"),
        ('[job.a]\nnotebook = "a.ipynb"\n', "'job' means nothing here"),
        ("jobs = 3", "is no table"),
        ("[jobs]\na = 1", "jobs.a = 1 is no table"),
        ('[jobs.a]\ncron = "0 6 * * *"', "notebook is missing"),
        ('[jobs."a b"]\nnotebook = "a.ipynb"', "name = 'a b'"),
        ('[jobs.a]\nnotebook = "none.ipynb"', "notebook = 'none.ipynb': no notebook at"),
    ):
        with pytest.raises(BadSetting, match=said.replace(".", r"\.")):
            load_jobs(write(project, text))


def test_parameters_are_checked_when_the_file_is_read(project: Path, write) -> None:
    write("from datetime import date\nday: date = date(2013, 1, 1)\nn: int = 1", name="job.ipynb")
    path = project / "jobs.toml"
    path.write_text('[jobs.a]\nnotebook = "job.ipynb"\nparams = {day = "{date-1}", n = 2}\n')
    assert load_jobs()["a"].given(NOON) == {"day": "2026-05-31", "n": 2}
    path.write_text('[jobs.a]\nnotebook = "job.ipynb"\nparams = {n = "{date}"}\n')
    with pytest.raises(BadSetting, match=r"\[jobs.a\]: params: parameter n = '1970-01-01' is not int"):
        load_jobs()


def test_marks_are_of_the_due_time_in_the_zone() -> None:
    due = datetime(2026, 12, 31, 23, 30, tzinfo=UTC).timestamp()
    params = {
        "a": "{date}",
        "b": ["{date-1}", "{date+1}"],
        "c": {"d": "{datetime}"},
        "e": "{key}",
        "f": 5,
        "g": '{"x": 1}',
    }
    found = job(tz="Europe/Berlin", params=params).given(due)
    assert found == {
        "a": "2027-01-01",
        "b": ["2026-12-31", "2027-01-02"],
        "c": {"d": "2027-01-01T00:30:00+01:00"},
        "e": "j@2026-12-31T23:30:00Z",
        "f": 5,
        "g": '{"x": 1}',
    }
    assert run_key("j", due + 0.25).endswith("23:30:00.250Z")
