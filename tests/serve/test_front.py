"""HAProxy as the door: what Ray's own configuration leaves open is shut, and nothing passes that should not."""

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import GOOD, TOKEN, free_port, parts, send
from test_replicas import Clients, processes

from workbench.base.errors import BadSetting
from workbench.base.ledger import Ledger
from workbench.models.shelf import Shelf
from workbench.serve.engine import Engine
from workbench.serve.front import environment, hardened, rules
from workbench.serve.replica import Scale
from workbench.serve.replicas import deployed

OTHER = "another-token-of-the-tests"
DIGESTS = [hashlib.sha256(token.encode()).hexdigest() for token in (TOKEN, OTHER)]
TOLD = {"digests": DIGESTS, "hosts": ["127.0.0.1", "localhost"], "listen": "127.0.0.1"}


def rays_own(folder: Path, port: int, servers: list[int]) -> str:
    "A configuration as Ray's template makes it."
    templates = pytest.importorskip("ray.serve._private.haproxy")
    own = templates.HAProxyConfig(
        http_options=templates.HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(folder / "s"), server_state_base=str(folder), server_state_file=str(folder / "t"),
        error_file_path=str(folder / "500.http"), metrics_enabled=False,
        health_check_inter="200ms", timeout_server_s=5, timeout_client_s=5,
    )  # fmt: skip
    backends = {
        "a": templates.BackendConfig(
            name="a", path_prefix="/", app_name="a",
            servers=[templates.ServerConfig(name=f"s{n}", host="127.0.0.1", port=n) for n in servers],
        )
    }  # fmt: skip
    api = templates.HAProxyApi(cfg=own, backend_configs=backends, config_file_path=str(folder / "c"))
    api._generate_config_file_internal()
    return (folder / "c").read_text()


class Echo(BaseHTTPRequestHandler):
    "Answers with the headers that came."

    def do_GET(self) -> None:
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def front(folder: Path, port: int, servers: list[int]) -> Iterator[subprocess.Popen[bytes]]:
    "HAProxy with what Ray wrote, started as Ray starts it."
    rays_own(folder, port, servers)
    told = environment(folder, DIGESTS, frozenset(TOLD["hosts"]))
    program = told["RAY_SERVE_HAPROXY_BINARY_PATH"]
    log = (folder / "log").open("wb")
    process = subprocess.Popen([program, "-db", "-f", str(folder / "c")], env=os.environ | told, stderr=log)
    deadline = time.monotonic() + 60
    while True:
        with (
            contextlib.suppress(OSError),
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as one,
        ):
            one.connect()
            break
        assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.02)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def ask(port: int, path: str = "/x", **headers: str) -> tuple[int, Any]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def listening(pid: int) -> list[str]:
    table = subprocess.run(["ss", "-Hlntup"], capture_output=True, text=True, check=True).stdout
    return [line.split()[4] for line in table.splitlines() if f"pid={pid}," in line]


