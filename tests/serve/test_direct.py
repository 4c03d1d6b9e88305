"""The short way of a request gives the answers, refusals and counts of the long one."""

import asyncio
import gc
import hashlib
import http.client
import json
import socket
import threading
from typing import Any

import pytest
from conftest import GOOD, TOKEN, Service

from workbench.serve.app import create_app
from workbench.serve.checker import Checker
from workbench.serve.clients import Client, Clients
from workbench.serve.desk import Desk
from workbench.serve.direct import Direct
from workbench.serve.engine import Engine
from workbench.serve.guard import Guard
from workbench.serve.refusal import Limits
from workbench.serve.replica import _answer_directly
from workbench.serve.wire import Call, listen, server

BODY = json.dumps({"row": GOOD}).encode()


class Asked:
    "A call that keeps its answer."

    path = b"/predict"

    def __init__(self, body: bytes = BODY, **more: bytes) -> None:
        own = {"host": b"localhost", "content_type": b"application/json", "authorization": b"Bearer " + TOKEN.encode()}  # fmt: skip
        self.headers = [(name.replace("_", "-").encode(), value) for name, value in (own | more).items()]
        self.body, self.status, self.lines, self.text = body, 0, b"", b""

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        assert not self.status, "answered once"
        self.status, self.lines, self.text = status, lines, body


def directly(engine: Engine, token: Any, body: Any) -> Guard:
    "Run `body(direct)` while the engine runs."
    guard = Guard(lambda *_: None, token=token, limits=Limits())
    guard._own.add(b"localhost")

    async def inside() -> None:
        async with engine:
            await body(Direct(guard, Desk(engine, Limits())))

    asyncio.run(inside())
    return guard


def free_port() -> int:
    with listen("127.0.0.1", 0) as taken:
        return int(taken.getsockname()[1])


async def settled(calls: list[Asked]) -> None:
    "Until all are answered."
    async with asyncio.timeout(20):
        while not all(call.status for call in calls):
            await asyncio.sleep(0.005)


def exchanged(service: Service, **headers: str) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    own = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    try:
        for _ in range(2):  # from the second on the host is known
            connection.request("POST", "/predict", BODY, own | headers)
            response = connection.getresponse()
            text = response.read()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(text)
    finally:
        connection.close()


def test_both_ways_give_the_same_answer_and_headers(service: Service) -> None:
    short = exchanged(service, **{"x-request-id": "one"})
    long = exchanged(service, **{"x-request-id": "one", "origin": f"http://127.0.0.1:{service.port}"})
    assert short[0] == long[0] == 200 and short[2] == long[2]
    assert short[1].keys() == long[1].keys() and {"date", "server-timing"} <= short[1].keys()
    assert short[1]["x-request-id"] == long[1]["x-request-id"] == "one"


@pytest.mark.parametrize("cut", [40, -20])
def test_a_request_in_two_pieces_and_two_in_one_are_answered(service: Service, cut: int) -> None:
    head = f"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n"
    one = f"{head}content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY
    with service.raw() as sock:
        sock.sendall(one[:cut])
        asyncio.run(asyncio.sleep(0.05))
        sock.sendall(one[cut:] + one + one)
        got = b""
        while got.count(b'"prediction"') < 3:
            data = sock.recv(65536)
            assert data, got
            got += data
    assert got.count(b"HTTP/1.1 200") == 3


def test_who_comes_too_late_hears_at_once_when_to_come_back(engine: Engine) -> None:
    calls = [Asked(BODY.replace(b"733.0", b"%d" % n)) for n in range(1, 6)]

    async def body(direct: Direct) -> None:
        engine.loaded.policy.seconds.clear()
        engine.loaded.policy.observe(1, 0.2)
        engine.loaded.policy.observe(2, 0.4)
        assert all(direct(call) for call in calls)
        assert {call.status for call in calls} == {0, 503}, "some wait, some were refused before they waited"
        await settled(calls)

    guard = directly(engine, TOKEN, body)
    refused = [call for call in calls if call.status == 503]
    assert all(b"retry-after: 1" in call.lines for call in refused)
    assert json.loads(refused[0].text)["detail"][0]["type"] == "overloaded"
    assert [call.status for call in calls if call not in refused] == [200] * (5 - len(refused))
    assert guard.in_flight == 0 and engine.counts.shed == len(refused)


def test_while_there_is_no_room_nobody_is_read_but_for_kept_answers(engine: Engine) -> None:
    async def body(direct: Direct) -> None:
        kept, waits = Asked(), Asked(BODY.replace(b"733.0", b"1"))
        assert direct(kept)
        await settled([kept])
        engine.loaded.policy.seconds = {1: 0.6}
        engine.loaded.policy._memo.clear()
        assert direct(waits) and not waits.status
        unread = [Asked(b"nobody reads this", x_request_id=b"mine") for _ in range(3)]
        assert all(direct(call) for call in unread) and {call.status for call in unread} == {503}
        assert all(b"retry-after: 1\r\nx-request-id: mine\r\n" in call.lines for call in unread)
        told = json.loads(unread[0].text)
        assert told["request"] == "mine" and told["detail"][0]["type"] == "overloaded"
        assert engine.counts.shed == 3
        direct.door.kept = 0.5
        again = Asked()
        assert direct(again) and again.status == 200 and b"hit" in again.lines
        assert not direct(Asked(b"nobody reads this")), "the usual way says what is wrong with it"
        await settled([waits])
        assert waits.status == 200

    guard = directly(engine, TOKEN, body)
    assert guard.in_flight == 0


