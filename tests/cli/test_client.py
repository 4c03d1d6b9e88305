"""The caller that the demo is: as patient as it is asked to be, and no more."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from workbench.base.errors import Unavailable
from workbench.base.progress import Tracker
from workbench.cli.client import AGAIN, ask


@contextmanager
def service(busy: int) -> Iterator[tuple[int, list[bytes]]]:
    "A port that sends its first callers away, and what it was asked."
    asked: list[bytes] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            away = len(asked) <= busy
            body = json.dumps({"detail": "later"} if away else {"prediction": 0.5, "version": 3}).encode()
            self.send_response(503 if away else 200)
            if away:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], asked
        server.shutdown()


def test_who_is_told_to_come_back_does_so_with_the_same_row() -> None:
    with service(busy=AGAIN) as (port, asked):
        replies = ask(port, [{"a": 1}, {"a": 2}], Tracker("ask", 2, "rows"))
    assert replies.predictions.tolist() == [0.5, 0.5] and replies.versions == {3}
    assert [json.loads(body)["row"]["a"] for body in asked] == [1] * (AGAIN + 1) + [2]


def test_a_service_that_stays_busy_is_given_up() -> None:
    with service(busy=99) as (port, asked), pytest.raises(Unavailable, match="answered 503"):
        ask(port, [{"a": 1}], Tracker("ask", 2, "rows"))
    assert len(asked) == AGAIN + 1
