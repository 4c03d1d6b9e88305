"""Several processes, one shadow and one canary: what they see is added up, and what one finds holds for all."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import GOOD
from test_traffic import BROKEN, FAR, add, another, served, until

from workbench.base import audit
from workbench.base.errors import NotFound
from workbench.base.ledger import Ledger
from workbench.serve.canary import GUARDS, Canary, Decision
from workbench.serve.engine import Engine
from workbench.serve.requestlog import RequestLog
from workbench.serve.traffic import direct, directed, end, seen, shadow_report
from workbench.serve.witness import Witness, add_canaries, canary_state, written


@pytest.fixture(scope="module", autouse=True)
def broken_module(module: Path) -> None:
    (module / "tiny_broken.py").write_text(BROKEN)


def test_two_services_report_one_shadow(ledger: Ledger) -> None:
    first, second = add(ledger), another(ledger)
    direct("flights", "shadow", 2, share=1.0, ledger=ledger)

    async def go() -> None:
        async with served("flights/1", ledger) as (one, here), served("flights/1", ledger) as (two, there):
            await until(lambda: here.shadow is not None and there.shadow is not None)
            for n in range(60):
                client = one if n % 3 else two
                await client.post("/predict", json={"row": {**GOOD, "distance": float(n)}})
            await until(lambda: here.shadow.report().rows + there.shadow.report().rows == 60)
            await until(
                lambda: sum(one["tally"]["rows"] for one in written("flights", "shadow", ledger)) == 60
            )
            await until(lambda: here.plain()["shadow"]["rows"] == 60 == there.plain()["shadow"]["rows"])

    asyncio.run(go())
    rows = [{**GOOD, "distance": float(n)} for n in range(60)]
    pairs = list(zip(Engine(first).scores(rows), Engine(second).scores(rows), strict=True))
    report = shadow_report("flights", ledger)
    assert report.rows == 60 and not report.broken
    assert report.agreement == sum((a >= 0.5) == (b >= 0.5) for a, b in pairs) / 60
    assert report.difference == pytest.approx(sum(abs(a - b) for a, b in pairs) / 60)
    assert report.largest == pytest.approx(max(abs(a - b) for a, b in pairs))
    assert {row["rows"] for row in report.slices if row["slice"] == "carrier"} == {60}


def test_harm_that_one_service_finds_ends_the_canary_in_all(ledger: Ledger) -> None:
    add(ledger), add(ledger, "raise")
    direct("flights", "canary", 2, share=0.5, ledger=ledger)

    async def go() -> list[Any]:
        found = []
        async with served("flights/1", ledger) as (one, here), served("flights/1", ledger) as (two, there):
            await until(lambda: here.canary is not None and there.canary is not None)
            for n in range(500):
                if here.canary is None or there.canary is None:
                    break
                asked = {"x-sticky-key": f"caller {n}"}
                found.append(await (one, two)[n % 2].post("/predict", json={"row": FAR}, headers=asked))
            await until(lambda: here.canary is None and there.canary is None)
            found += [await client.post("/predict", json={"row": FAR}) for client in (one, two)]
        return found

    found = asyncio.run(go())
    assert {(answer.status_code, answer.json()["version"]) for answer in found} == {(200, 1)}
    ended = [entry for entry in audit.entries(ledger) if entry.action == "canary rolled back"]
    assert len(ended) == 1 and directed("flights", ledger)["canary"].state == "rolled back"
    told = seen("flights", ledger)["canary"]
    assert told["state"] == "rolled back" and told["processes"] == 2
    assert told["guards"][0]["new"] + told["guards"][0]["old"] >= len(found) - 2


def test_an_outcome_finds_the_service_that_answered(ledger: Ledger) -> None:
    add(ledger), another(ledger)
    direct("flights", "canary", 2, share=0.5, ledger=ledger)
    bundle = Engine("flights/1", ledger).bundle
    outcomes = RequestLog("flights", bundle.contract, store=ledger.store, folder="feedback", outcomes=True)

    def judged(traffic: Any) -> int:
        return sum(traffic.canary.races["wrong"].asked)

    async def go() -> None:
        more = {"outcomes": outcomes}
        async with (
            served("flights/1", ledger, **more) as (one, here),
            served("flights/1", ledger, **more) as (two, there),
        ):
            await until(lambda: here.canary is not None and there.canary is not None)
            for n in range(20):
                asked = {"x-sticky-key": f"caller {n}"}
                number = (await one.post("/predict", json={"row": GOOD}, headers=asked)).headers[
                    "x-request-id"
                ]
                told = {"request": number, "outcome": {"late": True}}
                assert (await two.post("/feedback", json=told)).status_code == 200
            await until(lambda: judged(here) == 20)
            assert judged(there) == 0, "it answered none of them"

    asyncio.run(go())
    outcomes.close()
    guards = {row["guard"]: row for row in seen("flights", ledger)["canary"]["guards"]}
    assert guards["wrong"]["new"] + guards["wrong"]["old"] == 20


def raced(seed: int, worse: float) -> tuple[bool, int]:
    "Whether eight replicas together ever called for a rollback, and how many of them did alone."
    draw, replicas = random.Random(seed), [Canary("flights", 0.2, guards=GUARDS[:1]) for _ in range(8)]
    together = False
    for n in range(1_600):
        new = draw.random() < 0.2
        replicas[n % 8].saw(new, 0.01, draw.random() < (0.04 * worse if new else 0.04))
        if n % 50 == 49:
            total = replicas[0].joined([one.sums() for one in replicas[1:]])
            together = together or total.decide()[0] is Decision.ROLL_BACK
    return together, sum(one.decide()[0] is Decision.ROLL_BACK for one in replicas)


def test_replicas_are_sure_together_and_as_rarely_wrong_as_one() -> None:
    harmless, harmful = [raced(seed, 1.0) for seed in range(40)], [raced(seed, 4.0) for seed in range(40)]
    assert sum(together for together, _ in harmless) <= 2, "1 % is what alpha allows"
    assert sum(together for together, _ in harmful) >= 38
    assert sum(alone for _, alone in harmful) < 40 * 8 / 3, "few of them alone"


def test_another_wish_begins_with_nothing_and_an_older_one_is_not_ended(ledger: Ledger) -> None:
    add(ledger), another(ledger)
    old = direct("flights", "canary", 2, share=0.5, ledger=ledger)
    witness, canary = Witness("flights", ledger), Canary("flights", 0.5)
    canary.saw(True, 0.01)
    witness.keep("canary", old.at, canary_state(canary, 2))
    with ledger.change() as db:
        db.execute("update traffic set at=at+3600")  # as if the clock had gone back since
    new = direct("flights", "canary", 2, share=0.3, ledger=ledger)
    assert written("flights", "canary", ledger) == []
    assert new.at > old.at + 3600
    with pytest.raises(NotFound, match="no canary that is on"):
        end("flights", "canary", since=old.at, ledger=ledger)
    late, fresh = Witness("flights", ledger), Witness("flights", ledger)
    late.keep("canary", old.at, canary_state(canary, 2))  # by a process that has not heard
    fresh.keep("canary", new.at, canary_state(Canary("flights", 0.3), 2))
    assert fresh.others("canary", new.at) == []
    assert add_canaries("flights", written("flights", "canary", ledger))["guards"][0]["new"] == 0
    assert end("flights", "canary", since=new.at, ledger=ledger).state == "off"
