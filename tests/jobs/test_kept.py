"""The kernel of a failed job stays as long as it was told to, and not a second longer."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from workbench.base.errors import BadInput, JobFailed, JobTimedOut, NotFound, Unavailable
from workbench.base.ledger import Ledger
from workbench.base.records import find, runs
from workbench.jobs import debug, engine, kept, kernels, runner
from workbench.jobs.keeper import keeper_command

LEAVES = "import subprocess; child = subprocess.Popen(['sleep', '600'], start_new_session=True)"
FAILS = f"{LEAVES}\nvalue = 41\nraise ValueError('no')"


def gone(pid: int, within_s: float = 15) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def removed(path: str, within_s: float = 15) -> bool:
    until = time.monotonic() + within_s
    while Path(path).exists() and time.monotonic() < until:
        time.sleep(0.05)
    return not Path(path).exists()


def family(pid: int) -> list[int]:
    "The process and all below it."
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


@pytest.fixture
def fail(write: Any, ledger: Ledger) -> Iterator[Any]:
    def make(source: str = FAILS, **options: Any) -> kept.Kept:
        with pytest.raises(JobFailed, match="ValueError") as caught:
            runner.run(write(source, tagged=0), ledger=ledger, **{"keep_s": 60, **options})
        assert "workbench debug" in caught.value.hint
        return kept.kept(ledger)[-1]

    yield make
    for one in kept.kept(ledger):
        kept.end(Path(one.folder))


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = f"/tmp/wb-kept-{os.getpid()}"
    monkeypatch.setenv("WORKBENCH_KERNELS", folder)
    kernels.start(1)
    yield
    kernels.stop()
    shutil.rmtree(folder, ignore_errors=True)


def ask(one: kept.Kept, source: str) -> str:
    "What the live kernel prints."
    from jupyter_client.blocking import BlockingKernelClient

    client = BlockingKernelClient(connection_file=str(one.connection / "kernel.json"))
    client.load_connection_file()
    client.start_channels()
    said: list[str] = []
    try:
        client.wait_for_ready(timeout=30)
        client.execute_interactive(
            source, timeout=30, output_hook=lambda m: said.append(m["content"].get("text", ""))
        )
        return "".join(said)
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)


def test_nothing_stays_unless_asked(write: Any, ledger: Ledger) -> None:
    with pytest.raises(JobFailed):
        runner.run(write(FAILS, tagged=0), ledger=ledger)
    assert kept.kept(ledger) == []


def test_cold_kernel_stays_as_it_was_and_goes_when_its_time_is_over(fail: Any) -> None:
    one = fail()
    assert ask(one, "print(value + 1)").strip() == "42"
    members = family(one.pid)
    assert len(members) >= 3  # keeper, kernel and what its cell started
    kept.hold(Path(one.folder), 0.5)
    assert all(gone(pid) for pid in members) and removed(one.folder)


def test_warm_kernel_stays_too(warm: None, fail: Any, ledger: Ledger) -> None:
    one = fail()
    book = json.loads((runs(ledger)[0].folder / "notebook.ipynb").read_text())
    assert book["metadata"]["workbench"]["kernel"] == "warm"
    assert ask(one, "print(value + 1)").strip() == "42"
    members = family(one.pid)
    assert len(members) >= 2
    kept.hold(Path(one.folder), 0.5)
    assert all(gone(pid) for pid in members) and removed(one.folder)
    assert kept.kept(ledger) == []


def test_only_the_owner_may_read_it(fail: Any) -> None:
    one = fail()
    file = one.connection / "kernel.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert {p.stat().st_mode & 0o777 for p in (file.parent, file.parent.parent)} == {0o700}
    assert json.loads(file.read_text())["transport"] == "ipc"


def test_end_ends_all(fail: Any, ledger: Ledger) -> None:
    one = fail()
    members = family(one.pid)
    assert kept.end(Path(one.folder)) and all(gone(pid) for pid in members)
    assert kept.kept(ledger) == []


@pytest.mark.parametrize("kind", ["cold", "warm"])
def test_killed_keeper_takes_the_kernel_with_it(kind: str, fail: Any, ledger: Ledger, request: Any) -> None:
    if kind == "warm":
        request.getfixturevalue("warm")
    one = fail(source="value = 41\nraise ValueError('no')")
    keeper = one.pid if kind == "cold" else psutil.Process(one.pid).ppid()
    members = family(keeper)
    os.kill(keeper, signal.SIGKILL)
    assert all(gone(pid) for pid in members)
    assert kept.kept(ledger) == [] and not Path(one.folder).exists()


def test_it_outlives_the_runner_that_is_killed(write: Any, ledger: Ledger) -> None:
    code = "import sys, time; from workbench.jobs import runner\n"
    code += "try:\n runner.run(sys.argv[1], keep_s=60)\nexcept Exception as e: print(e.cause, flush=True)\ntime.sleep(600)"
    path = write(FAILS, tagged=0)
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"error\n"
        (one,) = kept.kept(ledger)
        process.kill()
    members = family(one.pid)
    assert ask(one, "print(value)").strip() == "41"
    kept.hold(Path(one.folder), 0.5)
    assert all(gone(pid) for pid in members)


def test_it_stays_though_the_thread_of_its_job_ends_late(fail: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work = engine.Execution._work
    monkeypatch.setattr(engine.Execution, "_work", lambda self: (work(self), time.sleep(0.5)))
    assert ask(fail(), "print(value)").strip() == "41"


def test_no_more_stay_than_may(fail: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_KEPT", 1)
    first, second = fail(), fail()
    assert [one.run for one in kept.kept(ledger)] == [second.run]
    assert gone(first.pid)


def test_what_did_not_raise_keeps_nothing(write: Any, ledger: Ledger) -> None:
    for source in ("import sys; sys.exit(3)", "import os; os._exit(4)"):
        with pytest.raises(JobFailed):
            runner.run(write(source, tagged=0), ledger=ledger, keep_s=60)
    with pytest.raises(JobTimedOut):
        runner.run(write("import time; time.sleep(60)", tagged=0), ledger=ledger, keep_s=60, timeout_s=2)
    runner.run(write("1", tagged=0), ledger=ledger, keep_s=60)
    assert kept.kept(ledger) == []


@pytest.mark.parametrize("text", ["", "m", "-3", "3d", "1e9"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is no time"):
        kept.seconds(text)


def test_a_kernel_that_has_gone_names_what_is_left(fail: Any, write: Any, ledger: Ledger) -> None:
    one = fail()
    debug.end(find(one.run, ledger))
    with pytest.raises(NotFound, match="no kernel of run") as caught:
        debug.kernel_of(find(one.run, ledger))
    assert f"workbench resume {one.run}" in caught.value.hint and "notebook.ipynb" in caught.value.hint
    done = runner.run(write("1", tagged=0), ledger=ledger, keep_s=60)
    with pytest.raises(NotFound, match="succeeded"):
        debug.kernel_of(done)


def test_a_port_in_use_is_said(fail: Any, ledger: Ledger) -> None:
    import socket

    one = fail()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"port {port} is in use"):
            with debug.attached(one.run, port=port, ledger=ledger):
                pass
    assert one.here  # the kernel stays


@pytest.mark.parametrize(
    ("name", "mode", "last"),
    [
        ("workbench-kernel-abcd1234", 0o755, "{}/kernel.json"),  # others may read it
        ("runtime", 0o700, "{}/kernel.json"),  # as Jupyter's own, with the kernels of others
        ("workbench-kernel-abcd1234", 0o700, "kernel.json"),  # the folder that it works in
        ("project", 0o700, "--HistoryManager.hist_file=:memory:"),  # an argument after the connection file
    ],
)
def test_a_folder_that_is_not_ours_is_never_removed(tmp_path: Path, name: str, mode: int, last: str) -> None:
    folder = tmp_path / name
    folder.mkdir(mode=mode)
    (folder / "work.txt").write_text("mine")
    command = keeper_command([sys.executable, "-c", "pass", last.format(folder)])
    subprocess.run(command, cwd=folder, check=True)
    assert (folder / "work.txt").read_text() == "mine"
