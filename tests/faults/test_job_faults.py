"""What can go wrong with a job: each ends in the right state, with a cause that a person understands."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from books import Write, executed, statuses

from workbench.base.errors import BadInput, JobFailed, JobKilled, JobTimedOut, Unavailable
from workbench.base.records import Ledger, find, runs
from workbench.base.store import Store
from workbench.jobs.runner import run


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


LIMIT = """import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, -1))"""
ENDS = {
    "memory": ("x = bytearray(2_000_000_000)", JobFailed, "MemoryError", "failed", "out of memory"),
    "numpy memory": (
        "import numpy\nx = numpy.ones(10**10)", JobFailed, "Unable to allocate", "failed", "out of memory"
    ),
    "sigkill": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        JobKilled, "the kernel was killed by SIGKILL", "killed", "signal SIGKILL",
    ),
    "sigterm": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nimport time; time.sleep(30)",
        JobKilled, "the kernel was killed by SIGTERM", "killed", "signal SIGTERM",
    ),
    "os._exit": ("import os\nos._exit(0)", JobFailed, "the kernel exited with status 0", "failed", "exit 0"),
    "sys.exit": ("import sys\nsys.exit(3)", JobFailed, "SystemExit: 3", "failed", "exit 3"),
    "input": ("name = input('name? ')", JobFailed, "nobody is there", "failed", "asks for input"),
    "recursion": ("def f():\n    f()\nf()", JobFailed, "RecursionError", "failed", "error"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ENDS)
def test_an_end_has_its_state_its_cause_and_its_exit_code(write, ledger: Ledger, fault: str) -> None:
    source, kind, said, status, cause = ENDS[fault]
    path = write("n = 0\n" + LIMIT * ("memory" in fault), source, "print('never')")
    before = path.read_bytes()
    with pytest.raises(kind, match=said) as caught:
        run(path, ledger=ledger)
    job = runs(ledger)[0]
    book = executed(job)
    assert (job.status, job.cause) == (status, cause) and type(caught.value) is kind
    assert caught.value.exit_code == {"failed": 7, "killed": 10}[status]
    assert "in cell 2 of 3" in caught.value.what and said in job.error
    assert statuses(book) == ["completed", "failed", "pending"]
    assert (book.metadata.workbench.status, book.metadata.workbench.cause) == (status, cause)
    assert status in (job.folder / "report.html").read_text() and path.read_bytes() == before


@pytest.mark.slow
def test_in_a_shell_each_end_is_an_exit_code(write, project: Path) -> None:
    shell = "from workbench.cli.cli import main; main()"
    for source, extra, code in (
        ("raise SystemExit(3)", [], 7),
        ("import time; time.sleep(60)", ["--timeout", "3"], 9),
        ("import os; os.kill(os.getpid(), 9)", [], 10),
    ):
        command = [sys.executable, "-c", shell, "run", str(write("n = 0", source)), *extra]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=90)
        assert done.returncode == code, done.stderr


@pytest.mark.slow
def test_a_cell_that_hangs_is_ended_with_all_it_started(write, ledger: Ledger, project: Path) -> None:
    hang = """import subprocess, time, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sh", "-c", "trap '' TERM INT; sleep 300"], start_new_session=True)
open("pid", "w").write(str(child.pid))
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass"""
    with pytest.raises(JobTimedOut, match="the cell ran out of time"):
        run(write("n = 0", hang, "1"), ledger=ledger, cell_timeout_s=3)
    job = runs(ledger)[0]
    assert (job.status, job.cause) == ("timed_out", "timeout") and job.wall_s < 20
    assert statuses(executed(job)) == ["completed", "failed", "pending"]
    assert not psutil.pid_exists(int((project / "pid").read_text()))


@pytest.mark.slow
def test_a_child_that_is_left_behind_ends_with_the_job(write, ledger: Ledger, project: Path) -> None:
    leave = """import os, subprocess
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
pids = [subprocess.Popen(["sleep", "300"], start_new_session=own, **quiet).pid for own in (False, True)]
if os.fork() == 0:  # a daemon: its parent is gone
    os.setsid()
    pids.append(subprocess.Popen(["sleep", "300"], start_new_session=True, **quiet).pid)
    open("pids", "w").write(" ".join(map(str, pids)))
    os._exit(0)
os.wait()"""
    job = run(write("n = 0", leave), ledger=ledger)
    pids = [int(pid) for pid in (project / "pids").read_text().split()]
    assert job.status == "succeeded" and len(pids) == 3
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_an_exception_in_a_thread_is_no_failure_and_no_secret(write, ledger: Ledger) -> None:
    body = """import threading
def work():
    raise ValueError("lost rows")
