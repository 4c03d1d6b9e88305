"""Agreement of labellers, against published examples."""

from collections.abc import Callable

import numpy as np
import pytest

from workbench.base.errors import BadInput
from workbench.data.agreement import agreement, alpha, cohen_kappa, fleiss_kappa, majority

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: 4 observers, 12 units, gaps.
GAPS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
# Fleiss (1971), as worked out at https://en.wikipedia.org/wiki/Fleiss%27_kappa: 14 raters, 10 items.
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


@pytest.mark.parametrize(("scale", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_krippendorffs(scale: str, value: float) -> None:
    assert alpha(np.array(GAPS, dtype=object).T, scale) == pytest.approx(value, abs=0.0006)


def test_fleiss_kappa_is_the_published_one() -> None:
    labels = [[code for code, n in enumerate(row) for _ in range(n)] for row in FLEISS]
    assert fleiss_kappa(np.array(labels)) == pytest.approx(0.210, abs=0.0005)


def test_cohens_kappa_is_the_published_one() -> None:
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    assert cohen_kappa(*zip(*pairs, strict=True)) == pytest.approx(0.4)


def test_a_labeller_who_guesses_is_found_and_ties_are_disputed() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    labels = np.stack([truth, truth, rng.integers(0, 3, 300)], axis=1)
    found = agreement(labels, ["ann", "bob", "eve"])
    assert found.people[0]["labeller"] == "eve" and found.pairs[-1]["kappa"] == 1
    assert "<script" not in agreement(labels, ["<script>", "b", "c"])._repr_html_()
    assert agreement([["a", "b"], ["a", "a"]]).disputed == [0]


def test_labels_that_cannot_be_compared_are_said() -> None:
    with pytest.raises(BadInput, match="items have 1 to 2 labels"):
        fleiss_kappa([["a", "b"], ["a", None]])
    with pytest.raises(BadInput, match="2 labels against 1"):
        cohen_kappa(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: agreement([["a", "b"], ["a", "a"]], scale="interval"), "'a', 'b' are no numbers"),
        (lambda: majority(["cat", "dog"]), "give \\[items, labellers\\]"),
        (lambda: alpha([["a"], ["a", "b"]]), "shape"),
        (lambda: cohen_kappa(None, ["a"]), "first is None"),
    ],
)
def test_labels_that_are_none_are_refused(ask: Callable[[], object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        ask()
