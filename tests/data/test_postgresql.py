"""The same feed from a real PostgreSQL, by ADBC and by SQLAlchemy: parts, types, filters, refusals, a server that goes."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from workbench.base.errors import BadFeed
from workbench.base.records import Ledger
from workbench.data.contract import Column, Contract
from workbench.data.feed import Feed
from workbench.data.filesystem import PATIENCE
from workbench.data.sql import Sql
from workbench.data.whole import Unique

pytest.importorskip("psycopg")
pytest.importorskip("adbc_driver_postgresql")
SERVER = shutil.which("postgres") and shutil.which("initdb") and shutil.which("pg_ctl")
pytestmark = pytest.mark.skipif(not SERVER, reason="no PostgreSQL server is installed")

CONTRACT = Contract(
    "rows",
    {
        "n": Column("int", ge=0, role="key"),
        "x": Column("float", nullable=True),
        "s": Column("str", nullable=True),
        "b": Column("bool"),
        "at": Column("datetime"),
    },
    error_budget=0.1,
    whole=(Unique("n"),),
)
TABLE = """create table rows as select n::bigint as n, case when n % 7 = 0 then null else n / 3.0::float8 end as x,
 case when n % 11 = 0 then null else 'rów ' || n end as s, n % 2 = 0 as b,
 timestamp '2013-01-01' + n * interval '1 hour' as at from generate_series(0, 499) n"""


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        if self.user:
            shutil.chown(folder, "postgres", "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.call(
            "initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8"
        )
        self.start()

    def call(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=self.folder, **self.user)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.call(
            "pg_ctl", "-D", f"{self.folder}/data", "-w", "-l", f"{self.folder}/log", "-o", options, "start"
        )

    def stop(self) -> None:
        self.call("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "-w", "stop")

    def do(self, sql: str) -> None:
        import psycopg

        with psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", autocommit=True) as base:
            base.execute(sql)

    def url(self, via: str) -> str:
        scheme = "postgresql+psycopg" if via == "sqlalchemy" else "postgresql"
        return f"{scheme}://postgres@127.0.0.1:{self.port}/postgres"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="workbench-pg-"))
    try:
        found = Server(folder)
        try:
            found.do(TABLE)
            yield found
        finally:
            found.stop()
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("via", ["adbc", "sqlalchemy"])
def test_a_database_in_parts(
    server: Server, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, via: str
) -> None:
    table = Sql(server.url(via), table="rows", on="n", split=4, via=via)
    feed = Feed(table, CONTRACT)
    rows = feed.rows()
    assert rows["n"].to_list() == list(range(500)) and [part.rows for part in table.parts] == [125] * 4
    assert rows.row(8) == (8, pytest.approx(8 / 3), "rów 8", True, datetime(2013, 1, 1, 8))
    assert rows["x"].null_count() == 72 and rows["s"].null_count() == 46
    assert feed.where("n >= 130 and b").rows().height == 185
    assert [table.skips(part, "n > 260") for part in table.parts] == [
        False,
        True,
        False,
        False,
    ] or feed.where("n > 260").rows().height == 239
    mark = feed.fingerprint()
    server.do("insert into rows values (-5, 1, 'low', true, now()), (600, null, null, false, '2014-01-01')")
    try:
        assert feed.fingerprint() != mark
        report = feed.check(ledger)
        kept = pl.read_parquet(report.quarantine).select("column", "rule", "value").rows()
        assert (report.rows, kept) == (502, [("n", "ge 0", "-5")])
        assert [one["verdict"] for one in report.whole] == ["pass"]
    finally:
        server.do("delete from rows where n in (-5, 600)")
    draft = Contract.infer(table).contract
    assert {name: column.dtype for name, column in draft.columns.items()} == {
        name: column.dtype for name, column in CONTRACT.columns.items()
    }
    with pytest.raises(BadFeed, match="rowz"):
        Feed(Sql(server.url(via), table="rowz", via=via), CONTRACT)


@pytest.mark.parametrize("via", ["adbc", "sqlalchemy"])
def test_a_server_that_goes_is_tried_again_then_named(
    server: Server, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, via: str
) -> None:
    monkeypatch.setattr(PATIENCE, "wait_s", 0.01)
    feed = Feed(Sql(server.url(via), table="rows", on="n", split=4, via=via), CONTRACT)
    server.stop()
    try:
        with pytest.raises(BadFeed, match=r"127\.0\.0\.1.*tried 4 times"):
            feed.check(ledger)
        assert feed.report is None and not (ledger.store.root / "quarantine").exists()
    finally:
        server.start()
    assert feed.check(ledger).accepted == 500
