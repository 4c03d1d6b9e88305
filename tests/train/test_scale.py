"""Ray Train gives what one process gives, passes on what happens, and leaves nothing behind."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from workbench.base.errors import BadInput, Stopped, WorkbenchError
from workbench.train.loop import Arrays, LoopConfig, deterministic, train_loop
from workbench.train.result import model_path
from workbench.train.scale import Relay, Tail, scale_loop, session

NET = """
import os
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width, trouble=""):
        super().__init__()
        self.config = {"width": width, "trouble": trouble}
        self.code = nn.Embedding(4, 2)
        self.layers = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x):
        if self.config["trouble"] and torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            if self.config["trouble"] == "raise":
                raise ValueError("a carrier nobody knows")
            if self.config["trouble"] == "nan":
                return torch.full((len(x),), float("nan"), requires_grad=True) + 0 * x.sum()
            os.kill(os.getpid(), 9)
        return self.layers(torch.cat([x[:, :1], self.code(x[:, 1].long())], 1)).squeeze(-1)
"""


def made(rows: int = 1_281) -> Arrays:
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.standard_normal(rows), rng.integers(0, 4, rows)]).astype(np.float32)
    y = (x[:, 0] * (x[:, 1] - 1.5) + rng.standard_normal(rows) > 0).astype(np.float32)
    return Arrays.of(x[:1_025], y[:1_025], x[1_025:], y[1_025:])


@pytest.fixture
def net(project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (project / "user_net.py").write_text(NET)
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.delitem(sys.modules, "user_net", raising=False)
    import user_net

    def make(**config: Any) -> Any:
        with deterministic(0):
            return user_net.Net(8, **config)

    return make


def ray_processes() -> list[str]:
    names = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and (
                "/tmp/wb-ray-" in command or command.startswith("ray::")
            ):
                names.append(command[:150])
        except psutil.Error:
            pass
    return names


def left_behind(before: set[str]) -> list[str]:
    return ray_processes() + sorted(set(map(str, Path("/tmp").glob("wb-ray-*"))) - before)


def test_a_relay_passes_rows_and_epochs_in_order_and_stops(tmp_path: Path) -> None:
    relay, silent, tail = Relay(tmp_path, True), Relay(tmp_path, False), Tail(tmp_path / "events.jsonl")
    assert tail.read() == []
    for _ in range(1_000):
        relay.step(3)
        silent.step(3)
    relay.epoch({"epoch": 1, "auc": 0.5})
    events = tail.read()
    assert sum(event.get("rows", 0) for event in events) == 3_000 and events[-1]["epoch"] == 1
    assert len(events) < 10, "it writes at most five lines a second"
    (tmp_path / "stop").touch()
    with pytest.raises(Stopped):
        silent.flush()


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    text = "".join(json.dumps({"rows": n}) + "\n" for n in range(50))
    seen = []
    for cut in range(0, len(text), 7):
        with path.open("a") as file:
            file.write(text[cut : cut + 7])
        seen += tail.read()
    assert [event["rows"] for event in seen] == list(range(50))


def test_more_workers_than_rows_is_refused_before_anything_starts(net: Any, tmp_path: Path) -> None:
    model = net()
    with pytest.raises(BadInput, match="1025 rows for 2000 workers"):
        scale_loop(model, made(), LoopConfig(), path=model_path(model), workers=2_000, folder=tmp_path / "w")
    assert not (tmp_path / "w").exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_workers_give_what_one_process_gives_and_leave_nothing(net: Any, tmp_path: Path) -> None:
    before = set(map(str, Path("/tmp").glob("wb-ray-*")))
    config = LoopConfig(epochs=40, batch_size=64, lr=0.01)
    data, model, alone = made(), net(), net()
    rows: list[int] = []
    seen: list[dict[str, Any]] = []
    begin = time.perf_counter()
    result = scale_loop(
        model, data, config, seen.append, rows.append, tmp_path / "best.safetensors",
        path=model_path(model), workers=2, folder=tmp_path / "w",
    )  # fmt: skip
    print(f"two workers, wall time {time.perf_counter() - begin:.1f} s")
    expected = train_loop(alone, data, config)
    assert [row["epoch"] for row in seen] == list(range(1, 41)) and seen == result.history
    assert sum(rows) == 40 * 1_024, "one row of 1,025 sits out each epoch"
    best = max(seen, key=lambda row: row["auc"])
    assert result.best_epoch == best["epoch"]
    assert result.history[-1]["loss"] == pytest.approx(expected.history[-1]["loss"], abs=0.02)
    assert best["auc"] == pytest.approx(max(row["auc"] for row in expected.history), abs=0.01)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in result.best_state.items())
    assert (tmp_path / "best.safetensors").exists() and not (tmp_path / "w").exists()
    assert left_behind(before) == []
    assert "RAY_AUTH_MODE" not in os.environ
    assert stat.S_IMODE((Path.home() / ".ray" / "auth_token").stat().st_mode) == 0o600


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_trouble_in_a_worker_is_told_and_a_ray_that_was_there_stays(net: Any, tmp_path: Path) -> None:
    import ray

    before = set(map(str, Path("/tmp").glob("wb-ray-*")))
    with session(2) as ours:
        assert ours
        for trouble, words in {
            "raise": "worker 1 failed: ValueError: a carrier nobody knows",
            "nan": "the loss became nan in epoch 1",
            "kill": "worker 1 of 2 died",
        }.items():
            model = net(trouble=trouble)
            with pytest.raises(WorkbenchError) as caught:
                how = {"path": model_path(model), "workers": 2, "folder": tmp_path / trouble}
                scale_loop(model, made(), LoopConfig(epochs=2, batch_size=64), **how)
            assert words in caught.value.what, str(caught.value)
            assert trouble != "raise" or "user_net.py" in caught.value.hint
        stopped_after: list[float] = []

        def stop(row: dict[str, Any]) -> None:
            stopped_after.append(time.monotonic())
            raise Stopped("pressed")

        model = net()
        with pytest.raises(Stopped, match="pressed"):
            how = {"path": model_path(model), "workers": 2, "folder": tmp_path / "stop"}
            scale_loop(model, made(), LoopConfig(epochs=100_000, batch_size=64), stop, **how)
        assert time.monotonic() - stopped_after[0] < 20
        assert ray.is_initialized(), "a Ray that was there before the fit is left running"
        with session(1) as ours:
            assert not ours
    assert not ray.is_initialized() and left_behind(before) == []


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {project!r}]
import test_scale as t
import user_net
print("starting", flush=True)
t.scale_loop(user_net.Net(8), t.made(), t.LoopConfig(epochs=10**6, batch_size=64),
             lambda row: print("epoch", flush=True), path="user_net:Net", workers=2, folder=Path({folder!r}))
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("line", "wait_s", "by"),
    [
        pytest.param("starting", 4, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("epoch", 0, signal.SIGINT, marks=pytest.mark.slow),
        ("starting", 8, signal.SIGKILL),
    ],
)
def test_the_end_of_the_driver_ends_every_process(
    net: Any, project: Path, tmp_path: Path, line: str, wait_s: float, by: signal.Signals
) -> None:
    before = set(map(str, Path("/tmp").glob("wb-ray-*")))
    code = DRIVER.format(tests=str(Path(__file__).parent), project=str(project), folder=str(tmp_path / "w"))
    with (
        (tmp_path / "err").open("w") as err,
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            start_new_session=True,
        ) as driver,
    ):
        assert driver.stdout is not None
        while (found := driver.stdout.readline().strip()) != line:
            assert found, (tmp_path / "err").read_text()
        time.sleep(wait_s)  # some seconds after the start Ray is half up
        os.killpg(driver.pid, by)  # a terminal sends Ctrl-C to the whole group
        assert driver.wait(60) != 0
    if by == signal.SIGINT:
        assert "KeyboardInterrupt" in (tmp_path / "err").read_text()
        assert left_behind(before) == [] and not (tmp_path / "w").exists()
        return
    for _ in range(100):  # the guard needs a moment
        if not left_behind(before) and not (tmp_path / "w").exists():
            return
        time.sleep(0.1)
    raise AssertionError(left_behind(before))
