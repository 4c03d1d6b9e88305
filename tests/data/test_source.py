"""Damaged files are refused, never read as data; values of a wrong type are marked, never changed."""

import random
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench.base.errors import BadFeed
from workbench.data.cast import typed
from workbench.data.contract import Column, Contract
from workbench.data.csv import CsvSource
from workbench.data.parquet import ParquetSource, write_parquet
from workbench.data.part import BATCH_ROWS
from workbench.data.source import open_source

FRAME = pl.DataFrame(
    {"n": range(500), "x": [i / 7 for i in range(500)], "s": [f"row {i}" for i in range(500)]}
)


def read(path: Path) -> pl.DataFrame:
    source = open_source(path)
    return pl.concat(source.batches(source.columns))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a" / "x.parquet", FRAME)
    assert read(path).equals(FRAME)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.parquet", "x.parquet.manifest.json"]
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_row_groups_are_batches(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", pl.DataFrame({"n": range(BATCH_ROWS + 5)}))
    assert [batch.height for batch in ParquetSource(path).batches(["n"])] == [BATCH_ROWS, 5]


def test_a_bit_flip_anywhere_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", FRAME)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            assert read(path).equals(FRAME)
        except BadFeed:
            refused += 1
    assert refused > 350  # the others hit what nobody reads: statistics, versions, offsets of indexes


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", FRAME)
    whole = path.read_bytes()
    for size in range(0, len(whole), 29):
        path.write_bytes(whole[:size])
        with pytest.raises(BadFeed):
            read(path)


def test_parquet_of_others_with_broken_text_is_refused(tmp_path: Path) -> None:
    broken = pa.array([b"ok", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"s": broken}), tmp_path / "x.parquet")
    with pytest.raises(BadFeed, match="UTF8"):
        read(tmp_path / "x.parquet")


def test_a_column_that_comes_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("a,a\n1,2\n")
    for name in ("x.parquet", "x.csv"):
        with pytest.raises(BadFeed, match="'a' twice"):
            open_source(tmp_path / name).columns  # noqa: B018


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"a,b\n1,2\n3\n", "line 3: 1 fields, the header has 2"),
        (b"a,b\n1,2,3\n", "line 2: 3 fields"),
        (b'a,b\n1,"2\n3,4\n', "unexpected end of data"),
        (b'a,b\n1,"2"x\n', "line 2: "),
        (b"a,b\n1,2\n3,\xff\xfe\n", "line 3: byte 0xff is not UTF-8"),
        (b"a,b\n1,\x002\n", "line 2: it holds a NUL byte"),
        (b"a,b\n1,2\r3,4\n", "line 2: "),
        (b"\x89PNG\r\n\x1a\n\x00", "line 1: byte 0x89"),
        (b"PAR1" + bytes(64), "is damaged or no Parquet"),  # the content says what it is
    ],
)
def test_a_csv_that_is_broken_names_its_line(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / "x.csv").write_bytes(text)
    with pytest.raises(BadFeed) as caught:
        read(tmp_path / "x.csv")
    assert says in caught.value.what


def test_a_cut_csv_is_refused_unless_the_cut_is_between_fields_or_lines(tmp_path: Path) -> None:
    text = "a,b,c\n" + "".join(f"{i},'x',\"text, {i}\"\n" for i in range(20))
    path, taken = tmp_path / "x.csv", 0
    for size in range(6, len(text)):
        path.write_text(text[:size])
        try:
            found = read(path) if open_source(path).rows != 0 else pl.DataFrame()
            assert text[:size].endswith(('"', '"\n', ",", "\n")), text[:size][-20:]
            taken += found.height > 0
        except BadFeed:
            continue
    assert taken  # a CSV has no checksum: that is why this room writes Parquet


