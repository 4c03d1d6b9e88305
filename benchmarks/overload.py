"""Ten times the load that a service can bear, for a minute, beside the honest peer: what is still answered in time, what excess hears, and what is left afterwards.

The peer is FastAPI with a batcher and `uvicorn --limit-concurrency 64`. Clients open a connection when none of theirs is free (that flag counts connections),
and close it when they are told to. In turn, --rounds times: what it can bear (as fast as it can, then at random moments at that rate), the spike,
and half of that afterwards. An answer is good within 1 s of being due. One core each for server and generator; a transformer of some 10 ms a row.
Usage: python benchmarks/overload.py [--rounds 3] [--seconds 60] [--times 10] [--net transformer]
"""

import argparse
import http.client
import os
import statistics
import sys
import threading
import time

from serve import saturated, spread
from servers import Server, alone, running

from workbench.serve.load import Fired, Step, arrivals, fire, summarise

MINE, PEER = "workbench", "FastAPI + batcher, limited"
GOOD_S = 1.0  # the deadline of a request that names none


def asked(server: Server, rate: float, seconds: float, seed: int) -> Fired:
    "Requests at random moments, no two of the same row."
    due = arrivals(rate, seconds, seed=seed)
    return fire(server.target, server.requests(len(due), seed), due, connections=512, timeout_s=3.0, pooled=True)  # fmt: skip


def comes_back(server: Server, ended: threading.Event, found: list[str]) -> None:
    "Ask now and then until refused: what the refusal says of coming back."
    asked = [request.partition(b"\r\n\r\n") for request in server.requests(300, 77)]
    while asked and not ended.wait(0.2) and not found:
        head, _, body = asked.pop()
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        line = http.client.HTTPConnection(server.target.host, server.target.port, timeout=5)
        try:
            line.request("POST", "/predict", body, headers)
            answer = line.getresponse()
            answer.read()
            if answer.status in (429, 503):
                found.append(answer.headers.get("retry-after") or "nothing")
        except OSError:
            pass
        finally:
            line.close()


def spike(server: Server, rate: float, seconds: float, seed: int) -> tuple[Step, float, str]:
    "The spike, the most memory in it, and what a refusal said."
    ended, said, mb = threading.Event(), list[str](), [server.memory_mb()]

    def weigh() -> None:
        while not ended.wait(5.0):
            mb.append(server.memory_mb())

    beside = [threading.Thread(target=comes_back, args=(server, ended, said)), threading.Thread(target=weigh)]
    for thread in beside:
        thread.start()
    fired = asked(server, rate, seconds, seed)
    ended.set()
    for thread in beside:
        thread.join()
    return summarise(fired, good_s=GOOD_S, last_s=seconds), max(mb), said[0] if said else "never refused"


def measure(name: str, net: str, seconds: float, times: float, seed: int) -> dict[str, float]:
    "One service, one round."
    with running(name, net) as server:
        capacity = saturated(server, 5.0, seed)["rps"]
        time.sleep(0.5)
        usual = summarise(asked(server, 0.8 * capacity, 5.0, seed + 10), good_s=GOOD_S, first_s=1.0)
        full = summarise(asked(server, capacity, 8.0, seed + 20), good_s=GOOD_S, first_s=1.0)
        time.sleep(1.0)
        before_mb = server.memory_mb()
        step, most_mb, said = spike(server, times * capacity, seconds, seed + 30)
        after = summarise(asked(server, 0.5 * capacity, 5.0, seed + 40), good_s=GOOD_S, first_s=1.0)
        print(f"  {name}: {capacity:,.0f}/s; Retry-After: {said}; spike {step}", file=sys.stderr, flush=True)
        return {
            "capacity": capacity,
            "goodput": step.goodput,
            "kept": step.goodput / capacity,
            "p99_ms": step.p99_ms,
            "usual_p99_ms": usual.p99_ms,
            "full_p99_ms": full.p99_ms,
            "refusal_p99_ms": step.refusal_p99_ms,
            "unanswered": step.lost / step.sent,
            "growth": most_mb / before_mb,
            "after_p99_ms": after.p99_ms,
            "after_ok": after.ok / max(1, after.sent),
        }


def told(name: str, rounds: list[dict[str, float]]) -> None:
    "What one service did, in lines."
    of = {key: [one[key] for one in rounds] for key in rounds[0]}
    print(f"{name}: bears {spread(of['capacity'], 0)}/s, p99 at 80 % {spread(of['usual_p99_ms'], 0)} ms, at 100 % {spread(of['full_p99_ms'], 0)} ms")  # fmt: skip
    print(f"  spike: {spread(of['goodput'], 0)}/s in time, {spread(of['kept'], 2)} of what it bears; p99 {spread(of['p99_ms'], 0)} ms; refused in {spread(of['refusal_p99_ms'])} ms (p99); without an answer {spread(of['unanswered'], 3)}")  # fmt: skip
    print(f"  memory x {spread(of['growth'], 3)}; from 1 s afterwards: {statistics.median(of['after_ok']):.3f} answered, p99 {spread(of['after_p99_ms'], 0)} ms", flush=True)  # fmt: skip


def main() -> int:
    "Rounds in turn; are the limits kept?"
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    options.add_argument("--net", choices=("mlp", "transformer"), default="transformer")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--times", type=float, default=10.0)
    asked_for = options.parse_args()
    alone()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found: dict[str, list[dict[str, float]]] = {MINE: [], PEER: []}
    for number in range(asked_for.rounds):
        for name in found:
            found[name].append(measure(name, asked_for.net, asked_for.seconds, asked_for.times, 100 * number))
    for name, rounds in found.items():
        told(name, rounds)
    ratios = [one["goodput"] / other["goodput"] for one, other in zip(found[MINE], found[PEER], strict=True)]
    mine = {key: statistics.median(one[key] for one in found[MINE]) for key in found[MINE][0]}
    print(f"goodput beside the peer's: {spread(ratios, 2)}, limit 1.3")
    good = [statistics.median(ratios) >= 1.3, mine["kept"] >= 0.9, mine["p99_ms"] <= GOOD_S * 1e3]
    good += [mine["refusal_p99_ms"] < 10, mine["growth"] < 1.1, mine["after_ok"] >= 0.99]
    good += [mine["after_p99_ms"] <= 2 * mine["usual_p99_ms"]]
    names = ("goodput 1.3 x", "90 % of capacity", "p99 within the deadline", "refused < 10 ms", "memory < 10 %", "answers again", "as fast as before")  # fmt: skip
    print(", ".join(f"{name}: {'kept' if yes else 'MISSED'}" for name, yes in zip(names, good, strict=True)))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
