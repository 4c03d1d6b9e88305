"""Every row is accepted or in the quarantine with its reasons; nothing starts on a feed that cannot work."""

import os
import pickle
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from workbench.base.errors import BadFeed, BadInput, FeedRefused, Stopped
from workbench.base.progress import Tracker
from workbench.base.records import Ledger, find, runs, start
from workbench.data.contract import Column, Contract, Rule
from workbench.data.feed import Feed
from workbench.data.parquet import write_parquet
from workbench.data.part import BATCH_ROWS

CONTRACT = Contract(
    "flights",
    {
        "id": Column("int", role="key"),
        "month": Column("int", ge=1, le=12),
        "carrier": Column("str", isin=("AA", "B6", "UA")),
        "wind": Column("float", nullable=True, ge=0),
        "dep_time": Column("int", nullable=True, role="outcome"),
        "arr_delay": Column("int", nullable=True, role="outcome"),
    },
    rules=(
        Rule("cancelled", "dep_time is not null", "cancelled: it never left"),
        Rule("diverted", "dep_time is null or arr_delay is not null", "diverted: it never arrived"),
    ),
    error_budget=0.5,
)
ROWS: list[dict[str, Any]] = [
    {"id": 10, "month": 1, "carrier": "UA", "wind": 3.0, "dep_time": 517, "arr_delay": 11},
    {"id": 11, "month": 1, "carrier": "AA", "wind": None, "dep_time": None, "arr_delay": None},
    {"id": 12, "month": 2, "carrier": "B6", "wind": 0.0, "dep_time": 533, "arr_delay": None},
    {"id": 13, "month": 2, "carrier": "UA", "wind": 1.5, "dep_time": 542, "arr_delay": -5},
    {"id": 14, "month": 13, "carrier": "ZZ", "wind": -1.0, "dep_time": None, "arr_delay": None},
    {"id": 15, "month": 3, "carrier": "AA", "wind": 9.0, "dep_time": 600, "arr_delay": 0},
    {"id": 16, "month": 3, "carrier": "AA", "wind": 9.5, "dep_time": 601, "arr_delay": 1},
]
FRAME = pl.DataFrame(ROWS)


@pytest.fixture
def path(project: Path) -> Path:
    return write_parquet(project / "data" / "flights.parquet", FRAME)


def text(frame: pl.DataFrame) -> str:
    return frame.write_csv(null_value="NA")


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_the_quarantine_says_everything(path: Path, ledger: Ledger, kind: str) -> None:
    if kind == "csv":
        path = path.with_suffix(".csv")
        path.write_text(text(FRAME))
    feed = Feed(f"data/*.{kind}", CONTRACT)
    report = feed.check(ledger)
    assert (report.rows, report.refused, report.accepted) == (7, 3, 4)
    assert report.quarantine == ledger.store.root / "quarantine" / f"{report.run}.parquet"
    kept = pl.read_parquet(report.quarantine)
    assert kept.select("row", "column", "rule", "value", "why").rows() == [
        (1, "", "cancelled", "dep_time=null", "cancelled: it never left"),
        (2, "", "diverted", "dep_time=533, arr_delay=null", "diverted: it never arrived"),
        (4, "month", "le 12", "13", "month is above 12"),
        (4, "carrier", "isin", "ZZ", "carrier is not one of the allowed values"),
        (4, "wind", "ge 0.0", "-1.0", "wind is below 0.0"),
    ]
    assert set(kept["file"]) == {f"data/flights.{kind}"} and set(kept["run"]) == {report.run}
    assert kept["id"].to_list() == [11, 12, 14, 14, 14]
    assert feed.rows()["id"].to_list() == [10, 13, 15, 16]
    assert {rule["rule"]: rule["rows"] for rule in report.rules} == {
        "cancelled": 1, "diverted": 1, "le 12": 1, "isin": 1, "ge 0.0": 1,
    }  # fmt: skip
    assert report.rules[1]["sample"] == "row 2: dep_time=533, arr_delay=null"
    assert report.quarantine.stat().st_mode & 0o777 == 0o600


