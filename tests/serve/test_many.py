"""Many models, little memory: loads are shared, room is made, and each answers with its own bits."""

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import CONTRACT, GOOD, MODULE, TOKEN, Service, free_port, make_service, parts
from starlette.testclient import TestClient
from typer.testing import CliRunner

from workbench.base.errors import BadInput, WorkbenchError
from workbench.base.ledger import Ledger
from workbench.base.store import Store
from workbench.cli.cli import app
from workbench.data.contract import Contract
from workbench.models.bundle import Bundle
from workbench.models.shelf import Shelf
from workbench.serve.clients import Client, Clients
from workbench.serve.engine import Engine
from workbench.serve.many import Many, size_mb
from workbench.serve.policy import Overloaded
from workbench.serve.requestlog import RequestLog, read
from workbench.serve.switch import create_app
from workbench.serve.traffic import direct, shadow_report

NAMES = ("one", "two", "three")


@pytest.fixture
def refs(ledger: Ledger) -> list[str]:
    for i, name in enumerate(NAMES):
        made = parts()
        made["weights"] = {key: value + i for key, value in made["weights"].items()}
        Shelf(ledger).add(name, **made)
    return [f"{name}/1" for name in NAMES]


def small(refs: list[str], ledger: Ledger, models: float, **more: Any) -> Many:
    return Many(refs, ledger, memory_mb=models * size_mb(refs[0], ledger), **more)


def test_room_is_made_by_who_was_asked_longest_ago(refs: list[str], ledger: Ledger) -> None:
    closed: list[str] = []

    async def ask() -> tuple[list[list[str]], Many]:
        many = small(refs, ledger, 2.5, opened=lambda engine: lambda: closed.append(engine.name))
        seen = []
        for name in ("one", "two", "one", "three", "one", "two"):
            async with many.use(name, 20) as engine:
                answer = await engine.predict(GOOD)
                assert answer["prediction"] == Engine(f"{name}/1", ledger).scores([GOOD])[0]
            assert many.used_mb <= many.memory_mb
            seen.append(sorted(many.held))
        await many.stop()
        return seen, many

    seen, many = asyncio.run(ask())
    assert seen == [
        ["one"],
        ["one", "two"],
        ["one", "two"],
        ["one", "three"],
        ["one", "three"],
        ["one", "two"],
    ]
    assert (many.loads, many.evictions) == (4, 2)
    assert closed == ["two", "three", "one", "two"] and not many.held


def test_many_who_come_for_a_model_wait_for_one_load(refs: list[str], ledger: Ledger) -> None:
    async def ask(many: Many, name: str) -> float:
        async with many.use(name, 20) as engine:
            return (await engine.predict({**GOOD, "wind": 1.0}))["prediction"]

    async def all_of_them() -> tuple[list[float], Many]:
        many = small(refs, ledger, 1.5)
        found = await asyncio.gather(*[ask(many, NAMES[i % 3]) for i in range(30)])
        await many.stop()
        return found, many

    found, many = asyncio.run(all_of_them())
    assert many.loads == 3 and found[:3] * 10 == found and len(set(found)) == 3


def test_who_is_answering_stays_and_who_waits_too_long_is_told(refs: list[str], ledger: Ledger) -> None:
    async def ask() -> None:
        many = small(refs, ledger, 1.5)
        async with many.use("one", 20) as engine:
            with pytest.raises(Overloaded, match="two is not loaded yet"):
                async with many.use("two", 0.1):
                    pass
            assert (await engine.predict(GOOD))["model"] == "one"
        async with many.use("two", 20) as engine:  # the load went on
            assert (await engine.predict(GOOD))["model"] == "two" and list(many.held) == ["two"]
        await many.stop()

    asyncio.run(ask())


def test_what_never_fits_or_fails_to_load_is_said(refs: list[str], ledger: Ledger) -> None:
    with pytest.raises(BadInput, match="the budget is"):
        small(refs, ledger, 0.5)
    for wrong in ([], ["one/1", "one@champion"]):
        with pytest.raises(BadInput):
            Many(wrong, ledger)

    async def ask() -> None:
        many = Many(["one/1", "two/1"], ledger)
        shutil.rmtree(Shelf(ledger).path("two/1"))
        for _ in range(2):
            with pytest.raises(WorkbenchError):
                async with many.use("two", 20):
                    pass
        async with many.use("one", 20) as engine:
            assert (await engine.predict(GOOD))["model"] == "one"
        await many.stop()

    asyncio.run(ask())


@pytest.fixture
def client(refs: list[str], ledger: Ledger) -> Iterator[TestClient]:
    app = create_app(small(refs, ledger, 2.5), token=TOKEN)
    headers = {"authorization": f"Bearer {TOKEN}"}
    with TestClient(app, base_url="http://localhost", headers=headers) as made:
        yield made


