"""The routes: every page, every status, every answer logged, in one process."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import GOOD, TOKEN
from starlette.testclient import TestClient

from workbench.base.errors import BadSetting
from workbench.base.ledger import Ledger
from workbench.base.settings import load_settings
from workbench.base.store import Store
from workbench.serve.app import create_app, service_token
from workbench.serve.engine import Engine
from workbench.serve.requestlog import RequestLog, read


@pytest.fixture
def log(engine: Engine, store: Store) -> Iterator[RequestLog]:
    made = RequestLog("flights", engine.contract, store=store, run="serving", flush_s=3600)
    yield made
    made.close()


@pytest.fixture
def client(engine: Engine, log: RequestLog) -> Iterator[TestClient]:
    headers = {"authorization": f"Bearer {TOKEN}"}
    with TestClient(
        create_app(engine, token=TOKEN, log=log), base_url="http://localhost", headers=headers
    ) as made:
        yield made


def test_what_was_answered_is_what_was_logged(client: TestClient, log: RequestLog, store: Store) -> None:
    one = client.post("/predict", json={"row": GOOD}, headers={"x-request-id": "one"})
    many = client.post("/predict", json={"rows": [GOOD, {**GOOD, "flight": "UA 1"}]})
    refused = client.post("/predict", json={"row": {**GOOD, "seats": 0}})
    assert (one.status_code, many.status_code, refused.status_code) == (200, 200, 422), many.text
    assert many.json()["predictions"][1]["flight"] == "UA 1"
    log.flush()
    frame = read("flights", store)
    assert frame["request"].to_list() == ["one", *[many.headers["x-request-id"]] * 2]
    assert frame["prediction"].to_list() == [one.json()["prediction"]] * 3
    assert frame["run"].to_list() == ["serving"] * 3


def test_a_large_request_is_the_same_as_many_small_ones_and_holds_nobody_up(
    engine: Engine, log: RequestLog
) -> None:
    rows = [{**GOOD, "distance": float(miles)} for miles in range(1000)]
    app = create_app(engine, token=TOKEN, log=log)
    import httpx

    async def run() -> tuple[Any, list[float]]:
        transport = httpx.ASGITransport(app)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers
        ) as client:
            big = asyncio.create_task(client.post("/predict", json={"rows": rows}))
            waits = []
            while not big.done():
                started = time.perf_counter()
                assert (await client.get("/healthz")).status_code == 200
                waits.append(time.perf_counter() - started)
                await asyncio.sleep(0)  # nothing else here gives the other request a turn
            return (await big).json(), waits

    found, waits = asyncio.run(run())
    assert [answer["prediction"] for answer in found["predictions"]] == engine.scores(rows)
    assert len(waits) > 1, "probes were answered while the rows were scored"


def test_metrics_tell_what_happened_and_grow_with_nothing_a_stranger_sends(client: TestClient) -> None:
    client.post("/predict", json={"rows": [GOOD, GOOD]})
    client.post("/predict", content=b"{")
    for i in range(50):
        client.get(f"/made-up-{i}")
    text = client.get("/metrics").text
    assert 'workbench_requests_total{path="/predict",status="200"} 1.0' in text
    assert 'workbench_requests_total{path="/predict",status="415"} 1.0' in text
    assert 'workbench_requests_total{path="other",status="404"} 50.0' in text
    assert 'workbench_model_info{model="flights",run="20260101-120000-abcdef",version="1"} 1.0' in text
    assert "workbench_rows_total 2.0" in text and "workbench_log_rows 2.0" in text
    assert "workbench_log_lost 0.0" in text and 'workbench_predict_seconds_bucket{le="0.001"}' in text
    assert "made-up" not in text
    summary = client.app.state.meters.summary()
    assert summary["refused"] == 51 and summary["failed"] == 0 and summary["rows"] == 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/flights:predict", 405),
        ("GET", "/live.json", 200),
        ("GET", "/v2/models/flights", 200),
        ("GET", "/docs", 404),
        ("GET", "/predict", 405),
        ("POST", "/healthz", 405),
        ("POST", "/predict/", 404),
        ("DELETE", "/predict", 405),
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/openapi.json", 200),
    ],
)
def test_every_route_answers_json(client: TestClient, method: str, path: str, status: int) -> None:
    found = client.request(method, path, follow_redirects=False)
    assert found.status_code == status and found.headers["content-type"] == "application/json"
    assert found.json() and len(found.headers["x-request-id"]) == 32
    assert (status == 405) == ("allow" in found.headers)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"]
)
def test_other_content_is_refused_by_its_type(client: TestClient, kind: str) -> None:
    found = client.post("/predict", content=json.dumps({"row": GOOD}), headers={"content-type": kind})
    assert found.status_code == 415 and found.json()["detail"][0]["loc"] == ["header", "content-type"]


def test_a_compressed_body_is_refused_and_a_charset_is_not(client: TestClient) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert client.post("/predict", content=b"{}", headers=headers).status_code == 415
    kind = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/predict", content=json.dumps({"row": GOOD}), headers=kind).status_code == 200


def test_a_model_that_has_no_answer_is_a_failure_in_json(moody: Engine, capfd: Any) -> None:
    moody.contract.columns["distance"].__dict__["le"] = None
    headers = {"authorization": f"Bearer {TOKEN}"}
    client = TestClient(create_app(moody, token=TOKEN), base_url="http://localhost", headers=headers)
    assert client.post("/predict", json={"row": GOOD}).status_code == 200
    found = client.post("/predict", json={"row": {**GOOD, "distance": 1e9}})
    assert found.status_code == 500 and found.json()["detail"][0]["type"] == "internal"
    assert "moody/1 gave nan" in capfd.readouterr().err


@pytest.mark.parametrize(
    "token", ["", "short", "with a space in it", "t\xf6ken-t\xf6ken-t\xf6ken", "a" * 16 + "\n"]
)
def test_a_weak_token_starts_nothing_and_is_not_repeated(engine: Engine, token: str) -> None:
    with pytest.raises(BadSetting) as caught:
        create_app(engine, token=token)
    assert not token or token not in str(caught.value)


def test_the_token_is_made_once_by_whoever_is_first(ledger: Ledger) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(service_token(ledger.store, load_settings())))
        for _ in range(8)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    path = ledger.store.path("token")
    assert len(set(found)) == 1 and len(found[0]) == 43 and path.read_text().strip() == found[0]
    assert path.stat().st_mode & 0o777 == 0o600
    assert not [item for item in ledger.store.root.iterdir() if item.name.startswith(".token")]
    path.chmod(0o644)
    assert service_token(ledger.store, load_settings()) == found[0]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_token_from_the_settings_wins(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_SERVE_TOKEN", "env:TINY_TOKEN")
    monkeypatch.setenv("TINY_TOKEN", TOKEN)
    assert service_token(ledger.store, load_settings()) == TOKEN
    assert not ledger.store.path("token").exists()
