"""The same rows from every format, in parts that can be read by themselves; what is written is what is read."""

import gzip
import io
import json
import os
import pickle
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from PIL import Image

from workbench.base.errors import BadFeed, BadInput, NotFound
from workbench.base.records import Ledger
from workbench.data import csv, jsonl, manifest, part
from workbench.data.column import Column
from workbench.data.contract import Contract
from workbench.data.csv import CsvSource, write_csv
from workbench.data.delta import Delta
from workbench.data.feed import Feed
from workbench.data.images import ImageSource, write_images
from workbench.data.ipc import write_ipc
from workbench.data.jsonl import JsonlSource, write_jsonl
from workbench.data.manifest import content_id, manifest_of
from workbench.data.parquet import ParquetSource, write_parquet
from workbench.data.rule import Rule
from workbench.data.source import format_of, open_source, sources
from workbench.data.sql import Sql
from workbench.data.where import comparisons

CONTRACT = Contract(
    "rows",
    {
        "n": Column("int", ge=0),
        "x": Column("float", nullable=True),
        "s": Column("str", nullable=True),
        "b": Column("bool"),
    },
    error_budget=0.9,
)
FRAME = pl.DataFrame(
    {
        "n": range(500),
        "x": [None if i % 7 == 0 else i / 7 for i in range(500)],
        "s": [None if i % 11 == 0 else f'rów {i}, "x"' for i in range(500)],
        "b": [i % 3 == 0 for i in range(500)],
    }
)
WRITERS = {"parquet": write_parquet, "csv": write_csv, "jsonl": write_jsonl, "ipc": write_ipc}


def zstd(data: bytes) -> bytes:
    out = io.BytesIO()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
        stream.flush()
    return out.getvalue() if not out.closed else b""


