"""An engine that runs: the same bits, together; nobody waits in vain, nobody is dropped by a promotion."""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Hashable, Iterable
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import toy
from conftest import CONTRACT, GOOD, parts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine import ROW

from workbench.base.errors import BadInput, BadRow, WorkbenchError
from workbench.base.ledger import Ledger
from workbench.data.contract import Column, Contract
from workbench.models.shelf import Shelf
from workbench.serve.cache import LOOKS, SAMPLE, Cache, Repeats
from workbench.serve.checker import Checker
from workbench.serve.counts import Histogram
from workbench.serve.engine import Engine
from workbench.serve.lane import Loaded
from workbench.serve.policy import Overloaded, Policy

SIMPLE = Contract(
    "simple",  # whose rows are looked at as a whole
    {
        "carrier": Column("str", max_len=3),
        "kind": Column("str", isin=("a", "b", "")),
        "distance": Column("float", ge=-2, le=6000),
        "wind": Column("float", nullable=True),
        "seats": Column("int", ge=-1, le=900),
        "stops": Column("int", isin=(0, 1)),
        "wet": Column("bool"),
    },
)
RIGHT = {"carrier": "AA", "kind": "a", "distance": 1.5, "wind": 2.0, "seats": 150, "stops": 0, "wet": False}
VALUE = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.just("2013-01-31T17:05:00Z")
)
SHARED = settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)


@SHARED
@given(row=ROW, changed=st.dictionaries(st.sampled_from([*GOOD, "flight", "late", "x"]), VALUE, max_size=2))
def test_the_compiled_contract_accepts_refuses_and_reads_as_the_contract_does(
    row: dict, changed: dict
) -> None:
    reads_as(CONTRACT, row | changed)


def reads_as(contract: Contract, asked: dict) -> None:
    checker = Checker(contract)
    try:
        wanted = contract.parse_rows([asked])
    except BadRow as error:
        with pytest.raises(BadRow) as caught:
            checker.read(asked)
        assert caught.value.args == error.args
        return
    found = checker.columns([checker.read(asked)[0]])
    for name in contract.inputs:
        assert found[name].dtype == wanted[name].dtype
        same = found[name].tolist() == wanted[name].tolist()
        assert same if wanted[name].dtype == object else found[name].tobytes() == wanted[name].tobytes()


NEAR = st.sampled_from(
    [
        0,
        1,
        -1,
        -2,
        901,
        0.0,
        -0.0,
        6000.0,
        6000.5,
        "",
        "a",
        "b",
        "c",
        "AAA",
        "AAAA",
        "\u00e9",
        2**53,
        -(2**53) - 1,
    ]
)


@SHARED
@given(
    changed=st.dictionaries(st.sampled_from([*RIGHT, "x"]), NEAR | VALUE, max_size=2),
    missing=st.sampled_from(["", *RIGHT]),
)
def test_so_does_one_whose_rows_are_looked_at_as_a_whole(changed: dict, missing: str) -> None:
    reads_as(SIMPLE, {name: value for name, value in (RIGHT | changed).items() if name != missing})


UNUSUAL = [
    {"distance": -0.0}, {"distance": 1}, {"distance": -2.5}, {"distance": 6000.5}, {"wind": None}, {"wind": math.nan},
    {"seats": True}, {"seats": -2}, {"seats": 901}, {"stops": 2}, {"kind": "c"}, {"carrier": "AAAA"}, {"carrier": "\u00e9"},
]  # fmt: skip


def test_equal_rows_of_other_bits_are_not_shared_and_plain_rows_are_read_as_a_whole() -> None:
    checker = Checker(SIMPLE)
    assert checker._together.read(RIGHT) == tuple(RIGHT.values())
    for changed in UNUSUAL:
        assert checker._together.read(RIGHT | changed) is None
    assert checker.read(RIGHT | {"distance": 0.0})[1] and not checker.read(RIGHT | {"distance": -0.0})[1]
    assert Checker(CONTRACT)._together is None