def test_csv_forms(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeffa,b\r\n1,"x\r\ny"\r\n\r\nNA,\r\nNaN,ü\r\n'.encode())
    assert read(path).to_dict(as_series=False) == {"a": ["1", None, "NaN"], "b": ["x\r\ny", None, "ü"]}
    path.write_text("a\n1\n\n2\n")
    assert read(path)["a"].to_list() == ["1", "2"]


def test_files_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.xlsx").write_bytes(b"x")
    (tmp_path / "x.csv").write_bytes(b"")
    with pytest.raises(BadFeed, match="of no format that is known"):
        open_source(tmp_path / "x.xlsx")
    with pytest.raises(BadFeed, match="is empty"):
        open_source(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("a,b\n")
    assert open_source(tmp_path / "x.csv").rows == 0
    assert isinstance(open_source(tmp_path / "x.csv"), CsvSource)


def test_text_becomes_the_contracts_types() -> None:
    contract = Contract(
        "c",
        {
            "i": Column("int", nullable=True),
            "f": Column("float", nullable=True),
            "b": Column("bool", nullable=True),
            "t": Column("datetime", nullable=True),
            "s": Column("str", nullable=True),
        },
    )
    raw = pl.DataFrame(
        {
            "i": ["1", "1.0", "x", None, "99999999999999999999"],
            "f": ["1.5", "nan", "1,5", None, "1e3"],
            "b": ["true", "False", "1", None, "yes"],
            "t": ["2013-01-01T02:00:00+02:00", "2013-01-01", "soon", None, "20130101"],
            "s": ["1", "", "NA", None, "x"],
        }
    )
    frame, misfits = typed(raw, contract)
    assert frame["i"].to_list() == [1, None, None, None, None]
    assert frame["f"].to_list() == [1.5, None, None, None, 1000.0]
    assert frame["b"].to_list() == [True, False, None, None, None]
    assert [str(at) for at in frame["t"].to_list()] == [
        "2013-01-01 00:00:00", "2013-01-01 00:00:00", "None", "None", "2013-01-01 00:00:00",
    ]  # fmt: skip
    assert {name: mask.to_list() for name, mask in misfits.items()} == {
        "i": [False, True, True, False, True],
        "f": [False, False, True, False, False],
        "b": [False, False, True, False, True],
        "t": [False, False, True, False, False],
    }


def test_narrow_and_wide_columns_fit_without_a_loss() -> None:
    contract = Contract(
        "c", {"i": Column("int"), "f": Column("float", nullable=True), "t": Column("datetime")}
    )
    raw = pl.DataFrame(
        {
            "i": pl.Series([1, 2**64 - 1], dtype=pl.UInt64),
            "f": pl.Series([0.5, float("nan")], dtype=pl.Float32),
            "t": pl.Series([0, 1], dtype=pl.Datetime("ns", "Europe/Paris")),
        }
    )
    frame, misfits = typed(raw, contract)
    assert frame.dtypes == [pl.Int64, pl.Float64, pl.Datetime("us")]
    assert frame["f"].to_list() == [0.5, None] and set(misfits) == {"i"}


@pytest.mark.parametrize(
    ("series", "dtype", "fits"),
    [
        (pl.Series([1], dtype=pl.Int8), "int", True),
        (pl.Series([1.0]), "int", False),
        (pl.Series(["1"]), "int", False),
        (pl.Series([1]), "float", True),
        (pl.Series(["x"], dtype=pl.Categorical), "str", True),
        (pl.Series([1]), "str", False),
        (pl.Series([b"x"]), "str", False),
        (pl.Series([1]), "bool", False),
        (pl.Series(["2013-01-01"]), "datetime", False),
        (pl.Series(["2013-01-01"]).str.to_date(), "datetime", True),
        (pl.Series([None]), "int", True),
        (pl.Series([[1]]), "float", False),
    ],
)
def test_which_types_fit(tmp_path: Path, series: pl.Series, dtype: str, fits: bool) -> None:
    path = write_parquet(tmp_path / "x.parquet", series.to_frame("x"))
    assert (ParquetSource(path).misfit("x", Column(dtype)) == "") is fits  # type: ignore[arg-type]
