"""A small importable project for the tests of models: features, a label, nets, the parts of a bundle."""

import importlib
from typing import Any

import numpy as np

from workbench.data.contract import Column, Contract
from workbench.data.recipe import Recipe

CARRIERS = ["AA", "DL", "UA", "WN"]
CONTRACT = Contract(
    "delays",
    {
        "rain": Column("float", ge=0),
        "wind": Column("float", nullable=True),
        "carrier": Column("str", max_len=8),
        "delay": Column("float", role="outcome"),
    },
)
LINEAR = "workbench.models.linear:LinearScorer"


def __getattr__(name: str) -> Any:
    "The nets of `toynet`, for those who have the second it takes to import torch."
    if name in ("Net", "Mixer"):
        return getattr(importlib.import_module("toynet"), name)
    raise AttributeError(name)


def features(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: columns[name] for name in ("rain", "wind", "carrier")}


def late(columns: dict[str, np.ndarray]) -> np.ndarray:
    return (columns["delay"] > 15).astype(np.float32)


class NotAModel:
    "Says when somebody makes one."

    made = 0

    def __init__(self, **config: Any) -> None:
        NotAModel.made += 1


def columns(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    wind = rng.normal(10, 4, rows)
    wind[rng.random(rows) < 0.1] = np.nan
    carrier = np.array(rng.choice([*CARRIERS, ""], rows), dtype=object)
    rain = rng.gamma(1.0, 2.0, rows)
    delay = 10 * rain + 5 * (carrier == "UA") + rng.normal(0, 8, rows) - 5
    return {"rain": rain, "wind": wind, "carrier": carrier, "delay": delay}


def recipe() -> Recipe:
    return Recipe("toy:features", "toy:late", numeric=("rain", "wind"), categorical=("carrier",)).fit(
        columns(500)
    )


def linear_parts(slope: float = 1.0, **more: Any) -> dict[str, Any]:
    made = recipe()
    weights = {
        "bias": np.array([-1.0]),
        "dense": np.array([slope, 0.1, 0.0]),
        "cat.0": np.linspace(-1, 1, made.sizes[0]),
    }
    config = {"n_dense": made.n_dense, "sizes": made.sizes}
    parts = {"model": LINEAR, "config": config, "weights": weights, "framework": "numpy"}
    return {**parts, "contract": CONTRACT, "recipe": made, **more}


def net_parts(kind: Any = None, **more: Any) -> dict[str, Any]:
    import torch
    from toynet import Net

    made, kind = recipe(), kind or Net
    torch.manual_seed(0)
    net = kind(made.n_dense, made.sizes)
    net(torch.tensor(made.encode(columns(500))))  # running statistics of the batch norm
    weights = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
    parts = {
        "model": f"toynet:{kind.__name__}",
        "config": net.config,
        "weights": weights,
        "framework": "torch",
    }
    return {**parts, "contract": CONTRACT, "recipe": made, **more}


def tree_parts(**more: Any) -> dict[str, Any]:
    "Boosting by histograms, with a column of categories."
    from sklearn.ensemble import HistGradientBoostingClassifier

    from workbench.models.trees import from_sklearn

    made, seen = recipe(), columns(2000)
    model = HistGradientBoostingClassifier(
        max_iter=15, max_leaf_nodes=8, categorical_features=[made.n_dense], random_state=0
    )
    parts = from_sklearn(model.fit(made.encode(seen), late(seen)))
    return {**parts, "contract": CONTRACT, "recipe": made, **more}