def run(engine: Engine, body: Any) -> Any:
    async def inside() -> Any:
        async with engine:
            return await body(engine)

    return asyncio.run(inside())


def rows(n: int) -> list[dict[str, Any]]:
    return [{**GOOD, "distance": float(i % 6000), "seats": 1 + i % 300} for i in range(n)]


def test_many_callers_get_the_bits_of_one(engine: Engine) -> None:
    asked = rows(700)
    wanted = engine.scores(asked)

    async def body(engine: Engine) -> Any:
        single = await asyncio.gather(*[engine.predict(row) for row in asked])
        return [answer["prediction"] for answer in single], await engine.predict(asked)

    single, many = run(engine, body)
    assert single == wanted and [answer["prediction"] for answer in many] == wanted
    assert engine.counts.batches < 200 and engine.counts.batch_rows.count == engine.counts.batches
    assert engine.predict(asked[3])["prediction"] == wanted[3], "and at once again, when it has stopped"


def test_awaited_or_not_running_or_not_the_answer_is_the_same(engine: Engine) -> None:
    async def waiting() -> Any:
        return await engine.predict(GOOD), await engine.predict([GOOD])

    plain = engine.predict(GOOD)
    assert asyncio.run(waiting()) == (plain, [plain]) and isinstance(plain, dict)
    with pytest.raises(BadInput, match="does not run"):
        asyncio.run(engine.ask([GOOD]))


def test_equal_rows_are_scored_once_and_then_not_at_all(engine: Engine) -> None:
    async def body(engine: Engine) -> Any:
        first = await asyncio.gather(*[engine.ask([dict(reversed(GOOD.items()))]) for _ in range(50)])
        return first, await engine.ask([GOOD])

    first, again = run(engine, body)
    assert engine.counts.rows == 1 and engine.counts.joined == 49 and engine.counts.hit == 1
    assert {tuple(found.scores) for found in first} == {tuple(again.scores)}
    assert again.trace.how == "hit" and {found.trace.how for found in first} == {"run", "joined"}


def test_a_key_is_that_of_equal_rows_of_one_version(ledger: Ledger) -> None:
    shelf = Shelf(ledger)
    one, two = (Loaded(shelf.add("delays", **toy.linear_parts(slope=x)), Policy()) for x in (1.0, 2.0))
    rows = [
        (1.5, None, "AA"),
        (1.5, None, "A"),
        (1.5, 0.0, "AA"),
        (1.5, "", "AA"),
        (1.5, False, "AA"),
        (1, None, "AA"),
    ]
    rows += [(datetime(2013, 1, day), None, "AA") for day in (1, 2)]  # a moment has no bytes of its own
    again = [(*row[:2], "".join(list(row[2]))) for row in rows]
    assert [one.key(row) for row in rows] == [one.key(row) for row in again]
    assert len({found.key(row) for found in (one, two) for row in rows + again}) == 2 * len(rows)
    assert all(isinstance(one.key(row), bytes) for row in rows[:6])


def test_a_caller_who_leaves_takes_nobodys_answer_away(engine: Engine) -> None:
    async def body(engine: Engine) -> Any:
        leaving = asyncio.create_task(engine.ask([GOOD]))
        staying = asyncio.create_task(engine.ask([GOOD]))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert run(engine, body).scores == engine.scores([GOOD])


def test_a_row_fails_alone(moody: Engine) -> None:
    moody.contract.columns["distance"].__dict__["le"] = None
    bad = {**GOOD, "distance": 1e9}

    async def body(engine: Engine) -> Any:
        asked = [engine.ask([row]) for row in (GOOD, bad, {**GOOD, "seats": 7}, {**GOOD, "seats": 0})]
        return await asyncio.gather(*asked, return_exceptions=True)

    good, failed, other, refused = run(moody, body)
    assert good.scores == other.scores == [0.5]
    assert isinstance(failed, WorkbenchError) and "gave nan" in str(failed) and isinstance(refused, BadRow)
    assert moody.counts.failed == 1