def test_a_check_is_a_run(path: Path, ledger: Ledger) -> None:
    with start("fit", "f", ledger=ledger) as parent:
        report = Feed(path, CONTRACT, where="month < 4").check()
    run = find(report.run, ledger)
    assert (run.kind, run.name, run.status, run.parents) == ("check", "flights", "succeeded", [parent.id])
    assert run.metrics == {"rows": 6, "refused": 2, "accepted": 4}
    assert run.identity["data"] == report.fingerprint
    assert run.params == {"files": ["data/flights.parquet"], "where": "month < 4", "contract": "flights"}
    assert run.artifacts == {"quarantine": str(report.quarantine)}


def test_a_clean_feed_has_no_quarantine(path: Path, ledger: Ledger) -> None:
    write_parquet(path, FRAME.filter(pl.col("id").is_in([10, 13, 15])))
    report = Feed(path, CONTRACT).check(ledger)
    assert (report.refused, report.quarantine, report.rules) == (0, None, [])
    assert "clean" in report._repr_html_()


def test_past_the_budget_nothing_is_handed_out(path: Path, ledger: Ledger) -> None:
    feed = Feed(path, replace(CONTRACT, error_budget=0.4))
    with pytest.raises(FeedRefused) as caught:
        feed.rows()
    assert feed.report is not None and feed.report.quarantine is not None
    assert pl.read_parquet(feed.report.quarantine).height == 5
    assert "3 refused (42.86%)" in caught.value.what and "budget of 40.00%" in caught.value.what
    assert str(feed.report.quarantine) in caught.value.hint
    assert find(feed.report.run, ledger).status == "failed"
    assert pickle.loads(pickle.dumps(caught.value)).what == caught.value.what
    with pytest.raises(FeedRefused):
        feed.columns()
    exact = Feed(path, replace(CONTRACT, error_budget=3 / 7))
    assert exact.check(ledger).accepted == 4


def test_no_row_left_is_refused_whatever_the_budget(path: Path, ledger: Ledger) -> None:
    with pytest.raises(FeedRefused):
        Feed(path, replace(CONTRACT, error_budget=1.0), where="id = 14").check(ledger)


def test_values_that_do_not_fit_are_quarantined_with_their_text(path: Path, ledger: Ledger) -> None:
    rows = text(FRAME).replace("10,1,UA,3.0", "ten,1,UA,3.0").replace("13,2,UA,1.5", "13,2,UA,1;5")
    path.with_suffix(".csv").write_text(rows)
    report = Feed(path.with_suffix(".csv"), replace(CONTRACT, error_budget=1)).check(ledger)
    kept = pl.read_parquet(report.quarantine).filter(pl.col("rule") == "type")
    assert kept.select("row", "column", "value", "why").rows() == [
        (0, "id", "ten", "id is not int"),
        (3, "wind", "1;5", "wind is not float"),
    ]


def test_a_filter_does_not_hide_broken_rows(path: Path, ledger: Ledger) -> None:
    rows = text(FRAME).replace("10,1,", "10,x,").replace("13,2,", "13,NA,")
    path.with_suffix(".csv").write_text(rows)
    feed = Feed(path.with_suffix(".csv"), replace(CONTRACT, error_budget=1), where="month <= 1 or id = 15")
    report = feed.check(ledger)
    kept = pl.read_parquet(report.quarantine).select("row", "column", "rule", "value").rows()
    assert kept == [
        (0, "month", "type", "x"),
        (1, "", "cancelled", "dep_time=null"),
        (3, "month", "null", None),
    ]


def test_row_numbers_are_of_the_file(project: Path, ledger: Ledger) -> None:
    size = BATCH_ROWS + 10
    frame = pl.DataFrame({"x": np.arange(size)}).with_columns(x=pl.when(pl.col("x") != size - 2).then("x"))
    for name in ("a", "b"):
        write_parquet(project / f"{name}.parquet", frame)
    feed = Feed("?.parquet", Contract("c", {"x": Column("int", le=size)}))
    assert len(feed) == 2 * size
    report = feed.where("x > 5 or x is null").check(ledger)
    kept = pl.read_parquet(report.quarantine).select("file", "row", "rule").rows()
    assert kept == [("a.parquet", size - 2, "null"), ("b.parquet", size - 2, "null")]
    assert report.rows == 2 * (size - 6)


