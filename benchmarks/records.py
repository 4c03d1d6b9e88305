"""What recording a run costs: a block inside `records.start` against MLflow's own tracking, same sqlite settings, same run.

Prints the ratio of medians with the spread of the runs behind it. Usage: python benchmarks/records.py [runs]
"""

import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "WORKBENCH_TRACK": "false"}
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

METRICS = {"loss": 0.4, "auc": 0.7, "brier": 0.17}


def ours(folder: Path) -> Callable[[], None]:
    "A run with three metrics, full identity included, in our ledger."
    from workbench.base import records
    from workbench.base.ledger import Ledger
    from workbench.base.store import Store

    ledger = Ledger(Store(folder / "store"))

    def once() -> None:
        with records.start("fit", "flights", params={"epochs": 2}, seed=7, ledger=ledger) as run:
            run.log(step=1, **METRICS)

    return once


def mlflow(folder: Path) -> Callable[[], None]:
    "A run with the same three metrics in MLflow's sqlite store, called directly."
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment("flights")

    def once() -> None:
        with mlflow.start_run():
            mlflow.log_params({"epochs": 2, "seed": 7})
            mlflow.log_metrics(METRICS, step=1)

    return once


def times_ms(once: Callable[[], None], count: int) -> list[float]:
    "Milliseconds of each call, after two that warm it up."
    found = []
    for turn in range(count + 2):
        began = time.perf_counter()
        once()
        found += [(time.perf_counter() - began) * 1000] if turn >= 2 else []
    return found


def main(count: int) -> None:
    "Measure both in turn and print one line each."
    with tempfile.TemporaryDirectory() as folder:
        found = {f.__name__: times_ms(f(Path(folder)), count) for f in (ours, mlflow)}
    medians = {name: statistics.median(spent) for name, spent in found.items()}
    for name, spent in found.items():
        low, high = sorted(spent)[len(spent) // 20], sorted(spent)[-1 - len(spent) // 20]
        print(f"{name:8} {medians[name]:8.1f} ms a run   [{low:.1f} to {high:.1f}], n={len(spent)}")
    print(f"ratio    {medians['ours'] / medians['mlflow']:8.2f}   (ours / MLflow; below 1 is faster)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