def test_a_path_names_the_model(client: TestClient, refs: list[str], ledger: Ledger) -> None:
    assert client.get("/v1/models").json()["models"]["one"] == {"loaded": False, "ref": "one/1"}
    for name in (*NAMES, *NAMES):
        found = client.post(f"/v1/models/{name}:predict", json={"row": GOOD}).json()
        assert found["model"] == name and found["prediction"] == Engine(f"{name}/1", ledger).scores([GOOD])[0]
    shown = client.get("/v1/models").json()
    assert (
        shown["models"]["three"]["version"] == 1
        and shown["loads"] == 6
        and shown["used_mb"] <= shown["memory_mb"]
    )
    bad = client.post("/v1/models/one:predict", json={"row": {**GOOD, "seats": 0}})
    assert bad.status_code == 422 and bad.json()["detail"][0]["loc"] == ["body", "row", "seats"]
    for path, status in (("/predict", 404), ("/v1/models/four:predict", 404), ("/v1/models/one:delete", 404)):
        assert client.post(path, json={"row": GOOD}).status_code == status
    assert client.post("/v1/models/one:predict", headers={"authorization": "Bearer x"}).status_code == 401
    assert client.get("/v1/models/one:predict").status_code == 404
    late = client.post("/v1/models/two:predict", json={"row": GOOD}, headers={"x-deadline-ms": "1"})
    assert late.status_code in (200, 503)
    assert b'workbench_model_info{model="one"' in client.get("/metrics").content
    assert client.get("/readyz", headers={"authorization": ""}).status_code == 200


def test_outcomes_are_kept_by_model_and_load_nothing(refs: list[str], ledger: Ledger) -> None:
    told: dict[str, RequestLog] = {}

    def outcomes(bundle: Bundle) -> RequestLog:
        about = {"store": ledger.store, "folder": "feedback", "outcomes": True, "flush_s": 3600}
        if bundle.name not in told:  # each has a thread
            told[bundle.name] = RequestLog(bundle.name, bundle.contract, **about)
        return told[bundle.name]

    many = small(refs, ledger, 1.5)
    partner = Clients.of(
        TOKEN, {hashlib.sha256(b"the token of a partner").hexdigest(): Client("p", {"feedback"})}
    )
    headers = {"authorization": "Bearer the token of a partner"}
    with TestClient(
        create_app(many, token=partner, outcomes=outcomes), base_url="http://localhost"
    ) as client:
        for name in NAMES:
            body = {"feedback": [{"request": f"of-{name}", "outcome": {"late": True}}]}
            found = client.post(f"/v1/models/{name}:feedback", json=body, headers=headers)
            assert (found.status_code, found.json()) == (200, {"kept": 1})
        told_of = body["feedback"][0]
        for path, sent, status in (
            ("/v1/models/one:feedback", {"request": "x", "outcome": {"seats": 1}}, 422),
            ("/v1/models/none:feedback", told_of, 404),
            ("/feedback", told_of, 404),
            ("/v1/models/one:predict", {"row": GOOD}, 403),
        ):
            assert client.post(path, json=sent, headers=headers).status_code == status, path
        assert "/v1/models/NAME:feedback" in client.post("/feedback", json=body, headers=headers).text
        assert many.loads == 0 and not many.held
    for name, log in told.items():
        log.close()
        assert read(name, ledger.store, "feedback")["request"].to_list() == [f"of-{name}"]


def test_what_is_read_describes_models_that_are_not_loaded(client: TestClient) -> None:
    about = client.get("/openapi.json").json()
    schemas = about["components"]["schemas"]
    for name in NAMES:
        asked = about["paths"][f"/v1/models/{name}:predict"]["post"]["requestBody"]["content"][
            "application/json"
        ]
        assert json.dumps(schemas[f"{name}.Row"]) in json.dumps(schemas) and f"{name}.Row" in json.dumps(
            asked
        )
        assert about["paths"][f"/v1/models/{name}:feedback"]
        assert client.get(f"/v2/models/{name}").json()["name"] == name
    assert schemas["one.Row"]["properties"]["seats"]["maximum"] == 900
    assert client.get("/live.json").json()["live"] == {}
    assert not client.get("/live.json").json()["house"]["loads"], "nobody asked for a model"
    example = asked["example"]
    assert client.post("/v1/models/three:predict", json=example).status_code == 200
    live = client.get("/live.json").json()
    assert list(live["live"]) == ["three"] and live["live"]["three"]["counts"]["run"] == 1
    for path in ("/", "/healthz", "/v2/health/ready"):
        assert client.get(path, headers={"authorization": ""}).status_code == 200
    for path in ("/live.json", "/openapi.json", "/v2/models/one"):
        assert client.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v2/models/none").status_code == 404


SCRIPT = """
import sys
from workbench.serve import switch
switch.serve(["flights/1", "trains/1"], port=int(sys.argv[1]))
"""


