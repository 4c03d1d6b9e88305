"""What the service around a model costs: throughput with cache, request log, metrics and a shadow of 10 % beside the bare engine, and p99 with a shadow beside none.

In turn, --rounds times, each a process of its own on one core (its shadow's process too); an MLP of 30 features, no two rows alike, so
that the cache only costs. Limits: at least 0.85 of the bare engine's requests a second; p99 at a steady rate at most 1.05 of that without
a shadow. p99 is taken, after the same saturation of both, at 40 % of what the service with everything gave.
Usage: python benchmarks/costs.py [--rounds 5] [--seconds 4]
"""

import argparse
import os
import statistics
import sys
import time

from peers import OURS, PEERS, Peer
from serve import spread, steady, warm
from servers import alone, running

ADD = OURS.rpartition("serve(")[0].replace("del made, weights", "")
BARE = (
    ADD
    + """
from workbench.serve.app import _at_ease, create_app
from workbench.serve import wire
from workbench.serve.engine import Engine
app = create_app(Engine("net/1", cache_rows=0), token=os.environ["BENCH_TOKEN"])
app.front.observe = lambda path, status, took_s: None
with wire.listen("127.0.0.1", int(sys.argv[1])) as listening, _at_ease():
    wire.server(app, lambda: None).run(sockets=[listening])
"""
)
SHADOWED = (
    ADD
    + """
from workbench.serve.traffic import direct
Shelf(Ledger()).add("net", model=f"bench_model:{type(made).__name__}", config={}, weights=weights, framework="torch", contract=contract, recipe=recipe)
direct("net", "shadow", 2, 0.1)
serve("net/1", port=int(sys.argv[1]))
"""
)
PEERS |= {
    "the bare engine": Peer(BARE),
    "with everything": Peer(SHADOWED),
    "without a shadow": PEERS["workbench"],
}
LEAST, MOST = 0.85, 1.05


def told(what: str, ratios: list[float], kept: bool) -> bool:
    "A line: the ratio, its spread, the limit."
    print(
        f"{what}: {spread(ratios, 3)} over {len(ratios)} rounds: {'kept' if kept else 'MISSED'}", flush=True
    )
    return kept


def main() -> int:
    "Rounds in turn; are the limits kept?"
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=4.0)
    asked = options.parse_args()
    alone()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rates, late = [], []
    for number in range(asked.rounds):
        with running("the bare engine") as server:
            bare = warm(server, asked.seconds, number)["rps"]
        most, p99 = {}, {}
        for name in ("with everything", "without a shadow"):
            with running(name) as server:
                time.sleep(6)  # until the shadow answers
                most[name] = warm(server, asked.seconds, number)["rps"]
                time.sleep(3)  # until the shadow has caught up
                p99[name] = steady(server, 0.4 * most["with everything"], 2 * asked.seconds, number)["p99_ms"]
        full = most["with everything"]
        rates.append(full / bare)
        late.append(p99["with everything"] / p99["without a shadow"])
        print(f"round {number + 1}: {full:,.0f} of {bare:,.0f}/s, p99 {p99}", file=sys.stderr, flush=True)
    good = told(f"throughput with everything / bare, limit {LEAST}", rates, statistics.median(rates) >= LEAST)
    good = told(f"p99 with a shadow / without, limit {MOST}", late, statistics.median(late) <= MOST) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
