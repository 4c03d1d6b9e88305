"""Reproducible, under load, licensed, from data that passed: each is measured, each gate is seen to refuse."""

import numpy as np
import polars as pl
import pytest
import toy

from workbench.base.errors import BadInput
from workbench.base.records import start
from workbench.data.feed import Feed, write_parquet
from workbench.models.bundle import Bundle
from workbench.models.shelf import Shelf
from workbench.release.evidence import measure
from workbench.release.gates import default_gates, judge
from workbench.release.proof import Fresh, feed_of, labels_of, licence_of, proved, repeats, under_load
from workbench.serve.load import arrivals

ASKED = ("reproducibility", "load_p99_ms", "load_failed", "feed_gates", "label_gates", "licence")


def verdicts(found, **limits) -> dict[str, dict]:
    "The rows of these gates, by name."
    gates = [gate for gate in default_gates(**limits) if gate.name in ASKED]
    return {row["gate"]: row for row in judge(found, baseline=found, champion=None, gates=gates).rows}


def asked(bundle: Bundle, feed: Feed, rows: int) -> tuple[list[dict], np.ndarray]:
    columns = {name: values[:rows] for name, values in feed.columns().items()}
    return feed.rows().select(bundle.contract.inputs).head(rows).to_dicts(), bundle.predictor()(columns)


@pytest.mark.parametrize("parts", [toy.linear_parts, toy.net_parts])
def test_a_fresh_process_gives_the_same_bits(shelf: Shelf, feed: Feed, parts) -> None:
    bundle = shelf.add("delays", **parts())
    rows, wanted = asked(bundle, feed, 40)
    assert repeats(bundle, rows, wanted) == (0.0, "40 rows again in a fresh process")
    moved = wanted.copy()
    moved[3] += 1e-3
    assert repeats(bundle, rows, moved)[0] == pytest.approx(1e-3, rel=1e-3)
    assert repeats(bundle, rows, wanted[:39])[0] is None and repeats(bundle, [], wanted)[0] is None


def test_a_fresh_process_that_is_not_waited_for_ends(shelf: Shelf, feed: Feed) -> None:
    bundle = shelf.add("delays", **toy.linear_parts())
    rows, _ = asked(bundle, feed, 40)
    with pytest.raises(ZeroDivisionError), Fresh(bundle, rows, 40) as fresh:
        1 / 0  # noqa: B018
    assert fresh.child is not None and fresh.child.returncode == -9


def test_what_cannot_answer_elsewhere_is_not_measured(shelf: Shelf, feed: Feed) -> None:
    bundle = shelf.add("delays", **toy.linear_parts())
    rows, wanted = asked(bundle, feed, 4)
    (bundle.path / "weights.safetensors").unlink()
    value, how = repeats(bundle, rows, wanted)
    assert value is None and "cannot answer" in how


def test_measure_brings_the_proof_and_the_gates_read_it(shelf: Shelf, feed: Feed, fresh) -> None:
    found = measure(shelf.add("delays", **toy.linear_parts()), feed, calls=5, ledger=shelf.ledger)
    rows = verdicts(found)
    assert all(row["passed"] for row in rows.values())
    assert rows["reproducibility"]["how"] == "32 rows again in a fresh process"
    assert "no target rate" in rows["load_p99_ms"]["how"] and "no weights of others" in rows["licence"]["how"]
    assert len(found.draws["pr_auc"]) == len(found.draws["auc"])


def trained_on(shelf: Shelf, project, name: str) -> tuple[Feed, Bundle]:
    columns = toy.columns(300, seed=len(name))
    frame = pl.DataFrame({name: list(values) for name, values in columns.items()}, strict=False).fill_nan(
        None
    )
    feed = Feed(write_parquet(project / f"{name}.parquet", frame), toy.CONTRACT, name=name)
    lineage = {"data": feed.fingerprint()}
    return feed, shelf.add("delays", **toy.linear_parts(lineage=lineage))