def test_a_refused_row_of_many_is_named_with_its_place(engine: Engine) -> None:
    asked = rows(300)
    asked[170] = {**GOOD, "seats": 0}
    with pytest.raises(BadRow, match="row 170: 'seats' 0 is below 1") as caught:
        run(engine, lambda engine: engine.predict(asked))
    assert caught.value.row == 170


def slow(engine: Engine, seconds: float) -> Engine:
    "The same answers, later: as long a batch as a model of many layers takes."
    real = engine.loaded.score
    engine.loaded.__dict__["score"] = lambda batch: (time.sleep(seconds * len(batch)), real(batch))[1]
    engine.loaded.policy.seconds = {size: seconds * size for size in (1, 2, 4, 8)}
    return engine


def test_what_cannot_be_in_time_is_refused_at_once_and_the_rest_is_in_time(bundle: Any) -> None:
    engine = slow(Engine(bundle, deadline_s=0.5, cache_rows=0), 0.02)
    took: list[float] = []

    async def one(engine: Engine, row: dict) -> Any:
        started = time.monotonic()
        try:
            return await engine.ask([row])
        except Overloaded as error:
            took.append(time.monotonic() - started)
            return error

    async def body(engine: Engine) -> Any:
        found = await asyncio.gather(*[one(engine, row) for row in rows(200)])
        return found, await engine.ask([GOOD])

    found, after = run(engine, body)
    refused = [error for error in found if isinstance(error, Overloaded)]
    assert 100 < len(refused) < 200 and engine.counts.shed > 100
    assert all(error.retry_after_s > 0 for error in refused)
    assert sorted(took)[len(took) // 2] < 0.3, "at once, and not when the deadline has passed"
    assert after.scores == engine.scores([GOOD])
    with pytest.raises(Overloaded, match="200 rows take about"):
        run(engine, lambda engine: engine.predict(rows(200)))


def test_promote_and_roll_back_under_steady_load_fail_nobody(bundle: Any, ledger: Ledger) -> None:
    shelf = Shelf(ledger)
    other = parts()
    other["weights"] |= {"bias": np.array([3.0])}
    shelf.add("flights", **other)
    shelf.set_alias("flights", "champion", 1)
    wanted = {version: Engine(f"flights/{version}", ledger).scores([GOOD])[0] for version in (1, 2)}
    engine = Engine("flights@champion", ledger, watch_s=0.01)
    answers: list[Any] = []

    async def client(engine: Engine, stop: asyncio.Event) -> None:
        while not stop.is_set():
            answers.append(await engine.predict(GOOD))
            await asyncio.sleep(random.random() / 200)

    async def body(engine: Engine) -> None:
        stop = asyncio.Event()
        clients = [asyncio.create_task(client(engine, stop)) for _ in range(8)]
        for version in (2, 1, 2):
            shelf.set_alias("flights", "champion", version)
            async with asyncio.timeout(20):
                while engine.version != version:
                    await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*clients)

    run(engine, body)
    assert engine.counts.swaps == 3 and engine.counts.failed == engine.counts.shed == 0
    assert {answer["version"] for answer in answers} == {1, 2}
    assert all(answer["prediction"] == wanted[answer["version"]] for answer in answers)


def test_a_version_that_cannot_be_loaded_changes_nothing(bundle: Any, ledger: Ledger, capfd: Any) -> None:
    shelf = Shelf(ledger)
    shelf.set_alias("flights", "champion", 1)
    engine = Engine("flights@champion", ledger)
    bad = shelf.add("flights", **parts())
    (bad.path / "weights.safetensors").write_bytes(b"not weights")
    shelf.set_alias("flights", "champion", 2)
    assert not engine.refresh() and not engine.refresh() and engine.version == 1
    assert engine.counts.swap_failures == 1 and capfd.readouterr().err.count("version refused") == 1
    shelf.move_back("flights", "champion")
    assert not engine.refresh() and engine.predict(GOOD)["version"] == 1


