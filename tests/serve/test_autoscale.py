"""How many replicas, from numbers and moments alone; and what the door in front of a cluster lets in."""

import hashlib
import json
import pickle
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from workbench.base.errors import BadInput, BadSetting
from workbench.serve import edge
from workbench.serve.autoscale import (
    GROWTH,
    Goal,
    Pulse,
    Scaler,
    Seen,
    as_zone,
    parse_window,
    scheduled,
    wanted,
)
from workbench.serve.counts import Counts
from workbench.serve.replica import Scale, parse_replicas

BERLIN = as_zone("Europe/Berlin")
seen = st.builds(Seen, st.integers(0, 200), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1e5))


@given(seen, st.floats(0, 1), st.floats(0, 1e5))
def test_more_load_never_asks_for_fewer_replicas(now: Seen, late: float, ongoing: float) -> None:
    worse = now._replace(late=max(late, now.late), ongoing=max(ongoing, now.ongoing), busy=1.0)
    found = wanted(now, Goal()), wanted(worse, Goal())
    assert 1 <= found[0] <= found[1] <= max(now.replicas + 1, GROWTH * max(1, now.replicas))


@pytest.mark.parametrize(
    ("now", "replicas"),
    [
        (Seen(4, 0.0, 0.0, 0), 1),  # nothing to do
        (Seen(2, 0.6, 0.0, 32), 2),  # just what two can do
        (Seen(2, 0.61, 0.0, 0), 3),  # busy
        (Seen(2, 0.1, 0.02, 0), 3),  # late, though hardly busy
        (Seen(10, 0.1, 0.5, 0), 20),  # half is refused: twice as many
        (Seen(2, 0.1, 0.0, 33), 3),  # requests wait
        (Seen(3, 1.0, 1.0, 1e9), 6),  # a step at most doubles
        (Seen(0, 0.0, 0.0, 1), 1),
    ],
)
def test_what_asks_for_most_is_heard(now: Seen, replicas: int) -> None:
    assert wanted(now, Goal()) == replicas


def at(day: int, hour: int, minute: int = 0, month: int = 11) -> datetime:
    return datetime(2026, month, day, hour, minute, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("line", "moment", "replicas"),
    [
        ("sat-sun 10:00-22:00 6", at(28, 9, 56), 0),
        ("sat-sun 10:00-22:00 6", at(28, 9, 57), 6),  # three minutes before
        ("sat-sun 10:00-22:00 6", at(28, 21, 59), 6),
        ("sat-sun 10:00-22:00 6", at(28, 22), 0),
        ("sat-sun 10:00-22:00 6", at(27, 12), 0),
        ("fri-mon 22:00-02:00 3", at(30, 23), 3),
        ("fri-mon 22:00-02:00 3", at(24, 1, month=11), 3),  # monday's, on tuesday
        ("fri-mon 22:00-02:00 3", at(25, 1), 0),
        ("mon,wed 08:00-24:00 2", at(25, 23, 59), 2),
        ("2026-12-24 08:00-20:00 12", at(24, 12, month=12), 12),
        ("2026-12-24 08:00-20:00 12", at(25, 12, month=12), 0),
        ("daily 00:00-06:00 4", at(24, 23, 58, month=12), 4),  # the lead is on the day before
    ],
)
def test_the_calendar_wants_replicas_when_it_says(line: str, moment: datetime, replicas: int) -> None:
    assert scheduled([parse_window(line)], moment, BERLIN) == replicas
    assert scheduled([parse_window(line)], moment.astimezone(UTC), BERLIN) == replicas


def test_a_window_keeps_the_time_on_the_wall_when_the_clocks_change() -> None:
    window = parse_window("sun 02:30-04:00 2")
    for day, hours in ((date(2026, 3, 29), 1), (date(2026, 10, 25), 1.5), (date(2026, 11, 1), 1.5)):
        begins, ends = window.begins_and_ends(day, BERLIN)
        assert ends.astimezone(BERLIN).strftime("%H:%M") == "04:00"
        assert ends - begins in (timedelta(hours=hours), timedelta(hours=hours + 1), timedelta(minutes=30))


@pytest.mark.parametrize(
    "line",
    ["", "sat", "sat 10-12 3", "sat 10:00-12:00 0", "sat 10:00-10:00 3", "sat 24:00-25:00 3", "sat 10:61-12:00 3",
     "caturday 10:00-12:00 3", "2026-02-30 10:00-12:00 3", "sat 10:00-12:00 99999", "-sat 10:00-12:00 3"],
)  # fmt: skip
def test_a_window_that_cannot_be_is_refused(line: str) -> None:
    with pytest.raises(BadInput):
        parse_window(line)


