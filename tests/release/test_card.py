"""A card says what the records say, nothing else, and nothing that came from elsewhere becomes markup."""

import json
import re
from contextlib import suppress
from typing import Any

import numpy as np
import polars as pl
import pytest
import toy

from workbench.base import audit
from workbench.base.errors import BadInput, GateRefused, NotFound
from workbench.base.records import runs, start
from workbench.data.feed import Feed, write_parquet
from workbench.models.bundle import Bundle
from workbench.models.shelf import Shelf
from workbench.release.card import Card, card
from workbench.release.drawn import Node, calibration, lineage, moved, slices
from workbench.release.evidence import measure
from workbench.release.gates import Gate, Waiver, default_gates, judge
from workbench.release.known import describe, limits_of, purpose
from workbench.release.registry import promote
from workbench.release.resample import curve

MARKUP = "<script>alert(1)</script>|[x](javascript:alert(1))<img src=x onerror=alert(1)>"


@pytest.fixture
def trained(shelf: Shelf, project) -> Bundle:
    "A version with a lineage: a checked feed, a run."
    columns = toy.columns(800, seed=9)
    frame = pl.DataFrame({name: list(values) for name, values in columns.items()}, strict=False)
    rows = Feed(write_parquet(project / "train.parquet", frame.fill_nan(None)), toy.CONTRACT, name="train")
    rows.check(shelf.ledger)
    with start("fit", "delays", data=rows.fingerprint(), ledger=shelf.ledger) as run:
        pass
    lineage = {"run": run.id, "data": rows.fingerprint(), "seed": 7}
    return shelf.add("delays", run=run.id, **toy.linear_parts(lineage=lineage))


def gates_of(**limits: float) -> list[Gate]:
    "The default gates without the one that needs a second process."
    return [gate for gate in default_gates(**limits) if gate.name != "reproducibility"]


def judged(bundle: Bundle, feed: Feed, shelf: Shelf, **more: Any):
    found = measure(bundle, feed, calls=20, ledger=shelf.ledger)
    limits = gates_of(latency_p99_ms=1000, auc=0.5, worst_slice_auc=0.5, calibration=1.0)
    return found, judge(found, baseline=found, champion=None, gates=more.pop("gates", limits), **more)


def test_every_figure_is_that_of_the_records(shelf: Shelf, trained: Bundle, feed: Feed) -> None:
    found, verdict = judged(trained, feed, shelf)
    promote(trained, verdict=verdict, ledger=shelf.ledger)
    told = card("delays@champion", ledger=shelf.ledger).to_json()
    assert (told["model"], told["digest"], told["aliases"]) == ("delays/1", trained.digest, ["champion"])
    assert {row["measure"]: row["value"] for row in told["metrics"]}["AUC"] == round(found.metrics["auc"], 4)
    assert [(row["gate"], row["limit"], row["how measured"]) for row in told["gates"]] == [
        (row["gate"], row["limit"], row["how"]) for row in verdict.rows
    ]
    assert [(row["rows"], row["feed"]) for row in told["data"]] == [
        ("trained on", "train"),
        ("measured on", feed.name),
    ]
    assert told["data"][0]["accepted"] == 800 and told["data"][1]["accepted"] == 1200
    assert [(row["did"], row["alias"]) for row in told["decisions"]] == [("promote", "champion")]
    edges = {tuple(edge) for edge in told["lineage"]["edges"]}
    assert {("trained", "fit"), ("fit", "this"), ("judged", "measure"), ("verdict", "@champion")} <= edges
    json.dumps(told, allow_nan=False)


def test_what_nobody_measured_is_said(shelf: Shelf) -> None:
    shelf.add("delays", **toy.linear_parts())
    text = card("delays/1", ledger=shelf.ledger).markdown()
    for part in (
        "never measured",
        "never judged",
        "Nobody has looked for drift",
        "names no data",
        "Nobody has decided",
    ):
        assert part in text
    assert "not stated" in text or "none stated" in text


def test_waivers_and_failures_are_on_the_page(shelf: Shelf, trained: Bundle, feed: Feed) -> None:
    gates = gates_of(latency_p99_ms=0, auc=0.999, calibration=1.0, worst_slice_auc=0.5)
    _, verdict = judged(
        trained, feed, shelf, gates=gates, waivers=[Waiver("latency_p99_ms", "bob", "batch only")]
    )
    with pytest.raises(GateRefused):
        promote(trained, verdict=verdict, ledger=shelf.ledger)
    found = card("delays/1", ledger=shelf.ledger)
    rows = {row["gate"]: row for row in found.to_json()["gates"]}
    assert rows["latency_p99_ms"]["verdict"] == "waived" and "bob" in rows["latency_p99_ms"]["waived by"]
    assert rows["auc"]["verdict"] == "FAILED" and "1 gate failed" in str(found)
    assert "1 gate failed, 1 waived" in str(found)
    assert any("waived by bob" in one for one in limits_of(found.known))
    rest = [gate for gate in gates if gate.name != "auc"]
    _, verdict = judged(
        trained, feed, shelf, gates=rest, waivers=[Waiver("latency_p99_ms", "bob", "batch only")]
    )
    promote(trained, verdict=verdict, ledger=shelf.ledger)
    assert f"{len(rest) - 4} gates passed, 1 waived, 3 not asked" in str(
        card("delays/1", ledger=shelf.ledger)
    )


