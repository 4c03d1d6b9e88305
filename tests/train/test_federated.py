"""Sites train together, rows stay where they are, and one liar or one loss does not decide."""

import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.base.errors import BadInput, Unavailable
from workbench.base.records import Ledger, find
from workbench.compute.cluster import head
from workbench.data.source import write_parquet
from workbench.train.federated import Plan, federated, merged
from workbench.train.loop import deterministic
from workbench.train.message import pack, unpack
from workbench.train.metrics import score
from workbench.train.privacy import drawn, epsilon, private_step, renyi, secret
from workbench.train.robust import combine
from workbench.train.site import Site, auc_of, histograms

pytestmark = [pytest.mark.filterwarnings("ignore")]  # Ray's own
NAMES = {"ua": "UA", "b6": "B6", "as": "AS"}
MARK = 13.371337  # of one row, to be looked for in what is sent


@pytest.fixture
def place(world: SimpleNamespace) -> SimpleNamespace:
    "`sites` by carrier, each with its own contract; `train(**how)`."

    def site(carrier: str) -> Callable[[], Any]:
        feed = world.feed
        return lambda: tuple(
            feed(f"carrier = '{carrier}' and {w}", carrier) for w in ("month < 4", "month = 4")
        )

    sites = {name: site(carrier) for name, carrier in NAMES.items()}

    def train(**how: Any) -> Any:
        given = {
            "recipe": world.recipe,
            "name": "late",
            "rounds": 3,
            "batch_size": 64,
            "lr": 0.01,
            "sites": sites,
        } | how
        return federated(lambda recipe: world.module.WindNet(recipe.n_dense, recipe.sizes), **given)

    return SimpleNamespace(world=world, sites=sites, train=train)


def test_a_message_is_itself_and_no_pickle() -> None:
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([3])}
    head, found = unpack(pack({"do": "x", "n": [1, 2.5, None]}, arrays))
    assert head == {"do": "x", "n": [1, 2.5, None]} and all((found[k] == v).all() for k, v in arrays.items())
    for wrong in (b"", b"12345678", b"\x80\x04K\x01.", pack({})[:-3]):
        with pytest.raises(BadInput, match="no message"):
            unpack(wrong)


@given(st.integers(1, 7), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_steps_are_combined_as_numpy_would(sites: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps, rows = rng.normal(size=(sites, 5)), rng.integers(1, 100, sites)
    assert np.allclose(combine(steps, rows), np.average(steps, axis=0, weights=rows))
    assert np.array_equal(combine(steps, rows, "median"), np.median(steps, axis=0))
    if sites > 2:
        assert np.allclose(combine(steps, rows, "trimmed", 0.01), np.sort(steps, axis=0)[1:-1].mean(0))
        liar = np.vstack([steps[:-1], np.full(5, 1e9)])
        for how in ("median", "trimmed"):
            assert np.abs(combine(liar, rows, how)).max() <= np.abs(steps[:-1]).max()


def test_auc_from_histograms_is_auc() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(5_000) < 0.3).astype(float)
    p = np.round(np.clip(rng.beta(2, 5, 5_000) + 0.1 * y, 0, 1) * 100) / 100
    counts = histograms(y, p)
    assert auc_of(counts["ones"], counts["zeros"]) == pytest.approx(score(y, p)["auc"], abs=1e-9)
    assert math.isnan(auc_of(counts["ones"], counts["ones"] * 0))


def test_the_accountant_says_what_is_published() -> None:
    assert renyi(1.0, 2.0, 8) == 1.0  # the plain Gaussian mechanism: order / (2 noise^2)
    # TensorFlow Privacy's tutorial: 60,000 rows in batches of 250, noise 1.3, 15 epochs: 1.18 at order 17, by the older conversion
    found = 3600 * renyi(250 / 60_000, 1.3, 17) + math.log(1e5) / 16
    assert found == pytest.approx(1.18, abs=0.01)
    assert epsilon(250 / 60_000, 1.3, 3600, 1e-5) < 1.18  # the newer one is tighter
    spent = [epsilon(0.01, noise, 500, 1e-5) for noise in (0.5, 1.0, 2.0)]
    assert spent == sorted(spent, reverse=True) and epsilon(0.01, 0.0, 1, 1e-5) == math.inf
    assert epsilon(0.01, 1.0, 0, 1e-5) == 0 and epsilon(0.01, 1.0, 900, 1e-5) > spent[1]
    # numerical integration of the divergence that the closed form stands for
    z = np.linspace(-30, 30, 400_001)
    log_ratio = np.log1p(0.05 * (np.exp((2 * z - 1) / (2 * 1.5**2)) - 1))
    density = np.exp(-(z**2) / (2 * 1.5**2)) / math.sqrt(2 * math.pi * 1.5**2)
    integral = math.log(np.trapezoid(density * np.exp(6 * log_ratio), z)) / 5
    assert renyi(0.05, 1.5, 6) == pytest.approx(integral, rel=1e-6)


def test_a_private_step_is_cut_and_shaken_as_stated() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0))
    x, y = torch.randn(40, 3) * 50, (torch.rand(40) < 0.5).float()
    private_step(net, x, y, 40.0, max_norm=0.3, noise=0.0, generator=secret())
    wanted = [torch.zeros_like(w) for w in net.parameters()]
    for row in range(40):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x[row : row + 1]), y[row : row + 1])
        grads = torch.autograd.grad(loss, list(net.parameters()))
        norm = torch.sqrt(sum(g.square().sum() for g in grads))
        for total, grad in zip(wanted, grads, strict=True):
            total += grad * min(1.0, 0.3 / max(float(norm), 1e-12)) / 40
    assert all(torch.allclose(w.grad, g, atol=1e-6) for w, g in zip(net.parameters(), wanted, strict=True))
    big = torch.nn.Sequential(torch.nn.Linear(20_000, 1), torch.nn.Flatten(0))
    private_step(
        big, torch.zeros(0, 20_000), torch.zeros(0), 10.0, max_norm=0.5, noise=2.0, generator=secret()
    )
    assert float(next(big.parameters()).grad.std()) == pytest.approx(0.5 * 2.0 / 10, rel=0.05)
    sizes = [len(drawn(1_000, 0.1, secret())) for _ in range(30)]
    assert 80 < np.mean(sizes) < 120 and len(set(sizes)) > 5


