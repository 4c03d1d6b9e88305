"""Where a question goes, who answers when somebody is away, and what never leaves."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from conftest import GOOD, TOKEN, Service
from hypothesis import given, settings
from hypothesis import strategies as some

from workbench.base.errors import BadInput, Unavailable
from workbench.serve.engine import Engine
from workbench.serve.hybrid import Hybrid, Place, here, there
from workbench.serve.routing import Band, Breaker, Site, auc, choose_band, route


class Far:
    "A place that does as it is told."

    def __init__(
        self, name: str, score: float = 0.5, *, wait_s: float = 0.0, fails: int = 0, **site: Any
    ) -> None:
        self.score, self.wait_s, self.fails, self.asked = score, wait_s, fails, []
        self.place = Place(Site(name, "remote", **site), self.ask)

    async def ask(self, rows: list[dict[str, Any]], left_s: float) -> list[float]:
        self.asked.append(rows)
        await asyncio.sleep(self.wait_s)
        if self.fails:
            self.fails -= 1
            raise Unavailable(f"{self.place.site.name} is away")
        return [self.score] * len(rows)


def ask(places: list[Far], rows: list[dict[str, Any]], **how: Any) -> Any:
    own = {key: how.pop(key) for key in ("private", "hedge") if key in how}
    return asyncio.run(Hybrid([far.place for far in places], **own).ask(rows, **how))


def test_the_cheapest_in_time_answers_and_says_why() -> None:
    cheap, dear = Far("cheap", 0.1, usd_per_1000=1.0), Far("dear", 0.2, usd_per_1000=9.0)
    found = ask([dear, cheap], [GOOD, GOOD])
    assert (found.scores, found.by, found.usd) == ([0.1, 0.1], ["cheap", "cheap"], 0.002)
    assert found.why == "the cheapest in time" and not dear.asked
    slow = Far("slow", 0.1, usd_per_1000=0.1, expected_s=0.8)
    assert ask([slow, dear], [GOOD], deadline_s=0.5).by == ["dear"] and not slow.asked


def test_a_place_that_is_away_is_followed_by_the_next_and_then_left_alone() -> None:
    away, other = Far("away", fails=99), Far("other", 0.2, usd_per_1000=5.0)
    hybrid = Hybrid([away.place, other.place])

    async def go() -> list[Any]:
        return [await hybrid.ask([GOOD]) for _ in range(6)]

    found = asyncio.run(go())
    assert {tuple(one.by) for one in found} == {("other",)} and len(away.asked) == 3
    assert found[0].tried == {"away": "away is away"} and "rests for" in found[-1].tried["away"]


def test_a_place_whose_error_says_nothing_is_followed_by_the_next_too() -> None:
    async def broken(rows: list[dict[str, Any]], left_s: float) -> list[float]:
        raise ConnectionError

    places = [Place(Site("broken", "remote"), broken), Far("other", 0.2, usd_per_1000=5.0).place]
    found = asyncio.run(Hybrid(places).ask([GOOD]))
    assert found.by == ["other"] and found.tried == {"broken": "ConnectionError"}


def test_a_late_place_is_hedged_and_the_first_answer_counts() -> None:
    late, spare = Far("late", 0.1, wait_s=30.0), Far("spare", 0.2, usd_per_1000=5.0)
    found = ask([late, spare], [GOOD], deadline_s=20.0)
    assert found.by == ["spare"] and found.took_s < 15
    with pytest.raises(Unavailable, match="late: not in time"):
        ask([Far("late", wait_s=30.0)], [GOOD], deadline_s=0.1)


def test_rows_with_private_fields_never_reach_who_may_not_see_them() -> None:
    far, near = Far("far"), Far("near", 0.2, usd_per_1000=9.0, private=True)
    assert ask([far, near], [GOOD, {**GOOD, "flight": "AA 1"}], private=["flight"]).by == ["near", "near"]
    assert ask([far, near], [{**GOOD, "flight": None}], private=["flight"]).by == ["far"]
    near.fails, far.asked = 99, []
    with pytest.raises(Unavailable, match="may not see private fields"):
        ask([far, near], [{**GOOD, "flight": "AA 1"}], private=["flight"])
    assert not far.asked


@given(
    some.lists(
        some.tuples(some.floats(0, 9), some.floats(0.001, 2), some.booleans(), some.integers(0, 4)),
        max_size=6,
    ),
    some.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_route_names_every_site_once_and_no_forbidden_one(facts: list[tuple], holds: bool) -> None:
    sites = [
        Site(f"s{n}", "remote", usd, s, private, Breaker(failed=bad, until_s=9.0))
        for n, (usd, s, private, bad) in enumerate(facts)
    ]
    found = route(sites, now_s=0.0, budget_s=1.0, holds_private=holds, most_usd_per_1000=5.0)
    assert sorted([site.name for site in found.order] + list(found.passed_over)) == [
        site.name for site in sites
    ]
    for site in found.order:
        assert (site.private or not holds) and site.usd_per_1000 <= 5.0 and site.breaker.failed < 3
    fit = [site for site in found.order if site.expected_s * 2 <= 1.0]
    assert not fit or found.order[0].usd_per_1000 == min(site.usd_per_1000 for site in fit)


def test_a_breaker_lets_one_ask_after_its_rest_and_rests_longer_each_time() -> None:
    breaker = Breaker(failures=2, rest_s=1.0)
    [breaker.bad(0.0) for _ in range(2)]
    assert not breaker.allows(0.9) and breaker.allows(1.0)
    breaker.asked(1.0)
    assert not breaker.allows(1.5), "one asks, the others wait"
    breaker.bad(1.5)
    assert not breaker.allows(3.4) and breaker.allows(3.5)
    breaker.good()
    assert breaker.allows(3.5)


def test_a_cascade_asks_the_big_one_only_where_the_small_one_is_not_sure(engine: Engine) -> None:
    rows = [{**GOOD, "distance": float(100 * n)} for n in range(40)]
    scores = engine.scores(rows)
    middle = sorted(scores)[10:20]
    band, big = Band(middle[0], middle[-1]), Far("big", 0.77, usd_per_1000=9.0)

    async def go() -> list[Any]:
        hybrid = Hybrid([here(engine, "edge"), big.place])
        first = await hybrid.cascade(rows, band, small="edge", deadline_s=60.0)
        big.fails = 99
        return [first, await hybrid.cascade(rows, band, small="edge", deadline_s=60.0)]

    found, alone = asyncio.run(go())
    assert found.by.count("big") == sum(band.unsure(score) for score in scores) == len(big.asked[0])
    assert found.scores == [0.77 if band.unsure(score) else score for score in scores]
    assert (
        alone.scores == scores and "nobody else answered" in alone.why and "big is away" in str(alone.tried)
    )


def test_the_band_keeps_what_it_promises_with_the_fewest_questions() -> None:
    draw = np.random.default_rng(0)
    true = draw.normal(size=4_000)
    y = (draw.random(4_000) < 1 / (1 + np.exp(-2 * true))).astype(float)
    big = 1 / (1 + np.exp(-2 * true))
    small = 1 / (1 + np.exp(-1.5 * (true + draw.normal(0, 0.5, 4_000))))
    band = choose_band(small, big, y, keep=0.99)
    mixed = np.where((small >= band.low) & (small <= band.high), big, small)
    assert auc(y, mixed) == pytest.approx(band.auc) and band.auc >= 0.99 * auc(y, big) and band.share < 0.8
    assert choose_band(big, big, y).share <= 0.06, "where both are one, hardly anything is asked"
    with pytest.raises(BadInput, match="nothing to rank"):
        auc(np.zeros(3), np.zeros(3))


def test_a_service_and_an_engine_answer_as_one(service: Service, engine: Engine) -> None:
    url = f"http://127.0.0.1:{service.port}/predict"
    remote = there(url, TOKEN, name="service", kind="local", usd_per_1000=0.0)

    async def go() -> list[Any]:
        hybrid = Hybrid([remote, here(engine, "edge", usd_per_1000=5.0)], deadline_s=60.0, hedge=False)
        found = [await hybrid.ask([GOOD])]
        with pytest.raises(BadInput, match="refuses the rows"):
            await hybrid.ask([{**GOOD, "seats": 0}], only=["service"])
        remote.ask = there(url[:-8] + "/nowhere", TOKEN, name="service").ask
        return [*found, await hybrid.ask([GOOD])]

    found, without = asyncio.run(go())
    assert found.by == ["service"] and without.by == ["edge"] and "404" in without.tried["service"]
    assert found.scores == without.scores == engine.scores([GOOD])
    with pytest.raises(BadInput, match="use https"):
        there("http://example.org/predict", TOKEN, name="far")


def test_time_is_never_exceeded_by_much(engine: Engine) -> None:
    began = time.monotonic()
    with pytest.raises(Unavailable):
        ask([Far(f"s{n}", wait_s=60.0) for n in range(4)], [GOOD], deadline_s=0.3)
    assert time.monotonic() - began < 20
