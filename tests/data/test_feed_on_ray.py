"""Through Ray or not: the same rows, the same quarantine, the same report."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from workbench.base.errors import FeedRefused, Unavailable
from workbench.base.records import Ledger, find
from workbench.data import parquet
from workbench.data.contract import Column, Contract, Rule
from workbench.data.csv import write_csv
from workbench.data.feed import Feed
from workbench.data.jsonl import write_jsonl
from workbench.data.parquet import write_parquet

pytestmark = [  # Ray's own words about Ray's own code
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]
CONTRACT = Contract(
    "rows",
    {"n": Column("int", ge=0), "x": Column("float", nullable=True), "s": Column("str", max_len=8)},
    rules=(Rule("odd", "n % 10 <> 7", "n ends in 7"),),
    error_budget=0.5,
)
FRAME = pl.DataFrame(
    {
        "n": [i if i % 13 else -i for i in range(900)],
        "x": [None if i % 5 == 0 else i / 3 for i in range(900)],
        "s": ["much too long" if i % 50 == 1 else f"s{i}" for i in range(900)],
    }
)


@pytest.fixture(scope="module")
def ray(there: Any) -> Any:
    import ray

    return ray


@pytest.fixture
def files(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 100)
    write_parquet(project / "d/a.parquet", FRAME.head(500))
    write_csv(project / "d/b.csv", FRAME.slice(500, 200))
    write_jsonl(project / "d/c.jsonl", FRAME.slice(700))
    return project / "d"


def quarantine(feed: Feed) -> pl.DataFrame:
    assert feed.report is not None and feed.report.quarantine is not None
    return pl.read_parquet(feed.report.quarantine).drop("run")


def rows_of(dataset: Any) -> pl.DataFrame:
    names = list(CONTRACT.columns)
    parts = [
        pl.from_arrow(batch).select(names)
        for batch in dataset.iter_batches(batch_format="pyarrow", batch_size=None)
    ]
    return pl.concat(parts)


def test_without_a_ray_it_is_said(project: Path, ledger: Ledger) -> None:
    write_parquet(project / "x.parquet", FRAME)
    with pytest.raises(Unavailable, match="connected to no Ray"):
        Feed("x.parquet", CONTRACT).ray()


@pytest.mark.ray
@pytest.mark.parametrize("where", ["", "n > 100 and n < 650"])
def test_both_ways_give_the_same(ray: Any, files: Path, ledger: Ledger, where: str) -> None:
    here, there = Feed("d", CONTRACT, where=where), Feed("d", CONTRACT, where=where)
    dataset = there.ray()
    found = rows_of(dataset)
    assert found.sort(found.columns).equals(here.rows().sort(found.columns))
    assert quarantine(here).equals(quarantine(there)) and quarantine(here).height > 20
    for one, other in ((here.report, there.report),):
        assert one is not None and other is not None
        assert (one.rows, one.refused, one.accepted, one.rules) == (
            other.rows,
            other.refused,
            other.accepted,
            other.rules,
        )
        assert one.fingerprint == other.fingerprint and find(other.run, ledger).status == "succeeded"
    assert there.rows().equals(here.rows())  # read here now, by what was decided there
    assert there.fingerprint() == there.report.fingerprint if there.report else False


@pytest.mark.ray
def test_past_the_budget_no_row_is_handed_out(ray: Any, files: Path, ledger: Ledger) -> None:
    feed = Feed("d", Contract("rows", CONTRACT.columns, CONTRACT.rules, error_budget=0.01))
    with pytest.raises(FeedRefused, match="over the budget of 1.00%"):
        feed.ray()
    assert quarantine(feed).height > 20


@pytest.mark.ray
def test_rows_are_read_as_they_are_taken(ray: Any, project: Path, ledger: Ledger) -> None:
    for at in range(40):
        write_parquet(
            project / f"d/{at:02}.parquet", FRAME.with_columns(n=pl.int_range(pl.len()) * 10, s=pl.lit("s"))
        )
    feed = Feed("d", CONTRACT)
    feed.check(ledger)
    context = ray.data.DataContext.get_current()
    before = context.execution_options.resource_limits
    context.execution_options.resource_limits = type(before)(cpu=2, object_store_memory=200_000)
    try:
        batches = iter(feed.ray().iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0))
        first = next(batches)
        (project / "d/39.parquet").unlink()  # not read yet: what waits is bounded
        assert first.num_rows == 900
        with pytest.raises(Exception, match="39.parquet"):
            list(batches)
    finally:
        context.execution_options.resource_limits = before


@pytest.mark.ray
def test_a_ray_dataset_is_a_source(ray: Any, project: Path, ledger: Ledger) -> None:
    dataset = ray.data.from_arrow([FRAME.head(400).to_arrow(), FRAME.slice(400).to_arrow()])
    feed = Feed(dataset, CONTRACT)
    whole = Feed(write_parquet(project / "x.parquet", FRAME), CONTRACT)
    assert feed.rows().equals(whole.rows()) and quarantine(feed).drop("file").equals(
        quarantine(whole).drop("file")
    )
    again = Feed(ray.data.from_arrow([FRAME.slice(400).to_arrow(), FRAME.head(400).to_arrow()]), CONTRACT)
    assert again.fingerprint() == feed.fingerprint()
    assert Feed(ray.data.from_arrow(FRAME.head(899).to_arrow()), CONTRACT).fingerprint() != feed.fingerprint()
    streamed = rows_of(feed.ray())
    assert streamed.sort(streamed.columns).equals(feed.rows().sort(streamed.columns))
    assert [int(mask.sum()) for _, _, mask in feed.pieces()] and feed.files == []
