"""What is measured is the artefact: its answers, its time, its size, its slices."""

import json
import math
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import toy

from workbench.base.errors import BadInput, Corrupt
from workbench.base.records import find, runs
from workbench.data.contract import Column, Contract
from workbench.data.feed import Feed, write_parquet
from workbench.models.folder import WEIGHTS
from workbench.models.shelf import Shelf
from workbench.release import evidence
from workbench.release.evidence import Evidence, measure
from workbench.release.resample import interval
from workbench.serve.engine import Engine
from workbench.train.metrics import score


@pytest.mark.parametrize("parts", [toy.linear_parts, toy.net_parts])
def test_it_measures_the_bundle(shelf: Shelf, feed: Feed, parts) -> None:
    bundle = shelf.add("delays", **parts())
    found = measure(bundle, feed, calls=120, ledger=shelf.ledger)
    columns = feed.columns()
    wanted = score(bundle.recipe.labels(columns), bundle.predictor()(columns))
    calibration = found.metrics.pop("calibration")
    assert found.metrics == wanted and found.rows == 1200 == wanted["rows"] and 0 <= calibration <= 1
    assert (found.ref, found.digest, found.fingerprint) == ("delays/1", bundle.digest, feed.fingerprint())
    assert found.serving_skew == 0.0
    assert 0 < found.latency_p50_ms <= found.latency_p99_ms < 1000
    assert found.size_mb == bundle.size_bytes / 1e6
    assert {row["slice"] for row in found.slices} == {"carrier"}
    assert all(type(row["group"]) is str for row in found.slices)


def test_it_is_a_recorded_run(shelf: Shelf, feed: Feed) -> None:
    bundle = shelf.add("delays", **toy.linear_parts())
    found = measure(bundle, feed, calls=10, ledger=shelf.ledger)
    run = runs(shelf.ledger, kind="measure")[0]
    assert run.id == found.run and run.status == "succeeded" and run.identity["data"] == feed.fingerprint()
    assert run.params["digest"] == bundle.digest and run.metrics["auc"] == found.metrics["auc"]
    assert [check.status for check in runs(shelf.ledger, kind="check", parent=run.id)] == ["succeeded"]


