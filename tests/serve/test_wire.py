"""A body in a piece of its own: waited for a moment, then taken the usual way; never lost."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from workbench.serve import wire
from workbench.serve.wire import DIRECT_BYTES, Call, listen, server


class Direct:
    "Answers whatever came whole."

    paths = frozenset({b"/predict"})

    def __call__(self, call: Call) -> bool:
        call.answer(200, b"way: direct\r\n", call.body)
        return True


class App:
    "Echoes, the usual way."

    direct = Direct()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"way", b"usual"), (b"content-length", length)]})  # fmt: skip
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def running() -> Iterator[tuple[Any, int]]:
    ready = threading.Event()
    with listen("127.0.0.1", 0) as taken:
        serving = server(App(), ready.set)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [taken]})
        thread.start()
        assert ready.wait(20)
        yield serving, int(taken.getsockname()[1])
        serving.should_exit = True
        thread.join(20)


def head(length: int) -> bytes:
    return b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % length


def answer(sock: socket.socket, body: bytes) -> bytes:
    "Which way the answer came, once all of it is there."
    got = b""
    while not got.endswith(b"\r\n\r\n" + body):
        data = sock.recv(65_536)
        assert data, got
        got += data
    assert got.startswith(b"HTTP/1.1 200")
    return b"direct" if b"way: direct" in got else b"usual"


@pytest.mark.parametrize(
    ("pieces", "piece_s", "way"),
    [
        ([b"{", b"}"], 30.0, b"direct"),
        ([b"{}"], 0.02, b"usual"),
        ([b"{", b"}"], 0.02, b"usual"),
        ([b" " * DIRECT_BYTES], 30.0, b"usual"),
    ],
)
def test_a_small_body_that_follows_its_head_is_answered_directly(
    running: Any, pieces: list[bytes], piece_s: float, way: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "PIECE_S", piece_s)
    body = b"".join(pieces)
    with socket.create_connection(("127.0.0.1", running[1])) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):  # a connection is as good afterwards
            sock.sendall(head(len(body)))
            for piece in pieces:
                time.sleep(0.2)
                sock.sendall(piece)
            assert answer(sock, body) == way


def test_a_head_whose_body_is_on_its_way_is_answered_when_the_service_stops(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "PIECE_S", 30.0)
    serving, port = running
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(head(2))
        time.sleep(0.2)
        serving.should_exit = True
        time.sleep(0.5)
        sock.sendall(b"{}")
        assert answer(sock, b"{}") == b"usual"


def test_a_client_that_leaves_between_head_and_body_leaves_nothing_behind(running: Any) -> None:
    serving, port = running
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(head(2) + b"{")
    deadline = time.monotonic() + 20
    while serving.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(2 * wire.PIECE_S)
    assert not serving.server_state.connections and not serving.server_state.tasks
