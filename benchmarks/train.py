"""What training with Workbench costs beside plain PyTorch: a step, a start, a checkpoint, a death; ratios in one run.

Model and batch: an MLP (784-512-512-10) with 4,096 rows a step, and a small ConvNet with 512, on pictures of 28 x 28 made from a seed.
- steps: the same loop, plain and under `wb.scale(workers=0)`, in turns in one process; two ranks under torchrun (DDP, gloo) and under
  `wb.scale(workers=2)`, in turns. Medians over --rounds with their spread; a ratio is formed within a round.
- start: from the call to the end of the first step on a Ray that stands: the first call, and again from the same process.
- checkpoint: how much longer the loop takes per save of 200 MB (model and Adam), against torch.save and against a thread with torch.save.
- recovery: kill -9 of one of two workers; from the kill to the step that had been reached (a checkpoint every 10 steps of 100 ms).
Usage: python benchmarks/train.py [--only steps,ddp,start,checkpoint,recovery] [--rounds 5] [--steps 40]
"""

import argparse
import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROWS = 16_384


def build(kind: str) -> nn.Module:
    "The two nets."
    torch.manual_seed(0)
    if kind == "mlp":
        layers = [
            nn.Flatten(),
            nn.Linear(784, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        ]
    else:
        layers = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()]
        layers += [nn.Linear(32 * 49, 10)]
    return nn.Sequential(*layers)


def data(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    "Pictures and classes."
    made = torch.Generator().manual_seed(0)
    return torch.rand(rows, 1, 28, 28, generator=made), torch.randint(0, 10, (rows,), generator=made)


def size(kind: str) -> int:
    "Rows of a step."
    return 4_096 if kind == "mlp" else 512


def one_step(
    net: nn.Module, optimiser: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    "Forward, backward, update."
    loss = nn.functional.cross_entropy(net(x), y)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss


# ---------------------------------------------------------------- the loops


def clock(cpu: bool) -> float:
    "Seconds: of the wall, or of the processor, of all threads of this process (a busy machine does not move it much)."
    return time.process_time() if cpu else time.perf_counter()


def plain(kind: str, steps: int, rank: int = 0, world: int = 1, cpu: bool = False) -> float:
    "Median seconds of a step of a plain loop, batches from a DataLoader-free shuffle."
    x, y = data()
    net, batch = build(kind), size(kind) // world
    net = nn.parallel.DistributedDataParallel(net) if world > 1 else net
    optimiser = torch.optim.Adam(net.parameters())
    took: list[float] = []
    epoch = 0
    while len(took) < steps:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))[rank::world]
        epoch += 1
        for rows in order.split(batch):
            begin = clock(cpu)
            one_step(net, optimiser, x.index_select(0, rows), y.index_select(0, rows)).item()
            took.append(clock(cpu) - begin)
    return statistics.median(took[3:])


def ours(work: Any, kind: str, steps: int, first: str = "", cpu: bool = False) -> float:
    "The same loop with the helpers; median seconds of a step."
    net, optimiser = work.prepare(build(kind), lambda p: torch.optim.Adam(p))
    took, begin = [], clock(cpu)
    for x, y in work.batches(data(), batch_size=size(kind), epochs=10**6):
        loss = one_step(net, optimiser, x, y)
        loss.item()
        work.report(loss=loss)
        took.append(clock(cpu) - begin)
        begin = clock(cpu)
        if first and len(took) == 1:
            Path(f"{first}-{work.rank}").write_text(str(time.time()))
        if len(took) >= steps:
            return statistics.median(took[3:]) if len(took) > 3 else took[-1]
    return 0.0


def spread(values: list[float]) -> str:
    "Median and range."
    return f"{statistics.median(values):.3f} [{min(values):.3f} - {max(values):.3f}]"


