"""The same feed from an S3 server that others wrote (moto): listing, projection, growth, manifests, what is not there."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from workbench.base.errors import BadFeed
from workbench.base.records import Ledger
from workbench.data import filesystem
from workbench.data.contract import Column, Contract
from workbench.data.csv import write_csv
from workbench.data.feed import Feed
from workbench.data.filesystem import PATIENCE
from workbench.data.jsonl import write_jsonl
from workbench.data.parquet import write_parquet

pytest.importorskip("moto")
pytest.importorskip("flask")
CONTRACT = Contract("rows", {"n": Column("int", ge=0), "s": Column("str")}, error_budget=0.5)
FRAME = pl.DataFrame({"n": range(3000), "s": [f"row {i}" for i in range(3000)]})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(found)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{found}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, "moto ended"
                time.sleep(0.1)
        yield found
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def bucket(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[object, str]]:
    "A client of pyarrow's to write with, and what follows a key in its URL."
    from pyarrow import fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "workbench")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(PATIENCE, "wait_s", 0.01)
    filesystem._filesystem.cache_clear()
    store = fs.S3FileSystem(
        endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    store.create_dir("feeds")
    yield store, f"?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    filesystem._filesystem.cache_clear()


def put(store: object, folder: Path) -> None:
    "Every file below `folder` as an object of the bucket."
    from pyarrow import fs

    fs.copy_files(str(folder), "feeds", destination_filesystem=store)


def test_files_and_folders_of_a_bucket(bucket: tuple[object, str], project: Path, ledger: Ledger) -> None:
    store, query = bucket
    write_csv(project / "d/rows.csv", FRAME)
    write_jsonl(project / "d/rows.jsonl", FRAME)
    for month in (1, 2):
        write_parquet(project / f"d/flights/month={month}/x.parquet", FRAME.head(month * 10))
    put(store, project / "d")
    for name in ("rows.csv", "rows.jsonl"):
        far, near = Feed(f"s3://feeds/{name}{query}", CONTRACT), Feed(project / "d" / name, CONTRACT)
        assert far.rows().equals(FRAME) and far.fingerprint(full=True) == near.fingerprint(full=True)
    contract = Contract("rows", {**CONTRACT.columns, "month": Column("int", ge=1, le=12)})
    feed = Feed(f"s3://feeds/flights{query}", contract)
    mark = feed.fingerprint()
    assert feed.rows().height == 30 and feed.fingerprint() == mark
    batches = list(feed.batches(8, ["n"], device="numpy"))
    assert sum(map(len, batches)) == 30
    write_parquet(project / "d/flights/month=3/x.parquet", FRAME.head(30))
    put(store, project / "d")
    assert feed.fingerprint() != mark and feed.rows().height == 60
    assert Feed(f"s3://feeds/flights/month=*/x.parquet{query}", contract).rows().height == 60
    store.delete_file("feeds/flights/month=2/x.parquet")  # type: ignore[attr-defined]
    with pytest.raises(BadFeed, match=r"month=2/x.parquet is gone"):
        feed.check(ledger)
    with pytest.raises(BadFeed, match=r"nothing\.csv"):
        Feed(f"s3://feeds/nothing.csv{query}", CONTRACT)
    with pytest.raises(BadFeed, match="elsewhere"):
        Feed(f"s3://elsewhere/rows.csv{query}", CONTRACT)


def test_a_cut_object_is_refused_by_its_manifest(
    bucket: tuple[object, str], project: Path, ledger: Ledger
) -> None:
    store, query = bucket
    path = write_csv(project / "c/cut.csv", FRAME)
    path.write_bytes(path.read_bytes()[:-12])
    put(store, project / "c")
    with pytest.raises(BadFeed, match="is cut"):
        Feed(f"s3://feeds/cut.csv{query}", CONTRACT).check(ledger)
