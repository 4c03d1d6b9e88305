"""Damaged files, seeded: each is refused, or its bad rows are quarantined with reasons; none crashes, none passes silently."""

import gzip
import io
import random
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from workbench.base.errors import BadFeed, FeedRefused
from workbench.base.records import Ledger
from workbench.data import parquet
from workbench.data.contract import Column, Contract, Rule
from workbench.data.csv import write_csv
from workbench.data.feed import Feed
from workbench.data.images import pixels
from workbench.data.ipc import write_ipc
from workbench.data.jsonl import write_jsonl
from workbench.data.manifest import manifest_of
from workbench.data.parquet import write_parquet

# Columns bind each other, so that a value that was changed breaks a rule.
CONTRACT = Contract(
    "bound",
    {
        "n": Column("int", ge=0, le=100_000),
        "mark": Column("int", ge=0, le=9973),
        "x": Column("float", ge=0),
        "s": Column("str", max_len=12),
    },
    rules=(
        Rule("mark", "mark = (n * n + 17) % 9973", "mark does not belong to n"),
        Rule("x", "x * 8 = n", "x does not belong to n"),
        Rule("s", "s = concat('rów ', n)", "s does not belong to n"),
    ),
    error_budget=0.9,
)
ROWS = 60
WRITERS: dict[str, Callable[[Path, pl.DataFrame], Path]] = {
    "parquet": write_parquet, "ipc": write_ipc, "csv": write_csv, "jsonl": write_jsonl,
}  # fmt: skip
FORMS = ("parquet", "ipc", "csv", "jsonl", "csv.gz", "jsonl.gz", "csv.zst", "jsonl.zst")


def rows(rng: random.Random) -> pl.DataFrame:
    numbers = rng.sample(range(1000, 90_000), ROWS)
    return pl.DataFrame(
        {
            "n": numbers,
            "mark": [(n * n + 17) % 9973 for n in numbers],
            "x": [n / 8 for n in numbers],
            "s": [f"rów {n}" for n in numbers],
        }
    )


def packed(data: bytes, form: str) -> bytes:
    if form.endswith(".gz"):
        return gzip.compress(data, mtime=0)
    if not form.endswith(".zst"):
        return data
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


# What can happen to the bytes of any file


def truncated(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(1, len(data))]


def flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zeroed(rng: random.Random, data: bytes) -> bytes:
    at, size = rng.randrange(len(data)), rng.randrange(1, 64)
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


def spliced(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]


def empty(rng: random.Random, data: bytes) -> bytes:
    return b""


def noise(rng: random.Random, data: bytes) -> bytes:
    return rng.randbytes(len(data))


