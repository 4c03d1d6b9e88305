"""A service for half an hour under a steady load: memory and descriptors stay where they are after the first minutes, and every request is answered.

Requests arrive at random moments (open loop) at --rate; the request log is on, so that it rotates meanwhile. Prints a line a minute, then
the growth from the median of minutes 3 to 5 to that of the last three. Limits: memory 5 %, descriptors 5, failures none.
Usage: python benchmarks/soak.py [--minutes 30] [--rate 300]
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
from serve import MODEL, TOKEN, start

from workbench.serve.load import Target, arrivals, fire

FIRST = 2  # minutes until everything has been used once


def held(pid: int) -> tuple[float, int]:
    "Resident MB of a process, and its open descriptors."
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{pid}/fd"))


def minute(target: Target, rate: float, number: int) -> tuple[int, int, float]:
    "Requests, those not answered, and p99 in ms."
    due = arrivals(rate, 60.0, seed=number)
    rows = np.random.default_rng(number).normal(size=(len(due), 30)).tolist()
    asked = [target.request({f"x{i}": value for i, value in enumerate(row)}) for row in rows]
    fired = fire(target, asked, due, connections=64, timeout_s=30)
    good = fired.status == 200
    return len(due), int((~good).sum()), float(np.quantile((fired.done_s - fired.due_s)[good], 0.99)) * 1e3


def main() -> None:
    "Load, look, print."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--rate", type=float, default=300.0)
    asked = parser.parse_args()
    if asked.minutes < FIRST + 6:
        parser.error(f"--minutes {asked.minutes}: {FIRST + 6} or more, to compare three with three")
    seen: list[tuple[float, int]] = []
    failed = total = 0
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "bench_model.py").write_text(MODEL)
        (Path(made) / "settings.ini").write_text("[laptop]\n")
        server, port = start("workbench", Path(made))
        try:
            target = Target.of(f"http://127.0.0.1:{port}", TOKEN)
            for number in range(asked.minutes):
                requests, bad, p99_ms = minute(target, asked.rate, number)
                seen.append(held(server.pid))
                total, failed = total + requests, failed + bad
                print(f"minute {number + 1:3}: {requests:,} requests, {bad} failed, p99 {p99_ms:.1f} ms, {seen[-1][0]:.1f} MB, {seen[-1][1]} descriptors", flush=True)  # fmt: skip
        finally:
            server.terminate()
            server.wait(30)
    (mb, files), (last_mb, last_files) = (
        tuple(statistics.median(one[at] for one in part) for at in (0, 1)) for part in (seen[FIRST : FIRST + 3], seen[-3:])
    )  # fmt: skip
    flat = last_mb <= 1.05 * mb and last_files <= files + 5 and not failed
    print(f"{total:,} requests, {failed} failed; {mb:.1f} -> {last_mb:.1f} MB (x {last_mb / mb:.3f}, limit 1.05), {files:g} -> {last_files:g} descriptors: {'flat' if flat else 'NOT FLAT'}")  # fmt: skip
    raise SystemExit(not flat)


if __name__ == "__main__":
    main()
