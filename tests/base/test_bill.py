"""What runs have cost: each once in the total, and the answers of a model together."""

import json
import time

import pytest
from typer.testing import CliRunner

from workbench.base import records
from workbench.base.bill import cost
from workbench.base.errors import BadInput
from workbench.base.ledger import Ledger


def ran(ledger: Ledger, kind: str, name: str, usd: float, rows: int = 0) -> None:
    with records.start(kind, name, ledger=ledger) as run:
        run.cost = {"cpu_s": usd * 1e4, "usd": usd}
        run.log(rows=rows)


def test_what_ran_inside_another_is_counted_once(ledger: Ledger) -> None:
    with records.start("job", "3_score", ledger=ledger) as outer:
        ran(ledger, "predict", "flights", 0.4, rows=1000)
        outer.cost = {"usd": 0.5}
    found = cost(ledger=ledger)
    assert (found.usd, found.runs) == (0.5, 2)
    assert [(line.kind, line.usd) for line in found.lines] == [("job", 0.5), ("predict", 0.4)]


def test_batch_and_service_of_a_model_are_one_price(ledger: Ledger) -> None:
    ran(ledger, "predict", "flights", 0.4, rows=1000)
    ran(ledger, "serve", "flights@champion", 0.2, rows=500)
    ran(ledger, "predict", "words", 9.0, rows=0)
    ran(ledger, "fit", "flights", 5.0, rows=77)  # rows it learnt from are no answers
    found = cost(ledger=ledger)
    assert found.model("flights").rows == 1500
    assert found.model("flights").usd_per_1000 == pytest.approx(0.4)
    assert found.model("words").usd_per_1000 is None
    assert [line.name for line in found.models] == ["words", "flights"]
    assert "0.400000 USD per 1,000 of 1,500 predictions" in str(found)


def test_only_what_began_since(ledger: Ledger) -> None:
    ran(ledger, "job", "old", 1.0)
    with ledger.change() as db:
        db.execute("update runs set started_at=?", (time.time() - 8 * 86400,))
    ran(ledger, "job", "new", 2.0)
    assert [line.name for line in cost("7d", ledger=ledger).lines] == ["new"]
    assert cost("2w", ledger=ledger).usd == 3.0
    assert "since 7d" in str(cost("7d", ledger=ledger))


@pytest.mark.parametrize("since", ["yesterday", "7", "-1d", "1.5d", "d", "7y"])
def test_what_is_no_length_of_time_is_said(ledger: Ledger, since: str) -> None:
    with pytest.raises(BadInput, match="no length of time"):
        cost(since, ledger=ledger)


def test_the_verb(ledger: Ledger) -> None:
    from workbench.cli.cli import app

    ran(ledger, "serve", "flights@champion", 0.2, rows=500)
    done = CliRunner().invoke(app, ["cost", "--json"])
    assert done.exit_code == 0 and '"usd_per_1000": 0.4' in done.stdout


def test_a_run_whose_metrics_are_no_numbers_does_not_take_the_bill_away(ledger: Ledger) -> None:
    with records.start("fit", "flights", params={"lr": float("inf")}, ledger=ledger) as run:
        run.log(step=1, auc=float("nan"))
        run.metrics["slices"] = [{"group": "0", "auc": float("nan"), "said": "NaN"}]
        run.cost = {"usd": 0.5}
    assert cost(ledger=ledger).usd == 0.5
    (kept,) = ledger.query(
        "select params, metrics from runs where json_valid(params) and json_valid(metrics)"
    )
    assert json.loads(kept["params"]) == {"lr": None}
    assert json.loads(kept["metrics"]) == {
        "auc": None,
        "slices": [{"group": "0", "auc": None, "said": "NaN"}],
    }
    with ledger.change() as db:  # as versions before this one wrote it
        db.execute("""update runs set metrics='{"auc": NaN}'""")
    assert cost(ledger=ledger).usd == 0.5