def test_the_door_asks_for_a_token_and_a_name_and_stamps_the_moment(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as echo:
        threading.Thread(target=echo.serve_forever, daemon=True).start()
        port = free_port()
        with front(tmp_path, port, [echo.server_port]) as process:
            assert listening(process.pid) == [f"127.0.0.1:{port}"], "no page, no log, nothing beside the door"
            assert (tmp_path / "s").stat().st_mode & 0o077 == 0, "its socket is nobody else's"
            for token in (TOKEN, OTHER):
                before = time.time()
                sent = {"x-request-start": "t=1.0", "x-request-timeout-seconds": "-1"}
                status, came = ask(port, authorization=f"Bearer {token}", **sent)
                stamped = float(came["x-request-start"].removeprefix("t=")) / 1e6
                assert status == 200 and before - 0.01 < stamped < time.time() + 0.01
                assert "x-request-timeout-seconds" not in came
            for wrong in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", f"Bearer {DIGESTS[0]}"):
                status, said = ask(port, authorization=wrong)
                assert status == 401 and said["detail"][0]["type"] == "unauthorized", wrong
            assert ask(port, "/-/routes")[0] == ask(port, "/-/healthz")[0] == 401, "Ray's own pages too"
            assert ask(port, "/healthz")[0] == 200, "a probe has no token"
            assert ask(port, authorization=f"Bearer {TOKEN}", host="evil.example")[0] == 403
            with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
                head = f"POST /x HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n"
                sock.sendall(f"{head}content-length: 9\r\n\r\nhalf".encode())
                came = b"".join(iter(lambda: sock.recv(65536), b""))
            assert b" 408 " in came.splitlines()[0], came
            assert json.loads(came.partition(b"\r\n\r\n")[2])["detail"][0]["type"] == "too_slow"
            echo.shutdown()
    assert process.returncode is not None


def test_without_a_replica_the_door_says_when_to_come_back(tmp_path: Path) -> None:
    port = free_port()
    with front(tmp_path, port, [free_port()]):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.request("GET", "/x", headers={"authorization": f"Bearer {TOKEN}"})
            response = connection.getresponse()
            assert response.status == 503 and response.headers["retry-after"] == "1"
            assert json.loads(response.read())["detail"][0]["type"] == "away"


def test_haproxy_ends_with_whoever_started_it(tmp_path: Path) -> None:
    port = free_port()
    rays_own(tmp_path, port, [free_port()])
    told = environment(tmp_path, DIGESTS)
    code = f"import subprocess, time; subprocess.Popen({[told['RAY_SERVE_HAPROXY_BINARY_PATH'], '-db', '-f', str(tmp_path / 'c')]!r}); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | told, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (
        pids := [pid for pid in processes(str(tmp_path / "c")) if pid != parent.pid and listening(pid)]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while processes(str(tmp_path / "c")):
        assert time.monotonic() < deadline, "it is left over"
        time.sleep(0.05)
    assert pids


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("listen stats", "listen statistics"),
        ("bind 127.0.0.1:", "bind *:"),
        (" mode 666 ", " mode 664 "),
        ("frontend http_frontend", "frontend other"),
        ("backend default_backend", "backend default_backend\n    bind :1"),
    ],
)
def test_a_configuration_that_is_not_known_is_not_run(tmp_path: Path, old: str, new: str) -> None:
    text = rays_own(tmp_path, 8000, [30000])
    assert old in text and hardened(text, TOLD, tmp_path / "e")
    with pytest.raises(BadSetting):
        hardened(text.replace(old, new), TOLD, tmp_path / "e")


def test_no_word_of_a_name_becomes_a_rule() -> None:
    for told in (
        {**TOLD, "hosts": ["a\nhttp-request allow"]},
        {**TOLD, "hosts": ["a b"]},
        {**TOLD, "digests": []},
        {**TOLD, "digests": ["x'"]},
    ):
        with pytest.raises(BadSetting):
            rules(told)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.long
def test_replicas_behind_haproxy(
    project: Path, module: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_TOKEN", TOKEN)
    monkeypatch.setenv("WORKBENCH_SERVE_TOKEN", "env:TINY_TOKEN")
    monkeypatch.setenv("PYTHONPATH", str(module))
    for _ in range(2):
        Shelf(ledger).add("flights", **parts())
    where = {"host": "127.0.0.1", "port": free_port(), "hosts": frozenset({"127.0.0.1", "localhost"})}
    with deployed(["flights/1"], Scale(2, cpus=0.5), ledger=ledger, **where) as service:
        connection = http.client.HTTPConnection("127.0.0.1", where["port"], timeout=20)
        rows = [{**GOOD, "distance": float(i)} for i in range(200)]
        status, found = send(connection, "/predict", {"rows": rows}, **{"x-deadline-ms": "9000"})
        assert status == 200, found
        assert [one["prediction"] for one in found["predictions"]] == Engine("flights/1", ledger).scores(rows)
        assert send(connection, "/predict", {"row": GOOD}, authorization="Bearer wrong")[0] == 401
        assert send(connection, "/predict", b"x" * (2 << 20))[0] == 413, "and the client hears it"
        connection.close()
        with Clients(where["port"]) as clients:
            service.update("flights/2")
        assert clients.found["answered"] > 50 and set(clients.found) == {"answered"}, clients.found
        table = subprocess.run(["ss", "-Hlntup"], capture_output=True, text=True, check=True).stdout
        ours = [line for line in table.splitlines() if "haproxy" in line or "ray::" in line]
        assert any("haproxy" in line for line in ours)
        assert not [line for line in ours if "127.0.0.1" not in line], "loopback only"
    assert not processes("wb-front-") and not list(Path("/tmp").glob("wb-front-*/front"))
