"""A model that could not be built again is refused while it costs nothing; a fit reaches the shelf once."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from workbench.base.errors import BadInput
from workbench.base.records import Ledger
from workbench.models.shelf import Shelf
from workbench.train.baseline import fit_baseline
from workbench.train.result import model_path, rebuild


def test_a_class_of_a_notebook_or_a_function_has_no_path() -> None:
    class Local(nn.Linear):
        config: dict[str, Any] = {}

    with pytest.raises(BadInput, match="Local of .*test_result cannot be imported") as caught:
        model_path(Local(1, 1))
    assert "#| export" in caught.value.hint
    Local.__module__, Local.__qualname__ = "__main__", "Local"
    with pytest.raises(BadInput, match="Local of __main__"):
        model_path(Local(1, 1))


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, object(), float("nan"), np.float32(1)])
def test_a_config_that_json_would_change_is_refused(world: SimpleNamespace, value: Any) -> None:
    model = world.module.WindNet(2, [3])
    model.config["extra"] = value
    with pytest.raises(BadInput, match="config of small_world:WindNet is not plain JSON"):
        model_path(model)


def test_a_model_without_config_is_told_to_have_one(world: SimpleNamespace) -> None:
    with pytest.raises(BadInput, match="small_world:Bare has no config"):
        model_path(world.module.Bare(1, 1))


def test_a_model_is_built_again_with_weights_of_its_own(world: SimpleNamespace) -> None:
    model = world.module.WindNet(2, [3], hidden=5)
    assert model_path(model) == "small_world:WindNet"
    fresh = rebuild(model, model_path(model))
    assert fresh.config == model.config and fresh.config is not model.config
    assert not torch.equal(fresh.code.weight, model.code.weight)


def test_a_config_that_builds_something_else_is_refused(world: SimpleNamespace) -> None:
    model = world.module.Forgetful(2, [3], hidden=5)
    with pytest.raises(BadInput, match="gives other weights than the model: layers.0.bias"):
        rebuild(model, model_path(model))
    model.config["unknown"] = 1
    with pytest.raises(BadInput, match=r"Forgetful\(\*\*config\) raises TypeError"):
        rebuild(model, model_path(model))


def test_a_fit_goes_on_the_shelf_once(world: SimpleNamespace, ledger: Ledger) -> None:
    fit = fit_baseline(world.train, recipe=world.recipe, valid=world.valid, name="flights", seed=5)
    bundle = fit.bundle()
    assert fit.bundle() is bundle and Shelf(ledger).versions("flights") == [1] and bundle.ref == "flights/1"
    assert bundle.lineage["run"] == fit.run.id and bundle.lineage["seed"] == 5
    assert bundle.lineage["data"] == world.train.fingerprint() and len(bundle.lineage["environment"]) == 64
    assert bundle.metrics["auc"] == fit.metrics["auc"]


def test_a_fit_shows_itself_escaped(world: SimpleNamespace) -> None:
    fit = fit_baseline(world.train, recipe=world.recipe, valid=world.valid, name="flights")
    fit.name, fit.history = (
        "<script>",
        [{"epoch": 1, "loss": 0.5, "auc": 0.6}, {"epoch": 2, "loss": 0.4, "auc": 0.6}],
    )
    shown = fit._repr_html_()
    assert "<script>" not in shown and shown.count("<polyline") == 2 and "nan" not in shown
    assert str(fit).startswith("Fit <script>: workbench.models.linear:LinearScorer auc=")
    fit.history = fit.history[:1]
    assert fit._repr_html_().count("<svg") == 2
