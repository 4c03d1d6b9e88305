"""The loop repeats itself bit for bit, deals every row once, and stops when it must."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from workbench.base.errors import BadInput, Stopped, WorkbenchError
from workbench.train.loop import Arrays, LoopConfig, batches, deterministic, predict, train_loop
from workbench.train.metrics import score


class Net(nn.Module):
    "Two numbers, one code; dropout draws from torch's random state while training."

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Embedding(5, 3)
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.cat([x[:, :2], self.code(x[:, 2].long())], 1)).squeeze(-1)


def made(rows: int = 3_000, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 3)).astype(np.float32)
    x[:, 2] = rng.integers(0, 5, rows)
    y = (x[:, 0] * (x[:, 2] - 2) + rng.standard_normal(rows) > 0).astype(np.float32)
    cut = rows * 3 // 4
    return Arrays.of(x[:cut], y[:cut], x[cut:], y[cut:])


def trained(config: LoopConfig, data: Arrays | None = None, **how: Any) -> tuple[nn.Module, Any]:
    with deterministic(config.seed):
        model = Net()
    return model, train_loop(model, data or made(), config, **how)


def test_the_same_seed_gives_the_same_bits_whatever_ran_before() -> None:
    config = LoopConfig(epochs=2, batch_size=64, seed=3)
    one = trained(config)[1]
    torch.manual_seed(12345)
    torch.rand(17)
    state = torch.get_rng_state()
    again = trained(config)[1]
    assert all(torch.equal(one.best_state[name], again.best_state[name]) for name in one.best_state)
    assert [row["loss"] for row in one.history] == [row["loss"] for row in again.history]
    assert torch.equal(state, torch.get_rng_state()), "the caller's random state was moved"
    assert not torch.are_deterministic_algorithms_enabled()
    other = trained(LoopConfig(epochs=2, batch_size=64, seed=4))[1]
    assert not torch.equal(one.best_state["code.weight"], other.best_state["code.weight"])


@given(st.integers(1, 400), st.integers(1, 70), st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_every_row_once_an_epoch_in_equal_shares(rows: int, size: int, world: int, epoch: int) -> None:
    if rows < world:
        return
    config = LoopConfig(batch_size=size)
    shares = [batches(rows, config, epoch, rank, world) for rank in range(world)]
    dealt = torch.cat([part for share in shares for part in share]).tolist()
    assert len(dealt) == len(set(dealt)) == rows - rows % world
    assert len({tuple(map(len, share)) for share in shares}) == 1, "ranks differ: DDP would hang"
    lengths = [len(part) for part in shares[0]]
    assert max(lengths) - min(lengths) <= 1 and max(lengths) <= max(1, size // world)


def test_rows_left_over_change_with_the_epoch() -> None:
    config = LoopConfig(batch_size=4)
    dealt = [torch.cat(batches(9, config, e, 0, 2) + batches(9, config, e, 1, 2)).tolist() for e in range(12)]
    left = {min(set(range(9)) - set(rows)) for rows in dealt}
    assert len(left) > 3


def test_ranks_see_the_global_batches_of_one_process() -> None:
    config = LoopConfig(batch_size=16)
    alone = [set(part.tolist()) for part in batches(160, config, 1)]
    both = [batches(160, config, 1, rank, 2) for rank in range(2)]
    assert [set(a.tolist()) | set(b.tolist()) for a, b in zip(*both, strict=True)] == alone


def test_the_best_epoch_is_returned_and_on_disk(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    path = tmp_path / "checkpoint.safetensors"
    data = made(400)
    model, result = trained(
        LoopConfig(epochs=12, batch_size=32, lr=0.05), data, on_epoch=seen.append, checkpoint=path
    )
    assert seen == result.history and len(seen) == 12
    best = max(seen, key=lambda row: row["auc"])
    assert best["epoch"] == result.best_epoch < 12, "pick a set on which the last epoch is not the best"
    with safe_open(path, "pt") as kept:
        assert kept.metadata()["epoch"] == str(result.best_epoch)
        assert all(torch.equal(kept.get_tensor(name), value) for name, value in result.best_state.items())
    model.load_state_dict(result.best_state)
    assert score(data.y_valid.numpy(), predict(model, data.x_valid))["auc"] == best["auc"]
    assert path.stat().st_mode & 0o777 == 0o600 and not list(tmp_path.glob(".*"))


def test_patience_ends_it_early() -> None:
    result = trained(LoopConfig(epochs=50, batch_size=32, lr=0.05, patience=2), made(400))[1]
    assert len(result.history) == result.best_epoch + 2 < 50


def test_a_stop_is_honoured_at_the_next_batch() -> None:
    calls: list[int] = []

    def stop(rows: int) -> None:
        calls.append(rows)
        if len(calls) == 3:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        trained(LoopConfig(batch_size=64), on_step=stop)
    assert len(calls) == 3 and not torch.are_deterministic_algorithms_enabled()


def test_a_loss_that_is_no_number_names_epoch_and_lr() -> None:
    with pytest.raises(WorkbenchError, match=r"loss became .* in epoch 1 .* \(lr 1e\+30\)") as caught:
        trained(LoopConfig(lr=1e30, batch_size=64))
    assert "lr=1e+29" in caught.value.hint


def test_tied_weights_and_one_row_left_over_are_fine(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.one = nn.Linear(3, 3)
            self.two = nn.Linear(3, 3)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(self.norm(x))).sum(-1)

    data = made(172)
    assert len(data.x) == 129  # 2 x 64 + 1: a batch of one row would break batch normalisation
    train_loop(Tied(), data, LoopConfig(epochs=1, batch_size=64), checkpoint=tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d.x.__setitem__((5, 1), float("nan")), "training x holds NaN or inf in column 1"),
        (lambda d: d.x_valid.__setitem__((5, 2), float("inf")), "validation x holds NaN or inf in column 2"),
        (lambda d: d.y_valid.fill_(1), r"validation labels hold \[1.0\]"),
        (lambda d: d.y.__setitem__(0, 2), "training labels hold"),
        (lambda d: setattr(d, "y", d.y[:-1]), "training arrays"),
        (lambda d: (setattr(d, "x", d.x[:0]), setattr(d, "y", d.y[:0])), r"training labels hold \[\]"),
    ],
)
def test_arrays_nobody_can_learn_from_are_named(spoil: Any, words: str) -> None:
    data = made(100)
    spoil(data)
    with pytest.raises(BadInput, match=words):
        data.check()


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch_size": -1}, {"lr": float("nan")}, {"patience": -1}])
def test_a_bad_config_is_named(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(bad))):
        LoopConfig(**bad)


def test_a_model_that_returns_a_column_is_told_to_squeeze() -> None:
    with pytest.raises(BadInput, match=r"\(63, 1\) for 63 rows") as caught:
        train_loop(nn.Linear(3, 1), made(), LoopConfig(batch_size=64))
    assert "squeeze" in caught.value.hint


def test_another_process_gives_the_same_bits(tmp_path: Path) -> None:
    code = "import test_loop as t; t.torch.set_num_threads(1); print(t.first_epoch())"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout.strip() == first_epoch(), done.stderr


def first_epoch() -> str:
    return trained(LoopConfig(epochs=1, batch_size=64))[1].best_state["code.weight"].numpy().tobytes().hex()
