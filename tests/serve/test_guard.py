"""Nobody gets in who should not; every refusal is JSON with a reason; none waits for ever."""

import asyncio
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.serve.guard import LOOPBACK_HOSTS, Guard, Limits, Refusal

TOKEN = "token-of-the-tests-0123456789"
BEARER = [(b"authorization", f"Bearer {TOKEN}".encode())]
HOST = [(b"host", b"localhost:8765")]


async def reader(scope: Any, receive: Any, send: Any) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % size})


def ask(
    headers: list[tuple[bytes, bytes]],
    pieces: list[bytes] | None = None,
    *,
    path: str = "/predict",
    method: str = "POST",
    app: Any = reader,
    endless: bool = False,  # the body never ends: after the pieces nothing comes
    **limits: Any,
) -> tuple[int, dict[bytes, bytes], bytes]:
    waiting, sent = list(pieces or [b"{}"]), []

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.sleep(3600 if endless else 0)
            return {"type": "http.disconnect"}
        piece = waiting.pop(0)
        return {"type": "http.request", "body": piece, "more_body": endless or bool(waiting)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    guard = Guard(app, token=TOKEN, limits=Limits(**limits), hosts=LOOPBACK_HOSTS)
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["type"] == "http.response.start" and not sent[-1].get("more_body")
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(m.get("body", b"") for m in sent[1:])


def reason(body: bytes) -> str:
    found = json.loads(body)
    assert set(found) == {"detail", "request"} and set(found["detail"][0]) == {"loc", "msg", "type"}
    return found["detail"][0]["type"]


@pytest.mark.parametrize("path", ["/predict", "/metrics", "/openapi.json", "/live.json", "/docs", "/no/such"])
@pytest.mark.parametrize(
    "value", [None, b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic " + TOKEN.encode(), b"\xff"]
)
def test_every_path_wants_the_token(path: str, value: bytes | None) -> None:
    status, headers, body = ask(HOST + ([(b"authorization", value)] if value is not None else []), path=path)
    assert (status, reason(body), headers[b"www-authenticate"]) == (401, "unauthorized", b"Bearer")
    assert TOKEN.encode() not in body


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_the_probes_are_open_to_this_host_only(path: str) -> None:
    assert ask(HOST, path=path, method="GET")[0] == 200
    assert ask([(b"host", b"evil.example")], path=path, method="GET")[0] == 403
    assert ask(HOST, path=path + "/", method="GET")[0] == 401


@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:1", b"127.0.0.1:8765", b"[::1]:8765", b"[::1]"])
def test_its_own_names_are_answered(host: bytes) -> None:
    assert ask([(b"host", host), *BEARER])[0] == 200
    assert ask([(b"host", host), (b"origin", b"http://" + host.lower()), *BEARER])[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"localhost.evil.example",
        b"",
        b"127.0.0.2",
        b"[::1",
        b"evil@localhost:x@e",
        b"\xff",
        None,
    ],
)
def test_other_names_are_not(host: bytes | None) -> None:
    status, _, body = ask([*([(b"host", host)] if host is not None else []), *BEARER])
    assert (status, reason(body)) == (403, "foreign_host")
    assert ask([*HOST, (b"host", b"localhost"), *BEARER])[0] == 403, "two Host headers are one too many"


@pytest.mark.parametrize(
    "origin", [b"https://evil.example", b"null", b"", b"http://localhost:1", b"localhost:8765"]
)
def test_other_sites_pages_may_not_post(origin: bytes) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        status, _, body = ask([*HOST, (b"origin", origin), *BEARER], method=method)
        assert (status, reason(body)) == (403, "foreign_origin")


def test_size_is_counted_not_believed() -> None:
    assert ask(HOST + BEARER, [b"x" * 50] * 2, body_bytes=100)[2] == b"100"
    for headers in (
        [],
        [(b"content-length", b"5")],
        [(b"content-length", b"-1")],
        [(b"transfer-encoding", b"chunked")],
    ):
        status, out, body = ask(HOST + BEARER + headers, [b"x" * 50] * 4, body_bytes=100)
        assert (status, reason(body), out[b"connection"]) == (413, "body_too_large", b"close")
    for size in (b"101", b"9" * 5000):
        status, _, body = ask(HOST + BEARER + [(b"content-length", size)], body_bytes=100)
        assert (status, reason(body)) == (413, "body_too_large")


def test_a_refused_body_is_taken_in_so_that_the_refusal_is_read() -> None:
    taken = []

    async def receive() -> dict[str, Any]:
        taken.append(1)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": len(taken) < 50}

    async def send(message: dict[str, Any]) -> None:
        taken.append(0) if message["type"] == "http.response.start" else None

    guard = Guard(reader, token=TOKEN, limits=Limits(body_bytes=1500))
    asyncio.run(
        guard({"type": "http", "method": "POST", "path": "/predict", "headers": HOST + BEARER}, receive, send)
    )
    assert taken.index(0) == 2 and sum(taken) == 49


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    status, headers, body = ask(HOST + BEARER, [b"{"], endless=True, body_s=0.05)
    assert (status, reason(body), headers[b"connection"]) == (408, "body_too_slow", b"close")
    assert ask(HOST, [b"{"], endless=True, body_s=0.05)[0] == 401, "nor is the rest of a refused one"
    assert ask(HOST + [(b"expect", b"100-continue")], endless=True, body_s=3600)[0] == 401


def test_a_client_that_leaves_is_no_failure_of_ours() -> None:
    async def leaves(scope: Any, receive: Any, send: Any) -> None:
        while True:
            await receive()

    async def run() -> list[int]:
        seen, messages = (
            [],
            [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}],
        )

        async def receive() -> dict[str, Any]:
            return messages.pop(0)

        async def send(message: dict[str, Any]) -> None:
            pass

        guard = Guard(
            leaves, token=TOKEN, limits=Limits(), observe=lambda path, status, took_s: seen.append(status)
        )
        await guard(
            {"type": "http", "method": "POST", "path": "/predict", "headers": HOST + BEARER}, receive, send
        )
        return seen

    assert asyncio.run(run()) == [499]


