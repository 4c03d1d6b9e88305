"""A service: requests a second, p99 at 80 % of them and CPU a request, ours beside its peers; server on one core, generator on the other.

Usage: python benchmarks/serve.py [--net mlp|transformer] [--rounds 5] [--seconds 3] [--only NAME ...]
Every service of benchmarks/peers.py in turn, so many rounds: warm, then all requests due at once on 64 connections (30 for a transformer, and for who has a limit), then 80 % of what that gave,
at random moments, on 256. Ratios are of the same round. Ray's has two cores, one of them the generator's.
The raw echo is the floor: uvicorn with an application that does nothing.
"""

import argparse
import os
import statistics
import sys
import time

import numpy as np
from peers import PEERS
from servers import Server, alone, running

from workbench.serve.load import arrivals, fire, summarise

MINE = "workbench"


def saturated(server: Server, seconds: float, seed: int) -> dict[str, float]:
    "All is due at once: requests a second, and CPU a request."
    n, seed = 200, 10_000 * (seed + 1)
    while True:  # until what is asked takes long enough; never a row twice, or a cache would answer it
        seed += 1
        asked, before = server.requests(n, seed), server.cpu_s()
        fired = fire(server.target, asked, np.zeros(n), connections=server.connections, timeout_s=600)
        took_s, ok = float(np.nanmax(fired.done_s)), int((fired.status == 200).sum())
        if took_s > 0.6 * seconds:
            return {"rps": ok / took_s, "cpu_us": (server.cpu_s() - before) / n * 1e6, "ok": ok / n}
        time.sleep(0.3)  # until its connections are gone: one of the peers counts them
        n = int(min(8 * n, 1.2 * n * seconds / took_s))


def warm(server: Server, seconds: float, seed: int) -> dict[str, float]:
    "The same, once what is made, loaded and learned once is there."
    saturated(server, seconds / 2, seed + 500)
    return saturated(server, seconds, seed)


def steady(server: Server, rate: float, seconds: float, seed: int) -> dict[str, float]:
    "80 % of that, at random moments."
    time.sleep(0.3)
    due = arrivals(rate, seconds, seed=seed)
    connections = 30 if "limited" in server.name else 256
    fired = fire(server.target, server.requests(len(due), seed + 1000), due, connections=connections)
    step = summarise(fired, first_s=seconds / 6)  # the first part only warms
    return {"p50_ms": step.p50_ms, "p99_ms": step.p99_ms, "answered": step.ok / max(1, step.sent)}


def measure(name: str, net: str, seconds: float, seed: int) -> dict[str, float]:
    "One service, one round."
    with running(name, net) as server:
        found = warm(server, seconds, seed)
        found |= steady(server, 0.8 * found["rps"], seconds, seed)
        return found | {"mb": server.memory_mb(), "start_s": server.started_s}


def spread(values: list[float], digits: int = 1) -> str:
    "Median, and from where to where."
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def told(found: dict[str, list[dict[str, float]]]) -> None:
    "A line a service."
    mine = found.get(MINE)
    for name, rounds in found.items():
        of = {key: [one[key] for one in rounds] for key in rounds[0]}
        line = f"{name:28} {spread(of['rps'], 0)}/s  p99 at 80 % {spread(of['p99_ms'])} ms  CPU {spread(of['cpu_us'], 0)} us"
        line += f"  {statistics.median(of['mb']):.0f} MB  answered {min(*of['ok'], *of['answered']):.3f}"
        if mine and name != MINE:
            ratios = [one["rps"] / other["rps"] for one, other in zip(mine, rounds, strict=True)]
            line += f"  workbench {spread(ratios, 2)} times as many"
        print(line, flush=True)


def chosen(only: list[str]) -> list[str]:
    "Names to measure; those that are nowhere are said."
    found = []
    for name in only:
        if PEERS[name].python is None:
            print(f"skipped: {name}, no {PEERS[name].module} here (see benchmarks/peers.py)", flush=True)
        else:
            found.append(name)
    return found


def main() -> int:
    "Rounds in turn; is the aim kept?"
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    options.add_argument("--net", choices=("mlp", "transformer"), default="mlp")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--only", nargs="*", choices=list(PEERS), default=list(PEERS), metavar="NAME")
    asked = options.parse_args()
    alone()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    names = chosen(asked.only)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(asked.rounds):
        for name in names:
            found[name].append(measure(name, asked.net, asked.seconds, number))
            print(f"round {number + 1}: {name} {found[name][-1]['rps']:,.0f}/s", file=sys.stderr, flush=True)
    told(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
