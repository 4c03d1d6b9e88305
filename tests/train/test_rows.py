"""Validation rows teach nothing, and feeds nobody can learn from are named."""

from types import SimpleNamespace

import numpy as np
import pytest

from workbench.base.errors import BadInput
from workbench.train.rows import encoded


def test_statistics_come_from_the_training_rows_alone(world: SimpleNamespace) -> None:
    rows = encoded(world.train, world.valid, world.recipe)
    assert rows.recipe.stats == world.recipe.fit(world.train.columns()).stats
    assert rows.x.shape == (1_800, 4) and rows.x_valid.shape == (600, 4)
    assert rows.x.dtype == rows.y.dtype == np.float32
    assert np.array_equal(rows.y_valid, world.valid.columns()["delay"] > 15)
    assert rows.contract is world.train.contract


def test_a_fitted_recipe_stays_as_it_is(world: SimpleNamespace) -> None:
    fitted = world.recipe.fit(world.feed("month = 1").columns())
    assert encoded(world.train, world.valid, fitted).recipe is fitted


def test_the_same_feed_twice_is_refused(world: SimpleNamespace) -> None:
    with pytest.raises(BadInput, match="'train' is the training and the validation feed"):
        encoded(world.train, world.feed("month < 4", "other name"), world.recipe)


def test_a_feed_with_one_class_is_named(world: SimpleNamespace) -> None:
    with pytest.raises(BadInput, match="every row of feed 'calm' has label 0"):
        encoded(world.train, world.feed("month = 4 and delay < 5", "calm"), world.recipe)


def test_validation_rows_that_are_training_rows_are_refused(world: SimpleNamespace) -> None:
    with pytest.raises(BadInput, match="1,800 of the 1,800 rows of validation feed 'again'"):
        encoded(world.train, world.feed("month<4", "again"), world.recipe)
    with pytest.raises(BadInput, match="1,200 of the 1,800 rows"):
        encoded(world.train, world.feed("month >= 2", "later"), world.recipe)
