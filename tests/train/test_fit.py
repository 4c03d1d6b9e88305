"""A fit repeats itself, is recorded, can be stopped, and gives a bundle that answers."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from workbench.base import displays, progress
from workbench.base.errors import BadInput, Stopped, WorkbenchError
from workbench.base.records import find, runs
from workbench.compute.cluster import started_in
from workbench.models.shelf import load
from workbench.train.fit import fit
from workbench.train.metrics import score

HOW: dict[str, Any] = {"name": "flights", "epochs": 3, "batch_size": 128, "lr": 0.01}


def fitted(world: SimpleNamespace, model: Any = None, **changes: Any) -> Any:
    recipe = world.recipe.fit(world.train.columns())
    model = model or world.module.WindNet(recipe.n_dense, recipe.sizes)
    return fit(model, world.train, recipe=recipe, valid=world.valid, **HOW | changes)


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_two_fits_give_the_same_bits_and_another_seed_others(world: SimpleNamespace) -> None:
    one, again, other = fitted(world), fitted(world), fitted(world, seed=1)
    assert same(one, again) and not same(one, other)
    assert [row["auc"] for row in one.history] == [row["auc"] for row in again.history]


def test_a_recipe_that_is_not_fitted_is_fitted_on_the_training_rows(world: SimpleNamespace) -> None:
    model = world.module.WindNet(3, [4])
    one = fit(model, world.train, recipe=world.recipe, valid=world.valid, **HOW)
    assert one.recipe.stats and same(one, fitted(world))


def test_the_model_ends_with_the_best_weights_and_fine_tuning_starts_from_them(
    world: SimpleNamespace,
) -> None:
    model = world.module.WindNet(3, [4])
    one = fitted(world, model)
    assert all(torch.equal(v, torch.from_numpy(one.weights[k])) for k, v in model.state_dict().items())
    assert not model.training
    again, more = fitted(world, model), fitted(world, model, fine_tune=True)
    assert same(one, again), "without fine_tune the weights the model has do not matter"
    assert more.history[0]["loss"] < one.history[0]["loss"]


def test_the_run_holds_every_epoch_and_the_best_weights(world: SimpleNamespace) -> None:
    one = fitted(world, epochs=6, seed=2)
    run = find(one.run.id)
    assert run.curve("auc") == [(row["epoch"], row["auc"]) for row in one.history]
    assert run.curve("loss") == [(row["epoch"], row["loss"]) for row in one.history]
    best = max(one.history, key=lambda row: row["auc"])
    assert run.metrics["best_epoch"] == best["epoch"] and run.metrics["auc"] == one.metrics["auc"]
    assert one.metrics["auc"] == pytest.approx(best["auc"], abs=1e-12)
    assert run.params["lr"] == 0.01 and run.identity["data"] == world.train.fingerprint()
    kept = load_file(run.artifacts["checkpoint"])
    assert kept.keys() == one.weights.keys() and all(np.array_equal(kept[k], one.weights[k]) for k in kept)
    assert {r.kind for r in runs() if r.parents == [run.id]} <= {"check"}


def test_the_bundle_answers_as_the_fit_was_scored(world: SimpleNamespace) -> None:
    one = fitted(world)
    bundle = one.bundle()
    columns = world.valid.columns()
    p = load(bundle.ref).predictor()(columns)
    assert score(world.recipe.labels(columns), p)["auc"] == pytest.approx(one.metrics["auc"], abs=1e-6)
    assert bundle.framework == "torch" and bundle.meta["model"] == "small_world:WindNet"


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        (lambda m: m.WindNet(3, [4], columns=1), {}, r"gave \(2, 1\) for 2 rows"),
        (lambda m: m.WindNet(9, [4]), {}, "cannot take rows of 4 columns: RuntimeError"),
        (lambda m: m.Forgetful(3, [4], hidden=5), {}, "gives other weights"),
        (lambda m: m.Bare(3, 1), {}, "has no config"),
        (lambda m: m.WindNet, {}, "WindNet is a class"),
        (lambda m: m.WindNet(3, [4]), {"epochs": 0}, "epochs is 0"),
        (lambda m: m.WindNet(3, [4]), {"workers": -1}, "workers=-1"),
        (lambda m: m.WindNet(3, [4]), {"threads": 0}, "threads=0"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_epoch(
    world: SimpleNamespace, model: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        fitted(world, model(world.module), **changes)
    assert not [run for run in runs(kind="fit") if run.curve("loss")]


def test_a_loss_that_blows_up_fails_the_run_with_its_reason(world: SimpleNamespace) -> None:
    with pytest.raises(WorkbenchError, match="the loss became"):
        fitted(world, lr=1e30)
    assert runs(kind="fit")[0].status == "failed" and "lr=1e+29" in runs(kind="fit")[0].error


class Watch(progress.Quiet):
    "A display that remembers its tracker and what it was shown."

    seen: list[Any] = []

    def __init__(self, tracker: progress.Tracker) -> None:
        self.tracker = tracker
        Watch.seen.append(self)

    def update(self, state: progress.State) -> None:
        self.last = (state.stage, state.done, state.total, dict(state.metrics))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setitem(displays.DISPLAYS, "watch", Watch)
    monkeypatch.setenv("WORKBENCH_DISPLAY", "watch")
    monkeypatch.setattr(Watch, "seen", [])
    return Watch.seen


def shown(watched: list[Any]) -> Any:
    return next((one for one in watched if one.tracker.state.what == "fit flights"), None)


def test_progress_counts_every_row_and_shows_the_metrics(world: SimpleNamespace, watched: list[Any]) -> None:
    one = fitted(world)
    stage, done, total, metrics = shown(watched).last
    assert (stage, done, total) == ("train", 3 * 1_800, 3 * 1_800)
    assert metrics == {name: one.history[-1][name] for name in ("loss", "auc")}
    assert [at for at, _ in shown(watched).tracker.state.curves["auc"]] == [1_800, 3_600, 5_400]


def press_stop(watched: list[Any]) -> None:
    while (display := shown(watched)) is None or not display.tracker.state.metrics:
        time.sleep(0.01)
    display.tracker.stop()


def test_stop_is_honoured_within_an_epoch_and_the_best_so_far_is_kept(
    world: SimpleNamespace, watched: list[Any]
) -> None:
    threading.Thread(target=press_stop, args=(watched,), daemon=True).start()
    with pytest.raises(Stopped):
        fitted(world, epochs=100_000)
    run = runs(kind="fit")[0]
    assert run.status == "killed" and (run.folder / "checkpoint.safetensors").exists()


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_two_workers_learn_the_same_and_say_so(world: SimpleNamespace, watched: list[Any]) -> None:
    here = fitted(world, epochs=8)
    watched.clear()
    begin = time.perf_counter()
    there = fitted(world, epochs=8, workers=2)
    print(f"fit(workers=2) of 8 epochs of 1,800 rows: {time.perf_counter() - begin:.1f} s")
    assert there.metrics["auc"] == pytest.approx(here.metrics["auc"], abs=0.03)
    assert find(there.run.id).curve("auc") == [(row["epoch"], row["auc"]) for row in there.history]
    assert shown(watched).last[:3] == ("train", 8 * 1_800, 8 * 1_800)
    assert (there.run.folder / "checkpoint.safetensors").exists()
    assert not (there.run.folder / "ray").exists()
    assert not [name for name in Path("/tmp").glob("wb-ray-*") if started_in(name)]
    assert there.bundle().predictor()(world.valid.columns()).shape == (600,)


@pytest.mark.parametrize(
    "arguments",
    [
        {"train": "x.parquet"},
        {"valid": None},
        {"recipe": None},
        {"name": 3},
        {"epochs": 1.5},
        {"lr": "x"},
        {"seed": "0"},
        {"patience": True},
        {"workers": "2"},
        {"threads": 1.5},
        {"by": 3},
        {"on_epoch": 3},
    ],
)
def test_the_wrong_kinds_of_object_are_named(world: SimpleNamespace, arguments: dict[str, object]) -> None:
    how = {"train": world.train, "valid": world.valid, "recipe": world.recipe, "name": "flights"} | arguments
    with pytest.raises(BadInput, match=f"{next(iter(arguments))} is"):
        fit(world.module.WindNet(3, [4]), how.pop("train"), **how)
