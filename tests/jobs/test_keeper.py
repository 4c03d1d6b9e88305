"""A command ends, and nothing it started is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from workbench.jobs.keeper import keeper_command, killed_by

PRIVATE = "workbench-test-k3r9e1l0"
# starts a child, a grandchild whose parent ends, and a child in a session of its own; writes their pids; then does `end`
TREE = """
import subprocess, sys, pathlib
out = pathlib.Path(sys.argv[1]).parents[1] / "pids"
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
child = subprocess.Popen(["sleep", "300"], **quiet)
own = subprocess.Popen(["sleep", "300"], start_new_session=True, **quiet)
code = "import subprocess as s; print(s.Popen(['sleep', '300'], start_new_session=True, stdout=-3, stderr=-3).pid)"
orphan = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
(out.parent / "pids.part").write_text(f"{child.pid} {own.pid} {orphan}")
(out.parent / "pids.part").rename(out)
import os, signal, time
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # between two looks, too
        return False


def gone(pids: list[int], within_s: float = 5) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


def pids_of(folder: Path) -> list[int]:
    until = time.monotonic() + 20
    while not (folder / "pids").exists() and time.monotonic() < until:
        time.sleep(0.02)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / PRIVATE).mkdir(mode=0o700)
    yield tmp_path
    if (tmp_path / "pids").exists():
        for pid in pids_of(tmp_path):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def command(folder: Path, end: str) -> list[str]:
    return keeper_command([sys.executable, "-c", TREE + end, str(folder / PRIVATE / "kernel.json")])


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(3)", 3),
        ("sys.exit(0)", 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11),
    ],
)
def test_it_ends_as_the_command_did_and_leaves_nothing(folder: Path, end: str, code: int) -> None:
    done = subprocess.run(command(folder, end), timeout=30)
    assert done.returncode == code
    assert gone(pids_of(folder), 1)
    assert not (folder / PRIVATE).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_ends_but_an_interrupt_is_the_command_s(folder: Path, number: signal.Signals) -> None:
    keeper = subprocess.Popen(command(folder, "time.sleep(300)"))
    pids = pids_of(folder)
    keeper.send_signal(number)
    if number == signal.SIGINT:
        with pytest.raises(subprocess.TimeoutExpired):
            keeper.wait(1)
        keeper.terminate()
    assert keeper.wait(5) == -signal.SIGTERM
    assert gone(pids, 1)


def test_the_command_itself_can_be_interrupted(folder: Path) -> None:
    keeper = subprocess.Popen(
        command(folder, "time.sleep(300)"), start_new_session=True, stderr=subprocess.DEVNULL
    )
    pids = pids_of(folder)
    time.sleep(0.3)
    os.killpg(keeper.pid, signal.SIGINT)
    assert keeper.wait(10) == -signal.SIGINT and gone(pids, 1)


def test_it_ends_when_its_parent_is_killed(folder: Path) -> None:
    inner = command(folder, "time.sleep(300)")[6:]
    code = f"import subprocess, workbench.jobs.keeper as k; subprocess.run(k.keeper_command({inner!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code])
    pids = pids_of(folder)
    tree = [p.pid for p in psutil.Process(parent.pid).children(recursive=True)]
    parent.kill()
    parent.wait()
    assert gone([*pids, *tree], 5)


def test_ends_in_words() -> None:
    assert killed_by(-9, 1) == "was killed by SIGKILL, out of memory"
    assert killed_by(-9) == "was killed by SIGKILL" and killed_by(-34) == "was killed by SIGRTMIN"
    assert killed_by(1) == "exited with status 1" and killed_by(None) == "did not end"
    assert killed_by(-63) == "was killed by signal 63"
