"""Sketches add up exactly, stay small, and know how wrong they are."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.base.errors import BadInput
from workbench.data.distance import gaps
from workbench.data.sketch import BUCKETS, Numbers, Profile, Words

anything = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40)


@given(anything, anything, st.integers(2, 16))
@settings(max_examples=200, deadline=None)
def test_two_parts_are_one_pass_in_any_order(first: list[float], second: list[float], limit: int) -> None:
    a, b = np.array(first, float), np.array(second, float)
    whole = Numbers(limit).add(np.concatenate([a, b]))
    for parts in ((a, b), (b, a)):
        one, other = (Numbers(limit).add(part) for part in parts)
        for found in (one.merge(other), Numbers(limit).add(parts[0]).add(parts[1])):
            assert (found.shift, found.missing) == (whole.shift, whole.missing)
            assert np.array_equal(found.keys, whole.keys) and np.array_equal(found.counts, whole.counts)
    assert len(whole.keys) <= limit and whole.rows == len(a) + len(b)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60))
@settings(max_examples=150, deadline=None)
def test_few_numbers_are_kept_exactly_and_in_order(values: list[float]) -> None:
    found = Numbers().add(np.array(values))
    assert found.error == 0 and np.array_equal(found.points, np.unique(np.array(values) + 0.0))
    assert found.quantile(np.array([1.0]))[0] == max(values)


@pytest.mark.parametrize("kind", ["normal", "lognormal", "stamps", "far"])
def test_ranks_are_within_the_stated_error(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = {
        "normal": rng.normal(size=60_000),
        "lognormal": rng.lognormal(0, 3, 60_000),
        "stamps": (1.36e15 + rng.random(60_000) * 3e13).astype("datetime64[us]"),
        "far": np.append(rng.normal(1017, 7, 60_000), [1e300, -1e300]),
    }[kind]
    found = Numbers()
    for part in np.array_split(values, 7):
        found.add(part)
    numbers = np.sort(values.astype(np.int64) if kind == "stamps" else values)
    shares = np.linspace(0.01, 0.99, 99)
    ranks = np.searchsorted(numbers, found.quantile(shares)) / len(numbers)
    assert len(found.keys) <= BUCKETS and 0 < found.error < 0.005
    assert np.abs(ranks - shares).max() <= found.error + 1 / len(numbers)
    exact = Numbers(None).add(values)
    assert gaps(exact, found)[0] <= found.error + 1e-9


@given(
    st.lists(st.integers(0, 30), max_size=200), st.lists(st.integers(0, 30), max_size=200), st.integers(1, 12)
)
@settings(max_examples=150, deadline=None)
def test_words_are_never_more_wrong_than_they_say(first: list[int], second: list[int], limit: int) -> None:
    one, other = (
        Words(limit).add(np.array([str(v) for v in part], dtype=object)) for part in (first, second)
    )
    both, truth = one.merge(other), [str(v) for v in first + second]
    assert len(both.counts) <= limit and both.rows == len(truth)
    assert both.error_rows <= len(truth) / (limit + 1)
    for word in set(truth):
        assert truth.count(word) - both.error_rows <= both.counts.get(word, 0) <= truth.count(word)
    assert both.others == len(truth) - sum(both.counts.values())


def test_a_profile_is_plain_json_and_stays_small() -> None:
    rng = np.random.default_rng(0)
    made = Profile.of(
        {"wind": rng.normal(size=30_000), "tail": rng.integers(0, 20_000, 30_000).astype(str)}
        for _ in range(3)
    )
    copy = Profile.from_json(json.loads(json.dumps(made.to_json())))
    assert copy.rows == made.rows == 90_000 and copy.to_json() == made.to_json()
    assert len(made.columns["wind"].keys) <= 8192 and len(made.columns["tail"].counts) <= 4096
    assert "90,000 rows" in str(made) and "wind" in made._repr_html_()


def test_what_does_not_fit_is_named() -> None:
    made = Profile.of({"a": np.arange(3)})
    for wrong in ({"b": np.arange(3)}, {"a": np.array(["x"])}, None):
        with pytest.raises(BadInput):
            made.add(wrong)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="one profile only"):
        made.merge(Profile.of({"b": np.arange(3)}))
    with pytest.raises(BadInput, match="no profile"):
        Profile.from_json({"a": {"keys": 3}})
