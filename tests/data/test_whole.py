"""A feed that is busted as a whole is stopped before a model sees a row, and what is busted is named."""

import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from workbench.base.errors import BadFeed, BadInput, FeedRefused, WorkbenchError
from workbench.base.records import Ledger, find, start
from workbench.data import watch
from workbench.data.contract import Column, Contract
from workbench.data.feed import Feed
from workbench.data.parquet import write_parquet
from workbench.data.reference import write_reference
from workbench.data.whole import Balance, Complete, Drift, Fresh, Unique, Volume, Whole, calendar_names

COLUMNS = {"id": Column("int", ge=0, role="key"), "x": Column("float"), "y": Column("int", role="outcome")}


def contract(*whole: Whole, **more: Column) -> Contract:
    return Contract("rows", COLUMNS | more, whole=whole, error_budget=0.2)


def frame(rows: int = 1000, first: int = 0, **more: Any) -> pl.DataFrame:
    made = {"id": range(first, first + rows), "x": np.linspace(0, 1, rows), "y": np.arange(rows) % 5 == 0}
    return pl.DataFrame(made).with_columns(pl.col("y").cast(pl.Int64), **more)


def check(path: Path, made: Contract, ledger: Ledger, **more: Any) -> list[dict[str, Any]]:
    return Feed(path, made, **more).check(ledger).whole


