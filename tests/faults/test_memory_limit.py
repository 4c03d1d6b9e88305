"""A real memory limit (cgroup v2 or v1, as root): who is killed for want of memory, and what the run says of it."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workbench.base.records import Ledger, runs
from workbench.jobs.keeper import OomWatch
from workbench.jobs.line import place

LIMIT_MB = 600
ROOT = Path("/sys/fs/cgroup")


def _group() -> Path:
    "A group of processes that may use 600 MB; raises OSError where none can be made."
    name = f"workbench-test-{uuid.uuid4().hex[:8]}"
    if (ROOT / "cgroup.controllers").exists():
        (ROOT / "cgroup.subtree_control").write_text("+memory")
        group, limits = ROOT / name, ("memory.max", "memory.swap.max")
    else:
        group, limits = ROOT / "memory" / name, ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    group.mkdir()
    for limit in limits:
        if (group / limit).exists():
            (group / limit).write_text("0" if "swap" in limit else str(LIMIT_MB * 2**20))
    assert any((group / limit).exists() for limit in limits)
    return group


@pytest.fixture
def limited() -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    "limited(code, ...): run Python code under the limit."
    try:
        group = _group()
    except OSError as error:
        pytest.skip(f"no group with a memory limit can be made here: {error}")

    def start(code: str, *args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
            capture_output=True,
            text=True,
            timeout=60,
        )

    yield start
    group.rmdir()


CODE = """
import sys
from workbench.base.errors import WorkbenchError
from workbench.jobs.runner import run
try:
    run("job.ipynb")
except WorkbenchError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_kernel_over_the_memory_limit_is_killed_and_the_run_says_so(limited, write, ledger: Ledger) -> None:
    write("n = 0", "rows = [bytes([1]) * 2**20 for _ in range(900)]", "print('never')")
    done = limited(CODE)
    assert done.returncode == 10, done.stderr
    job = runs(ledger)[0]
    assert (job.status, job.cause) == ("killed", "out of memory")
    assert "the kernel was killed by SIGKILL, out of memory" in done.stdout
    assert "in cell 2 of 3" in done.stdout and "give it more memory or less data" in done.stdout


WATCHED = """
import subprocess, sys
from workbench.jobs.keeper import OomWatch
from workbench.jobs.line import place
watch = OomWatch()
done = subprocess.run([sys.executable, "-c", "x = bytes([1]) * 2**30"])
print(done.returncode, watch.killed())
"""


def test_a_group_counts_its_own_kills(limited) -> None:
    elsewhere = OomWatch()
    assert limited(WATCHED).stdout.split() == ["-9", "True"]
    assert not elsewhere.killed() or elsewhere.file == Path("/proc/vmstat")


def test_a_warm_kernel_outside_of_the_limit_is_not_taken(limited) -> None:
    state = {"python": [sys.executable, sys.version], "place": place(), "read": {}}
    code = "import json, os, sys; from workbench.jobs.line import why_cold; print(why_cold(json.loads(sys.argv[1]), os.environ))"
    said = limited(code, json.dumps(state)).stdout
    assert said.startswith("group limits is ") and str(LIMIT_MB * 2**20) in said