for _ in range(2):
    thread = threading.Thread(target=work, name="loader")
    thread.start()
    thread.join()"""
    job = run(write("n = 0", body, "1"), ledger=ledger)
    note = "cell 2: an exception ended the thread loader: ValueError: lost rows"
    assert job.status == "succeeded" and executed(job).metadata.workbench.notes == [note, note]
    assert note in (job.folder / "report.html").read_text()


def test_fifty_megabytes_of_print_are_cut_and_the_job_goes_on(write, ledger: Ledger) -> None:
    job = run(write("n = 0", "print('x' * 50_000_000)", "print('after')"), ledger=ledger)
    size = (job.folder / "notebook.ipynb").stat().st_size
    assert job.status == "succeeded" and 10_000_000 < size < 10_200_000
    book = executed(job)
    assert "beyond 10 MB are not kept" in book.cells[1].outputs[-1].text
    assert book.cells[2].outputs[0].text == "after\n"


def test_a_full_disk_is_said_and_what_is_there_is_whole(write, tiny_disk: Path) -> None:
    ledger = Ledger(Store(tiny_disk / "store"))
    fill = "open('fill', 'wb').write(bytes(10_000_000))"
    path = write("n = 0", fill, "1", folder=tiny_disk)
    with pytest.raises((Unavailable, JobFailed), match="the disk is full|No space left"):
        run(path, ledger=ledger)
    (tiny_disk / "fill").unlink()
    for file in (tiny_disk / "store" / "runs").rglob("*.ipynb"):
        json.loads(file.read_text())
    assert runs(ledger)[0].status != "succeeded"
    assert run(write("n = 0", "1", folder=tiny_disk), ledger=ledger).status == "succeeded"


def test_a_read_only_folder_of_the_notebook_is_no_trouble(write, tiny_disk: Path, ledger: Ledger) -> None:
    path = write("n = 0", "from workbench.jobs import result\nresult(n=n)", folder=tiny_disk)
    remount(tiny_disk, "ro")
    assert run(path, {"n": 2}, ledger=ledger).metrics == {"n": 2}
    assert [file.name for file in tiny_disk.iterdir()] == ["job.ipynb"]


def test_a_read_only_store_is_said_before_a_cell_runs(write, tiny_disk: Path, project: Path) -> None:
    ledger = Ledger(Store(tiny_disk / "store"))
    remount(tiny_disk, "ro")
    with pytest.raises(Unavailable, match="read-only|readonly|Read-only"):
        run(write("n = 0", "open('touched', 'w')"), ledger=ledger)
    assert not (project / "touched").exists()


def _contend(path: Path, root: Path, run_id: str) -> str:
    try:
        return run(path, ledger=Ledger(Store(root)), run_id=run_id).status
    except BadInput as error:
        return error.what


@pytest.mark.slow
def test_two_runs_to_one_place_are_one_run(write, ledger: Ledger) -> None:
    path = write("n = 0", "import time; time.sleep(1)")
    with multiprocessing.get_context("forkserver").Pool(3) as pool:
        ends = pool.starmap(_contend, [(path, ledger.store.root, "20300101-000000-aaaaaa")] * 3)
    assert sorted(ends)[-1] == "succeeded" and sum("is there already" in end for end in ends) == 2
    assert len(runs(ledger)) == 1 and statuses(executed(runs(ledger)[0])) == ["completed"] * 2


@pytest.mark.slow
def test_an_executed_notebook_run_in_place_stays_as_it_is(write, ledger: Ledger) -> None:
    first = run(write("n = 0", "print(n)"), ledger=ledger)
    source = first.folder / "notebook.ipynb"
    before = source.read_bytes()
    book = json.loads(before)
    book["cells"][1]["source"] = ["import os\n", "os.kill(os.getpid(), 9)"]
    source.write_text(json.dumps(book))
    before = source.read_bytes()
    with pytest.raises(JobKilled):
        run(source, ledger=ledger)
    assert source.read_bytes() == before and runs(ledger)[0].folder != first.folder


def test_ctrl_c_is_the_users_and_leaves_a_whole_notebook(write, ledger: Ledger, project: Path) -> None:
    path = write("n = 0", "open('ready', 'w').close()\nimport time; time.sleep(60)")

    def press() -> None:
        until = time.monotonic() + 30
        while not (project / "ready").exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    threading.Thread(target=press).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(path, ledger=ledger)
    finally:
        signal.signal(signal.SIGINT, before)
    job = runs(ledger)[0]
    assert (job.status, job.cause) == ("killed", "user")
    assert executed(job).metadata.workbench.cause == "user"


CODE = "from workbench.jobs.runner import run; run('job.ipynb')"


def _killed_runner(project: Path, wait_s: float) -> tuple[list[psutil.Process], float]:
    "Start a runner, kill it after `wait_s`; what is left of its processes five seconds later, and when it was killed."
    process = subprocess.Popen([sys.executable, "-c", CODE], cwd=project, stderr=subprocess.DEVNULL)
    time.sleep(wait_s)
    tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    return psutil.wait_procs(tree, timeout=5)[1], wait_s


def _check_killed(write: Write, project: Path, points: int, seed: int) -> None:
    body = (
        "import subprocess\nsubprocess.Popen(['sleep', '300'], start_new_session=True)\nprint('x' * 300_000)"
    )
    write("n = 0", body, *["print('y' * 300_000)\nimport time; time.sleep(0.1)"] * 5)
    chance = random.Random(seed)
    for _ in range(points):
        left, wait_s = _killed_runner(project, chance.uniform(0.3, 4.0))
        assert left == [], f"left after a kill at {wait_s:.2f} s"
    ledger = Ledger()
    for job in runs(ledger, limit=points):
        assert (job.status, job.cause) in {("killed", "process died"), ("succeeded", "")}
        file = job.folder / "notebook.ipynb"
        if file.exists():
            assert len(json.loads(file.read_text())["cells"]) == 7
        assert file.exists() or job.status == "killed"
        assert find(job.id, ledger).status == job.status


@pytest.mark.slow
def test_a_runner_killed_anywhere_leaves_no_process_and_no_half_file(write, project: Path) -> None:
    _check_killed(write, project, points=3, seed=1)


@pytest.mark.slow
def test_a_runner_killed_at_fifty_points_leaves_no_process_and_no_half_file(write, project: Path) -> None:
    _check_killed(write, project, points=50, seed=2)