def test_statistics_of_sites_are_those_of_all_rows(place: SimpleNamespace) -> None:
    parts = []
    for feeds in place.sites.values():
        columns = feeds()[0].columns()
        parts.append((len(columns["wind"]), place.world.recipe.fit(columns).stats))
    whole = place.world.recipe.fit(place.world.train.columns()).stats
    found = merged(place.world.recipe, parts).stats
    assert found["categorical"] == whole["categorical"] and found["inputs"] == whole["inputs"]
    for key in ("mean", "std"):
        assert found["numeric"]["wind"][key] == pytest.approx(whole["numeric"]["wind"][key], rel=1e-9)
    assert found["numeric"]["gust"]["has_missing"]


def test_one_site_is_local_training_and_fedavg_of_twins_is_one_of_them(place: SimpleNamespace) -> None:
    alone = place.train(sites={"ua": place.sites["ua"]}, rounds=1)
    model = place.world.module.WindNet(alone.recipe.n_dense, alone.recipe.sizes)
    site = Site("ua", place.sites["ua"])
    plan = Plan(rounds=1, batch_size=64, lr=0.01)
    begin = {"do": "begin", "recipe": alone.recipe.to_json(), "plan": plan.told(), "number": 0}
    site.handle(pack({**begin, "model": "small_world:WindNet", "config": model.config}))
    with deterministic(0):
        first = {k: v.numpy() for k, v in place.world.module.WindNet(**model.config).state_dict().items()}
    head_, change = unpack(site.handle(pack({"do": "train", "round": 0}, first)))
    assert head_["steps"] == math.ceil(head_["rows"] / 64)
    for name, old in first.items():
        assert (
            np.allclose(alone.weights[name], old + change[name], atol=1e-7) and np.abs(change[name]).max() > 0
        )


