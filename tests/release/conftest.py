"""A feed of made-up delays, a shelf with a baseline and a net, and evidence about them."""

import polars as pl
import pytest
import toy

from workbench.base.ledger import Ledger
from workbench.data.feed import Feed, write_parquet
from workbench.models.shelf import Shelf
from workbench.release import proof
from workbench.release.evidence import Evidence


@pytest.fixture(autouse=True)
def _one_process(monkeypatch) -> None:
    "Most tests here need no second process that answers again: `fresh` is for those that do."
    monkeypatch.setattr(proof, "FRESH_ROWS", 0)


@pytest.fixture
def fresh(_one_process, monkeypatch) -> None:
    monkeypatch.setattr(proof, "FRESH_ROWS", 32)


@pytest.fixture
def shelf(ledger: Ledger) -> Shelf:
    return Shelf(ledger)


@pytest.fixture
def feed(project) -> Feed:
    columns = toy.columns(1200, seed=5)
    frame = pl.DataFrame({name: list(values) for name, values in columns.items()}, strict=False)
    return Feed(write_parquet(project / "delays.parquet", frame.fill_nan(None)), toy.CONTRACT)


def evidence(ref: str = "flights/2", auc: float = 0.71, **more) -> Evidence:
    "Evidence as `measure` gives it, with the figures a test wants."
    brier, pr_auc, by = more.pop("brier", 0.15), more.pop("pr_auc", 0.4), more.pop("by", {})
    rows = [
        {"slice": "carrier", "group": group, "rows": count, "auc": value, "brier": 0.1, "rate": 0.2}
        for group, (value, count) in by.items()
    ]
    facts = {"latency_p50_ms": 0.2, "latency_p99_ms": 0.4, "serving_skew": 0.0, "size_mb": 0.3}
    facts |= {
        "rows": 27_000,
        "fingerprint": "september",
        "digest": f"digest of {ref}",
        "usd_per_1000": 1e-6,
        **more,
    }
    known = {"repeats": {"value": 0.0, "how": "again"}, "feed": {"value": 1.0, "how": "checked"}}
    facts = {"proof": known | {"labels": {}, "licence": "", "open": False}} | facts
    metrics = {"auc": auc, "pr_auc": pr_auc, "brier": brier, "calibration": 0.02}
    return Evidence(ref=ref, metrics=metrics, slices=rows, **facts)


@pytest.fixture(name="evidence")
def _evidence():
    return evidence
