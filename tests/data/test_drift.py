"""The measures agree with scipy; the levels follow what moved."""

import threading
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, ks_2samp

from workbench.base.errors import BadInput
from workbench.data.contract import Columns
from workbench.data.distance import ks, psi
from workbench.data.drift import drift

RNG = np.random.default_rng(0)
numbers = st.lists(st.floats(-1e6, 1e6) | st.integers(-3, 3).map(float), min_size=2, max_size=60)


@given(numbers, numbers)
@settings(max_examples=150, deadline=None)
def test_ks_is_scipys(first: list[float], second: list[float]) -> None:
    a, b = np.array(first), np.array(second)
    assert ks(a, b) == pytest.approx(ks_2samp(a, b, method="asymp").statistic, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), min_size=2, max_size=20))
@settings(max_examples=150, deadline=None)
def test_psi_is_the_symmetric_relative_entropy(counts: list[tuple[int, int]]) -> None:
    a, b = np.array(counts).T
    want = entropy(b + 0.5, a + 0.5) + entropy(a + 0.5, b + 0.5)
    assert psi(a, b) == pytest.approx(want, abs=1e-9) and psi(a, b) == pytest.approx(psi(b, a), abs=1e-9)


def test_ten_bins_hold_equal_shares_of_the_reference() -> None:
    column = drift({"x": RNG.normal(size=10_000)}, {"x": RNG.normal(size=5_000)}).columns[0]
    assert len(column.bins) == 11 and column.bins[-1] == "missing"
    assert np.allclose(column.reference[:10], 0.1) and column.reference.sum() == pytest.approx(1)
    assert column.level == "stable" and column.psi < 0.01


@pytest.mark.parametrize(
    ("moved", "level"),
    [
        (RNG.normal(0, 1, 5000), "stable"),
        (RNG.normal(0.4, 1, 5000), "moderate"),
        (RNG.normal(0.8, 1, 5000), "drifted"),
    ],
)
def test_levels(moved: np.ndarray, level: str) -> None:
    report = drift({"x": RNG.normal(0, 1, 20_000)}, {"x": moved})
    assert (report.level, report.columns[0].level) == (level, level)
    assert report.drifted == (["x"] if level == "drifted" else [])


def test_what_moves_is_seen_in_every_kind_of_column() -> None:
    size = 2000
    then = {
        "gaps": RNG.normal(size=size),
        "constant": np.full(size, 5),
        "rare": (RNG.random(size) < 0.02).astype(int),
        "flag": RNG.random(size) < 0.5,
        "carrier": RNG.choice(np.array(["AA", "UA"], dtype=object), size),
        "at": (10**6 * RNG.integers(0, 1000, size)).astype("datetime64[us]"),
        "empty": np.full(size, np.nan),
        "same": RNG.normal(size=size),
    }
    now = then | {
        "gaps": np.where(RNG.random(size) < 0.3, np.nan, then["gaps"]),
        "constant": np.full(size, 3),
        "rare": (RNG.random(size) < 0.4).astype(int),
        "flag": RNG.random(size) < 0.9,
        "carrier": np.full(size, "ZZ", dtype=object),
        "at": then["at"] + np.timedelta64(500, "s"),
        "empty": RNG.normal(size=size),
    }
    report = drift(then, now)
    assert set(report.drifted) == set(then) - {"same"}
    rows = {row["column"]: row for row in report.table()}
    assert rows["gaps"]["moved"].startswith("missing: 0.0% to 3")
    assert rows["constant"]["ks"] == 1.0 and rows["carrier"]["ks"] is None and np.isnan(rows["empty"]["ks"])
    assert [c.psi for c in report.columns] == sorted((c.psi for c in report.columns), reverse=True)
    assert report.columns[-1].column == "same" and report.columns[-1].psi == 0
    assert "drifted" in str(report) and report.rows == (size, size)


def test_many_categories_are_few_bins() -> None:
    tails = np.array([f"N{i}" for i in range(4000)], dtype=object)
    column = drift({"tail": RNG.choice(tails, 9000)}, {"tail": RNG.choice(tails, 9000)}).columns[0]
    assert len(column.bins) == 51 and column.bins[-1].endswith("others") and column.level == "stable"


@given(st.integers(2, 60), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_few_rows_are_not_called_a_drift(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    report = drift({"x": rng.normal(size=3000)}, {"x": rng.normal(size=size)})
    assert report.columns[0].chance > 0 and np.isfinite(report.columns[0].psi)
    assert report.level != "drifted" or report.columns[0].psi > 2 * report.columns[0].chance


def test_infinities_do_not_break_the_bins() -> None:
    values = np.array([1.0, 2.0, np.inf, -np.inf, np.nan] * 20)
    assert drift({"x": values}, {"x": values}).columns[0].psi == 0


def test_bad_input() -> None:
    x = {"x": np.arange(5.0)}
    for reference, current, names in (
        (x, x, ["y"]),
        (x, {"y": np.arange(3)}, None),
        (x, {"x": np.array([])}, None),
        ({"x": np.array([])}, x, None),
        (x, {"x": np.array(["a"], dtype=object)}, None),
    ):
        with pytest.raises(BadInput):
            drift(reference, current, names)


def test_the_card_is_safe_and_drawn_in_any_thread() -> None:
    then = {
        "<b>$x_{$": np.array(["<script>", "$\\frac{", "a & b"] * 50, dtype=object),
        "n": RNG.normal(size=150),
    }
    report, found = drift(then, then), []
    worker = threading.Thread(target=lambda: found.append(report._repr_html_()))
    worker.start()
    worker.join()
    html = found[0]
    assert "<script>" not in html and "<b>$" not in html
    picture = html[html.index("<svg") : html.index("</svg>") + 6]
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert len(report.plot(top=1).axes) == 1
    assert report._repr_html_() == html


def test_keys_and_outcomes_are_compared_only_when_named() -> None:
    arrays = {name: RNG.normal(size=50) for name in ("wind", "id", "delay")}
    then = Columns(arrays, inputs=("wind",))
    assert [c.column for c in drift(then, arrays).columns] == ["wind"]
    assert {c.column for c in drift(then, arrays, ["wind", "delay"]).columns} == {"wind", "delay"}
    assert len(drift(arrays, arrays).columns) == 3


@pytest.mark.parametrize("other", [None, "feed", [1], object()])
def test_what_is_no_columns_is_named(other: object) -> None:
    x = {"x": np.arange(5.0)}
    for pair in ((x, other), (other, x)):
        with pytest.raises(BadInput, match="feed.columns"):
            drift(*pair)  # type: ignore[arg-type]


def test_pictures_are_asked_together_by_their_brightness() -> None:
    rng = np.random.default_rng(0)
    dark, bright = (rng.integers(low, low + 100, (400, 3, 4), dtype=np.uint8) for low in (0, 120))
    assert drift(
        Columns({"image": dark}, ["image"]), Columns({"image": bright}, ["image"]), together=True
    ).joint.alarm
    halves = [Columns({"image": half}, ["image"]) for half in (dark[:200], dark[200:])]
    assert not drift(*halves, together=True).joint.alarm