def test_together_they_learn_and_it_is_recorded(place: SimpleNamespace, ledger: Ledger) -> None:
    fits = {m: place.train(method=m, steps=10, rounds=6, ledger=ledger) for m in ("fedavg", "diloco")}
    for fit in fits.values():
        assert fit.metrics["auc"] > 0.6 and fit.metrics["rows"] == 600
        valid = place.world.valid.columns()
        p = fit.bundle(ledger).predictor()(valid)
        exact = score(place.world.recipe.labels(valid), p)
        assert fit.metrics["auc"] == pytest.approx(exact["auc"], abs=0.003)
        assert fit.metrics["brier"] == pytest.approx(exact["brier"], abs=1e-6)
        run = find(fit.run.id, ledger)
        assert (run.kind, run.status) == ("federated", "succeeded") and len(run.curve("auc")) == 6
        assert run.metrics["bytes"] == fit.metrics["bytes"] > 0
    assert not np.array_equal(*(fit.weights["layers.0.weight"] for fit in fits.values()))
    again = place.train(method="diloco", steps=10, rounds=6, ledger=ledger)
    assert all(np.array_equal(again.weights[k], v) for k, v in fits["diloco"].weights.items())


ALLOWED = {
    "to": {"do", "recipe", "plan", "number", "model", "config", "round"},
    "from": {"rows", "stats", "contract", "steps", "loss", "auc", "brier"},
}


@pytest.mark.parametrize("how", [{}, {"noise": 1.0, "steps": 3}])
def test_no_row_leaves_a_site(place: SimpleNamespace, how: dict[str, Any]) -> None:
    table = pl.read_parquet("flights.parquet")
    table = table.with_columns(
        wind=pl.when(pl.col("wind") == table["wind"][4]).then(MARK).otherwise(pl.col("wind"))
    )
    write_parquet(Path("flights.parquet"), table)
    sent: list[tuple[str, str, bytes]] = []
    fit = place.train(tap=lambda *what: sent.append(what), **how)
    assert {site for site, _, _ in sent} == set(NAMES) and len(sent) == 2 * 3 * (2 + 2 * 3)
    assert sum(len(message) for _, _, message in sent) == fit.metrics["bytes"]
    given = [bool(unpack(message)[1]) for _, way, message in sent if way == "to"]
    assert sum(given) == 3 * (1 + 3)  # the first weights, then those of each round once
    shapes = {name: value.shape for name, value in fit.weights.items()}
    rows, values = {len(feeds()[0].rows()) for feeds in place.sites.values()}, set(table["wind"].to_list())
    for _, way, message in sent:
        told, arrays = unpack(message)
        assert set(told) <= ALLOWED[way], told
        counts = {"ones": (1024,), "zeros": (1024,)}
        assert {k: v.shape for k, v in arrays.items()} in ({}, shapes, counts if way == "from" else {})
        assert not any(size in value.shape for value in arrays.values() for size in rows)
        numbers = {float(n) for n in re.findall(rb"-?\d+\.\d+", message)} if not arrays else set()
        assert not numbers & values
        for form in (np.float32(MARK).tobytes(), np.float64(MARK).tobytes(), str(MARK).encode()):
            assert form not in message
        if how:
            assert "loss" not in told
    assert ("epsilon" in fit.metrics) == bool(how)


def test_private_training_states_its_price(place: SimpleNamespace) -> None:
    fit = place.train(noise=2.0, steps=5, rounds=2, batch_size=32, delta=1e-4)
    rows = min(len(feeds()[0].rows()) for feeds in place.sites.values())
    assert fit.metrics["epsilon"] == pytest.approx(epsilon(32 / rows, 2.0, 10, 1e-4))
    other = place.train(noise=2.0, steps=5, rounds=2, batch_size=32, delta=1e-4)
    assert not np.array_equal(
        fit.weights["layers.0.weight"], other.weights["layers.0.weight"]
    )  # no seed gives it away