def steps_here(rounds: int, steps: int) -> None:
    "In-process overhead, by the wall and by the processor's time."
    import workbench as wb

    for kind, cpu in [("mlp", False), ("conv", False), ("mlp", True), ("conv", True)]:
        ratios, base = [], []
        for number in range(rounds):
            todo = {"plain": lambda k=kind, c=cpu: plain(k, steps, cpu=c)}
            params = {"kind": kind, "steps": steps, "cpu": cpu}
            todo["ours"] = lambda p=params: wb.scale(ours, params=p, checkpoint_every=0).value
            took = {name: todo[name]() for name in sorted(todo, reverse=bool(number % 2))}
            base.append(took["plain"] * 1e3)
            ratios.append(took["ours"] / took["plain"])
        what = "processor" if cpu else "wall"
        print(
            f"step {kind:5} in-process, {what:9}: plain {spread(base)} ms, ours/plain {spread(ratios)}   goal <= 1.02"
        )


def ddp(rounds: int, steps: int) -> None:
    "Two workers against torchrun."
    import workbench as wb

    for kind in ("mlp", "conv"):
        ratios, base = [], []
        for _ in range(rounds):
            torchrun = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nproc-per-node=2",
                "--master-port=0",
            ]
            torchrun += [
                "--rdzv-backend=c10d",
                "--rdzv-endpoint=127.0.0.1:0",
                __file__,
                "--rank-of",
                kind,
                "--steps",
                str(steps),
            ]
            said = subprocess.run(torchrun, capture_output=True, text=True, check=True).stdout
            peer = max(float(line.split()[1]) for line in said.splitlines() if line.startswith("STEP"))
            mine = wb.scale(
                ours, workers=2, threads=1, params={"kind": kind, "steps": steps}, checkpoint_every=0
            ).value
            base.append(peer * 1e3)
            ratios.append(mine / peer)
        print(
            f"step {kind:5} 2 workers: torchrun {spread(base)} ms, ours/torchrun {spread(ratios)}   goal <= 1.03"
        )


def starts(rounds: int) -> None:
    "Call to first step, cold workers and warm."
    import workbench as wb
    from workbench.train.crew import dismiss

    found: dict[str, list[float]] = {"first": [], "again": []}
    for _ in range(rounds):
        dismiss()
        for which in found:
            mark = str(Path(tempfile.mkdtemp()) / "first")
            begin = time.time()
            wb.scale(
                ours,
                workers=2,
                threads=1,
                params={"kind": "mlp", "steps": 5, "first": mark},
                checkpoint_every=0,
            )
            found[which].append(float(Path(f"{mark}-0").read_text()) - begin)
    print(
        f"start to first step, Ray standing: first {spread(found['first'])} s (goal <= 6), again {spread(found['again'])} s (goal <= 2)"
    )


# ---------------------------------------------------------------- checkpoints and deaths


class Large:
    "A net and Adam of 200 MB together, and a step of about 50 ms."

    def __init__(self) -> None:
        self.net = nn.Sequential(*(nn.Linear(1_020, 1_020) for _ in range(16)))
        self.optimiser = torch.optim.Adam(self.net.parameters())
        self.x = torch.rand(256, 1_020)

    def step(self) -> None:
        self.optimiser.zero_grad()
        self.net(self.x).square().mean().backward()
        self.optimiser.step()


def stalls(save: Any, large: Large, saves: int, gap: int = 15) -> tuple[float, float]:
    "Milliseconds the call takes, and the loop loses, per save: medians."
    calls, lost = [], []
    for _ in range(saves):
        usual = []
        for _ in range(gap):
            begin = time.perf_counter()
            large.step()
            usual.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        save()
        calls.append(time.perf_counter() - begin)
        large.step()
        lost.append(time.perf_counter() - begin - statistics.median(usual))
    return statistics.median(calls) * 1e3, statistics.median(lost) * 1e3


