"""A service that has no room gets a training's, which goes on where it was; on a real Ray with a real Ray Serve."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from workbench.compute.cluster import head
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


def spike(cpus: float, steps: Path, told: dict[str, Any]) -> None:
    "A service as large as the cluster, for a moment, once the training is at work."
    from ray import serve

    class Answers:
        def __call__(self) -> str:
            return "yes"

    try:
        while len(lines(steps)) < 20:
            time.sleep(0.05)
        begun = time.monotonic()
        kind = serve.deployment(Answers, ray_actor_options={"num_cpus": cpus})
        handle = serve.run(kind.bind(), name="spike", route_prefix=None)
        told |= {
            "ready_s": time.monotonic() - begun,
            "answer": handle.remote().result(),
            "before": lines(steps),
        }
        time.sleep(1.5)
        told["after"] = lines(steps)
        serve.delete("spike")
    finally:
        (steps.parent / "gone").touch()


@pytest.mark.ray
def test_a_service_that_has_no_room_gets_a_trainings_which_then_goes_on(tmp_path: Path) -> None:
    from ray import serve

    told: dict[str, Any] = {}
    with head(cpus=2) as cluster:
        serve.start(proxy_location="Disabled")
        beside = threading.Thread(target=spike, args=(cluster.cpus, tmp_path / "steps.txt", told))
        beside.start()
        done = scale(counts, workers=1, params={"folder": str(tmp_path)}, checkpoint_every=0)
        beside.join()
        serve.shutdown()
    assert told["answer"] == "yes" and told["ready_s"] < 60
    assert told["before"] == told["after"], "training waits while the service has the room"
    assert 20 <= len(told["before"]) <= done.value - 20
    assert lines(tmp_path / "steps.txt") == list(range(done.value))
    assert sum("a service needs the room" in what for what in done.incidents) == 1
