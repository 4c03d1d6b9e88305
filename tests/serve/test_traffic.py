"""What stands beside the champion never costs a caller an answer, and never changes one."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer
from conftest import CONTRACT, GOOD, TOKEN, parts
from typer.testing import CliRunner

from workbench.base import audit
from workbench.base.errors import BadInput, NotFound
from workbench.base.ledger import Ledger
from workbench.cli.traffic import register
from workbench.data.contract import Column, Contract
from workbench.models.bundle import Bundle
from workbench.models.shelf import Shelf
from workbench.serve.app import create_app
from workbench.serve.canary import Canary, Decision
from workbench.serve.comparison import ShadowReport, Tally
from workbench.serve.engine import Engine
from workbench.serve.feedback import join, quality
from workbench.serve.requestlog import RequestLog, read
from workbench.serve.sequential import Race
from workbench.serve.shadow import Shadow
from workbench.serve.traffic import Traffic, direct, directed, end, seen, shadow_report

BROKEN = """
import time
import numpy as np

class Broken:
    "Right while it is tried, then as its config says."
    def __init__(self, how="raise", **config):
        self.how, self.calls = how, 0
    def load_weights(self, weights):
        return self
    def __call__(self, x):
        if (x[:, 0] < 2).all():
            return np.full(len(x), 0.25, dtype="float32")
        if self.how == "hang":
            time.sleep(3600)
        if self.how == "die":
            import os
            os._exit(9)
        if self.how == "nan":
            return np.full(len(x), np.nan, dtype="float32")
        raise RuntimeError("out of order")