def test_ray_asks_with_what_replicas_said() -> None:
    scaler = Scaler(["sat-sun 10:00-22:00 6"], zone="Europe/Berlin", slo_ms=100.0)
    told = {"busy": {"a": 0.9, "b": 0.7}, "late": {"a": 0.0, "b": 0.0}}
    asked: dict[str, Any] = {"current_num_replicas": 2, "total_num_requests": 3.0, "aggregated_metrics": told}
    monday, saturday = at(30, 12).timestamp(), at(28, 12).timestamp()
    assert scaler(SimpleNamespace(**asked, current_time=monday)) == (3, {})
    assert scaler(SimpleNamespace(**asked, current_time=saturday)) == (6, {})
    unseen = asked | {"aggregated_metrics": told | {"in_flight": {"a": 90.0, "b": 60.0}}}
    assert scaler(SimpleNamespace(**unseen, current_time=monday))[0] > 3, (
        "Ray does not see what goes the short way"
    )
    nothing = asked | {"aggregated_metrics": None, "total_num_requests": 0.0}
    assert scaler(SimpleNamespace(**nothing, current_time=monday)) == (1, {})


def test_a_replica_counts_the_refused_among_the_late() -> None:
    counts, moments = Counts(), iter([0.0, 4.0, 6.0, 8.0])
    pulse = Pulse(counts, slo_ms=250, clock=lambda: next(moments))
    [counts.total_s.add(seconds) for seconds in [0.01] * 6 + [0.9] * 2]
    counts.shed, counts.expired = 1, 1
    counts.compute_s.add(1.0, 2)
    assert pulse() == {"busy": 0.5, "late": 0.4}
    assert pulse() == {"busy": 0.0, "late": 0.0}, "since the last time"


def test_a_scale_that_cannot_be_is_refused() -> None:
    for wrong in ({"least": 0}, {"least": 3, "most": 2}, {"cpus": 0}, {"zone": "Mars/Base"}):
        with pytest.raises(BadInput):
            Scale(**wrong)
    with pytest.raises(BadInput, match="more than 4"):
        Scale(1, 4, schedule=("sat 10:00-12:00 6",))
    assert (parse_replicas("2"), parse_replicas("1:8")) == ((2, 2), (1, 8))
    for text in ("", ":", "1:", "a", "-1", "1:2:3"):
        with pytest.raises(BadInput):
            parse_replicas(text)


TOKEN = "token-of-the-door-0123456"


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    for name, value in edge.environment([digest], body_bytes=1000).items():
        assert TOKEN not in value
        monkeypatch.setenv(name, value)

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        pickle.dumps(scope)  # as Ray does
        told = [value.decode() for name, value in scope["headers"] if name == edge.STAMP]
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})

    for layer in reversed(edge.doors()):
        behind = layer.cls(behind, *layer.args, **layer.kwargs)
    return TestClient(behind, base_url="http://localhost", headers={"authorization": f"Bearer {TOKEN}"})


def test_the_door_stamps_what_it_lets_in_and_refuses_the_rest(door: TestClient) -> None:
    [stamp] = door.post("/predict", content=b"{}").json()
    assert abs(float(stamp.removeprefix("t=")) - datetime.now(UTC).timestamp()) < 5
    older = f"t={datetime.now(UTC).timestamp() - 3:.3f}"
    [kept] = door.post("/predict", content=b"{}", headers={"x-request-start": older}).json()
    assert float(kept[2:]) == float(older[2:])
    for odd in ("t=1", "t=99999999999", "soon", "nan"):
        [made] = door.post("/predict", content=b"{}", headers={"x-request-start": odd}).json()
        assert made[2:] not in odd and float(made[2:]) > 1e9
    assert door.post("/predict", content=b"{}", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert door.post("/predict", content=b"x" * 1001).status_code == 413
    assert door.get("/readyz", headers={"host": "evil.example"}).status_code == 403


def test_a_door_without_its_word_is_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in (None, "{", "{}", '{"digests": 3, "hosts": [], "body_bytes": 1}'):
        monkeypatch.delenv(edge.DOORS, raising=False)
        if word is not None:
            monkeypatch.setenv(edge.DOORS, word)
        with pytest.raises(BadSetting, match="cannot be read"):
            edge.doors()
