"""The bootstrap against its definition."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from workbench.release.resample import interval, outcome, resampled


def made(rows: int, seed: int, levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    y = (chance.random(rows) < 0.3).astype(np.float32)
    p = np.clip(0.3 + 0.2 * y + chance.normal(size=rows) * 0.2, 0, 1)
    return y, np.round(p * levels) / levels if levels else p


@pytest.mark.parametrize("levels", [0, 7])  # 7: many rows with the same score
def test_each_draw_is_the_metric_of_the_rows_drawn(levels: int) -> None:
    y, p = made(300, 3, levels)
    found, chance = resampled(y, p, draws=10), np.random.default_rng(len(y))
    for draw in range(10):
        rows = chance.integers(0, len(y), len(y))
        assert found["auc"][draw] == pytest.approx(roc_auc_score(y[rows], p[rows]), abs=1e-12)
        assert found["brier"][draw] == pytest.approx(brier_score_loss(y[rows], p[rows]), abs=1e-6)


def test_the_interval_covers_what_it_says() -> None:
    truth = float(np.mean([roc_auc_score(*made(20_000, seed)) for seed in range(3)]))
    inside = 0
    for seed in range(60):
        low, high = interval(resampled(*made(300, 100 + seed))["auc"])
        inside += low <= truth <= high
    assert 50 <= inside <= 60


def test_a_tie_is_a_tie_and_a_gain_is_a_gain() -> None:
    y, p = made(2000, 5)
    noise = np.random.default_rng(6).normal(size=len(p))
    same, better = p + noise * 1e-3, p + 0.2 * y
    draws = [resampled(y, scores)["auc"] for scores in (p, same, better)]
    assert [outcome(draws[place], draws[0]) for place in (1, 2)] == ["tie", "better"]
    assert outcome(draws[0], draws[2]) == "worse"
    low, high = interval(draws[2], draws[0])
    assert 0 < low < roc_auc_score(y, better) - roc_auc_score(y, p) < high


def test_the_same_rows_give_the_same_draws_and_no_draws_give_no_interval() -> None:
    y, p = made(200, 7)
    assert resampled(y, p) == resampled(y, p)
    assert interval([]) is None and interval([1.0], [1.0, 2.0]) is None
    assert [outcome([], [], gain) for gain in (0.01, 0.0, -0.01)] == ["better", "tie", "worse"]
    one = resampled(np.ones(50), np.linspace(0, 1, 50))["auc"]
    assert interval(one) is None  # one class only: no AUC