class Liar(Site):
    "Sends what is hoped to ruin the model."

    factor = -50.0

    def train(self, head: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
        told, change = super().train(head, arrays)
        return {**told, "rows": 10**6}, {
            name: value * np.float32(self.factor) for name, value in change.items()
        }


class Broken(Liar):
    factor = float("nan")


class Shy(Site):
    "Away in round 1."

    def train(self, head: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
        if head["round"] == 1:
            self.rows = None
            raise OSError("the line is down")
        return super().train(head, arrays)


def test_a_poisoned_site_does_not_decide(place: SimpleNamespace) -> None:
    sites = place.sites | {"ua2": place.sites["ua"], "b62": place.sites["b6"]}
    bad = sites | {"liar": Liar("liar", place.sites["as"])}
    honest = place.train(sites=sites).history[-1]["auc"]
    ruined = place.train(sites=bad).history[-1]["auc"]
    kept = [place.train(sites=bad, aggregate=how).history[-1]["auc"] for how in ("median", "trimmed")]
    assert ruined < honest - 0.1 and min(kept) > ruined + 0.08
    fit = place.train(sites=place.sites | {"broken": Broken("broken", place.sites["as"])})
    assert fit.history[0]["left_out"] == ["broken"] and "broken" not in fit.history[0]["sites"]
    assert all(np.isfinite(value).all() for value in fit.weights.values())


def test_a_site_may_go_and_come_back(place: SimpleNamespace) -> None:
    fit = place.train(sites=place.sites | {"as": Shy("as", place.sites["as"])}, rounds=4)
    assert [row["away"] for row in fit.history] == [[], ["as"], [], []]
    assert [len(row["sites"]) for row in fit.history] == [3, 2, 3, 3]
    some = place.train(share=0.67, rounds=6)
    assert [len(row["sites"]) for row in some.history] == [2] * 6
    assert {name for row in some.history for name in row["sites"]} == set(NAMES)
    with pytest.raises(Unavailable, match=r"no site answered in round 1: as \(OSError\)"):
        place.train(sites={"as": Shy("as", place.sites["as"])})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method": "sgd"}, "method"), ({"rounds": 0}, "rounds"), ({"share": 0}, "share"), ({"trim": 0.6}, "trim"), ({"noise": -1}, "noise"),
        ({"aggregate": "sum"}, "aggregate"), ({"sites": {}}, "0 sites"), ({"on": "moon"}, "moon"), ({"lr": "1"}, "lr"), ({"epochs": 3}, "epochs"),
        ({"delta": 1.5}, "delta"), ({"name": "a b"}, "name"), ({"recipe": None}, "recipe"), ({"momentum": float("nan")}, "momentum"),
        ({"sites": {"a": 3}}, "site 'a' is a int"), ({"cpus": "x"}, "cpus is 'x'"), ({"deadline_s": "x"}, "deadline_s is 'x'"), ({"deadline_s": 0}, "deadline_s is 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_any_site_is_asked(
    place: SimpleNamespace, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        place.train(**wrong, tap=lambda *what: pytest.fail("a site was asked"))


@pytest.mark.parametrize("model", ["net", torch.nn.Linear, 3])
def test_a_class_is_no_model_and_a_number_no_tap(place: SimpleNamespace, model: Any) -> None:
    how = {"recipe": place.world.recipe, "name": "federated"}
    with pytest.raises(BadInput, match="model is"):
        federated(model, place.sites, **how)
    with pytest.raises(BadInput, match="tap is a int"):
        place.train(tap=3)


def test_a_site_that_cannot_take_part_is_named_and_keeps_its_words(
    place: SimpleNamespace, capfd: Any
) -> None:
    def shut() -> Any:
        raise BadInput("passenger Smith")

    sent: list[bytes] = []
    with pytest.raises(Unavailable, match=r"as \(BadInput\)"):
        place.train(sites=place.sites | {"as": shut}, tap=lambda *what: sent.append(what[2]))
    assert not any(b"Smith" in message for message in sent) and "Smith" in capfd.readouterr().err


@pytest.mark.ray
@pytest.mark.long
def test_on_ray_by_tls_the_bits_are_the_same_and_a_killed_site_returns(
    place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("WORKBENCH_RAY_TLS", "keys")
    with head(cpus=4):
        two = {name: place.sites[name] for name in ("b6", "ua")}  # each site is a process that imports torch
        here, there = (
            place.train(sites=two, method="diloco", steps=4),
            place.train(sites=two, method="diloco", steps=4, on="ray", cpus=0.5),
        )
        assert all(np.array_equal(here.weights[name], value) for name, value in there.weights.items())
        assert (here.metrics, here.history) == (there.metrics, there.history)

        class Dies(Site):
            def train(self, head: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
                if head["round"] == 1:
                    os._exit(1)
                return super().train(head, arrays)

        mixed = {"as": Dies("as", place.sites["as"]), "ua": place.sites["ua"]}
        fit = place.train(sites=mixed, rounds=6, on="ray", cpus=0.5)
        assert fit.history[1]["away"] == ["as"] and fit.history[0]["away"] == fit.history[-1]["away"] == []
        until = time.monotonic() + 20
        while ray.available_resources().get("CPU", 0) < 4:
            assert time.monotonic() < until
            time.sleep(0.05)
