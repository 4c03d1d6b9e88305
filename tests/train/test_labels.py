"""Labels that are wrong are found, by probabilities no model has seen the answer to."""

from typing import Any

import numpy as np
import pytest

from workbench.base.errors import BadInput, GateRefused
from workbench.base.records import Ledger, runs
from workbench.data.decisions import Decisions
from workbench.data.labels import audited
from workbench.release.labelgate import gate_labels, judge_labels
from workbench.train.labels import audit, folds


def flipped_digits(share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Pixels, labels of which `share` are wrong, and which."
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(y)) < share
    return x, np.where(wrong, (y + rng.integers(1, 10, len(y))) % 10, y), wrong


def test_flipped_digits_are_found_and_the_gate_stops(ledger: Ledger) -> None:
    x, y, wrong = flipped_digits(0.1, 0)
    found = audit(x, y, name="digits", ledger=ledger)
    hits = wrong[found.issues].sum()
    assert hits / len(found.issues) > 0.8 and hits / wrong.sum() > 0.8
    assert abs(found.error_rate - wrong.mean()) < 0.05
    assert runs(ledger, kind="audit")[0].metrics["issues"] == len(found.issues)
    with pytest.raises(GateRefused, match="label_errors"):
        gate_labels(found)
    clean = audit(*flipped_digits(0.0, 0)[:2], ledger=ledger)
    assert judge_labels(clean).passed and clean.error_rate < 0.02


def test_pruning_drops_what_was_found_and_never_a_test_row(ledger: Ledger) -> None:
    x, y, wrong = flipped_digits(0.1, 1)
    found = audit(x, y, ledger=ledger)
    assert found.prune(Decisions.open("train"), most=50) == 50
    _, kept = Decisions.open("train").apply(found.ids(), y)
    assert kept.sum() == len(y) - 50 and wrong[~kept].mean() > 0.8
    with pytest.raises(BadInput, match="never pruned"):
        audit(x, y, role="test", ledger=ledger).prune(Decisions.open("train"))


def test_an_audit_is_the_same_twice_and_no_row_judges_itself(ledger: Ledger) -> None:
    x, y, _ = flipped_digits(0.1, 2)
    first, second = (audit(x, y, ledger=ledger) for _ in range(2))
    assert (first.probabilities == second.probabilities).all() and (first.issues == second.issues).all()
    twins = np.array([[1.0], [1.0], [2.0], [3.0], [4.0], [2.0]])
    held = folds(np.array([0, 1, 0, 1, 0, 1]), twins, 3)
    assert held[0] == held[1] and held[2] == held[5] and len(set(held)) == 3


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"folds": "x"}, "folds is 'x'"),
        ({"folds": 1}, "folds is 1"),
        ({"repeats": 0}, "repeats is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"near": "x"}, "near is 'x'"),
        ({"rule": "best"}, "rule is 'best'"),
        ({"by": "site"}, "by names 'site'"),
    ],
)
def test_what_an_audit_cannot_do_is_refused_before_it_trains(
    ledger: Ledger, how: dict[str, Any], said: str
) -> None:
    x, y, _ = flipped_digits(0.1, 1)
    with pytest.raises(BadInput, match=said):
        audit(x, y, ledger=ledger, **how)
    assert not runs(ledger=ledger)


def test_a_row_without_a_label_is_no_class_of_its_own() -> None:
    labels = np.array([0.0, 1.0, np.nan, 1.0, 0.0, np.nan])
    with pytest.raises(BadInput, match="the label of row 2 is nan"):
        audit(np.arange(12.0).reshape(6, 2), labels)
    with pytest.raises(BadInput, match="the label of row 2 is nan"):
        audited(labels, np.full((6, 3), 1 / 3))


def test_a_gate_that_is_none_is_refused(ledger: Ledger) -> None:
    x, y, _ = flipped_digits(0.1, 1)
    found = audit(x[:200], y[:200] > 4, ledger=ledger)
    with pytest.raises(BadInput, match="gate is 'label_errors'"):
        judge_labels(found, ["label_errors"])  # type: ignore[list-item]
