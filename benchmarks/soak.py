"""A service for half an hour under a steady load: memory and descriptors stay where they are after the first minutes.

Requests arrive at random moments (open loop) at --rate; the request log is on, so that it rotates meanwhile. Prints a line a minute, then
two verdicts of their own. Flat: growth from the median of the first minutes after the second to that of as many last ones, memory
5 %, descriptors 5. Answered: no failure; a refusal (429 or 503, each with Retry-After) is none, and is counted for itself.
Usage: python benchmarks/soak.py [--minutes 30] [--rate 300]
"""

import argparse
import os
import statistics
from pathlib import Path

import numpy as np
from servers import Server, running

from workbench.serve.load import arrivals, fire, summarise

FIRST = 2  # minutes until everything has been used once


def held(pid: int) -> tuple[float, int]:
    "Resident MB of a process, and its open descriptors."
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{pid}/fd"))


def minute(server: Server, rate: float, number: int) -> tuple[int, int, int]:
    "Requests, refusals, failures; a line of it."
    due = arrivals(rate, 60.0, seed=number)
    fired = fire(server.target, server.requests(len(due), number), due, connections=64, timeout_s=30)
    step, (mb, files) = summarise(fired), held(server.process.pid)
    failed = step.failed + step.lost
    line = f"minute {number + 1:3}: {step.sent:,} requests, {step.refused} refused, {failed} failed"
    print(f"{line}, p99 {step.p99_ms:.1f} ms, {mb:.1f} MB, {files} descriptors", flush=True)
    return step.sent, step.refused, failed


def is_flat(seen: list[tuple[float, int]]) -> bool:
    "Whether the last minutes hold what the first ones after the second held; says so."
    part = min(3, (len(seen) - FIRST) // 2)
    first, last = seen[FIRST : FIRST + part], seen[-part:]
    (mb, files), (last_mb, last_files) = ([statistics.median(one[at] for one in some) for at in (0, 1)] for some in (first, last))  # fmt: skip
    flat = last_mb <= 1.05 * mb and last_files <= files + 5
    said = f"{mb:.1f} -> {last_mb:.1f} MB (x {last_mb / mb:.3f}, limit 1.05), {files:g} -> {last_files:g} descriptors (limit +5)"  # fmt: skip
    print(f"{said}: {'flat' if flat else 'NOT FLAT'}")
    return flat


def main() -> None:
    "Load, look, print."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--rate", type=float, default=300.0)
    asked = parser.parse_args()
    if asked.minutes < FIRST + 2:
        parser.error(f"--minutes {asked.minutes}: {FIRST + 2} or more, to compare one with one")
    seen, counts = [], np.zeros(3, int)
    with running("workbench") as server:
        for number in range(asked.minutes):
            counts += minute(server, asked.rate, number)
            seen.append(held(server.process.pid))
    flat = is_flat(seen)
    total, refused, failed = counts.tolist()
    print(f"{total:,} requests, {refused} refused, {failed} failed: {'answered' if not failed else 'NOT ANSWERED'}")  # fmt: skip
    raise SystemExit(not (flat and not failed))


if __name__ == "__main__":
    main()