def test_the_feed_it_learned_from_must_have_passed(shelf: Shelf, project, evidence) -> None:
    feed, bundle = trained_on(shelf, project, "train")
    assert feed_of(bundle, shelf.ledger)["value"] is None
    feed.check(shelf.ledger)
    good = feed_of(bundle, shelf.ledger)
    assert good["value"] == 1.0 and "succeeded" in good["how"]
    with pytest.raises(BadInput), start("check", "train", data=feed.fingerprint(), ledger=shelf.ledger):
        raise BadInput("broken", "mend it")
    bad = feed_of(bundle, shelf.ledger)
    assert bad["value"] == 0.0
    for value, passed in ((good, True), (bad, False), ({"value": None, "how": "no check"}, False)):
        assert verdicts(evidence(proof={"feed": value}))["feed_gates"]["passed"] is passed


def test_labels_that_failed_their_audit_hold_a_model_back(shelf: Shelf, project, evidence) -> None:
    feed, bundle = trained_on(shelf, project, "train")
    assert labels_of(bundle, shelf.ledger) == {}
    for errors in (0.01, 0.2):
        with start("audit", "train", data=feed.fingerprint(), ledger=shelf.ledger) as run:
            run.log(label_errors=errors, label_conflicts=0.0)
        row = verdicts(evidence(proof={"labels": labels_of(bundle, shelf.ledger)}))["label_gates"]
        assert row["passed"] is (errors < 0.05) and run.id in row["how"]
    assert "label_errors" in row["how"]
    assert not verdicts(evidence(proof={}))["label_gates"]["passed"]


@pytest.mark.parametrize(
    ("licence", "passed"),
    [("Apache-2.0", True), ("mit", True), ("cc-by-nc-4.0", False), ("other", False), ("", False)],
)
def test_weights_of_others_need_an_open_licence(evidence, licence: str, passed: bool) -> None:
    row = verdicts(evidence(proof={"licence": licence, "open": True}))["licence"]
    assert row["passed"] is passed and (licence or "not known") in row["how"]


def test_own_weights_need_none(shelf: Shelf) -> None:
    assert licence_of(shelf.add("delays", **toy.linear_parts())) == {"licence": "", "open": False}
    named = shelf.add("delays", **toy.linear_parts(lineage={"licence": "cc-by-nc-4.0"}))
    assert licence_of(named) == {"licence": "cc-by-nc-4.0", "open": True}


def test_a_service_of_its_files_is_asked_at_the_rate(shelf: Shelf, feed: Feed, evidence) -> None:
    bundle = shelf.add("delays", **toy.linear_parts())
    rows, _ = asked(bundle, feed, 40)
    found = under_load(bundle, rows, rate=40, seconds=1.0)
    assert found["failed"] < 0.5 and found["p99_ms"] > 0 and found["sent"] == len(arrivals(40, 1.0))
    row = verdicts(evidence(proof={"load": found}), load_p99_ms=1e6)["load_p99_ms"]
    assert row["passed"] and "40/s, open loop" in row["how"]
    assert not verdicts(evidence(proof={"load": found}), load_p99_ms=0)["load_p99_ms"]["passed"]
    lost = verdicts(evidence(proof={"load": found | {"failed": 0.1}}))["load_failed"]
    assert not lost["passed"]


def test_a_service_that_does_not_start_has_not_passed(shelf: Shelf, feed: Feed, evidence) -> None:
    bundle = shelf.add("delays", **toy.linear_parts())
    rows, _ = asked(bundle, feed, 4)
    (bundle.path / "weights.safetensors").unlink()
    found = under_load(bundle, rows, rate=40, seconds=1.0)
    assert found["p99_ms"] is None and "did not start" in found["why"]
    assert not verdicts(evidence(proof={"load": found}))["load_p99_ms"]["passed"]


def test_a_rate_is_a_number(shelf: Shelf) -> None:
    bundle = shelf.add("delays", **toy.linear_parts())
    for rate in (-1.0, float("nan"), float("inf")):
        with pytest.raises(BadInput, match="rate"):
            proved(bundle, [], np.zeros(0), shelf.ledger, rate)
