"""A tiny model on a shelf, and a real service around it."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.base.ledger import Ledger
from workbench.base.store import Store
from workbench.data.contract import Column, Contract
from workbench.data.recipe import Recipe
from workbench.models.bundle import Bundle
from workbench.models.shelf import Shelf
from workbench.serve.engine import Engine

TOKEN = "token-of-the-tests-0123456789"
GOOD = {
    "carrier": "AA",
    "distance": 733.0,
    "seats": 150,
    "wet": True,
    "wind": None,
    "at": "2013-01-31T17:05:00Z",
}
MODULE = """
import numpy as np

def features(columns):
    wet = columns["wet"].astype("float64")
    hour = columns["at"].astype("datetime64[h]").astype("int64") % 24
    return {"distance": columns["distance"], "wind": columns["wind"], "wet": wet,
            "seats": columns["seats"], "hour": hour.astype("float64"), "carrier": columns["carrier"]}

def late(columns):
    return columns["late"].astype("float32")

class Moody:
    "Scores NaN for a row beyond what it was tried on."
    def __init__(self, **config):
        pass
    def load_weights(self, weights):
        return self
    def __call__(self, x):
        return np.where(x[:, 0] > 100, np.nan, 0.5).astype("float32")
"""
CONTRACT = Contract(
    "flights",
    {
        "flight": Column("str", role="key", nullable=True, max_len=10),
        "carrier": Column("str", max_len=8),
        "distance": Column("float", ge=0, le=6000),
        "seats": Column("int", ge=1, le=900),
        "wet": Column("bool"),
        "wind": Column("float", nullable=True),
        "at": Column("datetime"),
        "late": Column("bool", role="outcome"),
    },
)


def columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "carrier": np.array(["AA", "DL", "UA", "DL"], dtype=object),
        "distance": np.array([200.0, 700.0, 2400.0, 900.0]),
        "seats": np.array([20, 150, 300, 150]),
        "wet": np.array([True, False, True, False]),
        "wind": np.array([np.nan, *rng.normal(size=3)]),
        "at": np.array(
            ["2013-01-01T05", "2013-01-01T12", "2013-02-01T20", "2013-03-01T08"], dtype="datetime64[us]"
        ),
    }


def parts(features: str = "tiny_service") -> dict[str, Any]:
    numbers = ("distance", "wind", "wet", "seats", "hour")
    recipe = Recipe(f"{features}:features", f"{features}:late", numbers, ("carrier",)).fit(columns())
    rng = np.random.default_rng(1)
    weights = {"bias": rng.normal(size=1), "dense": rng.normal(size=recipe.n_dense)}
    return {
        "model": "workbench.models.linear:LinearScorer",
        "config": {"n_dense": recipe.n_dense, "sizes": recipe.sizes},
        "weights": weights | {f"cat.{i}": rng.normal(size=size) for i, size in enumerate(recipe.sizes)},
        "framework": "numpy",
        "contract": CONTRACT,
        "recipe": recipe,
        "lineage": {"run": "20260101-120000-abcdef"},
    }


@pytest.fixture(scope="session", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("module")
    (folder / "tiny_service.py").write_text(MODULE)
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def bundle(ledger: Ledger) -> Bundle:
    return Shelf(ledger).add("flights", **parts())


@pytest.fixture
def engine(bundle: Bundle) -> Engine:
    return Engine(bundle)


@pytest.fixture
def moody(ledger: Ledger) -> Engine:
    changed = {"model": "tiny_service:Moody", "weights": {"none": np.zeros(1)}, "config": {}}
    return Engine(Shelf(ledger).add("moody", **{**parts(), **changed}))


SCRIPT = """
import sys
from workbench.serve import app, wire
wire.REQUEST_S = float(sys.argv[2])
app.serve("flights/1", port=int(sys.argv[1]))
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@dataclass
class Service:
    "A service in a process of its own."

    project: Path
    module: Path
    request_s: float = 30.0
    script: str = SCRIPT
    port: int = field(default_factory=free_port)
    process: Any = None

    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("WORKBENCH_")}
        own = {"WORKBENCH_STORE": str(self.project / ".workbench"), "WORKBENCH_SERVE_TOKEN": "env:TINY_TOKEN"}
        own["WORKBENCH_TRACK"] = "false"
        return clean | own | {"PYTHONPATH": str(self.module), "TINY_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}

    def start(self) -> "Service":
        command = [sys.executable, "-c", self.script, str(self.port), str(self.request_s)]
        with (self.project / "stderr.log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.project, env=self.environment(), stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.ask("/readyz", method="GET")[0] == 200:
                    return self
            except OSError:
                time.sleep(0.05)
        raise AssertionError((self.project / "stderr.log").read_text())

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(
        self, path: str = "/predict", body: Any = None, method: str = "POST", **headers: str
    ) -> tuple[int, Any]:
        connection = self.connect()
        try:
            return send(connection, path, body, method, **headers)
        finally:
            connection.close()


def send(
    connection: http.client.HTTPConnection, path: str, body: Any, method: str = "POST", **headers: str
) -> tuple[int, Any]:
    data = (
        body
        if isinstance(body, bytes) or body is None or hasattr(body, "__next__")
        else json.dumps(body).encode()
    )
    own = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"} | headers
    connection.request(method, path, data, own, encode_chunked=hasattr(data, "__next__"))
    response = connection.getresponse()
    text = response.read()
    return response.status, json.loads(text) if "json" in response.headers.get(
        "content-type", ""
    ) else text.decode()


def make_service(project: Path, module: Path, **kwargs: Any) -> Service:
    project.mkdir(exist_ok=True)
    (project / "settings.ini").write_text("[laptop]\nlog_format = json\n")
    Shelf(Ledger(Store(project / ".workbench"))).add("flights", **parts())
    return Service(project, module, **kwargs)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, module: Path) -> Iterator[Service]:
    made = make_service(tmp_path_factory.mktemp("service") / "project", module, request_s=3.0).start()
    yield made
    if made.process.poll() is None:
        made.stop(9)
