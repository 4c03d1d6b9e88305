"""Many models, little memory: loads are shared, room is made, and each answers with its own bits."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import GOOD, TOKEN, free_port, parts
from starlette.testclient import TestClient
from typer.testing import CliRunner

from workbench.base.errors import BadInput, WorkbenchError
from workbench.base.ledger import Ledger
from workbench.cli.cli import app
from workbench.models.shelf import Shelf
from workbench.serve.engine import Engine
from workbench.serve.many import Many, create_app, size_mb
from workbench.serve.policy import Overloaded

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


def test_the_verb_serves_one_or_many_here_and_wants_ray_for_replicas(project: Path) -> None:
    run, port = CliRunner(), str(free_port())
    for words in (["none/1"], ["none/1", "other/1"], ["none/1", "--memory-mb", "9"]):
        found = run.invoke(app, ["serve", *words, "--port", port])
        assert "is not on the shelf" in str(found.exception), (words, found.exception)
    for words in (["--replicas", "2"], ["--schedule", "sat 10:00-12:00 1"], ["--on", "moon"]):
        found = run.invoke(app, ["serve", "none/1", *words])
        assert isinstance(found.exception, BadInput), words