def archive(rng: random.Random, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as found:
        found.writestr("rows.csv", bytes(5_000_000))
    return out.getvalue()


# What can happen to lines of text


def lines_of(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def junk_rows(rng: random.Random, data: bytes) -> bytes:
    found = lines_of(data)
    for _ in range(rng.randrange(1, 4)):
        junk = bytes(rng.choice(b"abc,;{}\"'019 \t-") for _ in range(rng.randrange(1, 60)))
        found.insert(rng.randrange(1, len(found) + 1), junk + b"\n")
    return b"".join(found)


def encoded(rng: random.Random, data: bytes) -> bytes:
    return data.decode().encode(rng.choice(("latin-1", "utf-16", "utf-16-le", "utf-32", "cp1250")), "replace")


def shifted(rng: random.Random, data: bytes) -> bytes:
    "A separator too many or too few, in one row or in all."
    found = lines_of(data)
    picked = range(1, len(found)) if rng.random() < 0.3 else [rng.randrange(1, len(found))]
    for at in picked:
        places = [i for i, byte in enumerate(found[at]) if byte == ord(",")] or [0]
        place = rng.choice(places)
        found[at] = found[at][:place] + (b",," if rng.random() < 0.5 else b"") + found[at][place + 1 :]
    return b"".join(found)


def rotated(rng: random.Random, data: bytes) -> bytes:
    "Values of a row under each other's names."
    found = lines_of(data)
    at = rng.randrange(1, len(found))
    parts = found[at].rstrip(b"\n").split(b",")
    found[at] = b",".join(parts[1:] + parts[:1]) + b"\n"
    return b"".join(found)


def half_line(rng: random.Random, data: bytes) -> bytes:
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    return data[: last + rng.randrange(3, len(data) - last - 3)]


def renamed(rng: random.Random, data: bytes) -> bytes:
    return data.replace(
        rng.choice((b"mark", b'"s"', b"s\n", b"x,", b'"x"')), b"other", 1 if rng.random() < 0.5 else -1
    )


ANY = (truncated, flipped, flipped, flipped, zeroed, spliced, empty, noise, archive)
TEXT = (junk_rows, encoded, shifted, rotated, half_line, renamed)


def other_schema(rng: random.Random, frame: pl.DataFrame) -> pl.DataFrame:
    "A column of another name or type, or none of it."
    name = rng.choice(frame.columns)
    return rng.choice(
        (
            lambda: frame.drop(name),
            lambda: frame.rename({name: f"{name}_"}),
            lambda: frame.with_columns(pl.col("n").cast(pl.Float64) + 0.5),
            lambda: frame.with_columns(s=pl.lit(7)),
            lambda: frame.with_columns(mark=pl.col("mark").cast(pl.String) + "x"),
            lambda: frame.with_columns(x=pl.lit(None, pl.Float64)),
            lambda: frame.head(0),
        )
    )()


@lru_cache(maxsize=4)
def bomb(form: str) -> bytes:
    "A hundred megabytes of nothing in a small file."
    line = (
        b'{"n": 1, "s": "%s"}\n' % bytes(b"0" * 5000)
        if "jsonl" in form
        else b"1,1,1,%s\n" % bytes(b"0" * 5000)
    )
    head = b"" if "jsonl" in form else b"n,mark,x,s\n"
    return packed(head + line * (110_000_000 // len(line)), form)


def damaged(rng: random.Random, folder: Path, number: int, bombs: float) -> tuple[str, Path, pl.DataFrame]:
    "A damaged file of a random format: (what was done, the file, what it held)."
    form, frame = rng.choice(FORMS), rows(rng)
    kind = form.partition(".")[0]
    path = folder / f"{number}.{form}"
    if bombs and "." in form and rng.random() < bombs:
        path.write_bytes(bomb(form))
        return f"{form} bomb", path, frame
    ours = rng.random() < 0.5  # with the manifest of what was written
    if rng.random() < 0.12:
        written = WRITERS[kind](folder / f"{number}.{kind}", other_schema(rng, frame))
        path.write_bytes(packed(written.read_bytes(), form))
        return f"{form} schema", path, frame
    written = WRITERS[kind](folder / f"{number}.{kind}", frame)
    whole = written.read_bytes()
    how = rng.choice(TEXT if kind in ("csv", "jsonl") and rng.random() < 0.6 else ANY)
    if how in TEXT:
        data = packed(how(rng, whole), form)
    else:
        data = how(rng, packed(whole, form))
    if how is truncated and form in ("csv", "jsonl") and whole[len(data) - 1 : len(data) + 1].count(b"\n"):
        ours = True  # cut between two lines: only a manifest can tell
    if form in ("csv", "jsonl", "parquet", "ipc") and not ours:
        Path(manifest_of(written)).unlink()
    path.write_bytes(data)
    return f"{form} {how.__name__} {'ours' if ours else 'foreign'}", path, frame


def outcome(path: Path, frame: pl.DataFrame, ledger: Ledger) -> str:
    "refused, quarantined, harmless, or silent: rows that nobody wrote, or fewer of them and no row is refused."
    try:
        feed = Feed(path, CONTRACT)
        report = feed.check(ledger)
    except (BadFeed, FeedRefused):
        return "refused"
    found = feed.rows()
    if not found.join(frame, on=frame.columns, how="anti").is_empty():
        return "silent"
    if report.refused:
        kept = pl.read_parquet(report.quarantine)
        return (
            "quarantined"
            if kept["why"].null_count() == 0 and kept["row"].n_unique() == report.refused
            else "silent"
        )
    return "harmless" if found.height == ROWS else "silent"


def campaign(seed: int, count: int, folder: Path, ledger: Ledger, bombs: float = 0.0) -> Counter[str]:
    rng, found, wrong = random.Random(seed), Counter[str](), []
    for number in range(count):
        what, path, frame = damaged(rng, folder, number, bombs)
        try:
            result = outcome(path, frame, ledger)
        except Exception as error:  # whatever it is, it is a crash
            result = f"crash {type(error).__name__}: {error}"
        found[result.split()[0]] += 1
        if result.split()[0] in ("crash", "silent"):
            wrong.append((number, what, result))
    assert not wrong, wrong
    return found


def test_sixty_damaged_files(tmp_path: Path, ledger: Ledger) -> None:
    found = campaign(1, 60, tmp_path, ledger)
    assert found["refused"] >= 40 and found["quarantined"] >= 3, found


@pytest.mark.slow
def test_a_thousand_damaged_files(tmp_path: Path, ledger: Ledger) -> None:
    found = campaign(2, 1000, tmp_path, ledger, bombs=0.03)
    print(dict(found))
    assert found.total() == 1000 and found["refused"] >= 700 and found["quarantined"] >= 50, found


@pytest.mark.parametrize("form", ["csv.gz", "jsonl.zst"])
def test_bombs_do_not_go_off(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"bomb.{form}"
    path.write_bytes(bomb(form))
    contract = Contract("c", {"n": Column("int")}, error_budget=1)
    with pytest.raises(BadFeed, match="unfolds to over 67,108,864 bytes"):
        sum(batch.height for batch in Feed(path, contract).sources[0].batches(["n"]))


def test_a_parquet_bomb_is_refused_before_it_is_unfolded(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "BOMB_BYTES", 1 << 24)
    zeros = pa.table({"n": pa.array(np.zeros(8_000_000, np.int64))})
    pq.write_table(
        zeros,
        tmp_path / "x.parquet",
        compression="zstd",
        row_group_size=8_000_000,
        max_rows_per_page=8_000_000,
        data_page_size=1 << 30,
    )
    assert (tmp_path / "x.parquet").stat().st_size < 40_000
    feed = Feed(tmp_path / "x.parquet", Contract("c", {"n": Column("int")}))
    with pytest.raises(BadFeed, match=r"row group 0: [\d,]+ bytes unfold to 32,000,000"):
        feed.check(ledger)


def test_a_header_that_lies_about_its_length(tmp_path: Path, ledger: Ledger) -> None:
    path = write_parquet(tmp_path / "x.parquet", rows(random.Random(0)))
    data = bytearray(path.read_bytes())
    for size in (0, 1, len(data), 2**31 - 1, 2**32 - 1):
        data[-8:-4] = struct.pack("<I", size)
        path.write_bytes(data)
        with pytest.raises(BadFeed):
            Feed(path, CONTRACT).check(ledger)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif"])
def test_damaged_pictures_have_no_pixels_or_their_own(kind: str) -> None:
    rng, lossy, out = random.Random(7), kind == "jpeg", io.BytesIO()
    Image.frombytes("L", (12, 10), rng.randbytes(120)).save(out, kind)
    whole, none = pixels(out.getvalue(), (10, 12)), 0
    assert whole is not None and len(whole) == 120
    for _ in range(150):
        how = rng.choice((truncated, flipped, zeroed, spliced, noise))
        found = pixels(how(rng, out.getvalue()), (10, 12))
        none += found is None
        assert found is None or len(found) == 120
        assert found is None or found == whole or kind != "png", how  # JPEG and GIF have no checksums
    assert none > (30 if lossy else 40)