def test_a_swap_between_two_batches_leaves_what_waits_with_the_version_it_asked(
    ledger: Ledger, bundle: Any
) -> None:
    engine = slow(Engine("flights/1", ledger, cache_rows=0), 0.01)
    other = Engine(bundle)

    async def body(engine: Engine) -> Any:
        asked = [asyncio.create_task(engine.ask([row])) for row in rows(20)]
        await asyncio.sleep(0.02)
        old = engine.loaded
        engine.take(other.loaded)
        later = await engine.ask([GOOD])
        return await asyncio.gather(*asked), old, later

    before, old, later = run(engine, body)
    assert all(found.loaded is old for found in before) and later.loaded is other.loaded


WAITS = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 200)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(
    waiting=WAITS,
    cost=st.lists(st.tuples(st.integers(1, 300), st.floats(1e-5, 0.5)), min_size=1, max_size=12),
    tiles=st.sampled_from([(), (0,), (0, 1, 2, 3, 4, 4, 4, 7, 8), tuple(range(33))]),
)
def test_the_policy_never_stalls_and_never_reorders(waiting: list, cost: list, tiles: tuple) -> None:
    policy = Policy(largest_tiles=tiles)
    for size, took_s in cost:
        policy.observe(size, took_s)
    asks = [SimpleNamespace(deadline_s=until, rows=n) for until, n in waiting]
    left = len(asks)
    while left:
        split = policy.split(asks[len(asks) - left :], 0.5)
        assert 0 < split.expired + split.taken <= left
        taken = asks[len(asks) - left + split.expired :][: split.taken]
        assert sum(ask.rows for ask in taken) == split.rows
        assert split.taken <= 1 or split.rows <= policy.most_rows
        left -= split.expired + split.taken
    assert 1 <= policy.best_rows <= 256 and policy.expected_s(7) >= 0


def test_the_policy_learns_a_model_of_steps_and_forgets_a_hiccup() -> None:
    policy = Policy(deadline_s=1.0, headroom=0.5)
    for _ in range(30):
        for size, ms in ((1, 8), (2, 8), (4, 16), (8, 16), (16, 48), (32, 137)):
            policy.observe(size, ms / 1e3)
    assert policy.best_rows == 8
    policy.observe(8, 30.0)
    assert policy.expected_s(8) < 0.05
    policy.admit(1, queued=100, busy_s=0.0, budget_s=1.0)
    with pytest.raises(Overloaded, match="400 rows wait"):
        policy.admit(1, queued=400, busy_s=0.0, budget_s=1.0)


def test_a_size_that_a_bad_moment_made_slow_is_tried_again() -> None:
    policy, true_s = Policy(), {1: 0.01, 2: 0.014, 4: 0.024, 8: 0.043, 16: 0.081, 32: 0.156}
    for size in (1, 2, 4):
        policy.observe(size, true_s[size])
    policy.observe(8, 0.07)
    policy.observe(16, 0.19)
    assert policy.best_rows == 4
    for _ in range(400):
        policy.observe(policy.most_rows, true_s[policy.most_rows])
    assert policy.best_rows == 16, "32 have no better rate, and 4 have less"


TILE_MS = {1: 12.5, 2: 18.0, 4: 29.0, 8: 51.0, 16: 99.0}  # a transformer, measured
TILES = tuple(min(rows, max((size for size in TILE_MS if size <= rows), default=0)) for rows in range(17))


def p99_ms(tiles: tuple[int, ...], rate: float) -> float:
    "Of 60,000 requests at random moments, each batch as many tiles as it takes."
    policy, waiting = Policy(largest_tiles=tiles), deque()
    for size, ms in TILE_MS.items():
        policy.observe(size, ms / 1e3)
    due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, 60_000)).tolist()
    clock, came, took = 0.0, 0, []
    while len(took) < len(due):
        if not waiting:
            clock = max(clock, due[came])
        while came < len(due) and due[came] <= clock:
            waiting.append(SimpleNamespace(deadline_s=due[came] + 60.0, rows=1))
            came += 1
        rows = policy.split(waiting, clock).rows
        left = rows
        while left:
            clock += TILE_MS[TILES[left]] / 1e3
            left -= TILES[left]
        took += [clock - waiting.popleft().deadline_s + 60.0 for _ in range(rows)]
    return float(np.quantile(took, 0.99)) * 1e3