def pack(path: Path, how: str) -> Path:
    target = path.with_name(path.name + {"gzip": ".gz", "zstd": ".zst"}[how])
    if how == "gzip":
        target.write_bytes(gzip.compress(path.read_bytes()))
    else:
        with pa.OSFile(str(target), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as stream:
            stream.write(path.read_bytes())
    return target


def again(source: Any) -> pl.DataFrame:
    "All parts, each read by itself, last first."
    tables = [source.read(one, source.columns) for one in reversed(source.parts)]
    return pl.concat([pl.from_arrow(table) for table in reversed(tables)], how="vertical_relaxed")


def test_every_format_gives_the_same_rows(
    project: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (csv, jsonl, part):
        monkeypatch.setattr(module, "BATCH_ROWS", 64)
    paths = [write(project / f"rows.{kind}", FRAME) for kind, write in WRITERS.items()]
    paths += [pack(paths[at], how) for at in (1, 2) for how in ("gzip", "zstd")]
    bare = [(project / f"bare{at}") for at in range(len(paths))]
    for path, copy in zip(paths, bare, strict=True):
        copy.write_bytes(path.read_bytes())  # no suffix: the content says what it is
    for path in paths + bare:
        feed = Feed(path, CONTRACT)
        assert feed.rows().equals(FRAME), path
        source = feed.sources[0]
        assert [one.start for one in source.parts] == list(
            np.cumsum([0, *(p.rows for p in source.parts)])[:-1]
        )
        assert again(source).height == 500 and pickle.loads(pickle.dumps(source)).columns == source.columns
        found = [(where, rows.sum(), place.rows) for where, place, rows in feed.pieces()]
        assert sum(count for _, count, _ in found) == 500
        assert "n" in str(source.schema) and source.read(source.parts[-1], ["b", "n"]).column_names == [
            "b",
            "n",
        ]


def test_text_parts_begin_where_records_do(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv, "BATCH_ROWS", 2)
    (project / "x.csv").write_bytes('\ufeffa,b\r\n1,"x\r\ny"\r\n\r\n2,ü\r\n3,"a ""b"""\r\n4,\r\n5,z'.encode())
    source = CsvSource(project / "x.csv")
    assert [(p.start, p.rows) for p in source.parts] == [(0, 2), (2, 2), (4, 1)]
    assert again(source).rows() == [("1", "x\r\ny"), ("2", "ü"), ("3", 'a "b"'), ("4", None), ("5", "z")]
    monkeypatch.setattr(jsonl, "BATCH_ROWS", 2)
    (project / "x.jsonl").write_text('{"a": 1}\n\n{"a": 2, "b": "ü"}\n{"b": null}\n')
    source = JsonlSource(project / "x.jsonl")
    assert [(p.start, p.rows) for p in source.parts] == [(0, 2), (2, 1)]
    assert source.read(source.parts[1], ["b", "a"]).to_pylist() == [{"b": None, "a": None}]


def test_json_says_what_it_means(project: Path, ledger: Ledger) -> None:
    rows = [
        {"n": 1, "x": 1, "s": "a", "b": True},
        {"n": 1.0, "x": 1.5, "s": "a", "b": True},
        {"n": "1", "x": None, "s": "a", "b": True},
        {"n": True, "x": None, "s": "a", "b": True},
        {"n": 2, "x": "1.5", "s": "a", "b": True},
        {"n": 2, "x": 1, "s": 5, "b": True},
        {"n": 2, "x": 1, "s": "a", "b": 1},
        {"n": 2, "x": 1, "s": "a", "b": "true"},
        {"n": 2**70, "x": 1, "s": "a", "b": False},
        {"n": 3, "x": [1], "s": {"k": 1}, "b": False},
        {"n": 3, "s": "a", "b": False, "more": 1},
        {"x": 3, "s": "a", "b": False},
    ]
    (project / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = Feed("x.jsonl", CONTRACT).check(ledger)
    kept = pl.read_parquet(report.quarantine).select("row", "column", "rule", "value").rows()
    assert kept == [
        (1, "n", "type", "1.0"), (2, "n", "type", "1"), (3, "n", "type", "true"), (4, "x", "type", "1.5"),
        (5, "s", "type", "5"), (6, "b", "type", "1"), (7, "b", "type", "true"),
        (8, "n", "type", f"[{2**70}]"), (9, "x", "type", "[1]"), (9, "s", "type", '{"k": 1}'), (11, "n", "null", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"n": 1}\n{"n": 2, "b', "line 2: it is no JSON object"),
        ('{"n": 1}\n[1]\n', "line 2: it is no JSON object"),
        ('{"n": NaN}\n', "line 1: .*NaN"),
        ('{"n": 1, "n": 2}\n', "line 1: .*twice"),
        ('{"n": 1}\n{"n": "\\ud8', "line 2"),
        ('{"n": ' + "[" * 5000 + "\n", "line 1"),
    ],
)
def test_lines_that_are_no_objects_are_named(project: Path, text: str, says: str) -> None:
    (project / "x.jsonl").write_text(text)
    source = JsonlSource(project / "x.jsonl")
    with pytest.raises(BadFeed, match=says):
        list(source.batches(["n"]))


def test_the_content_says_what_a_file_is(project: Path) -> None:
    found = {}
    for kind, write in WRITERS.items():
        found[kind] = write(project / f"{kind}.dat", FRAME.head(3))
        assert format_of(found[kind]) == kind
    found["parquet"].rename(project / "wrong.csv")
    assert isinstance(open_source(project / "wrong.csv"), ParquetSource)
    with pytest.raises(BadFeed, match="no file matches"):
        Feed("nothing-here/*", CONTRACT)
    for data, says in (
        (b"SQLite format 3\0", "is a SQLite database"),
        (b"PK\x03\x04....", "no format that is known"),
    ):
        (project / "x.bin").write_bytes(data)
        with pytest.raises(BadFeed, match=says):
            format_of(project / "x.bin")
    (project / "x.csv.zip").write_bytes(b"PK\x03\x04....")
    with pytest.raises(BadFeed, match="format"):
        open_source(project / "x.csv.zip")
    assert isinstance(sources(found["jsonl"], format="csv")[0], CsvSource)
    with pytest.raises(BadInput, match="format='xls'"):
        Feed(found["csv"], CONTRACT, format="xls")


# Manifests


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_manifest_is_kept_to(project: Path, ledger: Ledger, kind: str) -> None:
    path = WRITERS[kind](project / f"x.{kind}", FRAME)
    said = json.loads(Path(manifest_of(path)).read_text())
    assert (said["rows"], said["bytes"], list(said["columns"])) == (500, path.stat().st_size, FRAME.columns)
    assert said["sha256"] == content_id(path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for data in (
        changed,
        whole[:-1],
        whole[: whole.rindex(b"\n") - 5 if kind in ("csv", "jsonl") else -9],
        whole + whole[-7:],
    ):
        path.write_bytes(data)
        with pytest.raises(BadFeed):
            Feed(path, CONTRACT).check(ledger)
    path.write_bytes(whole)
    assert Feed(path, CONTRACT).check(ledger).accepted == 500


def test_missing_lines_and_changed_bytes_are_named(project: Path, ledger: Ledger) -> None:
    big = pl.DataFrame({"n": range(40_000), "s": ["x" * 20] * 40_000})
    contract = Contract("c", {"n": Column("int"), "s": Column("str")}, error_budget=1)
    path = write_csv(project / "x.csv", big)
    text = path.read_text()
    path.write_text(text[: text.index("\n39000,") + 1])
    with pytest.raises(
        BadFeed, match=r"x.csv is cut: [\d,]+ of [\d,]+ bytes are left; its manifest says 40,000 rows"
    ):
        Feed(path, contract).check(ledger)
    path.write_text(text.replace("\n30000,", "\n30001,"))
    with pytest.raises(BadFeed, match=r"is damaged: bytes 786,432 to 851,967 changed"):
        Feed(path, contract).check(ledger)


def test_a_manifest_that_is_broken_or_old(project: Path, ledger: Ledger) -> None:
    path = write_csv(project / "x.csv", FRAME)
    where = Path(manifest_of(path))
    for text in ("{", "[]", '{"version": 99}', '{"version": 1, "what": 2}'):
        where.write_text(text)
        with pytest.raises(BadFeed, match="is no manifest"):
            Feed(path, CONTRACT).check(ledger)
    where.unlink()
    assert Feed(path, CONTRACT).check(ledger).accepted == 500
    write_csv(path, FRAME.head(3))
    assert json.loads(where.read_text())["rows"] == 3


def test_content_is_read_once_also_by_the_next_process(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "x.csv"
    path.write_text("n\n1\n")
    os.utime(path, (1, 1))
    mark = content_id(path)
    manifest._held.clear()
    read = manifest.sha256_file
    monkeypatch.setattr(manifest, "sha256_file", lambda *a: pytest.fail("it was read again"))
    assert content_id(path) == mark
    monkeypatch.setattr(manifest, "sha256_file", read)
    path.write_text("n\n2\n")
    os.utime(path, (2, 2))
    assert content_id(path) != mark
    path.write_text("n\n1\n")
    assert content_id(path) == mark == content_id(path, full=True)


def test_a_file_of_two_names_is_read_once_and_like_files_each(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, like = project / "a.csv", project / "b.csv", project / "c.csv"
    one.write_text("n\n1\n")
    os.utime(one, (1, 1))
    os.link(one, other)
    like.write_text("n\n2\n")
    os.utime(like, (1, 1))
    read, seen = manifest.sha256_file, []
    monkeypatch.setattr(manifest, "sha256_file", lambda path: seen.append(path) or read(path))
    assert content_id(one) == content_id(other) != content_id(like)
    assert [path.name for path in seen] == ["a.csv", "c.csv"]


# Folders


def test_folders_say_columns_grow_and_lose(project: Path, ledger: Ledger) -> None:
    contract = Contract(
        "c", {"n": Column("int"), "month": Column("int"), "kind": Column("str", nullable=True)}
    )
    for month, kind in ((1, "a%20b"), (2, "__HIVE_DEFAULT_PARTITION__")):
        write_parquet(project / f"d/month={month}/kind={kind}/x.parquet", FRAME.select("n").head(month))
    feed = Feed("d", contract)
    assert feed.rows().rows() == [(0, 1, "a b"), (0, 2, None), (1, 2, None)]
    mark = feed.fingerprint()
    write_jsonl(project / "d/month=3/kind=c/y.jsonl", pl.DataFrame({"n": [7]}))
    assert feed.refresh() == [project / "d/month=3/kind=c/y.jsonl"] and feed.fingerprint() != mark
    assert feed.rows().height == 4 and Feed("d", contract, where="month = 3").rows().rows() == [(7, 3, "c")]
    with pytest.raises(BadFeed, match="1 partitions are missing: month=4"):
        Feed("d", contract, partitions={"month": range(1, 5)})
    (project / "d/month=2/kind=__HIVE_DEFAULT_PARTITION__/x.parquet").unlink()
    with pytest.raises(BadFeed, match="month=2/.*x.parquet is gone"):
        feed.rows()
    with pytest.raises(BadFeed, match="partitions are missing: month=2"):
        Feed("d", contract, partitions={"month": [1, 2, 3]})
    with pytest.raises(BadFeed, match="no file matches"):
        (project / "none").mkdir()
        Feed("none", contract)


def test_a_new_file_of_another_shape_is_named(project: Path, ledger: Ledger) -> None:
    write_parquet(project / "d/a.parquet", FRAME)
    feed = Feed("d", CONTRACT)
    write_parquet(project / "d/b.parquet", FRAME.drop("x"))
    with pytest.raises(BadFeed, match="b.parquet has no column 'x'"):
        feed.check(ledger)


# Filters


def test_parts_that_a_filter_empties_are_not_read(
    project: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.data import parquet

    monkeypatch.setattr(parquet, "BATCH_ROWS", 100)
    frame = FRAME.with_columns(month=pl.col("n") // 50, gap=pl.when(pl.col("n") != 3).then(pl.col("n")))
    path = write_parquet(project / "x.parquet", frame)
    source = ParquetSource(path)

    def read(where: str) -> list[int]:
        return [chunk.start for chunk in source.chunks(["n"], where)]

    assert read("month <= 1") == [0] and read("month > 7 and n < 1000") == [400]
    assert read("month = 99") == [] and read("'rów' <> s and month = 3") == [100]
    assert read("month <= 1 or n = 450") == read("not month <= 1") == [0, 100, 200, 300, 400]
    assert read("gap > 450") == [0, 400]  # the first has a missing value, which a contract may refuse
    assert read("x > 99999.5") == [0, 100, 200, 300, 400]  # a NaN is in no statistics
    feed = Feed(
        path, replace(CONTRACT, columns=CONTRACT.columns | {"month": Column("int")}), where="month = 9"
    )
    assert feed.rows()["n"].to_list() == list(range(450, 500))
    kept = [(one.start, rows.sum()) for _, one, rows in feed.pieces()]
    assert kept == [(400, 50)]


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("a <= 9 and b = 'x'", [("a", "<=", 9), ("b", "=", "x")]),
        ("((a <= 9) and (\"b c\" != 'it is, (and) or') and c > -1.5)", [("a", "<=", 9), ("b c", "<>", "it is, (and) or"), ("c", ">", -1.5)]),
        ("a <= 9 or b = 1", []),
        ("a between 1 and 2 and b = 1", []),
        ("not a = 1", []),
        ("a + 1 = 2 and b = 1", [("b", "=", 1)]),
        ("b = ')' and (a = 1 or a = 2)", [("b", "=", ")")]),
        ("", []),
    ],
)  # fmt: skip
def test_only_plain_comparisons_count(sql: str, found: list[Any]) -> None:
    assert [(c.column, c.sign, c.value) for c in comparisons(sql)] == found


# Images


@pytest.fixture
def pictures(project: Path) -> Path:
    for n in range(6):
        path = project / f"pets/{'cat' if n % 2 else 'dog'}/{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), n * 10).save(path)
    return project / "pets"


PETS = Contract(
    "pets",
    {"image": Column("image", shape=(3, 4)), "label": Column("str", isin=("cat", "dog"))},
    error_budget=0.8,
)


def test_a_folder_of_pictures(pictures: Path, ledger: Ledger) -> None:
    (pictures / "cat/1.png").write_bytes((pictures / "cat/1.png").read_bytes()[:40])
    Image.new("L", (9, 9)).save(pictures / "dog/0.png")
    (pictures / "dog/2.png").write_bytes(b"no picture")
    feed = Feed("pets", PETS)
    assert feed.check(ledger).refused == 3
    assert feed.report is not None and set(pl.read_parquet(feed.report.quarantine)["why"]) == {
        "image is no image of 3 x 4"
    }
    columns = feed.columns()
    assert columns["image"].shape == (3, 3, 4) and columns["image"].dtype == np.uint8
    assert sorted(columns["image"][:, 0, 0].tolist()) == [30, 40, 50]
    assert dict(zip(columns["image"][:, 0, 0].tolist(), columns["label"], strict=True)) == {
        30: "cat",
        40: "dog",
        50: "cat",
    }


def test_pictures_as_parquet_are_fixed_size_bytes(pictures: Path, ledger: Ledger) -> None:
    (source,) = sources("pets")
    assert isinstance(source, ImageSource)
    path = write_images(pictures.parent / "pets.parquet", source, (3, 4))
    assert str(ParquetSource(path).schema.field("image").type) == "fixed_size_binary[12]"
    here, there = Feed(path, PETS).columns(), Feed("pets", PETS).columns()
    assert (here["image"] == there["image"]).all() and list(here["label"]) == list(there["label"])
    encoded = pl.DataFrame(
        {
            "image": [p.read_bytes() for p in sorted(pictures.rglob("*.png"))],
            "label": ["cat"] * 3 + ["dog"] * 3,
        }
    )
    write_parquet(pictures.parent / "encoded.parquet", encoded)
    assert (Feed("encoded.parquet", PETS).columns()["image"] == there["image"]).all()
    Image.new("L", (5, 5)).save(pictures / "cat/9.png")
    with pytest.raises(BadFeed, match="cat/9.png is no image of 3 x 4"):
        write_images(pictures.parent / "no.parquet", sources("pets")[0], (3, 4))
    feed = Feed("pets", PETS)
    (pictures / "cat/1.png").unlink()
    with pytest.raises(BadFeed, match="cat/1.png is not there"):
        feed.sources[0].verify()


def test_an_image_in_a_request_is_base64() -> None:
    row = PETS.example()
    assert PETS.parse_rows([row])["image"].shape == (1, 3, 4)
    for wrong in ("AAAA", "no base64!", 3, None):
        with pytest.raises(BadInput, match="'image'"):
            PETS.parse_rows([row | {"image": wrong}])
    for options in ({}, {"shape": (3,)}, {"shape": (0, 2)}, {"shape": (3, 4), "nullable": True}):
        with pytest.raises(BadInput, match="shape"):
            Column("image", **options)
    with pytest.raises(BadInput, match="shape"):
        Column("int", shape=(1, 2))


# Delta


def test_delta_versions_partitions_and_growth(project: Path, ledger: Ledger) -> None:
    table = project / "t"
    contract = Contract(
        "c", {"n": Column("int"), "month": Column("int"), "x": Column("float", nullable=True)}
    )
    write_deltalake(table, FRAME.select("n", month=pl.col("n") // 100 + 1).head(250), partition_by=["month"])
    with pytest.raises(BadFeed, match="has no column 'x'"):
        Feed("t", contract)
    write_deltalake(
        table,
        FRAME.select("n", "x", month=pl.lit(9, pl.Int64)).head(5),
        mode="append",
        schema_mode="merge",
        partition_by=["month"],
    )
    feed = Feed("t", contract)
    mark = feed.fingerprint()
    assert feed.rows().height == 255 and feed.rows()["x"].null_count() == 251
    assert feed.fingerprint() == mark and Feed("t", contract, where="month = 2").rows()[
        "n"
    ].to_list() == list(range(100, 200))
    assert again(feed.sources[0]).height == 255
    old = Feed(
        Delta("t", version=0), replace(contract, columns={n: contract.columns[n] for n in ("n", "month")})
    )
    assert old.rows().height == 250
    write_deltalake(
        table,
        FRAME.select("n", "x", month=pl.lit(9, pl.Int64)).head(1),
        mode="append",
        partition_by=["month"],
    )
    assert feed.fingerprint() != mark and feed.rows().height == 256 and old.rows().height == 250
    with pytest.raises(BadFeed, match="cannot be read"):
        Feed(Delta("t", version=77), contract)
    file = Path(feed.files[0])
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(BadFeed, match="the table's log says"):
        feed.check(ledger)
    file.unlink()
    with pytest.raises(BadFeed, match="is not there"):
        feed.check(ledger)


# SQL


@pytest.fixture
def database(project: Path) -> Path:
    path = project / "x.db"
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("create table rows (n integer, x real, s text, b integer)")
        base.executemany("insert into rows values (?, ?, ?, ?)", FRAME.rows())
    return path


@pytest.mark.parametrize("via", ["adbc", "sqlalchemy"])
def test_a_database_in_parts(database: Path, ledger: Ledger, via: str) -> None:
    table = Sql("sqlite:///x.db", table="rows", on="n", split=4, via=via)
    feed = Feed(table, CONTRACT)
    assert feed.rows().equals(FRAME) and [p.rows for p in table.parts] == [125] * 4 and len(feed) == 500
    assert again(table).height == 500 and feed.files == []
    assert Feed(replace(table, condition="n < 9"), CONTRACT).rows().height == 9
    assert (
        Feed(
            Sql(
                "sqlite:///x.db",
                query="select *, 1 as extra from rows where s like 'r%' or s is null;",
                via=via,
            ),
            CONTRACT,
        )
        .rows()
        .height
        == 500
    )
    assert feed.where("n >= 130").rows().height == 370
    assert [table.skips(p, "n > 260") for p in table.parts] == [False, True, False, False]
    mark, full = feed.fingerprint(), feed.fingerprint(full=True)
    with closing(sqlite3.connect(database)) as base, base:
        base.execute("update rows set s = 'other' where n = 7")
    assert (
        feed.fingerprint() == mark and feed.fingerprint(full=True) != full
    )  # which is why a state can be stated
    stated = replace(table, state="select total(length(s)) from rows")
    before = stated.mark()
    with closing(sqlite3.connect(database)) as base, base:
        base.execute("insert into rows values (null, 1, 'late', 1), (502, 'odd', 's', 1), (501, 1, 'new', 7)")
    assert feed.fingerprint() != mark and stated.mark() != before
    if via == "adbc":  # it would round the numbers to print them beside the text
        with pytest.raises(BadFeed, match="x holds text and numbers"):
            feed.check(ledger)
        return
    report = feed.check(ledger)
    kept = pl.read_parquet(report.quarantine).select("column", "rule", "value").rows()
    assert (report.rows, sorted(kept, key=str)) == (
        503,
        [("b", "type", "7"), ("n", "null", None), ("x", "type", "odd")],
    )
    assert feed.rows()["x"].head(500).equals(FRAME["x"])


def test_sql_says_what_is_wrong_and_keeps_secrets(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.data.filesystem.PATIENCE.wait_s", 0.01)
    for via in ("adbc", "sqlalchemy"):
        with pytest.raises(BadFeed, match="no such table"):
            Feed(Sql("sqlite:///x.db", table="rowz", via=via), CONTRACT)
    with pytest.raises(BadInput, match="password in its URL") as caught:
        Sql("postgresql://me:hunter2@host/db", table="t")
    assert "hunter2" not in str(caught.value)
    for options in (
        {"password": "hunter2"},
        {"split": 3},
        {"query": "select 1"},
        {"via": "odbc"},
        {"table": ""},
    ):
        with pytest.raises(BadInput):
            Sql("sqlite:///x.db", **({"table": "rows"} | options))
    with pytest.raises(NotFound, match="NO_SUCH"):
        Feed(Sql("sqlite:///x.db", table="rows", password="env:NO_SUCH"), CONTRACT)
    with pytest.raises(BadFeed, match="whole numbers"):
        Sql("sqlite:///x.db", table="rows", on="s", split=2).parts  # noqa: B018
    assert "hunter2" not in repr(Sql("postgresql://me@host/db", table="t", password="env:PG"))


# Joins


WEATHER = Contract("weather", {"s": Column("str"), "wind": Column("float", ge=0)}, error_budget=0.5)


def test_feeds_join_and_add_up(project: Path, ledger: Ledger) -> None:
    write_parquet(project / "rows.parquet", FRAME)
    write_csv(
        project / "w.csv",
        pl.DataFrame({"s": ['rów 1, "x"', 'rów 2, "x"', 'rów 3, "x"'], "wind": [1.0, -2.0, 3.0]}),
    )
    rows, weather = Feed("rows.parquet", CONTRACT, name="rows"), Feed("w.csv", WEATHER)
    both = rows.join(weather, on="s")
    assert rows.report is None and both.name == "rows + weather"  # nothing was read yet
    assert both.rows().columns == [*FRAME.columns, "wind"] and both.rows().height == 500
    assert both.rows().filter(pl.col("wind").is_not_null()).select("n", "wind").rows() == [(1, 1.0), (3, 3.0)]
    assert both.rows()["n"].to_list() == list(range(500))
    inner = rows.join(weather, on="s", how="inner")
    assert inner.rows().height == 2 and inner.contract.columns["wind"].nullable is False
    assert (
        rows.join(weather, on="s", how="anti").rows().height
        == 498 - FRAME["s"].null_count() + FRAME["s"].null_count()
    )
    assert rows.where("n < 10").concat(rows.where("n >= 495")).rows()["n"].to_list() == [
        *range(10),
        *range(495, 500),
    ]
    mark = both.fingerprint()
    write_csv(project / "w.csv", pl.DataFrame({"s": ['rów 5, "x"'], "wind": [1.0]}))
    assert both.fingerprint() != mark and both.rows()["wind"].null_count() == 499
    assert sum(mask.sum() for _, _, mask in both.pieces()) == 500
    with pytest.raises(BadInput, match="without a key"):
        rows.join(weather).rows()
    with pytest.raises(BadInput, match="rows has no column 'k' to join on"):
        rows.join(weather, on="k")
    with pytest.raises(BadInput, match="how='outer'"):
        rows.join(weather, on="s", how="outer")


def test_a_column_that_both_have_is_there_twice(project: Path, ledger: Ledger) -> None:
    columns = {"k": Column("int"), "x": Column("float")}
    positive = Rule("positive", "x > 0", "x is not positive")
    write_parquet(project / "one.parquet", pl.DataFrame({"k": [1, 2], "x": [-1.0, -2.0]}))
    write_parquet(project / "two.parquet", pl.DataFrame({"k": [2, 1], "x": [20.0, 10.0]}))
    one = Feed("one.parquet", Contract("one", columns))
    two = Feed("two.parquet", Contract("two", columns, (positive,)))
    both = one.join(two, on="k", how="inner").rows()  # the rule of the other is not asked of one's own x
    assert both.rows() == [(1, -1.0, 10.0), (2, -2.0, 20.0)] and both.columns == ["k", "x", "x_right"]
    assert one.join(two, on="k", how="semi").rows().columns == ["k", "x"]


def test_an_asof_join_takes_the_newest_that_is_not_later(project: Path, ledger: Ledger) -> None:
    times = pl.datetime_range(pl.datetime(2013, 1, 1), pl.datetime(2013, 1, 1, 5), "1h", eager=True)
    write_parquet(
        project / "w.parquet",
        pl.DataFrame({"at": times, "place": ["a"] * 6, "wind": [float(i) for i in range(6)]}),
    )
    asked = pl.DataFrame(
        {"at": [times[2].replace(minute=30), times[5].replace(hour=23), times[0]], "place": ["a", "a", "b"]}
    )
    write_parquet(project / "f.parquet", asked)
    keys = {"at": Column("datetime"), "place": Column("str")}
    flights = Feed("f.parquet", Contract("f", keys))
    weather = Feed("w.parquet", Contract("w", keys | {"wind": Column("float")}))
    found = flights.join(weather, on="place", asof="at", tolerance="3h").rows().sort("at")
    assert found["wind"].to_list() == [None, 2.0, None]


def test_accepted_rows_are_a_lazy_plan(
    project: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.data import tally

    write_parquet(
        project / "rows.parquet", FRAME.with_columns(n=pl.when(pl.col("n") != 5).then("n").otherwise(-1))
    )
    feed = Feed("rows.parquet", CONTRACT)
    plan = feed.lazy().filter(pl.col("n") < 8).select("n", "b")
    assert feed.report is None
    assert (
        plan.collect()["n"].to_list() == [0, 1, 2, 3, 4, 6, 7] and feed.lazy().head(2).collect().height == 2
    )
    monkeypatch.setattr(tally, "KEEP_BYTES", 100)  # too many rows to keep: they are read again
    large = Feed("rows.parquet", CONTRACT)
    assert large.check(ledger).accepted == 499 and large._accepted is None
    assert large.rows().equals(feed.rows()) and large.lazy().collect().equals(feed.rows())


def test_the_text_of_a_report_says_of_how_many_rows_it_shows_columns(project: Path, ledger: Ledger) -> None:
    write_csv(project / "many.csv", pl.DataFrame({"k": range(4_000)}))
    report = Feed("many.csv", Contract("many", {"k": Column("int")})).check()
    drawn = report.columns[0]["sampled"]
    assert (f"columns as {drawn:,} of the accepted rows" in report.text()) == (drawn < 4_000)
    assert drawn < 4_000  # a CSV does not say how many rows it has