def test_own_columns_never_hide_the_marks(project: Path, ledger: Ledger) -> None:
    write_parquet(project / "x.parquet", pl.DataFrame({"row": [1, -1], "value": ["a", "b"]}))
    contract = Contract("c", {"row": Column("int", ge=0), "value": Column("str")}, error_budget=0.5)
    report = Feed("x.parquet", contract).check(ledger)
    kept = pl.read_parquet(report.quarantine)
    assert kept.select("row", "row (row)", "value", "value (row)").rows() == [(1, -1, "-1", "b")]


def test_columns_are_arrays_with_outcomes_and_keys(path: Path, ledger: Ledger) -> None:
    columns = Feed(path, CONTRACT).columns()
    assert columns.inputs == ("month", "carrier", "wind")
    assert columns["arr_delay"].tolist() == [11.0, -5.0, 0.0, 1.0] and columns["id"].dtype == np.int64
    assert all(array.flags.writeable for array in columns.values())


def test_rows_check_once_and_again_when_the_content_changes(path: Path, ledger: Ledger) -> None:
    feed = Feed(path, CONTRACT)
    feed.check(ledger)
    feed.rows(), feed.columns()
    assert len(runs(ledger, kind="check")) == 1
    write_parquet(path, FRAME.head(4))
    assert feed.rows()["id"].to_list() == [10, 13]
    assert len(runs(ledger, kind="check")) == 2


def test_the_fingerprint_is_of_content_contract_and_filter(path: Path, project: Path) -> None:
    feed = Feed(path, CONTRACT)
    mark = feed.fingerprint()
    os.utime(path, (1, 1))
    assert feed.fingerprint() == Feed("data/*.parquet", CONTRACT, name="other").fingerprint() == mark
    moved = write_parquet(project / "elsewhere.parquet", FRAME)
    assert Feed(moved, CONTRACT).fingerprint() == mark
    assert Feed(path, Contract.from_json(CONTRACT.to_json())).fingerprint() == mark
    others = [
        feed.where("month < 4"),
        feed.where("month < 5"),
        Feed([path, moved], CONTRACT),
        Feed(path, replace(CONTRACT, error_budget=0.1)),
        Feed(path, replace(CONTRACT, rules=CONTRACT.rules[:1])),
        Feed(path, CONTRACT, outcomes=False),
    ]
    marks = {mark, *(other.fingerprint() for other in others)}
    assert len(marks) == 7
    data = bytearray(path.read_bytes())
    stamp = path.stat()
    data[10] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert feed.fingerprint() not in marks


def test_len_counts_rows_after_the_filter(path: Path) -> None:
    feed = Feed(path, CONTRACT)
    path.with_suffix(".csv").write_text(text(FRAME))
    assert (len(feed), len(feed.where("month = 3")), len(Feed("data/*.csv", CONTRACT))) == (7, 2, 7)
    empty = feed.where("month = 7")
    assert len(empty) == 0 and empty


def test_conditions_add_up(path: Path) -> None:
    feed = Feed(path, CONTRACT, where="month = 1 or month = 3").where("carrier = 'AA'")
    assert feed.condition == "(month = 1 or month = 3) and (carrier = 'AA')"
    assert len(feed) == 3


def test_a_feed_whose_outcome_is_not_known_yet(path: Path, ledger: Ledger) -> None:
    write_parquet(path, FRAME.drop("dep_time", "arr_delay").filter(pl.col("id") != 14))
    with pytest.raises(BadFeed, match="no column 'dep_time'"):
        Feed(path, CONTRACT)
    feed = Feed(path, CONTRACT, outcomes=False).where("month < 3")
    assert feed.check(ledger).accepted == 4 and list(feed.columns()) == ["id", "month", "carrier", "wind"]


