"""The engine on a real Ray: the same bits, the token, an update and a kill under load, and nothing left."""

import contextlib
import http.client
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GOOD, TOKEN, free_port, parts, send

from workbench.base.ledger import Ledger
from workbench.models.shelf import Shelf
from workbench.serve.engine import Engine
from workbench.serve.replica import Scale
from workbench.serve.replicas import Deployed, deployed

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Clients:
    "Two that ask without a pause, each request again once when it was not answered."

    def __init__(self, port: int) -> None:
        self.port, self.found, self.over = port, Counter(), threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(i,), daemon=True) for i in range(2)]

    def run(self, first: int) -> None:
        at = first
        while not self.over.is_set():
            at += 2
            row = {"row": {**GOOD, "distance": float(at % 6000)}}
            statuses = []
            for _ in range(2):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                try:
                    patient = {
                        "x-deadline-ms": "9000"
                    }  # what is asked here is not how fast a busy machine is
                    statuses.append(send(connection, "/predict", row, **patient)[0])
                except OSError:
                    statuses.append(0)
                finally:
                    connection.close()
                if statuses[-1] == 200:
                    break
                time.sleep(0.2)  # what Retry-After would say, in less
            self.found["answered" if statuses[-1] == 200 else f"failed {statuses}"] += 1
            self.found.update(f"again after {status}" for status in statuses[:-1])

    def __enter__(self) -> "Clients":
        [thread.start() for thread in self.threads]
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        [thread.join(30) for thread in self.threads]


def processes(of: str) -> list[int]:
    "Numbers of the live processes whose command line has `of` in it."
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if of in (path / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(path.name))
    return found


@pytest.fixture
def service(
    request: pytest.FixtureRequest,
    project: Path,
    module: Path,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Deployed]:
    monkeypatch.setenv("WORKBENCH_SERVE_FRONT", getattr(request, "param", "ray"))
    monkeypatch.setenv("TINY_TOKEN", TOKEN)
    monkeypatch.setenv("WORKBENCH_SERVE_TOKEN", "env:TINY_TOKEN")
    monkeypatch.setenv("PYTHONPATH", str(module))
    for _ in range(2):
        Shelf(ledger).add("flights", **parts())
    where = {"host": "127.0.0.1", "port": free_port(), "hosts": frozenset({"127.0.0.1", "localhost"})}
    with deployed(["flights/1"], Scale(2, cpus=0.5), ledger=ledger, **where) as service:
        yield service


def test_a_service_of_replicas(service: Deployed, ledger: Ledger) -> None:
    from ray import serve

    port = int(service.url.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    rows = [{**GOOD, "distance": float(i)} for i in range(200)]
    status, found = send(connection, "/predict", {"rows": rows})
    assert status == 200, found
    assert [one["prediction"] for one in found["predictions"]] == Engine("flights/1", ledger).scores(rows)
    assert send(connection, "/predict", {"row": GOOD}, authorization="Bearer wrong")[0] == 401
    late = {"x-deadline-ms": "200", "x-request-start": f"t={time.time() - 2:.3f}"}
    assert send(connection, "/predict", {"row": {**GOOD, "seats": 11}}, **late)[0] == 503, "deadlines hold"
    bad = send(connection, "/predict", {"row": {**GOOD, "seats": 0}})
    assert bad[0] == 422 and bad[1]["detail"][0]["loc"] == ["body", "row", "seats"]
    with Clients(port) as clients:
        service.update("flights/2")
    assert clients.found["answered"] > 50 and set(clients.found) == {"answered"}, clients.found
    assert send(connection, "/predict", {"row": GOOD})[1]["version"] == 2
    with Clients(port) as clients:
        time.sleep(0.5)
        os.kill(processes("ray::ServeReplica:flights")[0], signal.SIGKILL)
        time.sleep(4)
    assert clients.found["answered"] > 50 and not [name for name in clients.found if "failed" in name]
    listening = subprocess.run(["ss", "-ltnp"], capture_output=True, text=True, check=True).stdout
    open_to_all = [line for line in listening.splitlines() if "ray::" in line and "127.0.0.1" not in line]
    assert not open_to_all
    assert send(connection, "/nowhere", {})[0] == 404
    serve.delete("flights")  # as at the end: the proxy is there for a while, and nobody behind it
    status, found = send(connection, "/predict", {"row": GOOD})
    assert (status, found["detail"][0]["type"]) == (503, "no_replica"), found


def killed_and_whole_again(service: Deployed, rng: random.Random) -> float:
    "Seconds from the kill of a replica until there are two that answer."
    before = processes("ray::ServeReplica:flights")
    victim = rng.choice(before)
    os.kill(victim, signal.SIGKILL)
    begun = time.monotonic()
    while len({*processes("ray::ServeReplica:flights")} - {victim}) < 2 or service.replicas("flights") != {
        "RUNNING": 2
    }:
        assert time.monotonic() - begun < 60
        time.sleep(0.05)
    return time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.parametrize("service", ["ray", "haproxy"], indirect=True)
def test_twenty_kills_under_load(service: Deployed) -> None:
    rng, whole_s = random.Random(7), []
    with Clients(int(service.url.rpartition(":")[2])) as clients:
        for _ in range(20):
            time.sleep(rng.uniform(0.2, 1.5))
            whole_s.append(killed_and_whole_again(service, rng))
    found = clients.found
    failed = sum(count for name, count in found.items() if name.startswith("failed"))
    print(f"{dict(found)}; two replicas again after {min(whole_s):.1f} to {max(whole_s):.1f} s")
    assert failed <= (found["answered"] + failed) / 1000, found
    assert max(whole_s) < 10


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left() -> Iterator[None]:
    before = set(processes("ray::"))
    yield
    assert not set(processes("ray::")) - before