def test_a_long_batch_ends_with_a_tile_so_that_nobody_waits_for_the_rest_of_it() -> None:
    nine = [SimpleNamespace(deadline_s=9.0, rows=1)] * 9
    assert Policy(largest_tiles=TILES, seconds={16: 0.1}, best_rows=16).split(nine, 0.0).rows == 8
    assert Policy(largest_tiles=TILES, seconds={16: 0.001}, best_rows=16).split(nine, 0.0).rows == 9, (
        "soon done anyway"
    )
    together, divided = p99_ms((), 118), p99_ms(TILES, 118)
    assert divided < 0.92 * together, (divided, together)


@pytest.mark.parametrize("slower", [1.0, 1.5, 4.0])
def test_ten_times_the_load_is_answered_in_time_as_much_as_can_be(slower: float) -> None:
    policy, waiting, clock, good, late = Policy(), deque(), 0.0, 0, 0
    for size in (1, 2, 4, 8):
        policy.observe(size, size * 5e-3)
    while clock < 20.0:  # 2,000 a second come; a batch is on its way for longer than the model takes
        split = policy.split(waiting, clock)
        for _ in range(split.expired):
            waiting.popleft()
        taken = [waiting.popleft() for _ in range(split.taken)]
        away_s = max(1, split.rows) * 5e-3 * slower
        for number in range(int(away_s * 2000)):
            at_s = number / 2000
            busy_s = max(0.0, policy.expected_s(split.rows) - at_s)
            if not policy.late_s(1, len(waiting), busy_s, 1.0):
                waiting.append(SimpleNamespace(deadline_s=clock + at_s + 1.0, rows=1))
        clock += away_s
        in_time = sum(clock <= ask.deadline_s for ask in taken)
        good, late = good + in_time, late + len(taken) - in_time
        if taken:
            policy.observe(split.rows, split.rows * 5e-3, away_s)
    able = 20.0 / (5e-3 * slower)
    assert good >= 0.97 * able and late <= 0.02 * able, "those let in before it had learnt"


def test_a_cache_is_bounded_in_number_and_age() -> None:
    clock = SimpleNamespace(now=0.0)
    cache = Cache(rows=3, ttl_s=10, clock=lambda: clock.now)
    for i in range(5):
        cache.put(i, i / 10)
    assert len(cache) == 3 and cache.get(0) is None and cache.get(4) == 0.4
    clock.now = 11
    assert cache.get(4) is None and len(cache) == 2
    nothing = Cache(rows=0)
    nothing.put(1, 0.5)
    assert nothing.get(1) is None


@given(values=st.lists(st.floats(0, 20), min_size=1), share=st.floats(0.01, 1))
def test_a_quantile_is_never_less_than_the_truth(values: list, share: float) -> None:
    found = Histogram((0.1, 1, 5))
    for value in values:
        found.add(value)
    assert found.count == len(values)
    assert found.quantile(share) >= sorted(values)[max(0, int(np.ceil(share * len(values) - 1e-9)) - 1)]


def test_rows_are_not_looked_for_where_none_is_asked_again_until_some_are() -> None:
    repeats, seen = Repeats(), set[Hashable]()

    def looked(rows: Iterable[Hashable]) -> int:
        times = 0
        for row in rows:
            if repeats.wanted(row):
                repeats.saw(row in seen)
                seen.add(row)
                times += 1
        return times

    assert looked((n,) for n in range(LOOKS)) == LOOKS and not repeats.worth
    once = looked((n, "new") for n in range(20_000))
    assert 0.8 * 20_000 / SAMPLE < once < 1.2 * 20_000 / SAMPLE
    looked(row for n in range(8 * SAMPLE * LOOKS) for row in ((n, "cold"), ("hot",)))  # its turn comes
    assert repeats.worth and looked([("hot",)] * 500) == 500