def test_extra_columns_serve_rules_and_filters_but_are_not_handed_out(path: Path, ledger: Ledger) -> None:
    write_parquet(path, FRAME.with_columns(origin=pl.lit("EWR"), extra=pl.lit(1)))
    contract = replace(CONTRACT, rules=(Rule("origin", "origin <> 'LGA' and month < 13", "elsewhere"),))
    feed = Feed(path, contract, where="extra = 1")
    assert feed.check(ledger).accepted == 6
    assert feed.rows().columns == list(CONTRACT.columns)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rename": {"carrier": "carier"}}, "has no column 'carrier'\n  Hint: did you mean 'carier'"),
        ({"cast": {"month": pl.String}}, "column 'month' is String, the contract wants int"),
        ({"cast": {"carrier": pl.Binary}}, "column 'carrier' is Binary, the contract wants str"),
        ({"cast": {"id": pl.Float64}}, "column 'id' is Float64, the contract wants int"),
        ({"head": 0}, "has no rows"),
    ],
)
def test_a_wrong_file_is_refused_when_the_feed_is_made(path: Path, change: dict[str, Any], says: str) -> None:
    (how, argument), *_ = change.items()
    write_parquet(path, getattr(FRAME, how)(argument))
    with pytest.raises(BadFeed) as caught:
        Feed(path, CONTRACT)
    assert says in str(caught.value) and str(path) in caught.value.what


def test_the_second_file_is_looked_at_too(path: Path) -> None:
    second = write_parquet(path.with_name("g.parquet"), FRAME.drop("wind"))
    with pytest.raises(BadFeed, match=f"{second} has no column 'wind'"):
        Feed("data/*.parquet", CONTRACT)
    write_parquet(path, FRAME.with_columns(extra=pl.lit("1")))
    write_parquet(second, FRAME.with_columns(extra=pl.lit(1)))
    with pytest.raises(BadFeed, match="column 'extra' is String in .* and Int32 in"):
        Feed("data/*.parquet", CONTRACT, where="extra = '1'")


@pytest.mark.parametrize("source", ["data/none*.parquet", "nothing.csv", "empty", []])
def test_a_source_that_is_not_there(path: Path, source: Any) -> None:
    Path("empty").mkdir()
    with pytest.raises(BadFeed):
        Feed(source, CONTRACT)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("monht < 3", "has no column 'monht'"),
        ("month <", "where 'month <'"),
        ("month", "is Int64, not true or false"),
        ("month < 'a'", "cannot be computed"),
        ("month < avg(month)", "is not about one row"),
        ("SUM (wind) over (order by id) > 1", "is not about one row"),
        ("1 = 1", "is not about one row"),
        ("month < 3; drop table x", "where 'month < 3; drop table x'"),
        ("month in (select 1)", "where 'month in (select 1)'"),
        ("random() < 0.5", "where 'random() < 0.5'"),
    ],
)
def test_a_bad_filter_or_rule_is_refused_when_the_feed_is_made(path: Path, where: str, says: str) -> None:
    with pytest.raises(BadFeed) as caught:
        Feed(path, CONTRACT, where=where)
    assert says in caught.value.what
    with pytest.raises(BadFeed):
        Feed(path, CONTRACT).where(where)
    with pytest.raises(BadInput):
        Feed(path, replace(CONTRACT, rules=(Rule("r", where, "why"),)))


@pytest.mark.parametrize(
    "where", ["carrier in ('sum(x)', 'UA')", "carrier like 'U%'", "month between 1 and 2"]
)
def test_filters_that_are_about_one_row(path: Path, where: str) -> None:
    assert len(Feed(path, CONTRACT, where=where)) > 0


def test_a_filter_that_keeps_nothing_is_refused(path: Path, ledger: Ledger) -> None:
    with pytest.raises(BadFeed, match="keeps no row"):
        Feed(path, CONTRACT, where="month = 7").check(ledger)


def test_csv_columns_without_a_type_are_refused(path: Path) -> None:
    path.with_suffix(".csv").write_text(text(FRAME.with_columns(extra=pl.lit(1))))
    with pytest.raises(BadFeed, match="add 'extra' to the contract"):
        Feed("data/*.csv", CONTRACT, where="extra = 1")


def test_damage_inside_leaves_no_rows_and_a_failed_run(path: Path, ledger: Ledger) -> None:
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    feed = Feed(path, CONTRACT)
    with pytest.raises(BadFeed, match="damaged"):
        feed.check(ledger)
    assert runs(ledger)[0].status == "failed" and not (ledger.store.root / "quarantine").exists()


