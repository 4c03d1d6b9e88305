"""Far files are whole or an error: a store that stalls, breaks off, crawls or errs is asked again, then named."""

import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from storage import KEY, Storage, storage

from workbench.base.errors import BadFeed, BadInput
from workbench.base.records import Ledger
from workbench.data import filesystem, parquet
from workbench.data.contract import Column, Contract
from workbench.data.csv import write_csv
from workbench.data.feed import Feed
from workbench.data.filesystem import PATIENCE, FarFile, find, label, open_place, stat
from workbench.data.jsonl import write_jsonl
from workbench.data.manifest import manifest_of
from workbench.data.parquet import write_parquet

CONTRACT = Contract("rows", {"n": Column("int", ge=0), "s": Column("str")}, error_budget=0.5)
FRAME = pl.DataFrame({"n": range(3000), "s": [f"row {i}" for i in range(3000)]})


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(PATIENCE, "wait_s", 0.01)
    with storage() as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PATIENCE, "answer_s", 0.3)
    monkeypatch.setattr(PATIENCE, "bytes_per_s", 1 << 20)
    filesystem._filesystem.cache_clear()  # its waits are fixed when it is made


def put(server: Storage, folder: Path, prefix: str) -> None:
    "Every file below `folder` as an object."
    for path in folder.rglob("*"):
        if path.is_file():
            server.objects[f"{prefix}/{path.relative_to(folder)}"] = path.read_bytes()


def both(server: Storage, key: str) -> list[str]:
    return [server.s3(key), f"{server.http}/{key}"]


def test_the_same_feed_here_on_s3_and_on_the_web(cloud: Storage, project: Path, ledger: Ledger) -> None:
    here = project / "data"
    write_parquet(here / "rows.parquet", FRAME)
    write_csv(here / "rows.csv", FRAME)
    write_jsonl(here / "rows.jsonl", FRAME)
    put(cloud, here, "bucket/data")
    for name in ("rows.parquet", "rows.csv", "rows.jsonl"):
        near = Feed(here / name, CONTRACT)
        for url in both(cloud, f"bucket/data/{name}"):
            far = Feed(url, CONTRACT)
            assert far.rows().equals(near.rows()) and len(far) == 3000
            assert far.report is not None and far.files == [url]
            assert far.fingerprint() == Feed(url, CONTRACT).fingerprint() != near.fingerprint()
            assert far.fingerprint(full=True) == near.fingerprint(full=True) == near.fingerprint()


def test_a_folder_on_s3_that_grows(cloud: Storage, project: Path, ledger: Ledger) -> None:
    for month in (1, 2):
        write_parquet(project / f"d/month={month}/x.parquet", FRAME.head(month * 10))
    put(cloud, project / "d", "bucket/d")
    contract = Contract("rows", {**CONTRACT.columns, "month": Column("int", ge=1, le=12)})
    feed = Feed(cloud.s3("bucket/d"), contract, where="month = 2")
    mark = feed.fingerprint()
    assert feed.rows().height == 20 and set(feed.rows()["month"]) == {2}
    write_parquet(project / "d/month=3/x.parquet", FRAME.head(30))
    put(cloud, project / "d", "bucket/d")
    assert feed.fingerprint() != mark and len(feed.files) == 3
    assert Feed(cloud.s3("bucket/d/month=*/x.parquet"), contract).rows().height == 60
    del cloud.objects["bucket/d/month=2/x.parquet"]
    with pytest.raises(BadFeed, match=r"month=2/x.parquet is gone"):
        feed.check(ledger)


def test_only_the_columns_that_are_asked_for_travel(cloud: Storage, project: Path, ledger: Ledger) -> None:
    wide = FRAME.with_columns(**{f"c{i}": pl.Series([i + k / 7 for k in range(3000)]) for i in range(40)})
    path = write_parquet(project / "w.parquet", wide)
    cloud.objects["bucket/w.parquet"] = path.read_bytes()
    sent: list[int] = []
    fetch = filesystem._Http.fetch

    def counted(self: object, at: int, size: int, seen: object) -> bytes:
        sent.append(size)
        return fetch(self, at, size, seen)  # type: ignore[arg-type]

    filesystem._Http.fetch = counted  # type: ignore[method-assign]
    try:
        assert Feed(f"{cloud.http}/bucket/w.parquet", CONTRACT).rows().height == 3000
    finally:
        filesystem._Http.fetch = fetch  # type: ignore[method-assign]
    assert sum(sent) < len(cloud.objects["bucket/w.parquet"])


