"""A training that writes down what it sees, and a check that it saw every row once an epoch."""

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROWS, EPOCHS = 800, 3


def train(
    work: Any, log: str, nap_s: float = 0.0, kill_rank: int = -1, kill_at: int = 0, shard: bool = False
) -> list[float]:
    "A small net with dropout, momentum and a schedule: everything that a resume can get wrong."
    numbers = torch.arange(ROWS)
    x = numbers[:, None] / ROWS
    build = lambda: torch.nn.Sequential(  # noqa: E731
        torch.nn.Linear(1, 8), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)
    )
    model, optimiser, scheduler = work.prepare(
        build,
        lambda p: torch.optim.AdamW(p, lr=0.01),
        scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 1_000),
        shard=shard,
    )
    Path(log, f"pid-{work.rank}").write_text(str(os.getpid()))
    with Path(log, f"rows-{work.rank}-{os.getpid()}-{work.site.attempt}.jsonl").open("a") as seen:
        for epoch in work.epochs(EPOCHS):
            for rows, y, which in work.batches((x, 2 * x, numbers), batch_size=16):
                loss = (model(rows) - y).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                scheduler.step()
                time.sleep(nap_s)
                line = [time.time(), work.step, epoch, which.tolist(), loss.item()]
                seen.write(json.dumps(line) + "\n")
                seen.flush()
                if work.step + 1 == kill_at and work.rank == kill_rank and not work.resumed:
                    os.kill(os.getpid(), signal.SIGKILL)
                work.report(loss=loss)
    return [value for p in model.state_dict().values() for value in _whole(p).flatten().tolist()]


def _whole(tensor: Any) -> Any:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def attempts(log: Path) -> list[list[list[Any]]]:
    "Lines of each attempt and rank, the oldest first."
    found = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in log.glob("rows-*.jsonl")
    ]
    return sorted((lines for lines in found if lines), key=lambda lines: lines[0][0])


def once(log: Path) -> int:
    "Every row was used once an epoch by steps that counted; returns the most steps that were lost at once."
    found, most = attempts(log), 0
    counted: Counter[tuple[int, int]] = Counter()
    for at, lines in enumerate(found):
        later = [other[0][1] for other in found[at + 1 :] if other[0][0] > lines[-1][0]]
        until = min(later, default=10**9)
        most = max(most, sum(line[1] >= until for line in lines))
        counted.update((line[2], row) for line in lines if line[1] < until for row in line[3])
    assert set(counted.values()) == {1}, Counter(counted.values())
    assert len(counted) == ROWS * EPOCHS
    return most


def losses(log: Path) -> dict[int, float]:
    "Loss of rank 0 by step, the last attempt's where several did it."
    return {line[1]: line[4] for lines in attempts(log) for line in lines}


if __name__ == "__main__":
    import workbench as wb

    torch.set_num_threads(1)
    log, workers, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    done = wb.scale(
        train,
        workers=workers,
        params={"log": log, "nap_s": 0.01},
        checkpoint_every=20,
        resume=resume,
        max_failures=9,
    )
    Path(log, "done").write_text(json.dumps(done.value))