def test_a_file_written_while_it_is_checked_is_refused(
    path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Feed(path, CONTRACT)
    monkeypatch.setattr(Tracker, "advance", lambda self, n: write_parquet(path, FRAME.head(3)))
    with pytest.raises(BadFeed, match="was written to while it was checked"):
        feed.check(ledger)


def test_stop_stops_between_batches(path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tracker, "_show", lambda self: self.stop())
    with pytest.raises(Stopped):
        Feed(path, CONTRACT).check(ledger)
    assert runs(ledger)[0].status == "killed"


def test_random_damage_never_passes_silently(project: Path, ledger: Ledger) -> None:
    "A damaged CSV is refused, or every row that differs from what was written is in the quarantine or visible."
    path, rng, refused, caught = project / "x.csv", random.Random(1), 0, 0
    frame = pl.DataFrame({"carrier": ["AA", "UA", "B6"] * 20, "month": [1, 2, 3] * 20})
    contract = Contract("c", {"carrier": CONTRACT.columns["carrier"], "month": Column("int", isin=(1, 2, 3))})
    whole = frame.write_csv().encode()
    for _ in range(60):
        data = bytearray(whole)
        data[rng.randrange(14, len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            feed = Feed(path, replace(contract, error_budget=1))
            report = feed.check(ledger)
        except BadFeed:
            refused += 1
            continue
        caught += report.refused
        assert report.rows - 60 in (-1, 0, 1) and report.accepted + report.refused == report.rows
        assert set(feed.rows()["carrier"]) <= {"AA", "UA", "B6"}
    assert refused > 10 and caught > 10


def test_markup_in_rows_is_escaped(path: Path, ledger: Ledger) -> None:
    write_parquet(path, FRAME.with_columns(carrier=pl.lit("<img src=x>")))
    feed = Feed(path, replace(CONTRACT, error_budget=1), name="<b>x</b>")
    with pytest.raises(FeedRefused):
        feed.check(ledger)
    assert "<img" not in feed._repr_html_() and "<b>x" not in feed._repr_html_()
    assert str(feed).startswith("Feed <b>x</b>, 1 files: 0 of 7 rows accepted")


def test_a_report_in_a_terminal_shows_and_does_not_obey(path: Path, ledger: Ledger) -> None:
    write_parquet(path, FRAME.with_columns(carrier=pl.lit("\x1b[2Jgone\nnext")))
    feed = Feed(path, replace(CONTRACT, error_budget=1))
    with pytest.raises(FeedRefused):
        feed.check(ledger)
    assert "\x1b" not in feed.report.text() and "\\x1b[2Jgone\\nnext" in feed.report.text()


def test_millions_of_refusals_stay_quick(project: Path, ledger: Ledger) -> None:
    size = 300_000
    write_parquet(project / "x.parquet", pl.DataFrame({"x": np.arange(size)}))
    contract = Contract("c", {"x": Column("int")}, (Rule("r", "x < 10", "high"),), error_budget=1)
    began_at = time.monotonic()
    report = Feed("x.parquet", contract).check(ledger)
    assert report.refused == size - 10 and time.monotonic() - began_at < 20


def test_the_wrong_kinds_of_object_are_named(path: Path) -> None:
    for contract in (None, {"month": "int"}, "flights"):
        with pytest.raises(BadInput, match="contract is"):
            Feed(path, contract)  # type: ignore[arg-type]
    for source in (None, 3, FRAME, [FRAME]):
        with pytest.raises(BadInput, match="source is"):
            Feed(source, CONTRACT)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="where is 3"):
        Feed(path, CONTRACT, where=3)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="where is 3"):
        Feed(path, CONTRACT).where(3)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="name is 3"):
        Feed(path, CONTRACT, name=3)  # type: ignore[arg-type]


def test_shared_rows_are_counted_however_the_filter_is_written(path: Path, ledger: Ledger) -> None:
    whole = Feed(path, CONTRACT)
    accepted = whole.rows().height
    assert accepted and whole.shared(Feed(path, CONTRACT, where="month>0")) == accepted
    copied = path.with_name("copy.parquet")
    copied.write_bytes(path.read_bytes())
    assert whole.shared(Feed(copied, CONTRACT)) == accepted
    months = whole.rows()["month"]
    one = int(months[0])
    part = Feed(path, CONTRACT, where=f"month = {one}")
    assert whole.shared(part) == part.shared(whole) == int((months == one).sum())
    if (months != one).any():
        assert part.shared(Feed(path, CONTRACT, where=f"month <> {one}")) == 0
