"""Refused rows go back in when they pass, each once, whatever dies in between; what fails stays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from workbench.base.errors import BadFeed, BadInput, NotFound
from workbench.base.records import Ledger, find
from workbench.data import quarantine
from workbench.data.contract import Column, Contract, Rule
from workbench.data.csv import write_csv
from workbench.data.feed import Feed
from workbench.data.jsonl import write_jsonl
from workbench.data.manifest import fault
from workbench.data.parquet import write_parquet

STRICT = Contract(
    "rows",
    {"n": Column("int", ge=0, le=6), "s": Column("str", nullable=True), "row": Column("int")},
    rules=(Rule("odd", "n <> 4", "four is odd"),),
    error_budget=0.9,
)
WIDE = replace(STRICT, columns=STRICT.columns | {"n": Column("int", ge=0, le=8)})
FRAME = pl.DataFrame(
    {"n": range(10), "s": [None if n == 7 else f"s{n}" for n in range(10)], "row": range(100, 110)}
)
WRITERS = {"parquet": write_parquet, "csv": write_csv, "jsonl": write_jsonl}


@pytest.mark.parametrize("kind", list(WRITERS))
def test_what_passes_now_is_read_once(project: Path, ledger: Ledger, kind: str) -> None:
    WRITERS[kind](project / f"d/a.{kind}", FRAME)
    WRITERS[kind](project / f"d/b.{kind}", FRAME)
    report = Feed("d", STRICT).check(ledger)
    assert report.refused == 8
    listed = quarantine.listed(ledger)
    assert [(one.run, one.feed, one.rows, len(one.files)) for one in listed] == [(report.run, "rows", 8, 2)]
    assert listed[0].reasons[0] == {"column": "n", "rule": "le 6", "why": "n is above 6", "rows": 6}
    found = quarantine.replay(report.run[:17], WIDE, ledger=ledger)
    assert (found.passed, found.kept, found.before, len(found.files)) == (4, 4, 0, 2)
    assert all(
        file.name == f"{file.name[0]}.replayed-{found.run}.{kind}" and not fault(file) for file in found.files
    )
    run = find(found.run, ledger)
    assert (run.kind, run.parents, run.metrics["passed"]) == ("replay", [report.run], 4)
    assert sorted(quarantine.show(report.run, ledger)["value"]) == ["9", "9", "n=4", "n=4"]
    for source in ("d", f"d/*.{kind}"):
        rows = Feed(source, WIDE).rows().sort("row", "n")  # the originals pass now, too: still each once
        assert rows["row"].to_list() == sorted([*range(100, 104), *range(105, 109)] * 2)
        assert len(Feed(source, WIDE)) == 20 and rows.filter(pl.col("n") == 7)["s"].to_list() == [None, None]
    again = quarantine.replay(report.run, WIDE, ledger=ledger)
    assert (again.passed, again.kept, again.files) == (0, 4, [])


def test_another_check_of_the_same_rows_replays_none_twice(project: Path, ledger: Ledger) -> None:
    write_parquet(project / "d/a.parquet", FRAME)
    first, second = (Feed("d", STRICT).check(ledger).run for _ in range(2))
    assert quarantine.replay(first, WIDE, ledger=ledger).passed == 2
    found = quarantine.replay(second, WIDE, ledger=ledger)
    assert (found.passed, found.before, found.files) == (0, 2, [])
    assert Feed("d", WIDE).rows().height == 8


@pytest.mark.parametrize("dies", ["write", "keep"])
def test_a_replay_that_dies_loses_and_doubles_nothing(
    project: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    write_parquet(project / "d/a.parquet", FRAME)
    run = Feed("d", STRICT).check(ledger).run

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quarantine, "_keep" if dies == "keep" else "write_parquet", killed)
        with pytest.raises(KeyboardInterrupt):
            quarantine.replay(run, WIDE, ledger=ledger)
    assert Feed("d", WIDE).rows().height == 8  # whole before and after
    found = quarantine.replay(run, WIDE, ledger=ledger)
    assert (found.passed, found.before) == ((2, 0) if dies == "write" else (0, 2))
    assert Feed("d", WIDE).rows().height == 8


def test_values_of_another_type_are_read_again(project: Path, ledger: Ledger) -> None:
    (project / "d").mkdir()
    (project / "d/a.csv").write_text("n,s\n1,a\nx7,b\n3,c\n")
    strict = Contract("rows", {"n": Column("int"), "s": Column("str")}, error_budget=0.5)
    run = Feed("d", strict).check(ledger).run
    texts = replace(strict, columns={"n": Column("str"), "s": Column("str")})
    found = quarantine.replay(run, texts, ledger=ledger)
    assert pl.read_csv(found.files[0]).rows() == [("x7", "b")] and not quarantine.listed(ledger)
    assert sorted(Feed("d", texts).rows()["n"]) == ["1", "3", "x7"]


def test_a_file_written_anew_is_not_mixed_with_its_replay(project: Path, ledger: Ledger) -> None:
    write_parquet(project / "d/a.parquet", FRAME)
    found = quarantine.replay(Feed("d", STRICT).check(ledger).run, WIDE, ledger=ledger)
    write_parquet(project / "d/a.parquet", FRAME.reverse())
    with pytest.raises(BadFeed, match=r"(?s)a\.parquet was written anew .* remove a\.replayed"):
        Feed("d", WIDE)
    found.files[0].unlink()
    assert Feed("d", WIDE).rows().height == 8


def test_rows_without_a_file_need_a_folder(project: Path, ledger: Ledger) -> None:
    path = write_parquet(project / "a.parquet", FRAME)
    run = Feed(path, STRICT).check(ledger).run
    path.unlink()
    with pytest.raises(BadInput, match="no place to go back to"):
        quarantine.replay(run, WIDE, ledger=ledger)
    found = quarantine.replay(run, WIDE, to="back", ledger=ledger)
    assert found.files[0].parent == project / "back" and Feed("back", WIDE).rows()["n"].to_list() == [7, 8]


def test_what_is_not_there_is_said(project: Path, ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="no row in the quarantine"):
        quarantine.show("nothing", ledger)
    path = write_parquet(project / "a.parquet", FRAME)
    run = Feed(path, STRICT).check(ledger).run
    more = replace(WIDE, columns=WIDE.columns | {"new": Column("int")})
    with pytest.raises(BadInput, match="'new' was not read"):
        quarantine.replay(run, more, ledger=ledger)
    with pytest.raises(BadInput, match="contract"):
        quarantine.replay(run, "rows", ledger=ledger)  # type: ignore[arg-type]
    assert "two" not in str(quarantine.listed(ledger)[0]) and quarantine.listed(ledger)[0]._repr_html_()


def test_a_refused_picture_comes_back_whole(project: Path, ledger: Ledger) -> None:
    small = Contract("pictures", {"image": Column("image", shape=(2, 2))}, error_budget=0.9)
    large = replace(small, columns={"image": Column("image", shape=(3, 3))})
    write_parquet(project / "p.parquet", pl.DataFrame({"image": [b"abcd", b"ninebytes", b"no"]}))
    run = Feed("p.parquet", small).check(ledger).run
    assert quarantine.show(run, ledger)["image"].to_list() == [b"ninebytes", b"no"]
    found = quarantine.replay(run, large, to="back", ledger=ledger)
    assert (found.passed, found.kept) == (1, 1)
    assert bytes(Feed("back", large).columns()["image"].ravel()) == b"ninebytes"
    assert quarantine.show(run, ledger)["image"].to_list() == [b"no"]
