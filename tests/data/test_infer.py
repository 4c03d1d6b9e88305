"""A drafted contract is Python that runs, and it accepts the rows it was drafted from."""

import json
import math
from datetime import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.base.errors import BadInput, FeedRefused
from workbench.base.records import Ledger
from workbench.data.contract import Contract
from workbench.data.csv import write_csv
from workbench.data.feed import Feed
from workbench.data.jsonl import write_jsonl
from workbench.data.parquet import write_parquet

WRITERS = {"parquet": write_parquet, "csv": write_csv, "jsonl": write_jsonl}
ROWS = 300
FRAME = pl.DataFrame(
    {
        "id": [f"f{n}" for n in range(ROWS)],
        "carrier": [("UA", "AA", "B6")[n % 3] for n in range(ROWS)],
        "zip": [f"{n % 150:05d}" for n in range(ROWS)],
        "distance": [94 + n * 7 % 2492 for n in range(ROWS)],
        "wind": [None if n % 10 == 0 else n * 1.5 - 20 for n in range(ROWS)],
        "late": [n % 5 == 0 for n in range(ROWS)],
        "none": pl.Series([None] * ROWS, dtype=pl.String),
    }
)


def drafted(source: Any, **more: Any) -> tuple[Any, Contract]:
    draft = Contract.infer(source, **more)
    names: dict[str, Any] = {}
    exec(draft.code, names)
    return draft, names["contract"]


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_draft_runs_and_accepts_what_it_was_drafted_from(project: Path, ledger: Ledger, kind: str) -> None:
    WRITERS[kind](project / f"flights.{kind}", FRAME)
    draft, made = drafted(f"flights.{kind}")
    assert made == draft.contract and made.name == "flights"
    report = Feed(f"flights.{kind}", made).check(ledger)
    assert (report.accepted, report.refused) == (ROWS, 0)
    found = made.columns
    assert (found["id"].role, found["carrier"].isin) == ("key", ("AA", "B6", "UA"))
    assert (found["distance"].dtype, found["distance"].ge, found["late"].dtype) == ("int", 0, "bool")
    assert found["zip"].dtype == "str" and found["none"].nullable and found["wind"].nullable
    assert found["wind"].ge < -18.5 < 428.5 < found["wind"].le < 500
    assert "10.0% missing" in draft.code and "10% of the span" in draft.code and json.dumps(draft.to_json())
    assert "&quot;flights&quot;" in draft._repr_html_()
    tight = drafted(Feed(f"flights.{kind}", made), margin=0)[1]
    assert tight.columns["distance"].le < found["distance"].le


def test_types_are_the_sources_and_what_no_column_has_is_named(project: Path, ledger: Ledger) -> None:
    empty = {"w": pl.Float64, "b": pl.Boolean, "n": pl.String}
    frame = pl.DataFrame(
        {name: pl.Series([None] * 20, dtype=kind) for name, kind in empty.items()}
        | {"price": [Decimal("1.25"), Decimal("7.50")] * 10, "tags": [[1, 2]] * 20, "at": [time(1, 2)] * 20}
    )
    frame.write_parquet(project / "all.parquet")
    draft, made = drafted("all.parquet")
    kinds = {name: column.dtype for name, column in made.columns.items()}
    assert kinds == {"w": "float", "b": "bool", "n": "str", "price": "float"}
    assert '# Left out: "tags", of type List(Int64).' in draft.code and '"at", of type Time' in draft.code
    assert Feed("all.parquet", made).check(ledger).accepted == 20
    frame.clear().select("w", "price").write_parquet(project / "none.parquet")
    assert {c.dtype for c in Contract.infer("none.parquet").contract.columns.values()} == {"float"}


def test_moments_are_found_where_a_feed_reads_them(project: Path, ledger: Ledger) -> None:
    texts = pl.DataFrame({"at": [f"2013-01-{1 + n % 28:02d}T06:00:00" for n in range(60)], "x": 1.5})
    for kind, dtype in (("csv", "datetime"), ("jsonl", "datetime"), ("parquet", "str")):
        WRITERS[kind](project / f"t.{kind}", texts)
        made = drafted(f"t.{kind}")[1]
        assert made.columns["at"].dtype == dtype and Feed(f"t.{kind}", made).check(ledger).refused == 0
    write_parquet(project / "u.parquet", texts.with_columns(pl.col("at").str.to_datetime()))
    assert drafted("u.parquet")[1].columns["at"].ge == "2013-01-01T06:00:00"


def test_several_files_and_partitions_are_one_draft(project: Path, ledger: Ledger) -> None:
    for month in (1, 2):
        write_parquet(project / f"flights/month={month}/x.parquet", FRAME)
    made = drafted("flights")[1]
    assert made.name == "flights" and made.columns["month"].dtype == "int"
    assert Feed("flights", made).check(ledger).accepted == 2 * ROWS


def test_a_senseless_margin_is_refused(project: Path) -> None:
    with pytest.raises(BadInput, match="margin"):
        Contract.infer("x.csv", margin=-1)


COLUMN = st.one_of(
    st.lists(st.one_of(st.none(), kind), min_size=8, max_size=8)
    for kind in (
        st.integers(-(2**60), 2**60),
        st.floats(),
        st.text(max_size=6),
        st.booleans(),
        st.dates(),
        st.just("007"),
    )
)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 5e-324, -5e-324, 1.797e308])
def test_the_ends_of_numbers_are_drafted(project: Path, value: float) -> None:
    write_parquet(project / "x.parquet", pl.DataFrame({"x": [value, 0.0] * 4}))
    feed = Feed("x.parquet", drafted("x.parquet")[1])
    if math.isfinite(value):
        assert feed.check().refused == 0
    else:
        with pytest.raises(FeedRefused, match="4 x is not finite"):
            feed.check()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(COLUMN, min_size=1, max_size=3))
def test_whatever_a_parquet_file_holds(tmp_path: Path, columns: list[list[Any]]) -> None:
    frame = pl.DataFrame({f"c{n}": pl.Series(values, strict=False) for n, values in enumerate(columns)})
    frame = frame.with_columns([pl.lit("x").alias(n) for n in frame.columns if frame[n].dtype == pl.Null])
    path = write_parquet(tmp_path / "x.parquet", frame)
    made = drafted(path)[1]
    infinite = any(frame[n].is_infinite().any() for n in frame.columns if frame[n].dtype.is_float())
    if not infinite:  # which no contract accepts
        assert Feed(path, made).check().refused == 0