def checkpoints(rounds: int) -> None:
    "What a save of 200 MB costs the loop."
    from workbench.train.checkpoint import Checkpoints
    from workbench.train.state import Training

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    large = Large()
    large.step()
    training, store = Training(large.net, large.optimiser), Checkpoints(folder / "ours")
    number = iter(range(1, 10**6))
    threads: list[threading.Thread] = []

    def state() -> dict[str, Any]:
        return {"model": large.net.state_dict(), "optimiser": large.optimiser.state_dict()}

    def sync() -> None:
        torch.save(state(), folder / "sync.pt")

    def threaded() -> None:
        while threads:
            threads.pop().join()
        held = copy.deepcopy(state())
        threads.append(threading.Thread(target=torch.save, args=(held, folder / "thread.pt")))
        threads[0].start()

    def mine() -> None:
        store.save(next(number), *training.capture())

    mine()  # the buffer is made once
    store.wait()
    for name, save in {"torch.save": sync, "thread": threaded, "ours": mine}.items():
        found = [stalls(save, large, 4) for _ in range(rounds)]
        print(
            f"checkpoint 200 MB {name:10}: call {spread([a for a, _ in found])} ms, with the next step {spread([b for _, b in found])} ms"
            + ("   goal <= 30" if name == "ours" else "")
        )
    for thread in threads:
        thread.join()
    store.wait()


def mortal(work: Any, marks: str) -> None:
    "Steps of 100 ms; notes when each was done."
    net, optimiser = work.prepare(build("mlp"), lambda p: torch.optim.Adam(p))
    Path(marks, f"pid-{work.rank}").write_text(str(os.getpid()))
    with Path(marks, f"steps-{work.rank}").open("a") as done:
        for x, y in work.batches(data(2_048), batch_size=64, epochs=3):
            one_step(net, optimiser, x, y)
            time.sleep(0.1)
            work.report()
            done.write(f"{time.time()} {work.step}\n")
            done.flush()


def recovery(rounds: int) -> None:
    "From kill -9 to the step that had been reached."
    import workbench as wb

    found = []
    for _ in range(rounds):
        marks, killed = Path(tempfile.mkdtemp()), []

        def kill(marks: Path = marks, killed: list[float] = killed) -> None:
            "After 55 steps."
            while not (marks / "steps-1").exists() or (marks / "steps-1").read_text().count("\n") < 55:
                time.sleep(0.01)
            os.kill(int((marks / "pid-1").read_text()), signal.SIGKILL)
            killed.append(time.time())

        threading.Thread(target=kill).start()
        wb.scale(mortal, workers=2, threads=1, params={"marks": str(marks)}, checkpoint_every=10)
        rows = [line.split() for line in (marks / "steps-0").read_text().splitlines()]
        reached = max(int(step) for at, step in rows if float(at) <= killed[0])
        caught = min(float(at) for at, step in rows if float(at) > killed[0] + 0.5 and int(step) >= reached)
        found.append(caught - killed[0])
    print(f"kill -9 of a worker to caught up: {spread(found)} s   goal <= 6 (Ray Train 11 to 15)")


def main() -> None:
    "All, or what --only names."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="steps,checkpoint,start,ddp,recovery")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rank-of", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.rank_of:
        torch.distributed.init_process_group("gloo")
        rank = torch.distributed.get_rank()
        step_s = plain(asked.rank_of, asked.steps, rank, 2)
        sys.stdout.write(f"STEP {step_s}\n")  # in one piece: two ranks write here
        sys.stdout.flush()
        torch.distributed.destroy_process_group()
        return
    import train  # by name, so that workers can import it

    os.chdir(tempfile.mkdtemp())
    Path("settings.ini").write_text("[laptop]\n")
    os.environ |= {"WORKBENCH_TRACK": "false", "WORKBENCH_DISPLAY": "quiet"}
    print(
        json.dumps(
            {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "torch": torch.__version__, "threads": 1}
        )
    )
    only = asked.only.split(",")
    if "steps" in only:
        train.steps_here(asked.rounds, asked.steps)
    if "checkpoint" in only:
        train.checkpoints(asked.rounds)
    if {"start", "ddp", "recovery"} & set(only):
        from workbench.compute.cluster import connect

        with connect(cpus=2, address="local"):
            for name, do in {
                "start": lambda: train.starts(asked.rounds),
                "ddp": lambda: train.ddp(asked.rounds, asked.steps),
            }.items():
                if name in only:
                    do()
            if "recovery" in only:
                train.recovery(asked.rounds)


if __name__ == "__main__":
    main()