def test_a_model_at_fault_is_a_500_and_an_equal_row_waits_for_no_second_batch(moody: Engine) -> None:
    moody.contract.columns["distance"].__dict__["le"] = None
    moody.loaded.checker = Checker(moody.contract)
    far = json.dumps({"row": {**GOOD, "distance": 1e9}}).encode()
    calls = [Asked(far), Asked(), Asked()]

    async def body(direct: Direct) -> None:
        assert all(direct(call) for call in calls)
        await settled(calls)
        again = Asked()
        assert direct(again) and again.status == 200 and b"hit" in again.lines

    guard = directly(moody, TOKEN, body)
    counts = moody.counts
    assert [call.status for call in calls] == [500, 200, 200] and guard.in_flight == 0
    assert (counts.run, counts.joined, counts.hit) == (2, 1, 1) and b"joined" in calls[2].lines


def test_a_client_with_a_rate_spends_one_a_request_whatever_way_it_goes(engine: Engine) -> None:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    clients = Clients({digest: Client("partner", rate_per_s=0.001, burst=3)})

    async def body(direct: Direct) -> None:
        strange = Asked(BODY.replace(b"733.0", b'"733"'))
        assert not direct(strange), "the long way decides, and asks for its token there"
        calls = [Asked() for _ in range(4)]
        assert [direct(call) for call in calls] == [True, True, True, False]
        await settled(calls[:3])

    directly(engine, clients, body)


def test_beside_other_models_its_paths_have_a_prefix_and_are_counted_without(engine: Engine) -> None:
    seen: list[tuple[str, int]] = []

    async def body(direct: Direct) -> None:
        beside = Direct(direct.guard, direct.desk, "/one")
        beside.guard.observe = lambda path, status, took_s: seen.append((path, status))
        assert beside.paths.keys() == {b"/one/predict", b"/one/v1/models/flights:predict"}
        call = Asked()
        call.path = b"/one/predict"
        assert beside(call)
        await settled([call])

    directly(engine, TOKEN, body)
    assert seen == [("/predict", 200)]


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_server_that_ray_starts_asks_the_short_way_first(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.serve._private import http_util
    from ray.serve._private import replica as rays
    from ray.serve.config import HTTPOptions

    met: list[str] = []

    async def usual(scope: Any, receive: Any, send: Any) -> None:
        met.append(scope["path"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def ask(port: int, *more: str) -> int:
        own = ["POST /predict HTTP/1.1", "host: localhost", f"authorization: Bearer {TOKEN}"]
        lines = [*own, "content-type: application/json", f"content-length: {len(BODY)}", *more, "", ""]
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall("\r\n".join(lines).encode() + BODY)  # in one piece
            return int(sock.recv(65536).split()[1])

    async def asked(port: int) -> list[int]:
        where = HTTPOptions(host="127.0.0.1", port=port)
        task, server = await rays.start_asgi_http_server(usual, where, event_loop=asyncio.get_running_loop())
        while not server.started:
            await asyncio.sleep(0.005)
        found = [await asyncio.to_thread(ask, port, *more) for more in ((), ("origin: http://a.b",))]
        server.should_exit = True
        await asyncio.wait_for(task, 20)
        return found

    async def body(direct: Direct) -> None:
        monkeypatch.setattr(rays, "start_asgi_http_server", http_util.start_asgi_http_server)
        _answer_directly(engine, direct)
        assert await asked(free_port()) == [200, 204] and met == ["/predict"]
        elsewhere = await asyncio.to_thread(asyncio.run, asked(free_port()))
        assert elsewhere == [204, 204], "an engine on another loop is not asked from this one"

    guard = directly(engine, TOKEN, body)
    assert guard.in_flight == 0 and engine.counts.total_s.count == 1


def test_requests_leave_nothing_for_the_garbage_collector(engine: Engine) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    headers["x-deadline-ms"] = "20000"  # a busy machine is not what this is about
    ready = threading.Event()

    def ask(connection: http.client.HTTPConnection, first: int) -> None:
        for at in range(first, first + 50):
            connection.request("POST", "/predict", json.dumps({"row": {**GOOD, "distance": at}}), headers)
            response = connection.getresponse()
            assert response.status == 200 and response.read()

    with listen("127.0.0.1", 0) as taken:
        running = server(create_app(engine, token=TOKEN), ready.set)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [taken]})
        thread.start()
        assert ready.wait(20)
        asking = http.client.HTTPConnection("127.0.0.1", taken.getsockname()[1], timeout=20)
        try:
            ask(asking, 100)
            gc.collect()
            gc.disable()  # a collection that comes when callers wait is what they feel
            ask(asking, 200)
            left = [one for one in gc.get_objects() if type(one) is Call]
        finally:
            gc.enable()
            asking.close()
            running.should_exit = True
            thread.join(20)
    assert len(left) == 1, "the last one, which its connection remembers"
