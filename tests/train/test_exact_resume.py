"""Whatever is killed, whenever: it goes on from the last checkpoint, every row once, the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import training

from workbench.base.errors import BadInput
from workbench.compute.cluster import secure_token
from workbench.train.checkpoint import Checkpoints, Saved, latest, steps
from workbench.train.crew import dismiss
from workbench.train.scaling import scale
from workbench.train.work import Left, Site, Work, perform

EVERY = 20


def child(work: Any) -> int:
    "Run `work` in a forked process; returns its number."
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("rows-*"))


def one_life(folder: Path, log: Path, number: int, after: int | None) -> bool:
    "One process from the last checkpoint on, killed after so many steps; whether it came to its end."
    saved = latest(folder / "checkpoints")
    site = Site(folder, attempt=str(number), start=saved.path.name if saved else "", every=EVERY)

    def live() -> None:
        value = perform(training.train, site, {"log": str(log), "nap_s": 0.0 if after is None else 0.001})
        (log / "done").write_text(json.dumps(value))

    before, pid = lines(log), child(live)
    while after is not None and lines(log) - before < after and not (log / "done").exists():
        time.sleep(0.001)
    if after is not None:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return (log / "done").exists()


@pytest.mark.parametrize("most", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_of_a_process_cost_an_interval_each_and_change_no_bit(tmp_path: Path, most: int) -> None:
    rng = random.Random(7)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for log in (whole, parts):
        log.mkdir()
    assert one_life(tmp_path / "a", whole, 0, None)
    kills = 0
    while not one_life(tmp_path / "b", parts, kills, rng.randrange(3, 25) if kills < most else None):
        kills += 1
    lost = training.once(parts)
    print(f"{kills} kills, at most {lost} steps lost at once, a checkpoint every {EVERY}")
    assert kills == most
    assert lost <= 2 * EVERY, "one interval, and what was done while a checkpoint was written"
    assert (whole / "done").read_text() == (parts / "done").read_text()
    assert training.losses(whole) == training.losses(parts)


def test_a_checkpoint_killed_while_it_is_written_is_never_chosen(tmp_path: Path) -> None:
    rng, chosen = random.Random(3), []

    def write() -> None:
        checkpoints = Checkpoints(tmp_path, attempt=str(os.getpid()))
        last = latest(tmp_path)
        for step in range((last.step if last else 0) + 1, 10_000):
            value = {"w": torch.full((400_000,), float(step))}
            checkpoints.save(step, value, {}, {"step": step}, {})
            checkpoints.wait()

    unfinished, found = 0, None
    for _ in range(20):
        pid = child(write)
        while not steps(tmp_path) or (found and not list(tmp_path.glob(f".*.{pid}.part"))):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        unfinished += bool(list(tmp_path.glob(f".*.{pid}.part")))
        found = latest(tmp_path)
        if found:
            assert (found.tensor("w") == found.step).all() and found.meta["facts"] == {"step": found.step}
            chosen.append(found.step)
    assert chosen == sorted(chosen) and len(chosen) == 20
    assert unfinished, "some were killed while they wrote"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], (
        "unfinished ones are removed"
    )
    checkpoints = Checkpoints(
        tmp_path, attempt="last"
    )  # a writer that died may have left one to be taken away
    checkpoints.save(found.step + 1, {"w": torch.zeros(1)}, {}, {"step": found.step + 1}, {})
    checkpoints.wait()
    assert len(steps(tmp_path)) <= 3


@pytest.mark.parametrize("spoil", ["flip", "truncate", "remove", "json", "format"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path: Path, spoil: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"w": torch.full((1_000,), float(step))}, {}, {}, {})
        checkpoints.wait()
    file, meta = (
        tmp_path / "step-000000000002" / "rank0.safetensors",
        tmp_path / "step-000000000002" / "checkpoint.json",
    )
    if spoil == "flip":
        data = bytearray(file.read_bytes())
        data[-100] ^= 1
        file.write_bytes(data)
    elif spoil == "truncate":
        os.truncate(file, 2_000)
    elif spoil == "remove":
        file.unlink()
    elif spoil == "json":
        meta.write_text(meta.read_text()[:-5])
    else:
        meta.write_text(meta.read_text().replace('"version": 1', '"version": 9'))
    found = latest(tmp_path)
    assert found and found.step == 1 and float(found.tensor("w")[0]) == 1.0
    assert len(list(tmp_path.glob("damaged-*"))) == 1, "a person may want to look at it"


def test_a_rank_that_never_wrote_leaves_nothing_to_choose(tmp_path: Path) -> None:
    first, second = Checkpoints(tmp_path, 0, 2), Checkpoints(tmp_path, 1, 2)
    first.save(1, {"w": torch.ones(4)}, {}, {}, {})
    first.close()
    assert latest(tmp_path) is None
    for one in (first := Checkpoints(tmp_path, 0, 2), second):
        one.save(2, {"w": torch.ones(4)}, {}, {}, {})
    first.wait()
    assert latest(tmp_path).step == 2  # type: ignore[union-attr]


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    def small(work: Work, width: int) -> None:
        model, optimiser = work.prepare(
            torch.nn.Linear(width, 1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)
        )
        model(torch.ones(2, width)).sum().backward()
        optimiser.step()
        work.report()

    perform(small, Site(tmp_path), {"width": 3})
    with pytest.raises(BadInput, match=r"weight has shape \[1, 4\], the checkpoint's has \[1, 3\]"):
        perform(small, Site(tmp_path, start="step-000000000001"), {"width": 4})


def test_sigterm_is_a_notice_that_leaves_a_checkpoint(tmp_path: Path) -> None:
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM]).start()
    with pytest.raises(Left) as caught:
        perform(training.train, Site(tmp_path, every=0), {"log": str(tmp_path), "nap_s": 0.02})
    assert (
        caught.value.kind == "preempt"
        and Saved(tmp_path / "checkpoints" / f"step-{caught.value.step:012d}").step > 5
    )


@pytest.fixture
def two(there: Any) -> Iterator[Any]:
    yield there
    dismiss()


def scaled(log: Path, workers: Any = 2, **changes: Any) -> Any:
    log.mkdir()
    params = {"log": str(log), **changes.pop("params", {})}
    return scale(training.train, workers=workers, params=params, checkpoint_every=EVERY, **changes)


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
@pytest.mark.long
def test_a_worker_dies_and_the_end_is_what_it_would_have_been(two: Any, tmp_path: Path) -> None:
    whole = scaled(tmp_path / "whole")
    killed = scaled(tmp_path / "killed", params={"kill_rank": 1, "kill_at": 47})
    assert any("worker 1 of 2 died" in what for what in killed.incidents)
    assert whole.value == killed.value
    # Its last checkpoint may have been at work still: one interval more.
    assert training.once(tmp_path / "killed") <= 2 * EVERY
    assert [row["loss"] for row in killed.history] == [row["loss"] for row in whole.history]
    cut = scaled(tmp_path / "cut", params={"shard": True, "kill_rank": 0, "kill_at": 47})
    assert cut.value == pytest.approx(whole.value, abs=1e-5), "sharded is the same mathematics"
    assert training.once(tmp_path / "cut") <= 2 * EVERY
    alone = scale(
        training.train, workers=0, params={"log": str(tmp_path / "cut"), "shard": True}, resume=cut.run.id
    )
    assert alone.value == cut.value, "one rank reads what two have cut"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_twenty_kills_of_workers(two: Any, tmp_path: Path) -> None:
    whole = scaled(tmp_path / "whole", params={"nap_s": 0.002})
    log, rng, kills, ended = tmp_path / "killed", random.Random(5), [], threading.Event()

    def killer() -> None:
        while len(kills) < 20 and not ended.is_set():
            before = lines(log) if log.exists() else 0
            while not ended.is_set() and (not log.exists() or lines(log) < before + 2 * rng.randrange(3, 30)):
                time.sleep(0.005)
            pid = int((log / f"pid-{rng.randrange(2)}").read_text())
            try:
                os.kill(pid, signal.SIGKILL)
                kills.append(pid)
            except ProcessLookupError:
                pass

    thread = threading.Thread(target=killer)
    thread.start()
    killed = scaled(log, params={"nap_s": 0.01}, max_failures=40)
    ended.set()
    thread.join()
    lost = training.once(log)
    print(
        f"{len(kills)} kills, {len(killed.incidents)} incidents, at most {lost} steps lost at once, every {EVERY}"
    )
    assert killed.value == whole.value and lost <= 2 * EVERY


def drivers_killed(tmp_path: Path, kills: int, kill: Any, workers: int = 2) -> tuple[int, int]:
    "A driver process whose training is killed by `kill(pid)` again and again; kills, and most steps lost."
    log, rng, done = tmp_path / "log", random.Random(11), 0
    log.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])]),
    }
    while not (log / "done").exists():
        resume = "last" if list(Path.cwd().glob(".workbench/runs/*/checkpoints/step-*")) else ""
        command = [sys.executable, training.__file__, str(log), str(workers), resume]
        with (tmp_path / f"driver-{done}.txt").open("w") as said:
            driver = subprocess.Popen(
                command, env=environment, stdout=said, stderr=said, start_new_session=True
            )
        before, steps_on = lines(log), workers * rng.randrange(25, 60)
        while driver.poll() is None and (done >= kills or lines(log) < before + steps_on):
            time.sleep(0.01)
        if driver.poll() is None:
            kill(driver.pid)
            done += 1
        driver.wait(120)
        assert done or (log / "done").exists(), (tmp_path / f"driver-{done}.txt").read_text()[-2000:]
    return done, training.once(log)


def kill_driver(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_ray(pid: int) -> None:
    "The raylet and the store of cluster state, as when the machine's Ray goes; then the driver, should it hang."
    import psutil

    for process in psutil.Process(pid).children(recursive=True):
        if process.name() in ("raylet", "gcs_server"):
            process.kill()
    time.sleep(3)
    if psutil.pid_exists(pid):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kill", [kill_driver, kill_ray])
def test_twenty_kills_of_the_driver_and_of_ray(tmp_path: Path, kill: Any) -> None:
    kills, lost = drivers_killed(tmp_path, 20, kill)
    print(f"{kills} kills by {kill.__name__}, at most {lost} steps lost at once, a checkpoint every {EVERY}")
    assert lost <= 2 * EVERY


def holding(cpus: int) -> Any:
    "Resources of the cluster that somebody else has."
    from ray.util.placement_group import placement_group

    group = placement_group([{"CPU": cpus}])
    assert group.wait(10)
    return group


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_elastic_training_takes_the_room_there_is(two: Any, tmp_path: Path) -> None:
    from ray.util.placement_group import remove_placement_group

    log, held = tmp_path / "log", holding(1)

    def release() -> None:
        while not log.exists() or lines(log) < 30:
            time.sleep(0.01)
        remove_placement_group(held)

    threading.Thread(target=release).start()
    done = scaled(log, workers=(1, 2), params={"nap_s": 0.1})
    assert [what for what in done.incidents if "room for more than 1 workers" in what]
    assert {len(list(log.glob(f"rows-{rank}-*"))) for rank in (0, 1)} == {1, 2}, "rank 0 twice, rank 1 once"
    assert training.once(log) == 0, "nothing is lost: they save before they begin again"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_elastic_training_goes_on_without_a_node_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(secure_token()),
    }
    command = [sys.executable, str(Path(__file__).with_name("unplug.py")), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "died" in (tmp_path / "incidents").read_text()
    assert training.once(tmp_path) <= 2 * EVERY