def test_words_are_kept_with_the_model_and_in_the_audit(shelf: Shelf, trained: Bundle) -> None:
    made = card(
        "delays/1", use="to plan gates", limits="- no weather\n- no cargo", licence="MIT", ledger=shelf.ledger
    )
    again = card("delays/1", ledger=shelf.ledger)
    assert again.markdown() == made.markdown() and "- no weather\n- no cargo" in made.markdown()
    assert made.to_json()["facts"]["licence"] == "MIT"
    entry = audit.entries(shelf.ledger, "delays")[-1]
    assert entry.action == "describe" and entry.detail["use"] == "to plan gates"
    card("delays/1", use="", ledger=shelf.ledger)
    assert "to plan gates" not in card("delays/1", ledger=shelf.ledger).markdown()
    with pytest.raises(NotFound):
        describe("weather", use="x", ledger=shelf.ledger)


def test_nothing_from_elsewhere_becomes_markup(shelf: Shelf, trained: Bundle, feed: Feed) -> None:
    _, verdict = judged(
        trained, feed, shelf, gates=gates_of(auc=0.999), waivers=[Waiver("auc", MARKUP, MARKUP)]
    )
    with suppress(GateRefused):
        promote(trained, verdict=verdict, ledger=shelf.ledger)
    with start("job", MARKUP, params={"model": "delays@champion", "x": MARKUP}, ledger=shelf.ledger) as run:
        run.log(drift=[{"column": MARKUP, "level": MARKUP, "psi": 3.0, "moved": MARKUP}])
    found = card("delays/1", use=MARKUP, limits=MARKUP, licence=MARKUP, ledger=shelf.ledger)
    for text in (found.page(), found._repr_html_(), found.markdown()):
        assert "alert(1)" in text
        assert not re.search(r"<script|<img", text)
    assert not re.search(r"(?<!\\)\]\(", found.markdown())  # no link either
    assert "Content-Security-Policy" in found.page()


def test_drift_is_of_this_model_and_the_newest(shelf: Shelf, trained: Bundle) -> None:
    for model, column in (("delays@champion", "old"), ("delays/1", "wind"), ("delays_eu@champion", "other")):
        with start("job", "4_monitor", params={"model": model}, ledger=shelf.ledger) as run:
            run.log(drift=[{"column": column, "level": "drifted", "psi": 0.9, "moved": "up"}])
    found = card("delays/1", ledger=shelf.ledger)
    assert [row["name"] for row in found.to_json()["drift"]] == ["wind"]
    assert "moved since it was trained: wind" in " ".join(limits_of(found.known))


def test_a_child_shows_its_parents(shelf: Shelf, trained: Bundle) -> None:
    for parent in ("delays/1", "delays/2"):
        shelf.add("delays", **toy.linear_parts(lineage={**trained.lineage, "parent": parent, "way": "int8"}))
    told = card("delays/3", ledger=shelf.ledger).to_json()["lineage"]
    assert {("delays/1", "delays/2"), ("delays/2", "this"), ("fit", "delays/1")} <= {
        tuple(e) for e in told["edges"]
    }


def test_it_is_saved_whole_and_only_as_what_it_is(shelf: Shelf, trained: Bundle, tmp_path) -> None:
    found = card("delays/1", ledger=shelf.ledger)
    assert found.save(tmp_path / "card.md").read_text() == found.markdown()
    assert found.save(tmp_path / "card.html").read_text() == found.page()
    with pytest.raises(BadInput, match="pdf"):
        found.save(tmp_path / "card.pdf")
    with pytest.raises(BadInput, match="not on the shelf"):
        card(trained.path, ledger=shelf.ledger)
    assert isinstance(found, Card) and runs(shelf.ledger, kind="card") == []


def test_a_purpose_is_read_and_not_run(tmp_path, monkeypatch) -> None:
    (tmp_path / "dangerous.py").write_text('"What it *does*.\\n\\nMore."\nraise SystemExit\n')
    (tmp_path / "broken.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        purpose("dangerous:x") == "What it does."
        and purpose("broken:x") == purpose("gone:x") == purpose("") == ""
    )


def test_pictures_draw_what_they_are_given() -> None:
    y = [0.0, 1.0] * 50
    bins = curve(np.array(y), np.linspace(0, 1, 100))
    assert len(bins) == 10 and all(row["low"] <= row["rate"] <= row["high"] for row in bins)
    assert calibration(bins).count("<circle") == 10
    rows = [{"slice": "a", "group": "b", "rows": 9, "auc": 0.5, "interval": (0.4, 0.6)}]
    assert slices(rows * 30, 0.7).count("<circle") == 16
    assert moved([{"column": "x", "level": "drifted", "psi": 9.0}]).count("<rect") == 1
    nodes = [Node(name, name) for name in "abc"]
    assert (
        lineage(nodes, [("a", "b"), ("b", "c"), ("c", "a"), ("a", "gone")]).count("<rect") == 3
    )  # also in a circle
