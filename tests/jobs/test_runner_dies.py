"""A runner that is killed or interrupted takes its kernel with it and leaves whole files."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from workbench.base.records import Ledger, runs

CODE = "from workbench.jobs.runner import run; run('job.ipynb')"
BODY = """import subprocess, time
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
child = subprocess.Popen(["sleep", "300"], **quiet)
own = subprocess.Popen(["sleep", "300"], start_new_session=True, **quiet)
open("ready", "w").write("1")
time.sleep(300)"""


@pytest.fixture
def runner(project: Path) -> Iterator[subprocess.Popen[bytes]]:
    "A process that runs job.ipynb, started by the test."
    process = subprocess.Popen([sys.executable, "-c", CODE], cwd=project, stderr=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def wait_for(path: Path, within_s: float = 60) -> None:
    until = time.monotonic() + within_s
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)


def left(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=within_s)[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_orphan_is_left(write, project: Path, number: signal.Signals) -> None:
    write("n = 0", BODY)
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], cwd=project, stderr=quiet, start_new_session=True
    )
    wait_for(project / "ready")
    tree = psutil.Process(process.pid).children(recursive=True)
    assert sum(p.name() == "sleep" for p in tree) == 2
    keeper = next(p for p in tree if p.ppid() == process.pid)
    private = Path(keeper.cmdline()[-1]).parent
    assert private.stat().st_mode & 0o777 == 0o700
    os.kill(process.pid, number)
    process.wait(20)
    assert left(tree, 5) == []
    job = runs(Ledger())[0]
    assert job.status == "killed"
    assert not private.exists()
    book = json.loads((job.folder / "notebook.ipynb").read_text())
    assert book["cells"][1]["metadata"]["papermill"]["status"] != "completed"


def test_children_that_a_cell_leaves_end_with_the_job(write, project: Path) -> None:
    write("n = 0", BODY.replace("time.sleep(300)", "open('pids', 'w').write(f'{child.pid} {own.pid}')"))
    subprocess.run([sys.executable, "-c", CODE], cwd=project, check=True, timeout=60)
    pids = [int(pid) for pid in (project / "pids").read_text().split()]
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.slow
def test_killed_at_any_moment_the_executed_notebook_is_absent_or_valid(write, project: Path) -> None:
    body = ["print('x' * 3_000_000)\nimport time; time.sleep(0.3)"] * 8
    write("n = 0", *body)
    chance = random.Random(7)
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", CODE], cwd=project, stderr=subprocess.DEVNULL)
        folder = project / ".workbench" / "runs"
        until = time.monotonic() + 30
        known = set(folder.glob("*/notebook.ipynb"))
        while (
            set(folder.glob("*/notebook.ipynb")) == known
            and process.poll() is None
            and time.monotonic() < until
        ):
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 3))
        process.kill()
        process.wait()
    files = list((project / ".workbench" / "runs").glob("*/notebook.ipynb"))
    for file in files:
        assert len(json.loads(file.read_text())["cells"]) == 9
    assert len(files) >= 5
    assert {job.status for job in runs(Ledger())} <= {"killed", "succeeded"}
