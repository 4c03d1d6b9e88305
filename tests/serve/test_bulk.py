"""Arrow in, Arrow out: the bits of JSON, the limits of JSON, and nothing that hostile bytes can do."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import GOOD, TOKEN
from pyarrow import ipc
from starlette.testclient import TestClient

from workbench.serve.app import create_app
from workbench.serve.bulk import ARROW, read_bulk
from workbench.serve.engine import Engine
from workbench.serve.refusal import Refusal

WHERE = "/v1/models/flights:predict"


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": ARROW}
    with TestClient(create_app(engine, token=TOKEN), base_url="http://localhost", headers=headers) as made:
        yield made


def stream(table: pa.Table, rows: int = 1 << 20, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, rows)
    return sink.getvalue().to_pybytes()


def table(rows: int = 300) -> pa.Table:
    rng = np.random.default_rng(0)
    at = [datetime(2013, 1, 1 + i % 28, i % 24, tzinfo=UTC) for i in range(rows)]
    return pa.table(
        {
            "flight": [f"F{i}" for i in range(rows)],
            "carrier": (["AA", "DL", "UA", "zz"] * rows)[:rows],
            "distance": rng.uniform(0, 6000, rows),
            "seats": pa.array(rng.integers(1, 900, rows), pa.int16()),
            "wet": rng.random(rows) < 0.5,
            "wind": pa.array([None if i % 7 == 0 else float(x) for i, x in enumerate(rng.normal(size=rows))]),
            "at": pa.array(at, pa.timestamp("ns", "UTC")),
        }
    )


def as_json(asked: pa.Table) -> list[dict[str, Any]]:
    plain = asked.set_column(6, "at", asked["at"].cast(pa.timestamp("us", "UTC"))).to_pylist()
    return [row | {"at": row["at"].isoformat()} for row in plain]


@pytest.mark.parametrize("batch", [1, 100, 1000])
def test_arrow_has_the_bits_of_json(client: TestClient, batch: int) -> None:
    asked = table()
    found = client.post(WHERE, content=stream(asked, batch))
    assert found.status_code == 200 and found.headers["content-type"] == ARROW
    answer = ipc.open_stream(found.content).read_all()
    rows = {"rows": as_json(asked)}
    wanted = client.post(WHERE, json=rows, headers={"content-type": "application/json"}).json()["predictions"]
    assert answer["prediction"].to_pylist() == [one["prediction"] for one in wanted]
    assert answer["flight"].to_pylist() == [one["flight"] for one in wanted]
    assert answer.schema.metadata[b"version"] == b"1" and len(set(answer["prediction"].to_pylist())) > 200


def test_a_wrong_row_is_named_as_in_json(client: TestClient) -> None:
    asked = table(50)
    for name, values in (
        ("seats", [7] * 49 + [0]),
        ("distance", [1.0] * 49 + [np.nan]),
        ("carrier", ["A" * 9] * 50),
    ):
        at = asked.column_names.index(name)
        found = client.post(WHERE, content=stream(asked.set_column(at, name, pa.array(values))))
        assert found.status_code == 422, found.text
        place = 0 if name == "carrier" else 49
        assert found.json()["detail"][0]["loc"] == ["body", "rows", place, name]
    assert client.post(WHERE, content=stream(asked.drop_columns(["seats"]))).status_code == 422


def test_the_limits_of_json_hold(client: TestClient) -> None:
    assert client.post(WHERE, content=stream(table(1000))).status_code == 200
    for asked in (table(1001), table(0)):
        found = client.post(WHERE, content=stream(asked))
        assert found.status_code == 422 and "1 to 1000 are answered" in found.json()["detail"][0]["msg"]
    assert client.post(WHERE, content=b"x" * (1 << 21)).status_code == 413
    assert (
        client.post(WHERE, content=stream(table(3)), headers={"authorization": "Bearer x"}).status_code == 401
    )
    for path in ("/feedback", "/v1/models/flights:stream"):
        assert client.post(path, content=stream(table(3))).status_code == 415


BOMB = pa.array([0.0]).take(pa.array([0] * 500_000))
HOSTILE = {
    "compressed": stream(pa.table({"distance": BOMB}), compression="zstd"),
    "nothing, many times": stream(pa.table({"none": pa.nulls(10_000_000)})),
    "dictionary": stream(pa.table({"carrier": pa.array(["AA"] * 3).dictionary_encode()})),
    "nested": stream(pa.table({"carrier": pa.array([[1, 2], [3]])})),
    "decimal": stream(pa.table({"seats": pa.array([1]).cast(pa.decimal128(21, 2))})),
    "twice": stream(pa.Table.from_arrays([pa.array([1])] * 2, ["seats", "seats"])),
    "a file": b"ARROW1\0\0" + stream(table(3)),
    "no columns": stream(pa.table({})),
    "finer than a microsecond": stream(pa.table({"at": pa.array([1], pa.timestamp("ns"))})),
    "nothing": b"",
    "an end": b"\xff\xff\xff\xff\0\0\0\0",
    "a long header": b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 100,
}


@pytest.mark.parametrize("which", HOSTILE)
def test_hostile_streams_are_refused_with_a_reason(client: TestClient, which: str) -> None:
    found = client.post(WHERE, content=HOSTILE[which])
    assert found.status_code == 422 and found.json()["detail"][0]["msg"], which


@pytest.mark.parametrize("cases", [400, pytest.param(5_000, marks=pytest.mark.slow)])
def test_any_damage_is_rows_or_a_refusal(cases: int) -> None:
    whole, rng, refused = stream(table(6), 3), np.random.default_rng(1), 0
    for _ in range(cases):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 6)):
            damaged[at] = rng.integers(0, 256)
        cut = rng.integers(1, len(whole)) if rng.random() < 0.2 else len(whole)
        try:
            assert 1 <= len(read_bulk(bytes(damaged[:cut]), 1000)) <= 1000
        except Refusal as refusal:
            refused += 1
            assert refusal.status == 422 and refusal.message.isascii()
    assert refused > cases // 10
    assert GOOD.keys() <= read_bulk(whole, 6)[0].keys()
