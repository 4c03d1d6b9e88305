"""Distances agree with scipy, limits keep the rate they state, and what moves jointly is seen."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, wasserstein_distance

from workbench.base.errors import BadInput
from workbench.data.distance import chi2, wasserstein
from workbench.data.drift import drift
from workbench.data.joint import joint
from workbench.data.limits import Limits, _beyond, calibrate
from workbench.data.sketch import Profile

numbers = st.lists(st.floats(-1e6, 1e6) | st.integers(-3, 3).map(float), min_size=1, max_size=60)


@given(numbers, numbers)
@settings(max_examples=150, deadline=None)
def test_wasserstein_is_scipys(first: list[float], second: list[float]) -> None:
    want = wasserstein_distance(first, second)
    assert wasserstein(np.array(first), np.array(second)) == pytest.approx(want, rel=1e-9, abs=1e-6)


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=2, max_size=20))
@settings(max_examples=100, deadline=None)
def test_chi_square_is_scipys(counts: list[tuple[int, int]]) -> None:
    a, b = np.array(counts).T
    assert chi2(a, b) == pytest.approx(
        chi2_contingency([a, b], correction=False).statistic, rel=1e-9, abs=1e-9
    )


def world(rows: int, seed: int, shift: float = 0.0) -> dict[str, np.ndarray]:
    "Columns of every kind; `both` are one thing twice."
    rng = np.random.default_rng(seed)
    both = rng.normal(size=rows)
    return {
        "temp": rng.normal(shift, 1, rows),
        "gust": np.where(rng.random(rows) < 0.7, np.nan, rng.gamma(2, 5, rows)),
        "precip": np.where(rng.random(rows) < 0.95, 0.0, rng.exponential(size=rows)),
        "both": both,
        "both again": both * 2,
        "constant": np.full(rows, 2013),
        "carrier": rng.choice(np.array(["UA", "AA", "B6", ""], dtype=object), rows, p=[0.6, 0.3, 0.09, 0.01]),
        "dest": rng.choice(np.array([f"D{i}" for i in range(90)], dtype=object), rows),
    }


@pytest.mark.parametrize(
    ("then", "now", "turns"),
    [(1500, 1500, 60), pytest.param(6000, 800, 200, marks=pytest.mark.slow)],
)
def test_calm_rows_alarm_as_often_as_stated(then: int, now: int, turns: int) -> None:
    rate = 0.1
    alarms = sum(
        bool(drift(world(then, 2 * turn), world(now, 2 * turn + 1), false_alarms=rate, seed=turn).alarms)
        for turn in range(turns)
    )
    assert alarms / turns < rate + 3 * (rate * (1 - rate) / turns) ** 0.5


def test_a_small_real_shift_alarms_before_it_has_a_level() -> None:
    report = drift(world(6000, 0), world(6000, 1, shift=0.15), false_alarms=0.05)
    assert report.alarms == ["temp"] and report.level == "stable" and report.false_alarms == 0.05
    column = report.columns[0]
    assert set(column.past or ()) >= {"ks", "wasserstein"} and column.alarm
    assert "alarms: temp" in str(report) and list(report.plots()) == ["temp"]
    assert len(report.plots()["temp"].axes) == 2


def test_a_constant_that_changes_alarms_and_one_that_stays_does_not() -> None:
    then, now = world(3000, 0), world(700, 1)
    limits = calibrate(then, permutations=200)
    assert "constant" not in drift(then, now, limits=limits).alarms
    now["constant"] = np.full(700, 2014)
    assert "constant" in drift(then, now, limits=limits).alarms


def test_limits_set_once_serve_a_stream() -> None:
    then = world(6000, 0)
    limits = calibrate(then, permutations=200)
    calm, moved = (Profile.of(world(500, seed, shift) for seed in range(20, 28)) for shift in (0.0, 0.3))
    report = drift(Profile.of(then), calm, limits=limits)
    assert report.alarms == [] and report.rows == (6000, 4000)
    assert drift(Profile.of(then), moved, limits=limits).alarms == ["temp"]
    exact = drift(then, {n: np.concatenate([world(500, s, 0.3)[n] for s in range(20, 28)]) for n in then})
    streamed = drift(Profile.of(then), moved)
    for a, b in zip(exact.columns, streamed.columns, strict=True):
        assert a.column == b.column and a.psi == pytest.approx(b.psi, abs=1e-9)


def test_chance_is_measured_over_the_bins_that_are_used_later() -> None:
    rows = world(4000, 3)
    limits = calibrate(rows, permutations=200)
    shuffled = np.random.default_rng(0).permutation(4000)
    first, second = ({name: v[half] for name, v in rows.items()} for half in (shuffled[:200], shuffled[200:]))
    here = {c.column: c.bins for c in drift(first, second, limits=limits).columns}
    there = {c.column: c.bins for c in drift(second, first, limits=limits).columns}
    own = {c.column: c.bins for c in drift(first, second).columns}
    assert all(here[name] == there[name] for name in limits.bins) and here["temp"] != own["temp"]
    assert Limits(**json.loads(json.dumps(limits.to_json()))).bins["temp"] == list(limits.bins["temp"])


def test_a_limit_is_set_by_how_far_a_cut_lies_from_the_others() -> None:
    values = np.random.default_rng(0).gamma(2, size=50)
    others = [np.delete(values, at) for at in range(50)]
    want = [(value - rest.mean()) / rest.std() for value, rest in zip(values, others, strict=True)]
    assert _beyond(values) == pytest.approx(want)
    assert np.isfinite(_beyond(np.array([0.0] * 9 + [1.0]))).all()


def test_what_moves_only_jointly_is_seen_by_the_classifier() -> None:
    then, now = world(3000, 0), world(3000, 1)
    now["both again"] = np.random.default_rng(5).normal(size=3000) * 2
    report = drift(then, now, false_alarms=0.05, together=True)
    assert report.alarms == ["(together)"] and report.false_alarms == pytest.approx(0.05)
    assert report.joint and {name for name, _ in report.joint.by[:2]} == {"both", "both again"}
    assert "Joint AUC" in report._repr_html_()


def test_the_classifier_is_calm_on_calm_rows() -> None:
    found = [
        joint(world(400, 2 * s), world(400, 2 * s + 1), ["temp", "gust", "carrier"], false_alarms=0.1, seed=s)
        for s in range(15)
    ]
    assert sum(one.alarm for one in found) <= 5


def test_bad_input_is_named() -> None:
    x = world(100, 0)
    for call in (
        lambda: calibrate(x, false_alarms=0.001),
        lambda: calibrate(x, false_alarms=2.0),
        lambda: calibrate(x, ["nothing"]),
        lambda: calibrate({"a": np.arange(5)}),
        lambda: calibrate(None),  # type: ignore[arg-type]
        lambda: drift(x, x, limits=calibrate({"a": np.arange(50.0)}, permutations=100)),
        lambda: drift(Profile.of(x), x, false_alarms=0.05),
        lambda: drift(x, Profile.of(x), together=True),
    ):
        with pytest.raises(BadInput):
            call()