def test_latency_is_of_the_artefact(shelf: Shelf, feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = shelf.add("delays", **toy.linear_parts())

    def slow(columns: dict) -> dict:
        time.sleep(0.004)
        return {name: columns[name] for name in ("rain", "wind", "carrier")}

    monkeypatch.setattr(toy, "features", slow)
    assert measure(bundle, feed, calls=20, ledger=shelf.ledger).latency_p50_ms >= 4


def test_features_that_look_at_other_rows_show_as_skew(
    shelf: Shelf, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nosy(columns: dict) -> dict:
        found = {name: columns[name] for name in ("rain", "wind", "carrier")}
        return {**found, "rain": found["rain"] - found["rain"].mean()}

    monkeypatch.setattr(toy, "features", nosy)
    bundle = shelf.add("delays", **toy.linear_parts())
    assert measure(bundle, feed, calls=50, ledger=shelf.ledger).serving_skew > 0.01


def test_damaged_weights_are_not_measured(shelf: Shelf, feed: Feed) -> None:
    bundle = shelf.add("delays", **toy.linear_parts())
    data = bytearray((bundle.path / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (bundle.path / WEIGHTS).write_bytes(data)
    with pytest.raises(Corrupt):
        measure(bundle, feed, ledger=shelf.ledger)
    assert runs(shelf.ledger, kind="measure")[0].status == "failed"


def test_slices_asked_for(shelf: Shelf, feed: Feed) -> None:
    bundle = shelf.add("delays", **toy.linear_parts())
    assert measure(bundle, feed, by=(), calls=5, ledger=shelf.ledger).slices == []
    found = measure(bundle, feed, by=["carrier"], calls=5, ledger=shelf.ledger).slices
    assert {row["group"] for row in found} == {*toy.CARRIERS, "(missing)"}
    with pytest.raises(BadInput, match="carier") as caught:
        measure(bundle, feed, by=["carier"], ledger=shelf.ledger)
    assert "carrier" in caught.value.hint


def few(project, *delays: float) -> Feed:
    frame = pl.DataFrame({"rain": [0.5, 1.0], "wind": [1.0, None], "carrier": ["AA", ""], "delay": delays})
    return Feed(write_parquet(project / "two.parquet", frame), toy.CONTRACT)


def test_fewer_rows_than_calls(shelf: Shelf, project) -> None:
    bundle = shelf.add("delays", **toy.linear_parts())
    found = measure(bundle, few(project, 1.0, 20.0), calls=7, ledger=shelf.ledger)
    assert found.rows == 2 and found.serving_skew == 0.0


def test_one_outcome_only_is_nothing_to_rank(shelf: Shelf, project) -> None:
    shelf.add("delays", **toy.linear_parts())
    with pytest.raises(BadInput, match="gives 0 for each of 2 rows"):
        measure("delays/1", few(project, 1.0, 2.0), ledger=shelf.ledger)


def test_a_metric_that_is_no_number_is_null(evidence) -> None:
    found = evidence(auc=math.nan).to_json()
    assert json.loads(json.dumps(found, allow_nan=False))["metrics"]["auc"] is None


def test_what_cannot_be_measured_is_refused_before_anything_starts(shelf: Shelf, feed: Feed, project) -> None:
    bundle = shelf.add("delays", **toy.linear_parts())
    other = Contract("other", {"rain": Column("float"), "delay": Column("float", role="outcome")})
    wrong = {
        "calls=0": (bundle, feed, {"calls": 0}),
        "calls is '5', expected int": (bundle, feed, {"calls": "5"}),
        "by is 3, expected": (bundle, feed, {"by": 3}),
        "rate is 'x', expected": (bundle, feed, {"rate": "x"}),
        "feed is 'x.parquet', expected Feed": (bundle, "x.parquet", {}),
        "model is None, expected": (None, feed, {}),
        "has no outcomes": (bundle, Feed(feed.files, toy.CONTRACT, outcomes=False), {}),
        "has no column 'wind'": (bundle, Feed(feed.files, other), {}),
    }
    for says, (model, rows, more) in wrong.items():
        with pytest.raises(BadInput, match=says):
            measure(model, rows, ledger=shelf.ledger, **more)
    assert runs(shelf.ledger, kind="measure") == []


def test_a_reference_and_one_slice_by_name(shelf: Shelf, feed: Feed) -> None:
    shelf.add("delays", **toy.linear_parts(lineage={"data": "august"}))
    found = measure("delays/1", feed, by="carrier", calls=5, ledger=shelf.ledger)
    assert {row["slice"] for row in found.slices} == {"carrier"} and found.ref == "delays/1"
    assert found.trained_on == "august"


def test_it_is_plain_data_that_shows_itself_escaped(evidence) -> None:
    found = evidence(by={"<script>": (0.6, 900)})
    assert pickle.loads(pickle.dumps(found)) == found
    assert "<script>" not in found._repr_html_() and "0.71" in str(found) and "\n" not in str(found)


def test_the_service_and_the_batch_agree_to_the_last_bit(shelf: Shelf, feed: Feed) -> None:
    bundle = shelf.add("delays", **toy.net_parts())
    rows = feed.rows().select(bundle.contract.inputs).head(64).to_dicts()
    engine, columns = Engine(bundle, shelf.ledger), feed.columns()
    batch = bundle.predictor()({name: values[:64] for name, values in columns.items()})
    alone = np.array([engine.predict(row)["prediction"] for row in rows], dtype=np.float32)
    assert alone.tobytes() == batch.tobytes()


def test_what_is_uncertain_missing_and_paid_is_measured_and_kept(shelf: Shelf, feed: Feed) -> None:
    found = measure(shelf.add("delays", **toy.linear_parts()), feed, calls=20, ledger=shelf.ledger)
    low, high = interval(found.draws["auc"])
    assert len(found.draws["auc"]) == 200 and low < found.metrics["auc"] < high
    assert [row["column"] for row in found.missing] == ["wind"]  # the only one that may be missing
    assert found.missing[0]["loss"] == pytest.approx(found.metrics["auc"] - found.missing[0]["auc"], abs=1e-9)
    assert 0 < found.usd_per_1000 < 0.01
    kept = json.loads(Path(find(found.run, shelf.ledger).artifacts["evidence"]).read_text())
    assert Evidence(**kept) == found


def test_what_the_neighbours_take_is_no_latency_of_the_model() -> None:
    beside = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * len(os.sched_getaffinity(0)))
    ]
    try:
        begun, waited_s, used_s = time.perf_counter(), evidence._waited_s(), time.thread_time()
        while time.perf_counter() - begun < 2.0:
            sum(range(50_000))
        used_s, waited_s = time.thread_time() - used_s, evidence._waited_s() - waited_s
        own_s = time.perf_counter() - begun - waited_s
    finally:
        [one.kill() for one in beside]
        [one.wait() for one in beside]
    assert waited_s > 0 and own_s == pytest.approx(used_s, rel=0.2), "what is left is what was computed"
