"""A small world of flights: two feeds, a recipe, and a net in a module of its own."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from workbench.data.contract import Column, Contract
from workbench.data.feed import Feed
from workbench.data.recipe import Recipe
from workbench.data.source import write_parquet

MODULE = """
import torch
from torch import nn


def features(rows):
    return {"wind": rows["wind"], "gust": rows["gust"], "carrier": rows["carrier"]}


def late(rows):
    return rows["delay"] > 15


class WindNet(nn.Module):
    def __init__(self, n_dense, sizes, hidden=8, columns=0):
        super().__init__()
        self.config = {"n_dense": n_dense, "sizes": list(sizes), "hidden": hidden, "columns": columns}
        self.code = nn.Embedding(sizes[0], 2)
        self.layers = nn.Sequential(
            nn.Linear(n_dense + 2, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, 1)
        )

    def forward(self, x):
        out = self.layers(torch.cat([x[:, :-1], self.code(x[:, -1].long())], 1))
        return out if self.config["columns"] else out.squeeze(-1)


class Forgetful(WindNet):
    def __init__(self, n_dense, sizes, hidden=8):
        super().__init__(n_dense, sizes, hidden)
        self.config = {"n_dense": n_dense, "sizes": list(sizes)}


class Bare(nn.Linear):
    pass
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def world(project: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    "`train`, `valid`, `recipe` (not fitted), `module` with the nets, `feed(where)`."
    (project / "small_world.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.delitem(sys.modules, "small_world", raising=False)
    importlib.invalidate_caches()
    rng = np.random.default_rng(0)
    rows = 2_400
    wind, carrier = rng.gamma(2.0, 5.0, rows), rng.choice(["UA", "B6", "AS"], rows)
    delay = 10 + rng.normal(0, 10, rows) + (wind - 10) * (carrier != "AS")
    frame = pl.DataFrame({"month": np.arange(rows) % 4 + 1, "wind": wind, "carrier": carrier, "delay": delay})
    gust = pl.when(pl.col("wind") > 12).then(pl.col("wind") * 1.5)
    source = write_parquet(project / "flights.parquet", frame.with_columns(gust=gust))
    inputs = {"month": Column("int"), "wind": Column("float", ge=0), "carrier": Column("str")}
    inputs["gust"] = Column("float", nullable=True)
    contract = Contract("flights", {**inputs, "delay": Column("float", role="outcome")})

    def feed(where: str, name: str = "") -> Feed:
        return Feed(source, contract, where=where, name=name)

    recipe = Recipe("small_world:features", "small_world:late", ("wind", "gust"), ("carrier",))
    return SimpleNamespace(
        feed=feed,
        train=feed("month < 4", "train"),
        valid=feed("month = 4", "valid"),
        recipe=recipe,
        module=importlib.import_module("small_world"),
    )
