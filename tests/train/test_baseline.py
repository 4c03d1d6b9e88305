"""The baseline is scikit-learn's, kept as arrays."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from workbench.base.errors import BadInput
from workbench.base.records import find
from workbench.data.recipe import Recipe
from workbench.train.baseline import _boosted, baselines, fit_baseline, one_hot
from workbench.train.metrics import score
from workbench.train.rows import Rows, encoded


@given(st.integers(0, 3), st.lists(st.integers(1, 4), max_size=3), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_one_hot_is_a_table_of_ones(n_dense: int, sizes: list[int], rows: int) -> None:
    rng = np.random.default_rng(rows)
    codes = [rng.integers(0, size, rows) for size in sizes]
    x = np.column_stack([rng.standard_normal((rows, n_dense)), *codes]).astype(np.float32)
    tables = [np.eye(size)[code] for code, size in zip(codes, sizes, strict=True)]
    wanted = np.hstack([x[:, :n_dense], *tables])
    assert np.array_equal(one_hot(x, n_dense, sizes).toarray(), wanted)


def test_it_answers_as_scikit_learn_does(world: SimpleNamespace) -> None:
    fit = fit_baseline(world.train, recipe=world.recipe, valid=world.valid, name="flights")
    rows = encoded(world.train, world.valid, world.recipe)
    recipe = rows.recipe
    theirs = LogisticRegression(max_iter=500).fit(
        one_hot(rows.x, recipe.n_dense, recipe.sizes).toarray(), rows.y
    )
    wanted = theirs.predict_proba(one_hot(rows.x_valid, recipe.n_dense, recipe.sizes).toarray())[:, 1]
    found = fit.bundle().predictor()(world.valid.columns())
    assert np.abs(found - wanted).max() < 1e-3
    assert score(rows.y_valid, found)["auc"] == fit.metrics["auc"] > 0.6
    assert fit.framework == "numpy" and fit.history == []


def test_it_is_recorded_and_repeats_itself(world: SimpleNamespace) -> None:
    fits = [
        fit_baseline(world.train, recipe=world.recipe, valid=world.valid, name="flights", seed=3)
        for _ in range(2)
    ]
    run = find(fits[0].run.id)
    assert (run.kind, run.status, run.identity["seed"]) == ("fit", "succeeded", 3)
    assert run.identity["data"] == world.train.fingerprint()
    assert run.metrics["auc"] == fits[0].metrics["auc"] and run.metrics["converged"] is True
    assert all(np.array_equal(fits[0].weights[name], fits[1].weights[name]) for name in fits[0].weights)


@pytest.mark.parametrize("strength", [0, -1, float("nan")])
def test_a_penalty_that_means_nothing_is_refused(world: SimpleNamespace, strength: float) -> None:
    with pytest.raises(BadInput, match="C is"):
        fit_baseline(world.train, recipe=world.recipe, valid=world.valid, name="flights", C=strength)


@pytest.mark.parametrize(
    "arguments",
    [
        {"train": "x.parquet"},
        {"valid": None},
        {"recipe": None},
        {"name": 3},
        {"C": "1"},
        {"C": True},
        {"seed": 1.5},
    ],
)
def test_the_wrong_kinds_of_object_are_named(world: SimpleNamespace, arguments: dict[str, object]) -> None:
    how = {"train": world.train, "valid": world.valid, "recipe": world.recipe, "name": "flights"} | arguments
    with pytest.raises(BadInput, match=f"{next(iter(arguments))} is"):
        fit_baseline(how.pop("train"), **how)


def test_three_models_are_judged_on_the_same_rows(world: SimpleNamespace) -> None:
    given = {"recipe": world.recipe, "valid": world.valid, "name": "flights"}
    found = baselines(world.train, **given)
    majority, logistic, boosting = found.table
    rows, alone = encoded(world.train, world.valid, world.recipe), fit_baseline(world.train, **given)
    rate = rows.y.mean(dtype="float64")
    assert majority["auc"] == 0.5
    assert majority["brier"] == pytest.approx(np.mean((rows.y_valid - rate) ** 2))
    assert {name: logistic[name] for name in ("auc", "brier")} == {
        name: alone.metrics[name] for name in ("auc", "brier")
    }
    assert boosting["auc"] > logistic["auc"] - 0.05 and boosting["brier"] < majority["brier"]
    assert found.best["auc"] == max(row["auc"] for row in found.table)
    assert [row["rows"] for row in found.table] == [len(rows.y_valid)] * 3
    assert find(found.run.id).metrics["boosting_auc"] == boosting["auc"]
    assert find(found.logistic.run.id).parents == [found.run.id]
    for shown in (str(found), found._repr_html_()):
        assert all(row["model"] in shown and f"{row['auc']:,.4g}" in shown for row in found.table)


def test_boosting_takes_codes_as_categories_and_many_codes_as_numbers() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.integers(0, 9, 3_000), rng.integers(0, 400, 3_000)
    y = (few % 2 == 0).astype(np.float32)
    stats = {"numeric": {}, "categorical": {"few": list("abcdefgh"), "many": [str(n) for n in range(399)]}}
    recipe = Recipe("m:f", "m:l", (), ("few", "many"), stats)
    x = np.column_stack([few, many]).astype(np.float32)
    ask = _boosted(Rows(recipe, None, x, y, x, y), 0)
    assert score(y, ask(x))["auc"] == 1.0
