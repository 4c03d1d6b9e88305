"""Scores agree with their definitions, and say so when they cannot be computed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.base.errors import BadInput
from workbench.train.metrics import score, slices


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=60))
@settings(max_examples=60, deadline=None)
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[bool, int]]) -> None:
    y, p = np.array([r[0] for r in rows], float), np.array([r[1] / 20 for r in rows])
    won = [(a > b) + 0.5 * (a == b) for a in p[y == 1] for b in p[y == 0]]
    found = score(y, p)
    assert math.isnan(found["auc"]) if not won else found["auc"] == pytest.approx(np.mean(won))
    assert found["brier"] == pytest.approx(np.mean((y - p) ** 2))
    assert found["rows"] == len(rows) and found["rate"] == pytest.approx(y.mean())


@pytest.mark.parametrize(
    ("y", "p", "words"),
    [
        ([0, 1], [0.1], "(2,)"),
        ([], [], "(0,)"),
        ([0, 2], [0.1, 0.2], "2.0"),
        ([0, 1], [0.1, float("nan")], "nan at row 1"),
        ([0, 1], [1.5, 0.2], "1.5 at row 0"),
        ([0, float("nan")], [0.1, 0.2], "nan"),
    ],
)
def test_what_cannot_be_scored_is_named(y: list[float], p: list[float], words: str) -> None:
    with pytest.raises(BadInput, match="outcomes|probability") as caught:
        score(np.array(y), np.array(p))
    assert words in caught.value.what


def test_slices_put_the_worst_first_and_those_without_auc_last() -> None:
    y = np.array([0, 1] * 10 + [1] * 20, float)
    p = np.concatenate([np.tile([0.2, 0.8], 5), np.tile([0.8, 0.2], 5), np.full(20, 0.5)])
    group = np.array(["good"] * 10 + ["bad"] * 10 + [""] * 20, object)
    found = slices(y, p, {"g": group}, min_rows=10)
    assert [(row["group"], row["rows"]) for row in found] == [("bad", 10), ("good", 10), ("(missing)", 20)]
    assert found[0]["auc"] == 0 and found[1]["auc"] == 1 and math.isnan(found[2]["auc"])
    assert slices(y, p, {"g": group}, min_rows=11)[0]["group"] == "(missing)"


def test_a_slice_of_another_length_is_refused() -> None:
    with pytest.raises(BadInput, match="slice 'g' has 1 rows"):
        slices(np.array([0, 1]), np.array([0.1, 0.2]), {"g": np.array(["a"])})
