"""A shadow and a canary on real replicas: one report, one verdict, no answer lost, and no process left."""

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import GOOD, TOKEN, free_port, send
from test_replicas import processes
from test_traffic import BROKEN, FAR, add, another

from workbench.base import audit
from workbench.base.ledger import Ledger
from workbench.serve.engine import Engine
from workbench.serve.replica import Scale
from workbench.serve.replicas import Deployed, deployed
from workbench.serve.traffic import direct, directed, end, seen, shadow_report
from workbench.serve.witness import written

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def service(
    project: Path, module: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployed]:
    monkeypatch.setenv("TINY_TOKEN", TOKEN)
    monkeypatch.setenv("WORKBENCH_SERVE_TOKEN", "env:TINY_TOKEN")
    monkeypatch.setenv("PYTHONPATH", str(module))
    (module / "tiny_broken.py").write_text(BROKEN)
    add(ledger), another(ledger), add(ledger, "raise")
    where = {"host": "127.0.0.1", "port": free_port(), "hosts": frozenset({"127.0.0.1", "localhost"})}
    with deployed(["flights/1"], Scale(2, cpus=0.5), ledger=ledger, **where) as made:
        yield made
    ours = {*processes(str(project))}  # others may have challengers meanwhile
    left = ours & {*processes("workbench.serve.mirror")}
    assert not left, "challengers go with their replicas"


def asked(service: Deployed, row: dict, caller: str = "") -> tuple[int, float, int]:
    "Status, prediction and version, on a connection of its own, so that any replica may answer."
    port = int(service.url.rpartition(":")[2])
    headers = {"x-deadline-ms": "9000"} | ({"x-sticky-key": caller} if caller else {})
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        status, found = send(connection, "/predict", {"row": row}, **headers)
    return status, found.get("prediction"), found.get("version")


def until(true: Callable[[], object], beside: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never came"
        beside()
        time.sleep(0.02)


@pytest.mark.long
def test_a_shadow_and_a_canary_on_replicas(service: Deployed, ledger: Ledger) -> None:
    right = {version: Engine(f"flights/{version}", ledger).scores([GOOD])[0] for version in (1, 2)}
    direct("flights", "shadow", 2, share=1.0, ledger=ledger)
    found: list[tuple[int, float, int]] = []
    until(
        lambda: (
            len(rows := [one["tally"]["rows"] for one in written("flights", "shadow", ledger)]) == 2
            and min(rows) > 3
        ),
        lambda: found.append(asked(service, GOOD)),
    )
    report = shadow_report("flights", ledger)
    assert set(found) == {(200, right[1], 1)}, "whoever asks notices nothing"
    assert (report.champion, report.challenger) == ("flights/1", "flights/2") and report.rows <= len(found)
    assert report.difference == pytest.approx(abs(right[1] - right[2]))
    end("flights", "shadow", ledger=ledger)

    direct("flights", "canary", 2, share=0.5, ledger=ledger)
    until(lambda: len(written("flights", "canary", ledger)) == 2)
    got = {(n % 20, asked(service, GOOD, f"caller {n % 20}")) for n in range(80)}
    assert len(got) == 20, "the same caller gets the same version of every replica"
    assert {answer for _, answer in got} == {(200, right[1], 1), (200, right[2], 2)}

    direct("flights", "canary", 3, share=0.5, ledger=ledger)
    fallen: list[tuple[int, float, int]] = []
    until(
        lambda: directed("flights", ledger)["canary"].state == "rolled back",
        lambda: fallen.append(asked(service, FAR, f"caller {len(fallen)}")),
    )
    assert {(status, version) for status, _, version in fallen} <= {(200, 1), (200, 2)} and len(fallen) < 300
    told = seen("flights", ledger)["canary"]
    assert (told["version"], told["state"], told["processes"]) == (3, "rolled back", 2)
    assert [entry.action for entry in audit.entries(ledger)].count("canary rolled back") == 1
