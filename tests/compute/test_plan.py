"""Estimates are arithmetic that can be checked: against torch's own bytes, published sizes, and what really happened."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from workbench.base.errors import BadInput
from workbench.base.settings import Settings
from workbench.base.store import Store
from workbench.cli.cli import app
from workbench.compute.plan import (
    Estimate,
    Place,
    Plan,
    Probe,
    decide,
    estimate,
    note_cost,
    places,
    plan,
    probe,
    start_costs,
)
from workbench.compute.resources import Resources
from workbench.compute.roofline import (
    CHIPS,
    MODELS,
    Layout,
    Shape,
    activation_bytes,
    cache_bytes,
    step_flops,
    step_s,
    training_bytes,
)
from workbench.compute.sharding import layouts, serving, shard

SMALL = Shape(3, 64, 4, vocabulary=500, context=32, biases=True, positions=True)
HERE, RAY = Place("in-process", 1, 8000, 0, 0.04, False), Place("local Ray", 8, 32000, 9.6, 0.04)


@pytest.mark.parametrize(
    ("name", "published"),
    [("350m", 0.355e9), ("1.3b", 1.313e9), ("8b", 8.03e9), ("70b", 70.55e9), ("100b", 100e9)],
)
def test_sizes_are_the_published_ones(name: str, published: float) -> None:
    assert MODELS[name].parameters == pytest.approx(published, rel=0.04)


def torch_model() -> "object":
    import torch
    from torch import nn

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(500, 64), nn.Embedding(32, 64)
            layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, norm_first=True, dropout=0.0)
            self.layers, self.norm = (
                nn.ModuleList(
                    [
                        layer,
                        *(
                            nn.TransformerEncoderLayer(
                                64, 4, 256, batch_first=True, norm_first=True, dropout=0.0
                            )
                            for _ in range(2)
                        ),
                    ]
                ),
                nn.LayerNorm(64),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
            for layer in self.layers:
                h = layer(h)
            return self.norm(h) @ self.tokens.weight.T

    torch.manual_seed(0)
    return Small()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bytes_are_those_of_a_real_module_and_its_optimiser() -> None:
    import torch

    model = torch_model()
    assert sum(p.numel() for p in model.parameters()) == SMALL.parameters
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.randint(0, 500, (2, 32))).sum().backward()
    optimiser.step()
    paper = training_bytes(SMALL, Layout(), "fp32")
    moments = [v for state in optimiser.state.values() for k, v in state.items() if k != "step"]
    assert paper.parameters == sum(p.nbytes for p in model.parameters())
    assert paper.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert paper.optimiser == sum(v.nbytes for v in moments)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_operations_are_those_torch_counts() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, x = torch_model(), torch.randint(0, 500, (4, 32))
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    assert step_flops(SMALL, 4 * 32) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_ways_of_parallelism_divide_what_they_should() -> None:
    shape, one = MODELS["8b"], training_bytes(MODELS["8b"], Layout(recompute=False))
    both = training_bytes(shape, Layout(tensor=2, pipeline=2, recompute=False))
    assert one.parameters == 2 * shape.parameters and one.optimiser == 12 * shape.parameters
    assert both.optimiser == one.optimiser / 4 and both.gradients == one.gradients / 4
    sharded = training_bytes(shape, Layout(data=8))
    assert sharded.optimiser == one.optimiser / 8 and sharded.gradients == one.gradients / 8
    plain = training_bytes(shape, Layout(data=8, fsdp=False))
    assert plain.optimiser == one.optimiser
    kept, again = (activation_bytes(shape, Layout(recompute=flag)) for flag in (False, True))
    assert again < kept / 3
    assert (
        cache_bytes(shape, 1, 8192) == 2 * 32 * 1024 * 8192 * 2
    )  # 1 GiB: 8 of 32 heads keep keys and values


@pytest.mark.parametrize("gpus", [1, 7, 64, 1000])
@pytest.mark.parametrize("model", ["350m", "8b", "100b"])
def test_every_layout_uses_every_device_and_a_plan_that_fits_fits(model: str, gpus: int) -> None:
    shape = MODELS[model]
    every = list(layouts(shape, gpus, CHIPS["h100"]))
    assert every and all(one.gpus == gpus and shape.layers % one.pipeline == 0 for one in every)
    made = shard(model, gpus)
    if made.fits:
        assert made.memory.total <= 0.92 * 80e9 and 0 < made.mfu <= 0.45
        assert made.usd_per_million == pytest.approx(made.usd_per_h / 3600 / made.tokens_per_s * 1e6)
    else:
        assert "no layout fits" in made.why and ("would do" in made.why or "larger" in made.why)


def test_a_step_of_less_than_a_sequence_is_refused() -> None:
    with pytest.raises(BadInput, match="batch_tokens = 100, a sequence has"):
        shard("8b", 64, batch_tokens=100)


def test_a_hundred_billion_on_a_thousand() -> None:
    begun = time.perf_counter()
    made = shard("100b", 1000, "h200")
    assert made.fits and made.layout.gpus == 1000 and time.perf_counter() - begun < 2
    assert not shard("100b", 4).fits and shard("100b", 64).fits


def test_more_devices_are_faster_and_more_of_a_bubble_is_slower() -> None:
    shape, chip = MODELS["8b"], CHIPS["h100"]
    assert shard("8b", 128).tokens_per_s > 1.7 * shard("8b", 64).tokens_per_s
    slow, fast = Layout(data=1, pipeline=8), Layout(data=8)
    assert step_s(shape, slow, chip, 8) > step_s(shape, fast, chip, 8)
    assert serving("70b", 8)["fits"] and not serving("70b", 1)["fits"]


@pytest.mark.parametrize(
    "bad", [{"model": "9b"}, {"model": "8b", "gpus": 0}, {"model": "8b", "device": "abacus"}, {}]
)
def test_what_cannot_be_planned_is_said(bad: dict) -> None:
    with pytest.raises(BadInput):
        plan(**bad)


@pytest.mark.parametrize(
    ("probe", "items", "where"),
    [
        (Probe(0.001, 1, 0, 10), 100, "in-process"),
        (Probe(2.0, 1, 0, 10), 100, "local Ray"),
        (Probe(2.0, 1, 0, 10), 1, "in-process"),  # one item cannot be divided
        (Probe(2.0, 8, 0, 10), 100, "in-process"),  # it uses all cores by itself
        (Probe(0.4, 1, 0, 1e9), 100, "in-process"),  # moving takes longer than working
        (Probe(2.0, 1, 9000, 10), 100, "local Ray"),  # this process has not the memory
    ],
)
def test_the_place_follows_from_the_probe(probe: Probe, items: int, where: str) -> None:
    chosen, why = decide([estimate(probe, items, place, 300) for place in (HERE, RAY)])
    assert chosen.where == where and where in why


def test_simple_wins_within_a_tenth_and_budgets_bind() -> None:
    near = [Estimate("in-process", 10.5, 1, 0.1, True), Estimate("local Ray", 10, 1, 0.2, True)]
    assert decide(near)[0].where == "in-process"
    far = [Estimate("in-process", 100, 1, 0.1, True), Estimate("cluster", 10, 1, 5, True)]
    assert decide(far)[0].where == "cluster" and decide(far, budget_usd=1)[0].where == "in-process"
    with pytest.raises(BadInput, match="budget_usd"):
        decide(far, budget_usd=0.01)
    with pytest.raises(BadInput, match="memory"):
        decide([Estimate("in-process", 1, 9e9, 0, False)])


def test_of_many_small_items_a_tenth_is_tried_all_over_them() -> None:
    seen: list[int] = []
    probe(seen.append, list(range(2_000)), limit_s=60)
    assert len(set(seen)) == 200 and (min(seen), max(seen)) == (0, 1_999)
    assert 800 < sum(seen[1:31]) / 30 < 1_200  # also where it ends early
    for few in (1, 2, 3, 37):
        seen.clear()
        probe(seen.append, list(range(few)))
        assert len(set(seen)) == min(few, 32)


def test_starts_are_remembered(store: Store) -> None:
    assert start_costs(store)["start"] == 9.0
    note_cost("start", 20.0, store)
    note_cost("start", 30.0, store)
    assert start_costs(store)["start"] == 25.0
    Path(store.path("costs.json")).write_text("{")
    assert start_costs(store)["start"] == 9.0


def test_estimate_and_actual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_RAY_ADDRESS", "none")
    made = plan(lambda n: time.sleep(0.005 + 0.001 * (n % 3)), range(300))
    assert isinstance(made, Plan) and made.picked.where == "in-process" and made.error is None
    assert made.run() == [None] * 300
    assert made.error is not None and abs(made.error) < 0.3 and "the estimate was" in str(made)
    sized = plan(lambda n: time.sleep(0.05 + n * 1e-5), units=100_000)
    assert isinstance(sized, Plan)
    sized.run()
    assert sized.error is not None and abs(sized.error) < 0.3


def test_each_profile_has_its_places() -> None:
    own, costs = Resources(2, 8000), start_costs()
    only = places(own, Settings(ray_address="none"), costs)
    assert [place.name for place in only] == ["in-process"]
    assert [place.name for place in places(own, Settings(), costs)] == ["in-process", "local Ray"]
    far = Settings(ray_address="10.0.0.1:6379", cluster_workers="0:4", cluster_cpus=8, cluster_spot=True)
    cluster = places(own, far, costs)[1]
    assert (cluster.name, cluster.cores, cluster.memory_mb) == ("cluster", 32, 128_000)
    assert cluster.usd_per_core_h == pytest.approx(0.04 * 0.35)
    there = far.model_copy(update={"cluster_workers": "2:4"})
    assert places(own, there, costs)[1].start_s == pytest.approx(cluster.start_s - costs["node"])
    edge = places(own, Settings(ray_address="none", edge_speed=0.1), costs)[-1]
    found = [estimate(Probe(0.1, 1, 5, 10), 100, place, 300) for place in (HERE, edge)]
    assert found[1].time_s == pytest.approx(100) and found[1].usd == 0 and decide(found)[0] is found[0]
    assert decide(found, budget_usd=0)[0].where == "edge"


def test_an_edge_device_is_named_and_not_pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_RAY_ADDRESS", "none")
    monkeypatch.setenv("WORKBENCH_EDGE_SPEED", "0.5")
    monkeypatch.setenv("WORKBENCH_EDGE_MEMORY_MB", "64000")
    made = plan(lambda n: time.sleep(0.001), range(50), budget_usd=0)
    assert isinstance(made, Plan) and made.picked.where == "edge"
    with pytest.raises(BadInput, match="edge"):
        made.run()


def test_a_training_is_divided_where_it_takes_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.compute.plan.resources", lambda: Resources(8, 64_000))
    asked: list[int] = []

    def train(units: int, workers: int = 0) -> int:
        asked.append(workers)
        time.sleep(0 if workers else units * 1e-3)
        return units

    made = plan(train, units=100_000)
    assert isinstance(made, Plan) and made.picked.where == "local Ray" and made.picked.workers == 8
    assert made.run() == 100_000 and asked[-1] == 8
    costly = plan(train, units=100_000, unit_bytes=1e9)  # 2.5 s to exchange what a millisecond computed
    assert isinstance(costly, Plan) and costly.picked.where == "in-process"
    alone = plan(lambda units: train(units), units=100)
    assert isinstance(alone, Plan) and [one.where for one in alone.estimates] == ["in-process"]


def test_the_verb_says_the_same() -> None:
    done = CliRunner().invoke(app, ["plan", "70b", "--gpus", "128", "--json"])
    told = json.loads(done.output)
    assert done.exit_code == 0 and told["fits"] and told["gpus"] == 128
    assert told["total_bytes"] == shard("70b", 128).memory.total
    text = CliRunner().invoke(app, ["plan", "8b", "--gpus", "8", "--serve"]).output
    assert "tokens/s" in text
