"""Validation rows teach nothing, and feeds nobody can learn from are named."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from workbench.base.errors import BadInput
from workbench.release.evidence import measure
from workbench.release.gates import judge
from workbench.train.baseline import fit_baseline
from workbench.train.fit import fit
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


def test_a_model_is_not_judged_on_rows_it_was_trained_on(world: SimpleNamespace) -> None:
    made = fit_baseline(world.train, recipe=world.recipe, valid=world.valid, name="flights")
    net = fit(
        world.module.WindNet(4 - 1, [4]),
        world.train,
        recipe=made.recipe,
        valid=world.valid,
        name="flights",
        epochs=1,
    )
    clean = measure(made.bundle(), world.valid, calls=2)
    assert clean.seen == 0 and judge(clean, baseline=clean, champion=None).rows
    for one in (made, net):
        found = measure(one.bundle(), world.feed("month >= 3", "late"), calls=2)
        assert (found.seen, found.rows) == (600, 1_200)
        with pytest.raises(BadInput, match="was trained on 600 of the 1,200 rows it was measured on"):
            judge(found, baseline=found, champion=None)
    Path(made.run.artifacts["rows"]).unlink()  # pruned: not known any more
    assert measure(made.bundle(), world.feed("month >= 3", "late"), calls=2).seen == 0
