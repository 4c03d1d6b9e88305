"""Batch scores: the service's answers, in order, and never over anything else."""

from pathlib import Path

import polars as pl
import pytest
import toy

from workbench.base.errors import BadInput
from workbench.base.ledger import Ledger
from workbench.data.feed import Feed, write_parquet
from workbench.models.bundle import Bundle
from workbench.models.shelf import Shelf
from workbench.serve.batch import predict
from workbench.serve.engine import Engine


@pytest.fixture
def delays(ledger: Ledger) -> Bundle:
    return Shelf(ledger).add("delays", **toy.linear_parts())


@pytest.fixture
def source(project: Path) -> Path:
    columns = toy.columns(300, seed=5)
    frame = pl.DataFrame({name: list(values) for name, values in columns.items()}, strict=False)
    return write_parquet(project / "delays.parquet", frame.fill_nan(None))


def test_it_answers_what_the_engine_answers(delays: Bundle, source: Path, ledger: Ledger) -> None:
    scores = predict("delays/1", source, to="scores.parquet", ledger=ledger)
    rows = Feed(source, toy.CONTRACT, outcomes=False).rows().select(delays.contract.inputs).to_dicts()
    online = [answer["prediction"] for answer in Engine(delays).predict(rows)]
    assert pl.read_parquet(scores.path)["prediction"].to_list() == online and len(online) == scores.rows


def test_a_feed_keeps_its_filter_and_takes_one_more(delays: Bundle, source: Path, ledger: Ledger) -> None:
    name = next(
        n for n, c in toy.CONTRACT.columns.items() if c.dtype in ("int", "float") and c.role == "input"
    )
    middle = pl.read_parquet(source)[name].median()
    feed = Feed(source, toy.CONTRACT, where=f"{name} <= {middle}")
    whole = predict(delays, feed, to="a.parquet", ledger=ledger).rows
    less = predict(delays, feed, where=f"{name} < {middle / 2}", to="b.parquet", ledger=ledger).rows
    assert 0 < less < whole < 300


def test_scores_never_replace_what_is_no_scores(
    delays: Bundle, source: Path, project: Path, ledger: Ledger
) -> None:
    before = source.read_bytes()
    other = write_parquet(project / "other.parquet", pl.DataFrame({"a": [1]}))
    (project / "folder.parquet").mkdir()
    for to, said in (
        (source, "the feed itself"),
        (other, "holds no scores"),
        ("folder.parquet", "holds no scores"),
        ("x.csv", "no Parquet file"),
        ("", "no Parquet file"),
        ("/proc/nope/x.parquet", "cannot be written"),
    ):
        with pytest.raises(BadInput, match=said):
            predict("delays/1", source, to=to, ledger=ledger)
    assert source.read_bytes() == before
    for _ in range(2):
        predict("delays/1", source, to="scores.parquet", ledger=ledger)