def test_an_epoch_asks_now_and_then_whether_a_far_file_was_written_to(
    cloud: Storage, project: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(FRAME.select("n").to_arrow(), project / "x.parquet", row_group_size=100)
    cloud.objects["bucket/x.parquet"] = (project / "x.parquet").read_bytes()
    feed = Feed(f"{cloud.http}/bucket/x.parquet", Contract("rows", {"n": Column("int")}))
    feed.check()
    asked: list[str] = []
    ask = filesystem._Http.stat
    monkeypatch.setattr(filesystem._Http, "stat", lambda self: asked.append(self.url) or ask(self))
    counts = []
    for recheck_s in (60.0, 0.0):
        monkeypatch.setattr(parquet, "RECHECK_S", recheck_s)
        asked.clear()
        assert sum(len(batch) for batch in feed.batches(columns=["n"], batch_size=500, threads=1)) == 3000
        counts.append(len(asked))
    often, always = counts
    assert always - often >= 29, "30 row groups"
    monkeypatch.setattr(parquet, "RECHECK_S", 60.0)
    source = parquet.ParquetSource(f"{cloud.http}/bucket/x.parquet")
    read, parts = source.reader(), source.parts
    assert read(parts[0], ["n"]).num_rows == 100
    pq.write_table(FRAME.select(pl.col("n") + 1).to_arrow(), project / "y.parquet", row_group_size=100)
    cloud.objects["bucket/x.parquet"] = (project / "y.parquet").read_bytes()
    with pytest.raises(BadFeed, match="written to while it was read"):
        read(parts[1], ["n"])
    assert read(parts[1], ["n"])["n"][0].as_py() == 101, "what was refused is looked at anew"


@pytest.mark.parametrize("fault", ["cut", "error", "stall", "slow"])
@pytest.mark.parametrize(("way", "name"), [(0, "x.parquet"), (1, "x.csv")], ids=["s3", "http"])
def test_a_fault_now_and_then_changes_nothing(
    cloud: Storage, quick: None, project: Path, ledger: Ledger, fault: str, way: int, name: str
) -> None:
    path = project / name
    (write_parquet if name == "x.parquet" else write_csv)(path, FRAME)
    cloud.objects[f"bucket/{name}"] = path.read_bytes()
    feed = Feed(both(cloud, f"bucket/{name}")[way], CONTRACT)
    cloud.faults = [(fault, name), (fault, name)]
    assert feed.rows().equals(FRAME) and not cloud.faults


@pytest.mark.parametrize("fault", ["cut", "error", "stall", "slow"])
@pytest.mark.parametrize("way", [0, 1], ids=["s3", "http"])
def test_a_store_that_never_recovers_is_named_with_its_byte(
    cloud: Storage, quick: None, monkeypatch: pytest.MonkeyPatch, ledger: Ledger, fault: str, way: int
) -> None:
    monkeypatch.setattr(PATIENCE, "answer_s", 0.15)
    monkeypatch.setattr(PATIENCE, "tries", 3)
    cloud.objects["bucket/x.csv"] = b"n,s\n" + b"1,a\n" * 50_000
    feed = Feed(both(cloud, "bucket/x.csv")[way], CONTRACT)
    cloud.faults = [(fault, "x.csv")] * 200
    began_at = time.monotonic()
    with pytest.raises(BadFeed, match=r"bucket/x\.csv, byte [\d,]+ of 200,004: .*tried 3 times"):
        feed.check(ledger)
    assert feed.report is None and time.monotonic() - began_at < 20


@pytest.mark.parametrize("fault", ["cut", "error"])
def test_parquet_that_breaks_off_is_named_with_its_byte(
    cloud: Storage, quick: None, monkeypatch: pytest.MonkeyPatch, project: Path, ledger: Ledger, fault: str
) -> None:
    monkeypatch.setattr(PATIENCE, "tries", 3)
    cloud.objects["bucket/x.parquet"] = write_parquet(project / "x.parquet", FRAME).read_bytes()
    feed = Feed(cloud.s3("bucket/x.parquet"), CONTRACT)
    cloud.faults = [(fault, "x.parquet")] * 200
    with pytest.raises(BadFeed, match=r"bucket/x\.parquet, byte [\d,]+ of [\d,]+: .*tried 3 times"):
        feed.check(ledger)
    assert feed.report is None and not (ledger.store.root / "quarantine").exists()
    cloud.faults.clear()
    assert feed.check(ledger).accepted == 3000


def test_what_was_half_read_is_not_counted(cloud: Storage, quick: None, ledger: Ledger) -> None:
    cloud.objects["bucket/x.csv"] = b"n,s\n" + b"1,a\n" * 600_000
    feed = Feed(f"{cloud.http}/bucket/x.csv", CONTRACT)
    seen = []

    def late(self: object, at: int, size: int, known: object) -> bytes:
        seen.append(at)
        if at > 1_000_000:
            raise OSError("connection reset")
        return fetch(self, at, size, known)  # type: ignore[arg-type]

    fetch = filesystem._Http.fetch
    filesystem._Http.fetch = late  # type: ignore[method-assign]
    try:
        with pytest.raises(BadFeed, match="byte 1,048,576 of 2,400,004: connection reset"):
            feed.check(ledger)
    finally:
        filesystem._Http.fetch = fetch  # type: ignore[method-assign]
    assert feed.report is None and not (ledger.store.root / "quarantine").exists()
    assert feed.rows().height == 600_000


def test_a_file_that_changes_while_it_is_read_is_refused(cloud: Storage) -> None:
    url = f"{cloud.http}/bucket/x.bin"
    cloud.objects["bucket/x.bin"] = b"a" * 100
    handle = FarFile(url)
    assert handle.read(10) == b"a" * 10
    cloud.objects["bucket/x.bin"] = b"b" * 100
    with pytest.raises(BadFeed, match=r"x\.bin, byte 10: it was written to while it was read"):
        handle.read(10)


def test_what_is_not_there_is_said_at_once(cloud: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in both(cloud, "bucket/none.csv"):
        with pytest.raises(BadFeed, match="none.csv"):
            Feed(url, CONTRACT)
    monkeypatch.setattr(PATIENCE, "wait_s", 5.0)
    began_at = time.monotonic()
    with pytest.raises(BadFeed, match="404"):
        stat(f"{cloud.http}/bucket/none.csv")
    assert time.monotonic() - began_at < 3


def test_a_wrong_key_is_refused_and_shown_nowhere(cloud: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.objects["bucket/x.csv"] = b"n,s\n1,a\n"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    filesystem._filesystem.cache_clear()
    with pytest.raises(BadFeed) as caught:
        Feed(cloud.s3("bucket/x.csv"), CONTRACT)
    assert "somebody-else" not in str(caught.value) and "bucket" in str(caught.value)
    for url in ("s3://me:secret@bucket/x.csv", "s3://bucket/x.csv?access_key=me&secret_key=secret"):
        with pytest.raises(BadInput) as refused:
            Feed(url, CONTRACT)
        assert "secret" not in refused.value.what.replace("secret_key", "")
    filesystem._filesystem.cache_clear()


def test_a_storage_nobody_knows(project: Path) -> None:
    with pytest.raises(BadInput, match="no storage that is known"):
        Feed("gopher://host/x.csv", CONTRACT)


def test_memory_of_fsspec_is_a_storage_too(ledger: Ledger) -> None:
    import fsspec

    with fsspec.open("memory://bucket/x.csv", "wb") as handle:
        handle.write(b"n,s\n1,a\n2,b\n")
    assert Feed("memory://bucket/x.csv", CONTRACT).rows()["n"].to_list() == [1, 2]


def test_far_manifests_are_kept_to(cloud: Storage, project: Path, ledger: Ledger) -> None:
    path = write_csv(project / "x.csv", FRAME)
    cloud.objects["bucket/x.csv"] = path.read_bytes()[:-12]
    cloud.objects["bucket/x.csv.manifest.json"] = Path(manifest_of(path)).read_bytes()
    for url in both(cloud, "bucket/x.csv"):
        with pytest.raises(BadFeed, match="is cut: .* its manifest says 3,000 rows"):
            Feed(url, CONTRACT).check(ledger)
    changed = path.read_bytes().replace(b"row 77\n", b"row 78\n")
    cloud.objects["bucket/x.csv"] = changed
    for url in both(cloud, "bucket/x.csv"):
        with pytest.raises(BadFeed, match="is damaged: bytes 0 to"):
            Feed(url, CONTRACT).check(ledger)


def test_a_delta_table_on_s3(cloud: Storage, project: Path, ledger: Ledger) -> None:
    write_deltalake(project / "t", FRAME.with_columns(k=pl.col("n") % 3), partition_by=["k"])
    put(cloud, project / "t", "bucket/t")
    contract = Contract("rows", {**CONTRACT.columns, "k": Column("int")})
    feed = Feed(cloud.s3("bucket/t"), contract, where="k = 1")
    cloud.asked.clear()
    assert feed.rows()["n"].to_list() == list(range(1, 3000, 3))
    assert not [key for method, key in cloud.asked if method == "GET" and "k=2" in key]
    assert feed.fingerprint() == Feed(cloud.s3("bucket/t"), contract, where="k = 1").fingerprint()
    gone = next(key for key in cloud.objects if "k=1" in key)
    del cloud.objects[gone]
    with pytest.raises(BadFeed, match="k=1"):
        Feed(cloud.s3("bucket/t"), contract, where="k = 1").check(ledger)


def test_seeking_and_reading_are_those_of_any_file(cloud: Storage) -> None:
    data = bytes(range(256)) * 40
    cloud.objects["bucket/x.bin"] = data
    for url in both(cloud, "bucket/x.bin"):
        with open_place(url) as handle:
            assert handle.read(3) == data[:3] and handle.seek(-5, 2) == len(data) - 5
            assert handle.read() == data[-5:] and handle.read(1) == b""
            handle.seek(100)
            assert handle.read(7) == data[100:107]


def test_a_folder_is_its_data(project: Path) -> None:
    for name in ("a.csv", "b/c.csv", "_SUCCESS", ".hidden/x.csv", "a.csv.manifest.json", "b/_tmp/x.csv"):
        (project / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "d" / name).write_text("n\n1\n")
    assert [str(path) for path in find("d")] == [str(project / "d/a.csv"), str(project / "d/b/c.csv")]
    assert label(project / "d/a.csv") == "d/a.csv"
    assert label("s3://me:x@bucket/k.csv?secret=1") == "s3://bucket/k.csv"
