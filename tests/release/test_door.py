"""Over HTTP the same people may say the same things; a header alone makes nobody anybody."""

import asyncio
import json
from typing import Any

import pytest
import toy

from workbench.base.settings import load_settings
from workbench.models.shelf import Shelf
from workbench.release.door import door
from workbench.release.gates import judge
from workbench.release.people import People, Person
from workbench.release.registry import promote

LOCAL = Person("root", ("admin", "author"), "local")


def ask(
    app: Any, method: str, path: str, *headers: tuple[str, str], peer: str = "10.0.0.7", body: Any = None
) -> Any:
    "Status and answer."
    sent: list[dict] = []
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = [
        ("host", "gate.example"),
        *([("content-type", "application/json")] if method == "POST" else []),
        *headers,
    ]

    async def receive() -> dict:
        return {"type": "http.request", "body": data}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "client": (peer, 1)}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in given]
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.fixture
def tokens(shelf: Shelf, evidence, monkeypatch) -> dict[str, str]:
    "A request by ada on delays/1, which bob may answer through a proxy at 10.0.0.7."
    people = People(shelf.ledger)
    tokens = {"ada": people.add("ada", ["admin", "author", "reader"], by=LOCAL)}
    ada = people.sign_in(tokens["ada"])
    for name in ("bob", "eve"):
        tokens[name] = people.add(name, ["approver", "reader"] if name == "bob" else ["reader"], by=ada)
    monkeypatch.setenv("TOKEN", tokens["ada"])
    monkeypatch.setenv("WORKBENCH_USER_TOKEN", "env:TOKEN")
    monkeypatch.setenv("WORKBENCH_APPROVALS_NEEDED", "1")
    monkeypatch.setenv("WORKBENCH_TRUSTED_PROXIES", "10.0.0.0/24")
    bundle = shelf.add("delays", **toy.linear_parts())
    found = evidence(bundle.ref, 0.72, digest=bundle.digest)
    promote(bundle, verdict=judge(found, baseline=evidence("x/1", 0.69), champion=None), ledger=shelf.ledger)
    return tokens


def test_whom_the_proxy_names_approves(shelf: Shelf, tokens) -> None:
    app, bob = door(shelf.ledger, load_settings()), ("X-Forwarded-Email", "bob")
    status, told = ask(app, "GET", "/requests", bob)
    assert status == 200 and "delays/1 as champion, asked by ada" in told["answer"][0]
    refused = {
        "another address": ask(
            app, "POST", "/requests/1/approve", bob, peer="203.0.113.9", body={"why": "x"}
        ),
        "twice": ask(
            app, "POST", "/requests/1/approve", bob, ("x-forwarded-email", "ada"), body={"why": "x"}
        ),
        "nobody": ask(app, "POST", "/requests/1/approve", body={"why": "x"}),
        "her own": ask(app, "POST", "/requests/1/approve", ("X-Forwarded-Email", "ada"), body={"why": "x"}),
        "a reader": ask(app, "POST", "/requests/1/approve", ("X-Forwarded-Email", "eve"), body={"why": "x"}),
        "a bad token": ask(
            app, "POST", "/requests/1/approve", bob, ("authorization", "Bearer x"), body={"why": "x"}
        ),
        "another site": ask(
            app, "POST", "/requests/1/approve", bob, ("origin", "http://evil"), body={"why": "x"}
        ),
    }
    assert {name: status for name, (status, _) in refused.items()} == dict.fromkeys(refused, 403)
    assert shelf.aliases("delays") == {}
    status, told = ask(
        app,
        "POST",
        "/requests/1/approve",
        bob,
        ("origin", "https://gate.example"),
        body={"why": "slices hold"},
    )
    assert (
        status == 200 and "is now version 1" in told["answer"] and shelf.aliases("delays") == {"champion": 1}
    )
    assert ask(app, "POST", "/requests/1/approve", bob, body={"why": "again"})[0] == 409


def test_a_token_says_who_and_bad_answers_are_refused(shelf: Shelf, tokens) -> None:
    app, bob = door(shelf.ledger, load_settings()), ("authorization", f"Bearer {tokens['bob']}")
    for path, body, status in (
        ("/requests/1/approve", {}, 400),
        ("/requests/1/approve", b"\xff{", 400),
        ("/requests/1/approve", {"why": " "}, 400),
        ("/requests/1/approve", b"[" * 100_000, 400),
        ("/requests/9/approve", {"why": "x"}, 404),
        ("/requests/../approve", {"why": "x"}, 404),
    ):
        assert ask(app, "POST", path, bob, peer="203.0.113.9", body=body)[0] == status, path
    assert (
        ask(app, "POST", "/requests/1/reject", bob, ("content-type", "text/plain"), body={"why": "x"})[0]
        == 400
    )
    assert (
        ask(app, "POST", "/requests/1/reject", bob, body={"why": "no"})[0] == 200
        and shelf.aliases("delays") == {}
    )
