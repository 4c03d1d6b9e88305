"""scikit-learn's models that are refused: by what they are, and by the columns they learned from."""

import numpy as np
import pytest
import toy
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from workbench.base.errors import BadInput
from workbench.base.ledger import Ledger
from workbench.models.shelf import Shelf
from workbench.models.trees import from_sklearn


def test_a_fitted_regressor_is_not_told_to_be_fitted() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(BadInput, match="RandomForestRegressor is no classifier"):
        from_sklearn(RandomForestRegressor(3).fit(x, x[:, 0]))
    with pytest.raises(BadInput, match="RandomForestClassifier is no fitted classifier"):
        from_sklearn(RandomForestClassifier(3))


def test_trees_of_other_columns_than_the_recipe_gives_are_not_put_on_the_shelf(ledger: Ledger) -> None:
    made, seen = toy.recipe(), toy.columns(200)
    narrow = from_sklearn(RandomForestClassifier(3).fit(made.encode(seen)[:, :2], toy.late(seen)))
    with pytest.raises(BadInput, match="the trees learned from 2 columns, the rows have"):
        Shelf(ledger).add("delays", **narrow, contract=toy.CONTRACT, recipe=made)
    assert "delays" not in Shelf(ledger).names()


@pytest.mark.parametrize("part", ["contract", "recipe"])
def test_a_bundle_needs_a_contract_and_a_recipe(ledger: Ledger, part: str) -> None:
    with pytest.raises(BadInput, match=f"{part} is 'x', expected"):
        Shelf(ledger).add("delays", **toy.tree_parts(**{part: "x"}))