def test_contracts_with_rules_about_the_feed_are_plain_data() -> None:
    made = contract(
        Volume(within=0.2, least=3, by="id"), Fresh("2d", column="at", by="id"), Complete("d", "2013-01-*"),
        Complete("at", every="1h", until="now"), Unique(("id", "d"), at_most=0.1), Balance("y = 1", 0.1, 0.5, level="warn"),
        Drift("r.json", columns=("x",)), at=Column("datetime"), d=Column("str"),
    )  # fmt: skip
    assert Contract.from_json(made.to_json()) == made
    assert "whole" not in contract().to_json()  # older marks stay
    assert made._repr_html_().count("Complete") == 2
    with pytest.raises(BadInput, match="no contract"):
        Contract.from_json(made.to_json() | {"whole": [{"rule": "Tidy"}]})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: contract(Unique("idd")), "did you mean 'id'"),
        (lambda: contract("id"), "Volume, Fresh"),  # type: ignore[arg-type]
        (lambda: Fresh("soon"), "no length of time"),
        (lambda: Complete("d"), "values or every"),
        (lambda: Complete("d", "2013"), "no pattern"),
        (lambda: Balance("y", 0.5, 0.1), "swap"),
        (lambda: Volume(within=0), "within over 0"),
        (lambda: Volume(level="loud"), "stop, warn"),  # type: ignore[arg-type]
        (lambda: Unique(()), "names no column"),
        (lambda: Drift(""), "no reference"),
    ],
)
def test_senseless_rules_are_refused_when_written(make: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        make()


def test_patterns_of_dates_are_what_the_calendar_has() -> None:
    assert len(calendar_names("2012-02-*")) == 29 and len(calendar_names("2013-*-*")) == 365
    assert calendar_names("2013-*")[-1] == "2013-12" and calendar_names("2013-01-31T*")[-1] == "2013-01-31T23"


def test_a_missing_partition_is_named_and_no_row_is_handed_out(project: Path, ledger: Ledger) -> None:
    for day in (1, 2, 4):
        write_parquet(project / f"d/date=2013-01-{day:02d}/x.parquet", frame(10, day * 10))
    made = contract(Complete("date", [f"2013-01-{day:02d}" for day in range(1, 5)]), date=Column("str"))
    feed = Feed("d", made)
    with pytest.raises(FeedRefused, match="complete: missing: date=2013-01-03") as caught:
        feed.rows()
    assert caught.value.exit_code == 4 and feed._accepted is None
    assert feed.report is not None and feed.report.accepted == 30
    assert find(feed.report.run, ledger).status == "failed"
    assert check("d", replace(made, whole=(Complete("date", "2013-01-*", level="warn"),)), ledger)[0][
        "why"
    ] == (
        "missing: date=2013-01-03, date=2013-01-05, date=2013-01-06, date=2013-01-07, date=2013-01-08 and 23 more"
    )
    write_parquet(project / "d/date=2013-01-03/x.parquet", frame(10, 30))
    assert feed.rows().height == 40  # it came
    assert (
        Feed("d", made, where="date <= '2013-01-02'").check(ledger).accepted == 20
    )  # the filter leaves out the others


def test_gaps_in_time_are_named(project: Path, ledger: Ledger) -> None:
    at = [datetime(2013, 1, 1) + timedelta(hours=hour) for hour in range(48) if hour not in (7, 30, 31)]
    write_parquet(project / "x.parquet", frame(len(at), at=pl.Series(at)))
    made = contract(Complete("at", every="1h"), at=Column("datetime"))
    with pytest.raises(
        FeedRefused, match="at 2013-01-01 07:00:00 to .* 08:00:00, at 2013-01-02 06:00:00 to .* 08:00:00"
    ):
        check(project / "x.parquet", made, ledger)
    ends = Complete("at", every="1d", since="2012-12-30", until="2013-01-05", level="warn")
    found = check(project / "x.parquet", replace(made, whole=(ends,)), ledger)[0]
    assert found["value"] == "2 missing" and "2012-12-30" in found["why"] and "2013-01-03" in found["why"]
    with pytest.raises(BadFeed, match="'id' is int"):
        check(project / "x.parquet", contract(Complete("id", every="1h")), ledger)


def test_rows_that_come_twice_are_named_wherever_they_are(
    project: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(project / "d/a.parquet", frame(3000))
    write_parquet(project / "d/b.parquet", frame(3000, 2998))
    found = []
    for rows in (2_000_000, 1000):  # in memory, and on disk
        monkeypatch.setattr(watch, "SPILL_ROWS", rows)
        monkeypatch.setattr("workbench.data.part.BATCH_ROWS", 1000)
        with pytest.raises(FeedRefused) as caught:
            check("d", contract(Unique("id")), ledger)
        found.append(caught.value.what)
    assert found[0] == found[1]
    assert (
        "2 rows repeat an earlier one: row 0 of d/b.parquet has the key of row 2998 of d/a.parquet (id=2998)"
        in found[0]
    )
    assert check("d", contract(Unique("id", at_most=0.001)), ledger)[0]["verdict"] == "pass"
    assert check("d", contract(Unique(("id", "x"))), ledger)[0]["value"] == "0.000%"


def test_the_usual_volume_is_that_of_earlier_checks(project: Path, ledger: Ledger) -> None:
    made = contract(Volume(within=0.3))
    for day, rows in enumerate((100, 110, 90)):
        write_parquet(project / f"{day}.parquet", frame(rows))
        for _ in range(2):  # the same content twice is one check
            found = check(project / f"{day}.parquet", made, ledger)[0]
        assert found["verdict"] == "pass" and f"{day} earlier checks" in found["why"]
    write_parquet(project / "3.parquet", frame(40))
    with pytest.raises(FeedRefused, match="volume: 40 rows, the last 3 checks had 100 at the median"):
        check(project / "3.parquet", made, ledger)
    write_parquet(project / "4.parquet", frame(125))
    assert (
        "the last 3 checks" in check(project / "4.parquet", made, ledger)[0]["why"]
    )  # what was stopped is not usual
    assert check(project / "3.parquet", made, ledger, name="other")[0]["verdict"] == "pass"
    with pytest.raises(FeedRefused, match="125 rows"):
        check(project / "4.parquet", contract(Volume(least=200)), ledger)


def test_a_part_with_too_few_rows_is_named(project: Path, ledger: Ledger) -> None:
    for month, rows in ((1, 100), (2, 105), (3, 9)):
        write_parquet(project / f"d/month={month}/x.parquet", frame(rows))
    with pytest.raises(FeedRefused, match=r"month=3 \(9 rows\): the others have 100"):
        check(project / "d", contract(Volume(by="month"), month=Column("int")), ledger)


def test_what_is_late_is_named(project: Path, ledger: Ledger) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    at = [now - timedelta(hours=hours) for hours in (1, 2, 30, 40)]
    write_parquet(project / "x.parquet", frame(4, at=pl.Series(at), who=pl.Series(["AA", "B6", "UA", "UA"])))
    more = {"at": Column("datetime"), "who": Column("str")}
    assert check(project / "x.parquet", contract(Fresh("3h", "at"), **more), ledger)[0]["verdict"] == "pass"
    with pytest.raises(FeedRefused, match="late, the newest is who=UA"):
        check(project / "x.parquet", contract(Fresh("3h", "at", by="who"), **more), ledger)
    for month, age_h in ((1, 50), (2, 1)):
        path = write_parquet(project / f"d/month={month}/x.parquet", frame(4, month * 4))
        os.utime(path, (time.time() - age_h * 3600,) * 2)
    more = {"month": Column("int")}
    assert check(project / "d", contract(Fresh("1d"), **more), ledger)[0]["verdict"] == "pass"
    with pytest.raises(FeedRefused, match="month=1"):
        check(project / "d", contract(Fresh("1d", by="month"), **more), ledger)


def test_the_balance_of_labels(project: Path, ledger: Ledger) -> None:
    write_parquet(project / "x.parquet", frame())
    assert check(project / "x.parquet", contract(Balance("y = 1", 0.1, 0.3)), ledger)[0]["value"] == "20.00%"
    with pytest.raises(FeedRefused, match="balance: true of 200 of 1,000 rows"):
        check(project / "x.parquet", contract(Balance("y = 1", 0.5)), ledger)
    with pytest.raises(BadFeed, match="not true or false"):
        check(project / "x.parquet", contract(Balance("y + 1")), ledger)


def test_drift_against_a_reference_file_or_run(project: Path, ledger: Ledger) -> None:
    rng = np.random.default_rng(0)

    def rows(name: str, mean: float) -> Path:
        x, y = rng.normal(mean, 1, 3000), rng.integers(0, 2, 3000)
        return write_parquet(project / name, pl.DataFrame({"id": range(3000), "x": x, "y": y}))

    first = Feed(rows("a.parquet", 0), contract())
    write_reference(first, "a.json", ledger=ledger)
    with start("note", "n", ledger=ledger):
        made = write_reference(first, ledger=ledger).parent.name
    for reference in ("a.json", made):
        held = contract(Drift(reference))
        found = check(rows("b.parquet", 0), held, ledger)[0]
        assert found["verdict"] == "pass" and "calm rows alarm in 5.0%" in found["why"]
        with pytest.raises(FeedRefused, match=r"drift: moved: x \(PSI 0"):
            check(rows("c.parquet", 0.6), held, ledger)
    with pytest.raises(BadFeed, match="no file, and no run"):
        check(project / "b.parquet", contract(Drift("none.json")), ledger)
    with pytest.raises(BadFeed, match="no input of other, nothing is compared"):
        other = Contract("other", {"z": Column("float", nullable=True)}, whole=[Drift("a.json")])
        check(write_parquet(project / "z.parquet", pl.DataFrame({"z": [1.0, 2.0]})), other, ledger)
    (project / "bad.json").write_text("{}x")
    with pytest.raises(BadFeed, match="is no reference"):
        check(project / "b.parquet", contract(Drift("bad.json")), ledger)


def test_a_feed_to_be_scored_is_asked_what_any_rows_are(project: Path, ledger: Ledger) -> None:
    write_parquet(project / "x.parquet", frame(10).drop("y"))
    made = contract(Volume(least=99), Balance("y = 1", 0.5), Complete("id", range(99)), Unique("id"))
    found = check(project / "x.parquet", made, ledger, outcomes=False)
    assert [one["rule"] for one in found] == ["unique"]


def test_the_report_shows_all_of_it_escaped(project: Path, ledger: Ledger) -> None:
    words = pl.Series(["<script>alert(1)</script>"] * 900 + [None] * 100)
    write_parquet(project / "x.parquet", frame(w=words).with_columns(id=pl.col("id") - 1))
    made = contract(Unique("w", level="warn"), Balance("y = 1"), w=Column("str", nullable=True))
    report = Feed("x.parquet", made).check(ledger)
    page, text = report._repr_html_(), report.text()
    assert "<script>" not in page and page.count("<svg") == 4 and "1 warning" in page and "viewBox" in page
    assert (
        text.index("warn  unique") < text.index("pass  balance") and "10.0% missing" in text and "█" in text
    )
    assert "1 id is below 0" in str(report) and "\n" not in str(report)
    kept = ledger.store.path("runs", report.run) / "report.json"
    assert '"verdict": "warn"' in kept.read_text()


_PROGRAM = textwrap.dedent("""
    import resource, sys
    from workbench.data.contract import Column, Contract
    from workbench.data.feed import Feed
    from workbench.data.whole import Balance, Complete, Unique
    columns = {"n": Column("int", ge=0, role="key")} | {f"x{i}": Column("float", le=0.9) for i in range(8)}
    whole = (Unique("n"), Balance("x0 > 0.5"), Complete("n", [1]))
    whole = whole[:2]
    feed = Feed(sys.argv[1], Contract("rows", columns, error_budget=1.0, whole=whole))
    report = feed.check()
    print(report.rows, report.refused, len(feed.pieces()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
""")


@pytest.mark.slow
def test_memory_is_flat_from_a_third_of_a_million_to_three_million_rows(project: Path) -> None:
    rng, peak = np.random.default_rng(0), {}
    for rows in (300_000, 3_000_000):
        at, path = 0, project / f"{rows}"
        while at < rows:  # 300,000 a file
            part = {"n": range(at, at + 300_000)} | {f"x{i}": rng.random(300_000) for i in range(8)}
            write_parquet(path / f"{at}.parquet", pl.DataFrame(part).with_columns(pl.col("^x.$") * 0.9005))
            at += 300_000
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(path)],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        seen, refused, _, peak[rows] = map(int, done.stdout.split())
        assert seen == rows and refused > 0
    assert peak[3_000_000] < 1.3 * peak[300_000], peak
    print(peak)


def test_whatever_is_wrong_is_an_error_of_ours(project: Path, ledger: Ledger) -> None:
    write_parquet(project / "x.parquet", frame(5))
    for rule in (Fresh("1h", column="x"), Complete("x", every="1s"), Complete("y", [0, 1]), Volume(by="x")):
        try:
            check(project / "x.parquet", contract(rule), ledger)
        except WorkbenchError as error:
            assert error.hint