def test_more_than_the_limit_in_flight_is_told_to_come_back() -> None:
    async def run() -> list[int]:
        gate, answers = asyncio.Event(), []

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await gate.wait()
            await reader(scope, receive, send)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            answers.append(message) if message["type"] == "http.response.start" else None

        guard = Guard(slow, token=TOKEN, limits=Limits(in_flight=2))
        scopes = [
            {"type": "http", "method": "POST", "path": "/predict", "headers": HOST + BEARER} for _ in range(5)
        ]
        tasks = [asyncio.create_task(guard(scope, receive, send)) for scope in scopes]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        assert all((b"retry-after", b"1") in a["headers"] for a in answers if a["status"] == 503)
        answers_before = sorted(a["status"] for a in answers)
        await guard(scopes[0] | {"state": {}}, receive, send)
        assert answers[-1]["status"] == 200, "and it can"
        return answers_before

    assert asyncio.run(run()) == [200, 200, 503, 503, 503]


def test_a_fault_of_ours_is_json_and_says_nothing_of_the_inside(capfd: Any) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("/secret/path")

    status, headers, body = ask([*HOST, *BEARER, (b"x-request-id", b"r-1")], app=broken)
    assert (status, reason(body), headers[b"x-request-id"]) == (500, "internal", b"r-1")
    assert b"secret" not in body
    told = capfd.readouterr().err
    assert "r-1" in told and "/secret/path" in told and TOKEN not in told


@pytest.mark.parametrize("given_id", [b"", b"a" * 65, b"x\r\ny", b"a b", b"\xff"])
def test_a_request_id_is_taken_over_only_when_it_is_one(given_id: bytes) -> None:
    found = ask([*HOST, *BEARER, (b"x-request-id", given_id)])[1][b"x-request-id"]
    assert re.fullmatch(rb"[0-9a-f]{32}", found)
    assert ask([*HOST, *BEARER, (b"x-request-id", b"mine-1.2_3")])[1][b"x-request-id"] == b"mine-1.2_3"


@settings(max_examples=200, deadline=None)
@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                [b"host", b"origin", b"authorization", b"content-length", b"x-request-id", b"expect", b"x"]
            ),
            st.binary(max_size=40) | st.sampled_from([b"localhost", BEARER[0][1], b"http://localhost"]),
        ),
        max_size=6,
    ),
    path=st.text(max_size=20),
    method=st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "TRACE"]),
)
def test_no_header_makes_it_stumble(headers: list, path: str, method: str) -> None:
    status, out, body = ask(headers, path=path, method=method)
    assert status in (200, 401, 403, 413)
    assert status == 200 or reason(body)
    assert all(0x20 <= c < 0x7F for value in out.values() for c in value)


def test_a_refusal_is_ascii_whatever_it_quotes() -> None:
    body = Refusal(422, "x", "caf\xe9 \ud800 \u2028 </script>", ("body", "\udfff", 3)).body("r")
    assert body.isascii() and json.loads(body)["detail"][0]["loc"] == ["body", "\udfff", 3]