"""
FAR = {**GOOD, "distance": 6000.0}


@pytest.fixture(scope="module", autouse=True)
def broken_module(module: Path) -> None:
    (module / "tiny_broken.py").write_text(BROKEN)


def add(ledger: Ledger, how: str = "") -> Bundle:
    changed = {"model": "tiny_broken:Broken", "config": {"how": how}, "weights": {"none": np.zeros(1)}}
    return Shelf(ledger).add("flights", **parts() | (changed if how else {}))


def another(ledger: Ledger) -> Bundle:
    made = parts()
    made["weights"] = made["weights"] | {"bias": made["weights"]["bias"] + 0.5}
    return Shelf(ledger).add("flights", **made)


@asynccontextmanager
async def served(ref: str, ledger: Ledger, **more: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Traffic]]:
    engine = Engine(ref, ledger, watch_s=0.05, cache_rows=0)
    traffic = Traffic(engine, ledger, watch_s=0.05)
    app = create_app(engine, token=TOKEN, traffic=traffic, **more)
    headers = {"authorization": f"Bearer {TOKEN}"}
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client,
    ):
        yield client, traffic


async def until(true: Any, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.02)


def test_promote_rollback_and_a_shadow_that_comes_and_goes_fail_no_request(ledger: Ledger) -> None:
    shelf = Shelf(ledger)
    first, second = add(ledger), another(ledger)
    shelf.set_alias("flights", "champion", 1)
    right = {bundle.version: Engine(bundle).scores([GOOD])[0] for bundle in (first, second)}

    async def go() -> tuple[list[httpx.Response], ShadowReport]:
        found, over = [], asyncio.Event()
        async with served("flights@champion", ledger) as (client, traffic):

            async def ask() -> None:
                while not over.is_set():
                    found.append(await client.post("/predict", json={"row": GOOD}))
                    await asyncio.sleep(0.002)

            asking = [asyncio.create_task(ask()) for _ in range(3)]
            direct("flights", "shadow", 2, share=1.0, ledger=ledger)
            await until(lambda: traffic.shadow is not None and traffic.shadow.report().rows > 20)
            shelf.set_alias("flights", "champion", 2)
            await until(lambda: traffic.engine.version == 2)
            shelf.move_back("flights", "champion")
            await until(lambda: traffic.engine.version == 1)
            await until(lambda: traffic.shadow is not None and traffic.shadow.report().rows > 5)
            end("flights", "shadow", "enough", ledger=ledger)
            await until(lambda: traffic.shadow is None)
            over.set()
            await asyncio.gather(*asking)
        return found, shadow_report("flights", ledger)

    found, report = asyncio.run(go())
    assert {one.status_code for one in found} == {200}
    answers = [one.json() for one in found]
    assert {one["version"] for one in answers} == {1, 2}
    assert all(one["prediction"] == right[one["version"]] for one in answers)
    assert (report.champion, report.challenger) == ("flights/1", "flights/2") and report.rows > 5
    actions = [entry.action for entry in audit.entries(ledger)]
    assert actions == ["shadow", "shadow off"]


@pytest.mark.parametrize(
    "how", ["raise", "hang", *(pytest.param(how, marks=pytest.mark.slow) for how in ("nan", "die"))]
)
def test_a_broken_shadow_changes_no_answer_and_is_counted(ledger: Ledger, how: str) -> None:
    good, bad = add(ledger), add(ledger, how)
    engine = Engine(good)
    shadow = Shadow(bad, (good.ref, good.digest), share=1.0, queue_rows=200, hang_s=0.5)
    wanted, slowest = engine.scores([FAR])[0], 0.0
    for number in range(300):
        assert engine.scores([FAR])[0] == wanted
        began = time.perf_counter()
        shadow.offer(f"r{number}", [FAR], [wanted], 1e-5)
        slowest = max(slowest, time.perf_counter() - began)
    deadline = time.monotonic() + 60
    while not shadow.report().broken and time.monotonic() < deadline:
        time.sleep(0.02)
    child = shadow._child.process
    shadow.close()
    report = shadow.report()
    assert report.broken >= 1 and not report.rows and child.poll() is not None
    assert report.dropped >= 100, "what there is no room for is dropped, not kept"


def test_a_shadow_reports_for_whom_it_disagrees(ledger: Ledger) -> None:
    first, second = add(ledger), another(ledger)
    rows = [{**GOOD, "distance": float(n), "carrier": ("AA", "DL")[n % 2]} for n in range(200)]
    scores = Engine(first).scores(rows)
    shadow = Shadow(second, (first.ref, first.digest), share=1.0, store=ledger.store)
    for number, (row, score) in enumerate(zip(rows, scores, strict=True)):
        shadow.offer(f"r{number}", [row], [score], 1e-5)
    assert shadow.drain(60)
    shadow.close()
    report, other = shadow.report(), Engine(second).scores(rows)
    agreed = sum((a >= 0.5) == (b >= 0.5) for a, b in zip(scores, other, strict=True))
    assert report.rows == 200 and report.agreement == agreed / 200 and not report.broken
    assert report.difference == pytest.approx(np.abs(np.array(scores) - other).mean())
    assert {(row["slice"], row["rows"]) for row in report.slices} >= {("carrier", 100)}
    assert "in the shadow of" in report._repr_html_() and "<script" not in report._repr_html_()
    assert ShadowReport.from_json(json.loads(json.dumps(report.to_json(), default=str))).rows == 200


def test_a_shadow_keeps_the_position_of_each_row(ledger: Ledger) -> None:
    first, second = add(ledger), another(ledger)
    shadow = Shadow(second, (first.ref, first.digest), share=1.0, store=ledger.store)
    for at in (0, 3):
        shadow.offer("r", [{**GOOD, "distance": float(at + n)} for n in range(3)], [0.5] * 3, 1e-5, at)
    assert shadow.drain(60)
    shadow.close()
    kept = read("flights", ledger.store, "shadow")
    assert kept["position"].to_list() == list(range(6))
    assert kept["row"].struct.field("distance").to_list() == [float(n) for n in range(6)]


def test_rows_are_counted_at_once_and_told_now_and_then(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, told, from_json = add(ledger), another(ledger), [], Tally.from_json
    monkeypatch.setattr(Tally, "from_json", lambda said: told.append(1) or from_json(said))
    rows = [{**GOOD, "distance": float(n)} for n in range(64)]
    scores = Engine(first).scores(rows)
    shadow = Shadow(second, (first.ref, first.digest), share=1.0)
    for number in range(30):
        shadow.offer(f"r{number}", rows, scores, 1e-5)
    assert shadow.drain(60)
    assert shadow.report().rows == 30 * 64 and 2 <= len(told) < 15
    shadow.offer("the last", rows, scores, 1e-5)
    shadow.close()
    assert shadow.report().rows in (30 * 64, 31 * 64), "what it had seen is told at the end"


def test_a_slice_of_many_values_is_bounded() -> None:
    tally = Tally(slices=("carrier",))
    for n in range(5_000):
        tally.add("r", {"carrier": f"c{n}", "at": "<script>"}, 0.1, 0.9)
    assert len(tally.groups["carrier"]) <= 41 and len(tally.worth) <= 20
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))).to_json() == tally.to_json()


def test_a_canary_sticks_to_its_callers_and_stays_when_it_grows(ledger: Ledger) -> None:
    add(ledger), another(ledger)
    direct("flights", "canary", 2, share=0.3, ledger=ledger)

    async def go() -> dict[str, set[int]]:
        got: dict[str, set[int]] = {}
        async with served("flights/1", ledger) as (client, traffic):
            await until(lambda: traffic.canary is not None)
            for _ in range(3):
                for caller in range(40):
                    asked = {"x-sticky-key": f"caller {caller}"}
                    found = await client.post("/predict", json={"row": GOOD}, headers=asked)
                    got.setdefault(str(caller), set()).add(found.json()["version"])
        return got

    got = asyncio.run(go())
    assert all(len(versions) == 1 for versions in got.values())
    assert 4 <= sum(versions == {2} for versions in got.values()) <= 22
    less, more = Canary("flights", 0.1), Canary("flights", 0.3)
    assert all(more.goes(str(key)) for key in range(1000) if less.goes(str(key)))


def test_a_canary_that_fails_is_gone_and_no_caller_noticed(ledger: Ledger) -> None:
    add(ledger), add(ledger, "raise")
    right = Engine("flights/1", ledger).scores([FAR])[0]
    direct("flights", "canary", 2, share=0.5, ledger=ledger, user="ann")

    async def go() -> list[httpx.Response]:
        found = []
        async with served("flights/1", ledger) as (client, traffic):
            await until(lambda: traffic.canary is not None)
            while traffic.canary is not None and len(found) < 500:
                asked = {"x-sticky-key": f"caller {len(found)}"}
                found.append(await client.post("/predict", json={"row": FAR}, headers=asked))
            await until(lambda: directed("flights", ledger)["canary"].state == "rolled back")
            found.append(await client.post("/predict", json={"row": FAR}))
        return found

    found = asyncio.run(go())
    assert {one.status_code for one in found} == {200} and len(found) < 100
    assert all((one.json()["version"], one.json()["prediction"]) == (1, right) for one in found)
    last = audit.entries(ledger)[-1]
    assert last.action == "canary rolled back" and last.actor == "guard" and "errors" in last.detail["why"]
    assert seen("flights", ledger)["canary"]["decision"] == "roll back"
    assert not audit.verify(ledger).problems


def test_outcomes_end_a_canary_that_is_wrong_more_often() -> None:
    draw, canary = random.Random(0), Canary("flights", 0.3)
    for n in range(3_000):
        new = canary.goes(str(n))
        canary.saw(new, 0.001)
        canary.heard(new, draw.random() < (0.5 if new else 0.2))
    assert canary.decide()[0] is Decision.ROLL_BACK and canary.decide()[1].startswith("wrong")


def test_reading_a_race_after_every_request_raises_no_false_alarm() -> None:
    alarms = 0
    for seed in range(100):
        draw, race = random.Random(seed), Race(0.1)
        for n in range(1_000):
            bad = draw.random() < (0.5 if 300 < n < 500 else 0.03)  # a bad hour for both
            race.add(int(draw.random() < 0.1), bad)
            if race.harm > 20:
                alarms += 1
                break
    assert alarms <= 10, "5 % may be wrong; 10 % would be a fault"


def test_what_is_wished_wrongly_is_refused(ledger: Ledger) -> None:
    add(ledger)
    with pytest.raises(BadInput, match="share 2"):
        direct("flights", "shadow", 1, share=2, ledger=ledger)
    with pytest.raises(NotFound, match="no version for a shadow"):
        direct("flights", "shadow", ledger=ledger)
    with pytest.raises(NotFound):
        direct("flights", "shadow", 7, ledger=ledger)
    with pytest.raises(NotFound, match="no canary that is on"):
        end("flights", "canary", ledger=ledger)
    Shelf(ledger).set_alias("flights", "challenger", 1)
    assert direct("flights", "shadow", ledger=ledger).version == 1


def test_outcomes_are_checked_kept_and_joined(ledger: Ledger) -> None:
    bundle = add(ledger)
    about = {"store": ledger.store, "flush_s": 3600}
    log = RequestLog("flights", bundle.contract, **about)
    outcomes = RequestLog("flights", bundle.contract, folder="feedback", outcomes=True, **about)

    async def go() -> list[httpx.Response]:
        async with served("flights/1", ledger, log=log, outcomes=outcomes) as (client, _):
            many = await client.post("/predict", json={"rows": [GOOD, {**GOOD, "seats": 20}]})
            number = many.headers["x-request-id"]
            told = [{"request": number, "position": n, "outcome": {"late": bool(n)}} for n in (0, 1)]
            bad = [
                {"request": "../x", "outcome": {"late": True}},
                {"request": number, "outcome": {"late": "maybe"}},
                {"request": number, "outcome": {"distance": 3.0}},
                {"request": number, "position": -1, "outcome": {"late": True}},
                {"request": number, "outcome": {}},
                [],
                {"feedback": []},
            ]
            good = [await client.post("/feedback", json=body) for body in ({"feedback": told}, told[0])]
            return good + [await client.post("/feedback", json=body) for body in bad]

    found = asyncio.run(go())
    log.close(), outcomes.close()
    assert [one.status_code for one in found] == [200, 200] + [422] * 7
    assert all(one.json()["detail"][0]["loc"] for one in found[2:])
    joined = join("flights", ledger.store)
    assert joined["outcome"].struct.field("late").to_list() == [False, True]
    assert quality("flights", ledger.store)[0] | {"auc": 0, "brier": 0} == {
        "version": 1, "rows": 2, "rate": 0.5, "auc": 0, "brier": 0,
    }  # fmt: skip
    second = Contract("flights", {**CONTRACT.columns, "early": Column("bool", role="outcome")})
    more = RequestLog("flights", second, folder="feedback", outcomes=True, **about)
    more.add("r", 0, [{"early": True}], [])
    more.close()
    with pytest.raises(BadInput, match="2 outcome columns: late, early"):
        quality("flights", ledger.store)


def test_the_verbs_turn_it_on_and_off_and_say_so(ledger: Ledger, project: Path) -> None:
    app = typer.Typer()
    register(app)

    def workbench(*words: str) -> Any:
        done = CliRunner().invoke(app, list(words), catch_exceptions=False)
        return json.loads(done.stdout) if "--json" in words else done.stdout

    add(Ledger()), another(Ledger())
    assert workbench("shadow", "flights", "2", "--share", "0.5", "--json")["share"] == 0.5
    assert workbench("canary", "flights", "2", "--share", "0.2") == "flights/2 as canary of 20 %, on\n"
    with pytest.raises(NotFound, match="no shadow yet"):
        workbench("shadow", "flights")
    assert workbench("shadow", "flights", "--off", "--json")["state"] == "off"
    with pytest.raises(NotFound, match="no shadow that is on"):
        workbench("shadow", "flights", "--off")
    assert directed("flights", Ledger())["canary"].state == "on"
