"""An open loop tells what users would have seen; it is bounded, and asks only this machine."""

import gc
import json
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import CONTRACT, GOOD, TOKEN, Service
from typer.testing import CliRunner

from workbench.base.errors import BadInput, Unavailable
from workbench.cli.cli import app
from workbench.cli.load import factor, varied
from workbench.serve.load import Fired, Step, Target, arrivals, fire, knee, load, replayed, summarise


def test_arrivals_are_a_poisson_process_with_a_spike() -> None:
    due = arrivals(500, 30, spike=10, seed=3)
    first, spike, last = np.histogram(due, bins=[0, 10, 20, 30])[0]
    assert abs(first - 5000) < 300 and abs(last - 5000) < 300 and abs(spike - 50_000) < 1000
    gaps = np.diff(due[:4000])
    assert (gaps >= 0).all() and abs(gaps.std() / gaps.mean() - 1) < 0.1
    assert (arrivals(500, 30, spike=10, seed=3) == due).all()


@pytest.mark.parametrize(
    "wrong", [(0, 1, 1), (10, 0, 1), (10, 1, 0), (1e6, 1, 1), (1000, 1, 1000), (90_000, 3600, 1)]
)
def test_what_is_too_much_or_nothing_is_refused(wrong: tuple) -> None:
    with pytest.raises(BadInput):
        arrivals(wrong[0], wrong[1], spike=wrong[2])
    with pytest.raises(BadInput):
        replayed([])


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://127.0.0.1",
        "127.0.0.1",
        "http://",
        "http://127.0.0.1:x",
        "http://10.0.0.1",
    ],
)
def test_only_this_machine_is_asked(url: str) -> None:
    with pytest.raises(BadInput):
        Target.of(url)
    assert Target.of("http://10.0.0.1:80", anywhere=True).host == "10.0.0.1"


def test_a_service_is_asked_and_every_request_is_accounted_for(service: Service) -> None:
    target = Target.of(f"http://127.0.0.1:{service.port}", TOKEN)
    rows = varied(CONTRACT, 200)
    found = load(target, [*rows, {**GOOD, "seats": 0}], rates=[150], seconds=1.5, connections=32)
    step = found.steps[0]
    assert step.sent == step.ok + step.refused + step.failed + step.lost and step.ok > 100
    assert step.failed >= 1 and step.p50_ms <= step.p99_ms and "knee" in str(found)
    wrong = fire(Target.of(f"http://127.0.0.1:{service.port}", "no"), [target.request(GOOD)], np.zeros(3))
    assert set(wrong.status) <= {200, 401}
    for token, path, said in (
        ("no", "/predict", "answers 401"),
        (TOKEN, "/v1/models/x:predict", "404: .*no_route"),
    ):
        other = Target.of(f"http://127.0.0.1:{service.port}", token, path=path)
        with pytest.raises(Unavailable, match=said):
            load(other, rows, rates=[150], seconds=1.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=lambda: listening.accept()[0].close()).start()
        mute = Target.of(f"http://127.0.0.1:{listening.getsockname()[1]}", TOKEN)
        with pytest.raises(Unavailable, match="no answer over HTTP"):
            load(mute, rows, rates=[150], seconds=1.5)
    with pytest.raises(Unavailable, match="nothing answers"):
        fire(Target.of("http://127.0.0.1:1"), [b"x"], np.zeros(1))
    assert gc.isenabled(), "switched off only while it fires"


def test_the_knee_is_before_the_first_rate_that_was_not_borne() -> None:
    def step(rate: float, goodput: float) -> Step:
        return Step(rate, 1, 1, 0, 0, 0, goodput, 1, 1, 0)

    assert knee([step(100, 100), step(400, 200), step(200, 198), step(800, 800)]) == 200
    assert knee([step(100, 10)]) == 0
    late = Fired(np.array([0.0, 0.5]), np.array([2.0, np.nan]), np.array([200, 0]))
    assert summarise(late).goodput == 0 and summarise(late).lost == 1


def test_the_verb_prints_the_curve(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_STORE", str(service.project / ".workbench"))
    monkeypatch.setenv("WORKBENCH_SERVE_TOKEN", "env:TINY_TOKEN")
    monkeypatch.setenv("TINY_TOKEN", TOKEN)
    asked = [
        "load",
        "flights/1",
        "--url",
        f"http://127.0.0.1:{service.port}",
        "--rate",
        "60",
        "--seconds",
        "0.6",
        "--spike",
        "3x",
    ]
    found = CliRunner().invoke(app, [*asked, "--json"], catch_exceptions=False)
    steps = json.loads(found.stdout)["steps"]
    assert len(steps) == 3 and sum(step["ok"] for step in steps) > 20
    assert factor("10x") == 10
    with pytest.raises(BadInput):
        factor("many")
    assert Path(service.project).exists()


def test_a_pool_opens_connections_as_they_are_needed(service: Service) -> None:
    target = Target.of(f"http://127.0.0.1:{service.port}", TOKEN)
    fired = fire(target, [target.request(GOOD)], np.linspace(0, 0.3, 60), connections=8, pooled=True)
    assert fired.status.tolist() == [200] * 60 and (fired.done_s >= fired.due_s).all()
    nobody = Target.of("http://127.0.0.1:1", TOKEN)
    assert fire(nobody, [b"x"], np.zeros(3), pooled=True, timeout_s=0.5).status.tolist() == [0, 0, 0]


def test_an_answer_in_chunks_is_waited_for_to_its_end(service: Service) -> None:
    target = Target.of(f"http://127.0.0.1:{service.port}", TOKEN, path="/v1/models/flights:stream")
    rows = target.request([GOOD] * 100, "rows")
    fired = fire(target, [rows], np.zeros(12), connections=3)
    assert fired.status.tolist() == [200] * 12
