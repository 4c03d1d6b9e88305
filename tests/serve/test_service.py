"""A real process on loopback: hostile clients, signals, kill -9, a port that is taken."""

import json
import signal
import socket
import threading
import time
from pathlib import Path

import polars as pl
import pytest
from conftest import GOOD, TOKEN, Service, make_service, send

from workbench.base import records
from workbench.base.errors import Unavailable
from workbench.base.ledger import Ledger
from workbench.base.store import Store
from workbench.serve.app import serve
from workbench.serve.requestlog import read

HEAD = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n".encode()


def answer(connection: socket.socket) -> tuple[bytes, dict]:
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return head, json.loads(body) if body else {}


def test_one_connection_many_answers(service: Service) -> None:
    connection = service.connect()
    found = [send(connection, "/predict", {"row": {**GOOD, "distance": i}}) for i in range(50)]
    assert {status for status, _ in found} == {200} and len({body["prediction"] for _, body in found}) == 50
    connection.close()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("megabytes", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_a_413_reaches_the_client(service: Service, chunked: bool, megabytes: int) -> None:
    body = b"x" * (megabytes << 20)
    pieces = iter([body[i : i + 65536] for i in range(0, len(body), 65536)])
    status, found = service.ask(body=pieces if chunked else body)
    assert status == 413 and found["detail"][0]["type"] == "body_too_large"
    assert service.ask(body={"row": GOOD})[0] == 200


def test_a_large_body_without_token_is_refused_and_read(service: Service) -> None:
    status, found = service.ask(body=b"x" * (4 << 20), authorization="Bearer wrong")
    assert status == 401 and found["detail"][0]["type"] == "unauthorized"


def test_what_is_not_http_is_refused_in_json(service: Service) -> None:
    for junk in (
        b"\x16\x03\x01\x02\x00" * 20,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ):
        with service.raw() as connection:
            connection.sendall(junk)
            head, body = answer(connection)
            assert head.startswith(b"HTTP/1.1 400") and body["detail"][0]["type"] == "not_http"


def test_headers_without_end_are_cut_off(service: Service) -> None:
    with service.raw() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        with pytest.raises(OSError):
            for i in range(1000):
                connection.sendall(b"x-%d: " % i + b"y" * 4000 + b"\r\n")
                time.sleep(0.0005)
            assert answer(connection)[0].startswith(b"HTTP/1.1 431")
            raise OSError
    assert service.ask(body={"row": GOOD})[0] == 200


def test_slow_and_half_open_clients_are_dropped_while_others_are_served(service: Service) -> None:
    starts = [
        b"",
        b"POST /pre",
        b"POST /predict HTTP/1.1\r\n" + HEAD + b"Content-Length: 10\r\n\r\n{",
        b"\r\n",
    ]
    slow = [service.raw() for _ in range(40)]
    for i, connection in enumerate(slow):
        connection.sendall(starts[i % len(starts)])
    assert service.ask(body={"row": GOOD})[0] == 200
    started = time.monotonic()
    for connection in slow:
        connection.settimeout(10)
        try:
            while connection.recv(1000):
                pass
        except ConnectionResetError:
            pass
        connection.close()
    assert time.monotonic() - started < 8, "request_s is 3 here"


def test_a_client_that_does_not_read_is_dropped(service: Service) -> None:
    rows = json.dumps({"rows": [GOOD] * 1000}).encode()
    request = b"POST /predict HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(rows) + rows
    with service.raw() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        deadline = time.monotonic() + 12
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while time.monotonic() < deadline:
                try:
                    connection.sendall(request)
                except TimeoutError:
                    time.sleep(0.2)
    assert service.ask(body={"row": GOOD})[0] == 200


def test_many_at_once_are_answered_or_told_to_come_back(service: Service) -> None:
    found: list[int] = []

    def client() -> None:
        connection = service.connect()
        for _ in range(20):
            found.append(send(connection, "/predict", {"rows": [GOOD] * 100})[0])
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(found) == 320 and set(found) <= {200, 503} and found.count(200) > 200


def test_it_listens_on_loopback_only_and_tells_the_token_to_nobody(service: Service) -> None:
    service.ask("/no/such", method="GET", authorization=f"Bearer {TOKEN}x")
    service.ask(body=b"\xff")
    table = Path(f"/proc/{service.process.pid}/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    listening = [
        line.split()[1] for line in table.splitlines() if f":{service.port:04X} " in line and " 0A " in line
    ]
    assert listening == [f"0100007F:{service.port:04X}"]
    assert TOKEN not in Path(f"/proc/{service.process.pid}/cmdline").read_text()
    for path in [service.project / "stderr.log", *(service.project / ".workbench").rglob("*")]:
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path
    ready = [
        json.loads(line)
        for line in (service.project / "stderr.log").read_text().splitlines()
        if "ready" in line
    ]
    assert (
        ready[0]["url"].endswith(str(service.port))
        and ready[0]["token"] == "env:TINY_TOKEN"
        and ready[0]["run"]
    )


def test_a_taken_port_is_said_before_anything_is_loaded(service: Service, project: Path) -> None:
    with pytest.raises(Unavailable, match=f"port {service.port} on 127.0.0.1"):
        serve("no-such-model", port=service.port)
    assert not (project / ".workbench").exists()
    with pytest.raises(Unavailable, match=r"no\.such\.host\.invalid"):
        serve("no-such-model", host="no.such.host.invalid", port=service.port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_answers_flushes_and_has_succeeded(
    tmp_path: Path, module: Path, number: int
) -> None:
    service = make_service(tmp_path / "project", module).start()
    answers: list[int] = []

    def client() -> None:
        connection = service.connect()
        try:
            while True:
                answers.append(send(connection, "/predict", {"rows": [GOOD] * 50})[0])
        except (OSError, ValueError):
            pass
        finally:
            connection.close()

    half = service.raw()  # its body arrives only after the signal
    body = json.dumps({"row": GOOD}).encode()
    half.sendall(b"POST /predict HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:10])
    threads = [threading.Thread(target=client) for _ in range(2)]
    [thread.start() for thread in threads]
    time.sleep(0.3)
    started = time.monotonic()
    service.process.send_signal(number)
    time.sleep(0.3)
    half.sendall(body[10:])
    head, found = answer(half)
    half.close()
    assert head.startswith(b"HTTP/1.1 200") and found["prediction"], "what was in flight is answered"
    assert service.process.wait(20) == 0 and time.monotonic() - started < 20
    [thread.join() for thread in threads]
    store = Store(service.project / ".workbench")
    assert len(read("flights", store)) >= 50 * len(answers) + 1 and set(answers) == {200}
    run = records.runs(Ledger(store), kind="serve")[0]
    assert run.status == "succeeded" and run.params["version"] == 1 and run.metrics["log_lost"] == 0
    assert run.metrics["rows"] == len(read("flights", store)) and run.metrics["failed"] == 0
    assert read("flights", store)["run"].unique().to_list() == [run.id]


def test_kill_9_under_load_leaves_whole_files_and_a_run_that_says_so(tmp_path: Path, module: Path) -> None:
    service = make_service(tmp_path / "project", module).start()
    connection = service.connect()
    store, deadline = Store(service.project / ".workbench"), time.monotonic() + 30
    while not list(store.path("requests").rglob("*.parquet")) and time.monotonic() < deadline:
        send(connection, "/predict", {"rows": [GOOD] * 1000})
    service.stop(signal.SIGKILL)
    connection.close()
    found = list(store.path("requests").rglob("*.parquet"))
    assert found and all(len(pl.read_parquet(path)) % 1000 == 0 for path in found)
    assert records.runs(Ledger(store), kind="serve")[0].status == "killed"
    again = service.start()
    assert again.ask(body={"row": GOOD})[0] == 200
    assert again.stop(signal.SIGTERM) == 0
