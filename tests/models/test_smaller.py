"""Cuts keep what weighs most, learn from the whole, and are bundles like any other."""

from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from torch import nn

from workbench.base.errors import BadInput
from workbench.models import bundle as bundles
from workbench.models import smaller


@pytest.fixture
def net() -> toy.Net:
    parts = toy.net_parts()
    made = toy.Net(**parts["config"])
    made.load_state_dict(
        {name: torch.from_numpy(np.array(value)) for name, value in parts["weights"].items()}
    )
    return made.eval()


def x(rows: int = 1000) -> np.ndarray:
    return toy.recipe().encode(toy.columns(rows))


def answers(net: nn.Module, rows: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return torch.sigmoid(net(torch.from_numpy(rows))).numpy()


def count(net: nn.Module) -> int:
    return sum(value.numel() for value in net.parameters())


def test_all_units_kept_are_the_net_itself(net: toy.Net) -> None:
    assert np.abs(answers(smaller.thinner(net, "toynet:Net", 1.0), x()) - answers(net, x())).max() < 1e-6


def test_units_that_weigh_nothing_cost_nothing(net: toy.Net) -> None:
    with torch.no_grad():
        net.body[2].weight[:, 48:] = 0
    assert np.abs(answers(smaller.thinner(net, "toynet:Net", 0.5), x()) - answers(net, x())).max() < 0.05
    assert smaller._pairs(net) == [("body.0", "body.2"), ("body.2", "body.4")]


@pytest.mark.parametrize("cut", [smaller.thinner, smaller.low_rank])
def test_a_cut_net_is_smaller_learns_and_is_a_bundle(net: toy.Net, cut: object, tmp_path: Path) -> None:
    made = cut(net, "toynet:Net", 0.4)
    before = np.abs(answers(made, x()) - answers(net, x())).mean()
    smaller.learn(made, x(4000), answers(net, x(4000)), epochs=4)
    assert count(made) < 0.75 * count(net)
    assert np.abs(answers(made, x()) - answers(net, x())).mean() <= before
    parts = {"model": "workbench.models.smaller:Changed", "framework": "torch", "config": made.config}
    saved = bundles.save(
        tmp_path / "cut", **parts, weights=smaller.state_of(made), contract=toy.CONTRACT, recipe=toy.recipe()
    )
    assert np.abs(saved.predictor().scores(x()) - answers(made, x())).max() < 1e-6


def test_zeros_stay_zeros_while_it_learns(net: toy.Net) -> None:
    made, stay = smaller.sparse(net, 0.25)
    smaller.learn(made, x(), answers(net, x()), epochs=2, stay=stay)
    share = [float((value != 0).float().mean()) for name, value in made.named_parameters() if name in stay]
    assert max(share) <= 0.26 and len(share) == 4


def test_the_same_seed_learns_the_same_bits(net: toy.Net) -> None:
    made = [
        smaller.learn(smaller.low_rank(net, "toynet:Net", 0.4), x(), answers(net, x()), seed=3)
        for _ in range(2)
    ]
    assert answers(made[0], x()).tobytes() == answers(made[1], x()).tobytes()


def test_only_sizes_of_the_net_are_halved(net: toy.Net) -> None:
    found = smaller.smaller_configs(net, x(4), {toy.recipe().n_dense})
    assert [config["hidden"] for config in found] == [48]


def test_a_configuration_cannot_make_it_run_something_else() -> None:
    for model in ("os:system", "toy:NotAModel", "toy:features"):
        with pytest.raises(BadInput):
            smaller.Changed(model, {}, {})
    assert toy.NotAModel.made == 0
    with pytest.raises(BadInput, match="only Linear layers change size"):
        smaller.Changed("toynet:Net", {"n_dense": 3, "sizes": [5]}, {"norm": {"out": 3}})


def test_half_precision_is_nearly_the_same(net: toy.Net) -> None:
    moved = np.abs(answers(smaller.halved(net, "toynet:Net"), x()) - answers(net, x()))
    assert 0 < moved.max() < 0.03


def test_a_net_that_cannot_be_compiled_is_refused(net: toy.Net, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **how: object) -> object:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda *args, **how: broken)
    with pytest.raises(BadInput, match="cannot be compiled: RuntimeError"):
        smaller.compiled(net, "toynet:Net", x(4))
