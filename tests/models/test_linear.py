"""The linear scorer: right, bit-stable, strict."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from workbench.base.errors import BadInput
from workbench.models.linear import LinearScorer, sigmoid


def made(n_dense: int = 5, sizes: tuple[int, ...] = (4, 7), seed: int = 0) -> tuple[LinearScorer, np.ndarray]:
    rng = np.random.default_rng(seed)
    model = LinearScorer(n_dense, sizes)
    model.load_weights({name: rng.normal(size=shape) for name, shape in model.shapes().items()})
    codes = [rng.integers(0, size, 257) for size in sizes]
    return model, np.column_stack([rng.normal(size=(257, n_dense)), *codes]).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 256), max_size=6), st.integers(0, 3))
def test_any_split_gives_the_same_bits(cuts: list[int], seed: int) -> None:
    model, x = made(seed=seed)
    parts = np.split(x, sorted(set(cuts)))
    assert np.concatenate([model(part) for part in parts]).tobytes() == model(x).tobytes()


@pytest.mark.parametrize(
    "layout", [np.asfortranarray, lambda x: np.repeat(x, 2, axis=0)[::2], lambda x: x[::-1]]
)
def test_memory_layout_and_order_do_not_matter(layout) -> None:
    model, x = made()
    given = layout(x)
    order = np.arange(len(x))[::-1] if np.array_equal(given, x[::-1]) else np.arange(len(x))
    assert model(given)[order].tobytes() == model(x).tobytes()


def test_it_agrees_with_sklearn() -> None:
    rng = np.random.default_rng(1)
    dense, codes = rng.normal(size=(400, 3)), rng.integers(0, 5, 400)
    hot = np.eye(5)[codes]
    y = (dense[:, 0] + (codes == 2) + rng.normal(size=400) > 0).astype(int)
    reference = LogisticRegression().fit(np.hstack([dense, hot]), y)
    model = LinearScorer(3, [5]).load_weights(
        {"bias": reference.intercept_, "dense": reference.coef_[0, :3], "cat.0": reference.coef_[0, 3:]}
    )
    x = np.column_stack([dense, codes]).astype(np.float32)
    wanted = reference.predict_proba(np.hstack([dense.astype(np.float32), hot]))[:, 1]
    assert np.abs(model(x) - wanted).max() < 1e-6


def test_extremes_are_probabilities() -> None:
    with np.errstate(all="raise", under="ignore"):
        p = sigmoid(np.array([-1e308, -800, -90, 0, 90, 800, 1e308]))
    assert p.dtype == np.float32 and ((p >= 0) & (p <= 1)).all() and p[3] == 0.5
    assert np.all(np.diff(p) >= 0)


@pytest.mark.parametrize(
    "change",
    [
        {"bias": np.zeros(2)},
        {"dense": np.zeros(4)},
        {"cat.0": np.zeros(3)},
        {"cat.9": np.zeros(3)},
        {"dense": None},
    ],
)
def test_weights_of_another_shape_are_refused(change: dict) -> None:
    model, _ = made()
    weights = {name: array for name, array in {**model.weights(), **change}.items() if array is not None}
    with pytest.raises(BadInput, match="do not fit"):
        model.load_weights(weights)


def test_no_rows() -> None:
    model, x = made()
    assert model(x[:0]).shape == (0,)


def test_config_builds_it_again_and_weights_are_a_copy() -> None:
    model, x = made()
    again = LinearScorer(**model.config).load_weights(model.weights())
    before = again(x).tobytes()
    model.weights()["bias"][0] = 99
    assert model(x).tobytes() == before == again(x).tobytes()
