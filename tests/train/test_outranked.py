"""A service that has no room gets a training's, which goes on where it was; on a real Ray with a real Ray Serve."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workbench.compute.cluster import head
from workbench.train.loop import Arrays, LoopConfig, deterministic, train_loop
from workbench.train.result import model_path
from workbench.train.scale import scale_loop
from workbench.train.scaling import scale

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


def counts(work: Any, folder: str) -> int:
    "Steps it took, some more than there were when the service had gone."
    import torch

    model = work.prepare(torch.nn.Linear(1, 1))
    done = int(model.bias.item()) if work.step else 0
    assert done == work.step
    last = None
    while last is None or work.step < last:
        if last is None and (Path(folder) / "gone").exists():
            last = work.step + 20
        time.sleep(0.02)
        with torch.no_grad():
            model.bias.fill_(work.step + 1.0)
        with (Path(folder) / "steps.txt").open("a") as file:
            file.write(f"{work.step}\n")
        work.report(loss=0.0)
    return int(model.bias.item())


def lines(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def spike(cpus: float, progress: Callable[[], list[Any]], told: dict[str, Any]) -> None:
    "A service as large as the cluster, for a moment, once the training is at work."
    from ray import serve

    class Answers:
        def __call__(self) -> str:
            return "yes"

    try:
        while len(progress()) < 20:
            time.sleep(0.05)
        begun = time.monotonic()
        kind = serve.deployment(Answers, ray_actor_options={"num_cpus": cpus})
        handle = serve.run(kind.bind(), name="spike", route_prefix=None)
        told |= {
            "ready_s": time.monotonic() - begun,
            "answer": handle.remote().result(),
            "before": progress(),
        }
        time.sleep(1.5)
        told["after"] = progress()
        serve.delete("spike")
    finally:
        told["gone"] = True


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with head(cpus=2) as found:
        from ray import serve

        serve.start(proxy_location="Disabled")
        yield found
        serve.shutdown()


@pytest.mark.ray
@pytest.mark.long
def test_a_service_that_has_no_room_gets_a_trainings_which_then_goes_on(cluster: Any, tmp_path: Path) -> None:
    told: dict[str, Any] = {}

    def progress() -> list[int]:
        if "gone" in told:
            (tmp_path / "gone").touch()
        return lines(tmp_path / "steps.txt")

    def service() -> None:
        spike(cluster.cpus, progress, told)
        progress()

    beside = threading.Thread(target=service)
    beside.start()
    done = scale(counts, workers=1, params={"folder": str(tmp_path)}, checkpoint_every=0)
    beside.join()
    assert told["answer"] == "yes" and told["ready_s"] < 60
    assert told["before"] == told["after"], "training waits while the service has the room"
    assert 20 <= len(told["before"]) <= done.value - 20
    assert lines(tmp_path / "steps.txt") == list(range(done.value))
    assert sum("a service needs the room" in what for what in done.incidents) == 1


SLOW = """
import time
from torch import nn

class Slow(nn.Module):
    def __init__(self, wait_s):
        super().__init__()
        self.config = {"wait_s": wait_s}
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1), nn.Flatten(0))

    def forward(self, x):
        time.sleep(self.config["wait_s"])
        return self.layers(x)
"""


@pytest.mark.ray
@pytest.mark.long
def test_a_fit_gives_way_within_an_epoch_and_ends_with_the_same_bits(
    cluster: Any, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "slow_net.py").write_text(SLOW)
    monkeypatch.syspath_prepend(str(project))
    from slow_net import Slow

    def net(wait_s: float) -> Any:
        with deterministic(0):
            return Slow(wait_s)

    rng = np.random.default_rng(0)
    x = rng.standard_normal((3_500, 3)).astype(np.float32)
    y = (x[:, 0] + rng.standard_normal(len(x)) > 0).astype(np.float32)
    data, config = Arrays.of(x[:2_500], y[:2_500], x[2_500:], y[2_500:]), LoopConfig(epochs=3, batch_size=10)
    told: dict[str, Any] = {}
    seen: list[int] = []
    epochs: list[dict[str, Any]] = []

    def heard(rows: int) -> None:
        seen.extend([rows] * (rows > 0))

    def progress() -> list[Any]:
        return [one for rows in seen for one in range(rows // 10)]

    beside = threading.Thread(target=spike, args=(cluster.cpus, progress, told))
    beside.start()
    model = net(0.01)
    how = {"path": model_path(model), "workers": 1, "folder": tmp_path / "w", "threads": 1}
    result = scale_loop(model, data, config, epochs.append, heard, **how)
    beside.join()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = train_loop(net(0.0), data, config)
    torch.set_num_threads(threads)
    assert told["answer"] == "yes" and told["before"] == told["after"], "the fit waits for the service"
    assert 0 < len(told["before"]) < 750 and sum(seen) == 7_500
    assert len(result.incidents) == 1 and "a service needs the room: saved at step" in result.incidents[0]
    assert [row["loss"] for row in epochs] == [row["loss"] for row in alone.history]
    assert all(torch.equal(value, result.best_state[name]) for name, value in alone.best_state.items())
