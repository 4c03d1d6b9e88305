"""Every door of the service: the protocols it speaks, who may come in, what any bytes are answered with."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOOD, TOKEN, Service, make_service
from starlette.testclient import TestClient

from workbench.base.errors import BadSetting
from workbench.base.store import Store
from workbench.serve.app import create_app
from workbench.serve.body import plain_row, read_json
from workbench.serve.clients import Client, Clients, load_clients
from workbench.serve.engine import Engine
from workbench.serve.refusal import Refusal
from workbench.serve.requestlog import RequestLog, read

PARTNER = "token-of-a-partner-012345"
OWNER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    digest = hashlib.sha256(PARTNER.encode()).hexdigest()
    clients = {digest: Client("partner", frozenset({"predict"}), rate_per_s=0.001, burst=2)}
    app = create_app(engine, token=TOKEN, clients=clients)
    with TestClient(app, base_url="http://localhost", headers=OWNER) as made:
        yield made


def test_the_same_row_through_every_door_has_the_same_bits(client: TestClient, engine: Engine) -> None:
    wanted = engine.scores([GOOD])[0]
    for path in ("/predict", "/v1/models/flights:predict"):
        for body in ({"row": GOOD}, {"rows": [GOOD]}):
            found = client.post(path, json=body).json()
            assert (found["prediction"] if "row" in body else found["predictions"][0]["prediction"]) == wanted
    assert "queue;dur=" in client.post("/predict", json={"row": GOOD}).headers["server-timing"]


def test_a_stream_gives_each_part_when_it_is_scored(client: TestClient, engine: Engine) -> None:
    rows = [{**GOOD, "distance": float(i)} for i in range(80)]
    with client.stream("POST", "/v1/models/flights:stream", json={"rows": rows}) as found:
        events = re.findall(r"event: (\w+)\ndata: (.*)\n\n", "".join(found.iter_text()))
    assert [name for name, _ in events] == ["predictions"] * 3 + ["end"]
    answers = [item["prediction"] for name, data in events[:3] for item in json.loads(data)]
    assert answers == engine.scores(rows)
    refused = client.post("/v1/models/flights:stream", json={"rows": [*rows, {**GOOD, "seats": 0}]})
    assert refused.status_code == 422 and refused.json()["detail"][0]["loc"] == ["body", "rows", 80, "seats"]


def test_each_row_of_a_stream_has_its_position_in_the_log(engine: Engine, store: Store) -> None:
    log = RequestLog("flights", engine.contract, store=store)
    rows = [{**GOOD, "distance": float(i)} for i in range(80)]
    with TestClient(create_app(engine, token=TOKEN, log=log), base_url="http://localhost") as made:
        made.post("/v1/models/flights:stream", json={"rows": rows}, headers=OWNER)
    log.close()
    found = read("flights", store)
    assert found["position"].to_list() == list(range(80))
    assert found["row"].struct.field("distance").to_list() == [float(i) for i in range(80)]


def tensors(rows: int, **changed: Any) -> dict[str, Any]:
    kinds = {
        "carrier": "BYTES",
        "distance": "FP64",
        "seats": "INT64",
        "wet": "BOOL",
        "wind": "FP64",
        "at": "BYTES",
    }
    inputs = [{"name": k, "datatype": d, "shape": [rows], "data": [GOOD[k]] * rows} for k, d in kinds.items()]
    return {"inputs": inputs} | changed


def test_the_open_inference_protocol_names_what_is_wrong(client: TestClient, engine: Engine) -> None:
    found = client.post("/v2/models/flights/infer", json=tensors(3, id="a7"))
    assert found.status_code == 200 and found.json()["id"] == "a7" and found.json()["model_version"] == "1"
    assert found.json()["outputs"][0]["data"] == engine.scores([GOOD]) * 3
    asked = tensors(1)["inputs"]
    for wrong in (
        [],
        {"inputs": 7},
        {"inputs": []},
        {"inputs": [{}]},
        tensors(1, inputs=asked + asked[:1]),
        tensors(1, inputs=asked[1:]),
        tensors(1, inputs=[asked[0] | {"shape": [2]}]),
        tensors(1, inputs=[asked[0] | {"shape": None, "data": None}]),
        tensors(1, inputs=[asked[0] | {"datatype": "FP16"}]),
        tensors(1, inputs=[asked[0] | {"parameters": {"binary_data_size": 10**9}}]),
        tensors(1, inputs=[asked[0] | {"parameters": {"binary_data_size": True}}]),
    ):
        refused = client.post("/v2/models/flights/infer", json=wrong)
        assert refused.status_code == 422 and refused.json()["detail"][0]["msg"], wrong
    cut = client.post(
        "/v2/models/flights/infer", content=b"{}", headers={"inference-header-content-length": "99"}
    )
    assert cut.status_code == 422


def test_a_client_may_do_what_it_may_as_often_as_it_may(client: TestClient) -> None:
    partner = {"authorization": f"Bearer {PARTNER}"}
    metrics = client.get("/metrics", headers=partner)
    assert metrics.status_code == 403 and "partner may predict" in metrics.json()["detail"][0]["msg"]
    found = [client.post("/predict", json={"row": GOOD}, headers=partner) for _ in range(3)]
    assert [one.status_code for one in found] == [200, 200, 429]
    assert int(found[2].headers["retry-after"]) > 100
    assert client.post("/predict", json={"row": GOOD}).status_code == 200, "the owner has no rate"


def test_a_file_of_clients_holds_no_token_and_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "clients.json"
    assert load_clients(path) == {}
    digest = hashlib.sha256(PARTNER.encode()).hexdigest()
    path.write_text(json.dumps([{"name": "partner", "sha256": digest, "scopes": ["read"], "rate_per_s": 5}]))
    found = Clients.of(TOKEN, load_clients(path)).admit(f"Bearer {PARTNER}".encode(), "read")
    assert (found.name, found.rate_per_s) == ("partner", 5)
    for wrong in (
        "{",
        "{}",
        '[{"name": "x"}]',
        '[{"name": "x", "sha256": "ab"}]',
        json.dumps([{"sha256": digest}]),
    ):
        path.write_text(wrong)
        with pytest.raises(BadSetting, match="no list of clients"):
            load_clients(path)


@pytest.mark.parametrize(
    ("header", "status"), [("250", 200), ("0", 422), ("-5", 422), ("soon", 422), ("1e3", 422)]
)
def test_a_deadline_is_a_number_of_milliseconds(client: TestClient, header: str, status: int) -> None:
    found = client.post("/predict", json={"row": GOOD}, headers={"x-deadline-ms": header})
    assert found.status_code == status


def test_time_spent_in_a_proxy_is_spent(client: TestClient) -> None:
    import time

    late = {"x-deadline-ms": "500", "x-request-start": f"t={time.time() - 2:.3f}"}
    found = client.post("/predict", json={"row": {**GOOD, "seats": 11}}, headers=late)
    assert found.status_code == 503 and found.json()["detail"][0]["type"] == "overloaded"
    for odd in ("t=abc", "t=nan", "t=-1", "t=99999999999", ""):
        headers = {"x-request-start": odd}
        assert client.post("/predict", json={"row": GOOD}, headers=headers).status_code == 200


BODIES = [
    b"", b" ", b"{", b"null", b"[]", b"7", b'"x"', b"\xff\xfe", b"\x00" * 50, b"[" * 100_000, b'{"row":' * 5000,
    b'{"row": {"distance": NaN}}', b'{"row": {"distance": Infinity}}', b'{"row": 1e999}', b"1" * 10_000,
    b'{"row": {}, "row": {}}', b'{"rows": []}', b'{"row": null}', "{\"row\": {\"carrier\": \"\ud800\"}}".encode("utf-8", "surrogatepass"),
    *(json.dumps({"row": GOOD | {"distance": 0}}).replace('"distance": 0', f'"distance": {value}').encode()
      for value in ("NaN", "-Infinity", "1e999", "-1", '"1.5"', "true", "null", "[1]", "{}", "9" * 400, "1e400", "123456789012345678901234567890")),
    json.dumps({"row": GOOD}).replace('"wet": true', '"wet": true, "wet": false').encode(),
]  # fmt: skip


@pytest.mark.parametrize(
    "path",
    ["/predict", "/v1/models/flights:predict", "/v1/models/flights:stream", "/v2/models/flights/infer"],
)
def test_any_bytes_are_refused_with_a_reason(client: TestClient, path: str) -> None:
    for body in BODIES:
        found = client.post(path, content=body, headers={"content-type": "application/json"})
        assert found.status_code == 422, (body[:60], found.text)
        assert found.json()["detail"][0]["msg"] and found.json()["detail"][0]["loc"]


def test_the_fast_reader_never_takes_what_the_strict_one_would_not() -> None:
    for body in (*BODIES, json.dumps({"row": GOOD}).encode(), b'{"row": {"a": "\\u0022", "b": "\\""}}'):
        found = plain_row(body)
        assert (
            found is None
            or len(body) > 40_000
            or json.dumps(found) == json.dumps(read_json(body)["row"])
            or any(isinstance(value, float) and abs(value) > 2**53 for value in found.values())
        )
    assert plain_row(json.dumps({"row": GOOD}).encode()) == GOOD


def test_tritons_client_is_answered_with_the_same_bits(tmp_path: Path, module: Path) -> None:
    http = pytest.importorskip("tritonclient.http")
    service = make_service(tmp_path / "project", module).start()
    triton = http.InferenceServerClient(f"127.0.0.1:{service.port}")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        assert triton.is_server_live() and triton.is_server_ready()
        assert triton.is_model_ready("flights", headers=headers)
        said = triton.get_model_metadata("flights", headers=headers)
        given = {"carrier": np.array([b"AA", b"UA"], object), "distance": np.array([733.0, 24.5]),
                 "seats": np.array([150, 7]), "wet": np.array([True, False]), "wind": np.array([1.5, -2.0]),
                 "at": np.array([b"2013-01-31T17:05:00Z"] * 2, object)}  # fmt: skip
        plain = [
            {
                k: (v.decode() if isinstance(v, bytes) else v.item() if hasattr(v, "item") else v)
                for k, v in zip(given, row, strict=True)
            }
            for row in zip(*given.values(), strict=True)
        ]
        wanted = [answer["prediction"] for answer in service.ask(body={"rows": plain})[1]["predictions"]]
        for binary in (True, False):
            inputs = []
            for item in said["inputs"]:
                values = given[item["name"]]
                made = http.InferInput(item["name"], list(values.shape), item["datatype"])
                inputs.append(made.set_data_from_numpy(values, binary_data=binary))
            outputs = [http.InferRequestedOutput("prediction", binary_data=binary)]
            found = triton.infer("flights", inputs, outputs=outputs, headers=dict(headers)).as_numpy(
                "prediction"
            )
            assert found.dtype == np.float32 and [float(score) for score in found] == wanted
    finally:
        triton.close()
        service.stop(15)


def test_the_page_shows_what_the_service_does(service: Service, tmp_path: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no chromium here")
    for i in range(40):
        service.ask(body={"row": {**GOOD, "seats": 1 + i % 20}})
    url = f"http://127.0.0.1:{service.port}/"
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(url) else None)
        page.goto(url + "#" + TOKEN)
        page.wait_for_selector("#cards .card")
        page.wait_for_selector("#requests tr")
        assert page.inner_text("#name") == "flights version 1" and TOKEN not in page.url
        cards = page.inner_text("#cards")
        page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        other = browser.new_page()
        other.goto(url)
        other.fill("#token", "not the token")
        other.click("button")
        other.wait_for_selector('#said:has-text("wrong")')
        browser.close()
    assert "from cache or shared" in cards and "p99" in cards
    assert not [line for line in wrong if "favicon" not in line and "401" not in line], wrong
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_a_token_that_was_right_opens_for_nobody_else() -> None:
    digest = hashlib.sha256(PARTNER.encode()).hexdigest()
    clients = Clients.of(TOKEN, {digest: Client("partner", frozenset({"read"}))})
    asked = {f"Bearer {TOKEN}": "owner", f"bearer {PARTNER}": "partner"}
    for header, name in [*asked.items(), *asked.items()]:
        assert [clients.who(header.encode()).name for _ in range(2)] == [name, name]
        for wrong in ("", "Bearer", header[:-1], f"{header}x", header[1:], f"Basic {TOKEN}"):
            with pytest.raises(Refusal, match="(?i)token"):
                clients.who(wrong.encode())
