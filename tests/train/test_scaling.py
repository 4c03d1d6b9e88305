"""The parts of a distributed training: dealing, cutting, guarding, asking, refusing."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.base.errors import BadInput, JobFailed, NotFound
from workbench.base.records import find, runs
from workbench.train.checkpoint import Checkpoints, Saved, latest
from workbench.train.deck import Deck
from workbench.train.guard import Diverged, Guard
from workbench.train.scaling import scale
from workbench.train.speed import compiled_when_it_pays, lr_factor
from workbench.train.state import flatten, restored
from workbench.train.work import Site, perform


def test_rows_that_are_too_few_for_more_ranks_are_dealt_to_each_of_them() -> None:
    numbers = (torch.arange(29),)
    alone = Deck(numbers, 4)
    part = iter(alone)
    first = [row for _ in range(7) for row in next(part)[0].tolist()]
    decks = [Deck(numbers, 4, rank=rank, world=2).resume(alone.state()) for rank in range(2)]
    rest = [[rows.tolist() for (rows,) in deck] for deck in decks]
    assert rest[0] == rest[1] and sorted([*first, *rest[0][0]]) == list(range(29))
    assert [deck.state()["epoch"] for deck in decks] == [1, 1]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(24, 200),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(0, 5),
)
def test_any_chain_of_worlds_deals_every_row_once(
    rows: int, worlds: list[int], batch: int, seed: int
) -> None:
    numbers, state, seen = (torch.arange(rows),), None, []
    for at, world in enumerate(worlds):
        decks = [Deck(numbers, batch, seed, rank, world) for rank in range(world)]
        if state:
            decks = [deck.resume(state) for deck in decks]
        parts = [iter(deck) for deck in decks]
        steps = 0
        while steps < 2 or at == len(worlds) - 1:
            drawn = [next(part, None) for part in parts]
            if drawn[0] is None:
                break
            assert all(one is not None for one in drawn), "as many batches on every rank"
            dealt = [row for (some,) in drawn for row in some.tolist()]
            seen += sorted(set(dealt)) if rows - len(seen) < world else dealt
            steps += 1
            if decks[0].epoch:
                break
        state = decks[0].state()
        if decks[0].epoch:
            break
    assert sorted(seen) == list(range(rows))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
            | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_any_state_comes_back_through_json(value: Any) -> None:
    assert restored(json.loads(json.dumps(flatten(value, "x", {}), allow_nan=False)), {}.__getitem__) == value


@pytest.mark.parametrize("writers", [1, 2, 3])
def test_what_some_ranks_wrote_any_block_reads(tmp_path: Path, writers: int) -> None:
    state = {f"t{n}": torch.randn(5, n + 1) for n in range(6)} | {"half": torch.ones(3, dtype=torch.bfloat16)}
    ranks = [Checkpoints(tmp_path, rank, writers) for rank in range(writers)]
    for one in ranks:
        one.save(1, state, {"own": torch.tensor(one.rank)}, {}, {})
    for one in reversed(ranks):
        one.wait()
    saved = latest(tmp_path)
    assert saved and all(torch.equal(saved.tensor(name), value) for name, value in state.items())
    assert torch.equal(saved.fill("t5", torch.empty(2, 3), (2, 1)), state["t5"][2:4, 1:4])
    assert [int(saved.tensor(f"rank{rank}/own")) for rank in range(writers)] == list(range(writers))


def test_a_failed_write_is_told_by_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "in-it")
    checkpoints.save(1, {"w": torch.ones(2)}, {}, {}, {})
    with pytest.raises(OSError):
        checkpoints.wait()


@pytest.mark.parametrize("policy", ["stop", "skip", "ignore"])
def test_a_bad_gradient_meets_its_policy(tmp_path: Path, policy: str) -> None:
    def train(work: Any) -> float:
        model, optimiser = work.prepare(torch.nn.Linear(1, 1), lambda p: torch.optim.SGD(p, lr=0.1))
        for number in range(6):
            optimiser.zero_grad()
            model(torch.ones(2, 1) * (float("nan") if number == 3 else 1.0)).sum().backward()
            optimiser.step()
            work.report()
        return model.weight.item()

    site = Site(tmp_path, policy=policy)
    if policy == "stop":
        with pytest.raises(Diverged, match="norm nan at step 4"):
            perform(train, site, {})
        saved = latest(site.checkpoints)
        assert saved and saved.step == 3 and torch.isfinite(saved.tensor("model.weight")).all()
    else:
        assert (perform(train, site, {}) == perform(train, site, {})) == (policy == "skip")


def test_an_explosion_is_far_from_the_usual() -> None:
    guard, weight = Guard(), torch.nn.Parameter(torch.ones(4))
    for step in range(40):
        weight.grad = torch.full((4,), 0.1 + 0.001 * step)
        assert guard.gradients([weight], step)
    weight.grad = torch.full((4,), 9.0)
    assert guard.gradients([weight], 41), "ninety times is a bad day"
    weight.grad = torch.full((4,), 99.0)
    with pytest.raises(Diverged, match="usually 0.2"):
        guard.gradients([weight], 42)


def test_schedules_end_where_they_should() -> None:
    for schedule in ("cosine", "linear"):
        values = [lr_factor(step, 100, schedule, 0.1) for step in range(100)]
        assert max(values) == values[10] == 1.0 and values[0] < 0.2 and values[-1] < 0.02
    assert {lr_factor(step, 100, "constant", 0.0) for step in range(100)} == {1.0}


def test_a_trial_says_why_it_does_not_compile() -> None:
    net, x, y = torch.nn.Linear(2, 1), torch.ones(4, 2), torch.ones(4, 1)
    found, facts = compiled_when_it_pays(net, x, y, torch.nn.functional.mse_loss, 10)
    assert found is net and not facts["compiled"] and "too few" in facts["why"]
    assert all(p.grad is None for p in net.parameters()), "a trial is made on a copy"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": -1}, "workers=-1"),
        ({"workers": (3, 2)}, r"workers=\(3, 2\)"),
        ({"workers": 1.5}, "workers=1.5"),
        ({"checkpoint_every": "often"}, "checkpoint_every"),
        ({"budget_usd": "much"}, "budget_usd"),
        ({"policy": "hope"}, "policy is 'hope'"),
    ],
)
def test_what_cannot_be_scaled_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        scale(lambda work: None, name="nothing", **changes)


def test_a_budget_ends_it_after_a_checkpoint_and_the_record_says_so() -> None:
    def train(work: Any) -> int:
        import time

        while work.step < 1_000:
            time.sleep(0.01)
            work.report(loss=1.0)
        return work.step

    with pytest.raises(JobFailed, match="the budget of") as caught:
        scale(train, budget_usd=0.04 / 3600 * 0.5)
    run = runs(kind="scale")[0]
    assert caught.value.cause == run.cause == "budget" and 0.4 < run.cost["usd"] / (0.04 / 3600) < 5
    assert Saved(Path(find(run.id).artifacts["checkpoint"])).step > 10
    with pytest.raises(NotFound, match="no earlier run is called 'other'"):
        scale(train, name="other", resume="last")


def test_a_fit_with_everything_learns_and_says_for_whom(world: SimpleNamespace) -> None:
    from workbench.train.fit import fit

    recipe = world.recipe.fit(world.train.columns())
    how = {
        "name": "flights",
        "recipe": recipe,
        "valid": world.valid,
        "epochs": 6,
        "batch_size": 128,
        "lr": 0.01,
    }
    model = world.module.WindNet(recipe.n_dense, recipe.sizes)
    plain = fit(model, world.train, **how)
    more = {
        "precision": "bf16",
        "schedule": "cosine",
        "warmup": 0.1,
        "clip": 1.0,
        "accumulate": 2,
        "compile": "auto",
    }
    rich = fit(model, world.train, **how | {"lr": 0.04}, **more, stream=True, policy="skip", by=["carrier"])
    assert rich.metrics["auc"] > plain.history[1]["auc"]
    assert {row["slice"] for row in rich.slices} <= {"carrier"} and "too few" in rich.run.metrics["compiled"][
        "why"
    ]
    again = fit(model, world.train, **how, stream=True)
    other = fit(model, world.train, **how, stream=True)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in other.history]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"by": ["carier"]}, "by='carier' is no column"),
        ({"precison": "bf16"}, "fit has no 'precison'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"precision": "fp16"}, "fp16"),
        ({"stream": True, "workers": 2}, "stream=True with workers"),
    ],
)
def test_a_fit_that_cannot_be_is_refused(world: SimpleNamespace, changes: dict[str, Any], words: str) -> None:
    from workbench.train.fit import fit

    recipe = world.recipe.fit(world.train.columns())
    model = world.module.WindNet(recipe.n_dense, recipe.sizes)
    with pytest.raises(BadInput, match=words):
        fit(model, world.train, recipe=recipe, valid=world.valid, name="flights", epochs=1, **changes)
