"""Smaller versions are measured as files, judged by gates, kept as children; what fails is told and not kept."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import toy

from workbench.base.errors import BadInput, NotFound
from workbench.base.ledger import Ledger
from workbench.data.feed import Feed
from workbench.models.shelf import Shelf
from workbench.release.slim import slim
from workbench.release.trial import Slimmed, Trial, front, slim_gates


def feed(folder: Path, seed: int, rows: int = 3000) -> Feed:
    frame = pl.DataFrame(toy.columns(rows, seed)).with_columns(pl.col("wind").fill_nan(None))
    frame.write_parquet(folder / f"rows{seed}.parquet")
    return Feed(folder / f"rows{seed}.parquet", toy.CONTRACT)


def trial(
    name: str, auc: float, size: float, p50: float, passed: bool = True, portable: bool = True
) -> Trial:
    return Trial(name, passed, "", auc, auc, p50, p50, 1e4, 0.1, size, 100, portable, evidence=object())


TRIALS = [
    trial("whole", 0.80, 1.0, 1.0, portable=False),
    trial("small", 0.79, 0.1, 0.9),
    trial("worse", 0.78, 0.2, 0.95),
    trial("tiny", 0.60, 0.01, 0.1, passed=False),
    trial("fast", 0.795, 0.5, 0.2),
]


def test_the_front_is_whom_nobody_beats_in_everything() -> None:
    assert front(TRIALS) == ["whole", "small", "tiny", "fast"]
    assert front([Trial("none", False, "not made")]) == []


def test_a_place_takes_what_passed() -> None:
    found = Slimmed("delays/1", "rows", TRIALS)
    assert (found.best("server").name, found.best("edge").name) == ("fast", "small")
    with pytest.raises(NotFound, match="for edge passed"):
        Slimmed("delays/1", "rows", TRIALS[:1]).best("edge")
    with pytest.raises(BadInput, match="place 'moon'"):
        found.best("moon")
    assert "REFUSED" in str(found) and "aria-label" in found._repr_html_()


@pytest.mark.slow  # draws graphs and starts processes to see their memory
def test_a_regression_goes_to_onnxruntime_and_is_kept_as_a_child(
    tmp_path: Path, ledger: Ledger, fresh
) -> None:
    parent = Shelf(ledger).add("delays", **toy.linear_parts())
    found = slim(parent, feed(tmp_path, 1), ledger=ledger)
    named = {t.name: t for t in found.trials}
    assert named["onnx float32"].passed and named["onnx float32"].ref == "delays/2"
    assert "nothing of the graph is int4" in named["onnx int4 weights"].why
    child = Shelf(ledger).load("delays", 2)
    assert (child.lineage["parent"], child.lineage["parent_digest"]) == ("delays/1", parent.digest)
    columns = toy.columns(100)
    assert np.abs(child.predictor()(columns) - parent.predictor()(columns)).max() < 1e-6
    assert named["onnx float32"].memory_mb < 400 and named["whole"].rows_per_s > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler warns of torch
def test_a_net_is_tried_in_every_way_and_a_budget_refuses(tmp_path: Path, ledger: Ledger, fresh) -> None:
    from workbench.train.fit import fit

    rows, seen = feed(tmp_path, 1), feed(tmp_path, 2, 8000)
    net = toy.Net(toy.recipe().n_dense, toy.recipe().sizes)
    parent = fit(
        net, seen, recipe=toy.recipe(), valid=feed(tmp_path, 3), name="delays", epochs=4, ledger=ledger
    )
    parent = parent.bundle(ledger)
    found = slim(parent, rows, train=seen, budget={"size_mb": 0.0292}, ledger=ledger)
    named = {t.name: t for t in found.trials}
    made = {
        "whole",
        "onnx float32",
        "onnx int8 static",
        "onnx int4 weights",
        "onnx bf16 weights",
        "bf16",
        "half the units",
        "low rank",
    }
    assert made | {"three quarters zeros", "taught, hidden 48"} <= {
        t.name for t in found.trials if t.measured
    }
    assert not any(t.passed for t in found.trials if t.measured and t.size_mb > 0.0292)
    fast = named["compiled"]  # measured where there is a compiler, never kept
    assert (fast.measured or "cannot be compiled" in fast.why) and not fast.passed and not fast.ref
    kept = {t.ref for t in found.trials if t.ref}
    assert kept == {f"delays/{v}" for v in Shelf(ledger).versions("delays") if v > parent.version}
    without = slim(parent, rows, keep=False, ledger=ledger)
    why = {t.name: t.why for t in without.trials}
    assert why["low rank"] == "it has to learn from the whole model" and not any(
        t.ref for t in without.trials
    )
    assert named["taught, hidden 48"].auc > 0.6


def test_limits_are_gates() -> None:
    assert next(g.limit for g in slim_gates(size_mb=0.5) if g.name == "size_mb") == 0.5
    with pytest.raises(BadInput, match="gate 'megabytes' is not measured"):
        slim_gates(megabytes=1)
