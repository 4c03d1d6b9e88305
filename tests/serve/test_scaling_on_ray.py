"""Several models on one real cluster: more replicas under load and by the calendar, and fewer after; nobody is refused."""

import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import GOOD, TOKEN, free_port, parts
from test_replicas import processes

from workbench.base.ledger import Ledger
from workbench.models.shelf import Shelf
from workbench.serve.autoscale import Goal
from workbench.serve.engine import Engine
from workbench.serve.replica import Scale
from workbench.serve.replicas import Deployed, deployed

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,  # autoscaling takes its time: half a minute each way
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PACE = {"most": 2, "cpus": 0.3, "up_s": 1.0, "down_s": 2.0}


@pytest.fixture
def models(project: Path, module: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("TINY_TOKEN", TOKEN)
    monkeypatch.setenv("WORKBENCH_SERVE_TOKEN", "env:TINY_TOKEN")
    monkeypatch.setenv("PYTHONPATH", str(module))
    for i, name in enumerate(("flights", "trains")):
        made = parts()
        made["weights"] = {key: value + i for key, value in made["weights"].items()}
        Shelf(ledger).add(name, **made)
    return ["flights/1", "trains/1"]


@contextlib.contextmanager
def up(models: list[str], scale: Scale, ledger: Ledger) -> Iterator[Deployed]:
    where = {"host": "127.0.0.1", "port": free_port(), "hosts": frozenset({"127.0.0.1", "localhost"})}
    with deployed(models, scale, ledger=ledger, **where) as service:
        yield service
    assert not processes("ray::ServeReplica")


def ask(service: Deployed, name: str, rows: list[dict[str, Any]]) -> tuple[int, Any]:
    place, path = service.url.removeprefix("http://"), f"/{name}/predict"
    headers = {
        "authorization": f"Bearer {TOKEN}",
        "content-type": "application/json",
        "x-deadline-ms": "9000",
    }
    with contextlib.closing(http.client.HTTPConnection(place, timeout=20)) as connection:
        connection.request("POST", path, json.dumps({"rows": rows}), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@contextlib.contextmanager
def load(service: Deployed, name: str, clients: int) -> Iterator[Counter[int]]:
    "Clients that ask one model without a pause."
    found: Counter[int] = Counter()
    over = threading.Event()

    def run(first: int) -> None:
        at = first
        while not over.is_set():
            at += clients
            found[ask(service, name, [{**GOOD, "distance": float(at % 6000)}] * 20)[0]] += 1

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(clients)]
    [thread.start() for thread in threads]
    try:
        yield found
    finally:
        over.set()
        [thread.join(30) for thread in threads]


def until(true: Callable[[], bool], timeout_s: float) -> float:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < timeout_s, "it never came"
        time.sleep(0.2)
    return time.monotonic() - began


def test_one_of_two_models_grows_under_load_and_shrinks_after(models: list[str], ledger: Ledger) -> None:
    scale = Scale(1, goal=Goal(waiting=1.0, busy=0.9, slo_ms=5_000), **PACE)
    with up(models, scale, ledger) as service:
        rows = [{**GOOD, "distance": float(i)} for i in range(50)]
        for name in ("flights", "trains"):
            status, found = ask(service, name, rows)
            assert status == 200 and [one["model"] for one in found["predictions"]] == [name] * 50
            wanted = Engine(f"{name}/1", ledger).scores(rows)
            assert [one["prediction"] for one in found["predictions"]] == wanted
            assert service.replicas(name) == {"RUNNING": 1}
        with load(service, "flights", 6) as found:
            up_s = until(lambda: service.replicas("flights") == {"RUNNING": 2}, 90)
            assert service.replicas("trains") == {"RUNNING": 1}, "nobody asks it"
            time.sleep(2)
        down_s = until(lambda: service.replicas("flights") == {"RUNNING": 1}, 120)
        assert ask(service, "flights", rows)[0] == ask(service, "trains", rows)[0] == 200
    print(f"{dict(found)}; two after {up_s:.0f} s, one again {down_s:.0f} s after the load")
    assert set(found) == {200} and found[200] > 50


def test_a_window_brings_its_replicas_before_it_begins_and_takes_them_after(
    models: list[str], ledger: Ledger
) -> None:
    begun = datetime.now(UTC)
    starts = (begun + timedelta(seconds=130)).replace(second=0, microsecond=0)  # at least 70 s from now
    ends = starts + timedelta(minutes=1)
    lead_s = (starts - begun).total_seconds() - 40  # so the replicas are wanted in 40 s, and no sooner
    window = f"{starts:%Y-%m-%d %H:%M}-{ends:%H:%M} 2"
    with up(models[:1], Scale(1, schedule=(window,), lead_s=lead_s, **PACE), ledger) as service:
        due = begun + timedelta(seconds=40)
        assert datetime.now(UTC) < due, "the cluster took too long to come up for this test to say anything"
        while datetime.now(UTC) < due - timedelta(seconds=1):
            assert service.replicas("flights") == {"RUNNING": 1}
            time.sleep(0.5)
        until(lambda: service.replicas("flights") == {"RUNNING": 2}, 60)
        there = datetime.now(UTC)
        until(lambda: datetime.now(UTC) > ends - timedelta(seconds=2), 150)
        assert service.replicas("flights") == {"RUNNING": 2}, "they stay while the window is open"
        until(lambda: service.replicas("flights") == {"RUNNING": 1}, 90)
        gone = datetime.now(UTC)
    print(f"wanted {due:%T}, there {there:%T}, window {window}, gone {gone:%T}")
    assert there < starts and gone >= ends