def test_the_page_shows_each_model(tmp_path: Path, module: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no chromium here")
    made = make_service(tmp_path / "project", module, script=SCRIPT)
    Shelf(Ledger(Store(tmp_path / "project" / ".workbench"))).add("trains", **parts())
    made.start()
    try:
        with sync.sync_playwright() as play:
            look(made, play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"]))
        told = {"request": "r1", "outcome": {"late": True}}
        assert made.ask("/v1/models/trains:feedback", told) == (200, {"kept": 1})
    finally:
        made.stop(15)
    store = Store(tmp_path / "project" / ".workbench")
    assert read("trains", store, "feedback")["request"].to_list() == ["r1"]
    assert len(read("flights", store)) == 20


def test_a_shadow_and_a_canary_stand_beside_one_of_many_and_each_redacts_its_own_columns(
    tmp_path: Path, module: Path
) -> None:
    made = make_service(tmp_path / "project", module, script=SCRIPT)
    store = Store(tmp_path / "project" / ".workbench")
    shelf, book = Shelf(Ledger(store)), Ledger(store)
    columns = {("gust" if name == "wind" else name): one for name, one in CONTRACT.columns.items()}
    inputs = {**parts(), "contract": Contract("trains", columns)}
    (module / "tiny_trains.py").write_text(MODULE.replace('columns["wind"]', 'columns["gust"]'))
    names = {"features": "tiny_trains:features", "label": "tiny_trains:late"}
    stats = {**inputs["recipe"].stats, "inputs": Contract("trains", columns).inputs}
    shelf.add("trains", **inputs | {"recipe": replace(inputs["recipe"], **names, stats=stats)})
    shelf.add("flights", **parts())
    (made.project / "settings.ini").write_text("[laptop]\nlog_format = json\nlog_redact = gust\n")
    made.start()
    try:
        direct("flights", "shadow", 2, share=1.0, ledger=book)
        direct("flights", "canary", 2, share=0.5, ledger=book)
        deadline = time.monotonic() + 60
        answered: set[int] = set()
        while (len(answered) < 2 or not shadowed(made)) and time.monotonic() < deadline:
            told = [made.ask("/v1/models/flights:predict", {"row": {**GOOD, "seats": n}}) for n in (1, 2, 3)]
            answered |= {one["version"] for status, one in told if status == 200}
            assert {status for status, _ in told} == {200}
        assert answered == {1, 2} and shadowed(made)
        train = {**{name: GOOD[name] for name in GOOD if name != "wind"}, "gust": 3.5}
        assert made.ask("/v1/models/trains:predict", {"row": train})[0] == 200
    finally:
        assert made.stop(15) == 0
    assert shadow_report("flights", book).rows > 0
    assert [row["gust"] for row in read("trains", store)["row"].to_list()] == [None]
    (made.project / "settings.ini").write_text("[laptop]\nlog_redact = gusts\n")
    with pytest.raises(AssertionError, match="column 'gusts' is in no contract of flights, trains"):
        made.start()


def shadowed(made: Service) -> bool:
    live = made.ask("/live.json", method="GET")[1]["live"]
    return bool(live and live["flights"]["shadow"] and live["flights"]["shadow"]["rows"])


def look(made: Service, browser: Any) -> None:
    url, page, wrong = f"http://127.0.0.1:{made.port}/", browser.new_page(), []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(url) else None)
    page.goto(url + "#" + TOKEN)
    page.wait_for_selector("#models tr")
    assert not page.is_visible("#cards") and page.inner_text("#models").count("not loaded") == 2
    for i in range(20):
        assert made.ask("/v1/models/flights:predict", {"row": {**GOOD, "seats": 1 + i}})[0] == 200
    page.wait_for_selector('#name:has-text("flights version 1")')
    assert made.ask("/v1/models/trains:predict", {"row": GOOD})[0] == 200
    page.click('#models button:enabled:has-text("trains")')
    page.wait_for_selector('#name:has-text("trains version 1")')
    assert page.inner_text("#models tr:first-child").split()[0] == "flights"
    assert "/v1/models/NAME:predict" in page.inner_text("#requests") and "2 loads" in page.inner_text("#room")
    page.screenshot(path=str(made.project / "page.png"), full_page=True)
    browser.close()
    assert not [line for line in wrong if "favicon" not in line], wrong


def test_the_verb_serves_one_or_many_here_and_wants_ray_for_replicas(project: Path) -> None:
    run, port = CliRunner(), str(free_port())
    for words in (["none/1"], ["none/1", "other/1"], ["none/1", "--memory-mb", "9"]):
        found = run.invoke(app, ["serve", *words, "--port", port])
        assert "is not on the shelf" in str(found.exception), (words, found.exception)
    for words in (["--replicas", "2"], ["--schedule", "sat 10:00-12:00 1"], ["--on", "moon"]):
        found = run.invoke(app, ["serve", "none/1", *words])
        assert isinstance(found.exception, BadInput), words
