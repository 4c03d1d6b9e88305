"""The wall clock of a service jumps by days, both ways: nothing that is measured in seconds notices."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import GOOD, TOKEN, Service, make_service, parts

from workbench.base.errors import NotFound
from workbench.base.ledger import Ledger
from workbench.base.store import Store
from workbench.models.shelf import Shelf
from workbench.serve.requestlog import read

DAY_S = 86_400.0
PARTNER = "the-token-of-a-partner"
SLOW = """
import time
import numpy as np

class Slow:
    "Takes its time, once it was tried."
    def __init__(self, **config):
        pass
    def load_weights(self, weights):
        return self
    def __call__(self, x):
        if not (x[:, 0] < 2).all():
            until = time.monotonic() + 0.4
            while time.monotonic() < until:
                pass
        return np.full(len(x), 0.25, dtype="float32")
"""
# Two ways to move the wall clock of a process and leave the monotonic one: for Python's own code, and for all of it.
SITE = """
import os, time
_file, _real = os.environ["JUMP_FILE"], time.time
def _now():
    with open(_file) as file:
        return _real() + float(file.read() or 0)
time.time = _now
"""
SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long off(void) {
    char text[32] = {0};
    const char *path = getenv("JUMP_FILE");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return 0;
    if (read(file, text, 31) < 0) text[0] = 0;
    close(file);
    return atol(text);
}
int clock_gettime(clockid_t which, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, which, at);
    if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) at->tv_sec += off();
    return failed;
}
int gettimeofday(struct timeval *at, void *zone) {
    int failed = syscall(SYS_gettimeofday, at, zone);
    if (!failed && at) at->tv_sec += off();
    return failed;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""
SCRIPT = """
import hashlib, sys, time
from workbench.base.errors import NotFound
from workbench.base.ledger import Ledger
from workbench.serve import app, wire
from workbench.serve.clients import Client, Clients
from workbench.serve.engine import Engine
from workbench.serve.requestlog import RequestLog
from conftest_names import PARTNER, TOKEN

book = Ledger()
engine = Engine("flights/2", book, cache_ttl_s=600.0)
log = RequestLog("flights", engine.contract, store=book.store, flush_s=0.1, keep_days=2)
partner = {hashlib.sha256(PARTNER.encode()).hexdigest(): Client("partner", rate_per_s=0.001, burst=2)}
made = app.create_app(engine, token=Clients.of(TOKEN, partner), log=log)

async def asked(scope, receive, send):  # what the clock says, so that a jump is known to have happened
    if scope["type"] == "http" and scope["path"] == "/clock":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        return await send({"type": "http.response.body", "body": b"%f" % time.time()})
    await made(scope, receive, send)

with wire.listen("127.0.0.1", int(sys.argv[1])) as listening:
    wire.server(asked, lambda: None).run(sockets=[listening])
log.close()
"""


@dataclass
class Jumping:
    "A service, and the file that says how far its clock is off."

    service: Service
    file: Path

    def jump(self, by_s: float) -> None:
        "Let its clock be off by so much, and see that it is."
        made = self.file.with_suffix(".part")
        made.write_text(f"{by_s:.0f}")
        made.replace(self.file)
        deadline = time.monotonic() + 20
        while abs(float(self.service.ask("/clock", method="GET")[1]) - time.time() - by_s) > 60:
            assert time.monotonic() < deadline, "the clock did not jump"
            time.sleep(0.02)


@pytest.fixture(params=[pytest.param("python", marks=pytest.mark.slow), "all"])
def jumping(
    request: pytest.FixtureRequest, tmp_path: Path, module: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Jumping]:
    file, site = tmp_path / "jump", tmp_path / "site"
    site.mkdir()
    file.write_text("0")
    (site / "conftest_names.py").write_text(f"TOKEN, PARTNER = {TOKEN!r}, {PARTNER!r}\n")
    (module / "tiny_slow.py").write_text(SLOW)
    own = {"JUMP_FILE": str(file)}
    if request.param == "all":
        if sys.platform != "linux" or not (compiler := shutil.which("cc")):
            pytest.skip("no C compiler here")
        (site / "shim.c").write_text(SHIM)
        own["LD_PRELOAD"] = str(site / "shim.so")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", own["LD_PRELOAD"], site / "shim.c"], check=True)
    else:
        (site / "sitecustomize.py").write_text(SITE)
    service = make_service(tmp_path / "project", module, script=SCRIPT)
    slow = {"model": "tiny_slow:Slow", "config": {}, "weights": {"none": np.zeros(1)}}
    Shelf(Ledger(Store(tmp_path / "project" / ".workbench"))).add("flights", **parts() | slow)
    clean = service.environment() | own
    clean["PYTHONPATH"] = f"{site}{os.pathsep}{module}"
    monkeypatch.setattr(service, "environment", lambda: clean)
    service.start()
    yield Jumping(service, file)
    if service.process.poll() is None:
        service.stop(9)


def counted(service: Service) -> dict[str, int]:
    return service.ask("/live.json", method="GET")[1]["counts"]


def statuses(service: Service, times: int) -> list[int]:
    return [service.ask(body={"row": GOOD}, authorization=f"Bearer {PARTNER}")[0] for _ in range(times)]


def test_deadlines_cache_rates_and_the_log_outlive_a_jump(jumping: Jumping) -> None:
    service, patient = jumping.service, {"x-deadline-ms": "20000"}
    store = Store(service.project / ".workbench")
    old = store.path("requests", "flights", f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}", "kept.txt")
    old.parent.mkdir(parents=True)
    old.write_text("of yesterday, and kept for two days")
    assert service.ask(body={"row": GOOD}, **patient)[0] == 200
    assert statuses(service, 3) == [200, 200, 429]
    kept, before = 3, counted(service)
    with ThreadPoolExecutor(1) as pool:
        for number, jump_s in enumerate((30 * DAY_S, -30 * DAY_S, 0.0, 400 * DAY_S)):
            far = {"row": {**GOOD, "distance": 6000.0 - number}}
            flying = pool.submit(service.ask, "/predict", far, **patient)
            jumping.jump(jump_s)
            assert flying.result()[0] == 200, "what is in flight is answered"
            assert service.ask(body={"row": GOOD}, **patient)[0] == 200, "a deadline is no moment of the day"
            assert statuses(service, 1) == [429], "a bucket fills by time that has passed"
            stamp = {"x-request-start": f"t={time.time():.3f}"}  # of a clock that ours has left
            assert service.ask(body={"row": GOOD}, **patient, **stamp)[0] == 200
            kept += 3
            until(lambda: logged(store) == kept)  # noqa: B023
    now = counted(service)
    assert now["run"] - before["run"] == 4 and now["hit"] - before["hit"] == 8, "what is cached stays"
    assert not now["shed"] and not now["expired"]
    assert late(service) == 503, "and what is late is late"
    assert old.exists(), "a day that is not old is not taken for one"
    assert service.stop(15) in (0, -15)


def late(service: Service) -> int:
    "Status of a request that waits behind a slow one for longer than it may."
    status = 0
    for number in range(10):  # until it comes while the other is scored
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(service.ask, "/predict", {"row": {**GOOD, "distance": 5000.0 + number}})
            time.sleep(0.1)
            quick = {"row": {**GOOD, "seats": 10 + number}}
            status = service.ask("/predict", quick, **{"x-deadline-ms": "100"})[0]
            slow.result()
        if status == 503:
            break
    return status


def logged(store: Store) -> int:
    try:
        return len(read("flights", store))
    except NotFound:
        return 0


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
