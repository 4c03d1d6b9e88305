"""A job on a Ray cluster has the record of a job here, on a store that the submitter never sees."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import toy

from workbench.base.errors import (
    BadInput,
    BadParameter,
    JobFailed,
    JobKilled,
    JobTimedOut,
    NotFound,
    Unavailable,
)
from workbench.base.ledger import Ledger
from workbench.base.records import find, runs
from workbench.jobs import control
from workbench.jobs.dues import attempts, dues
from workbench.jobs.onray import attach, run
from workbench.models.shelf import Shelf, load

pytestmark = pytest.mark.filterwarnings("default")
CLI = [sys.executable, "-c", "from workbench.cli.cli import main; main()"]


def processes(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            if mark in command and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {command[:200]}")
        except psutil.Error:
            pass
    return found


def wait_until(what: Callable[[], Any], within_s: float = 60) -> Any:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {within_s} s")


HOLD = """
import sys
from workbench.compute.cluster import head
with head(dashboard=True) as cluster:
    print(cluster.address, flush=True)
    sys.stdin.read()
"""


class Standing:
    "A cluster in a process of its own, which knows nothing of the tests' stores."

    def __init__(self, folder: Path) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("WORKBENCH_")}
        env |= {"FAR_TOKEN": "s3cret-there", "PYTHONPATH": str(Path(toy.__file__).parent)}
        piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        command = [sys.executable, "-W", "ignore", "-c", HOLD]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, cwd=folder, env=env, **piped)
        assert self.process.stdout
        self.address = self.process.stdout.readline().strip()
        assert self.address, (folder / "log").read_text()

    def end(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    before = set(Path("/tmp").glob("wb-ray-*"))
    standing = Standing(tmp_path_factory.mktemp("cluster"))
    yield standing
    ours = set(Path("/tmp").glob("wb-ray-*")) - before
    standing.end()
    assert not [path for path in ours if path.exists() or processes(str(path))]


@pytest.fixture
def far(cluster: Standing, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("WORKBENCH_RAY_ADDRESS", cluster.address)
    return cluster.address


PARAMETERS = """from datetime import date
from workbench.jobs.secret import Secret
n: int = 3
day: date = date(2013, 1, 1)
token: Secret = Secret("env:FAR_TOKEN")"""
BODY = """import helper
from workbench.base.records import start
from workbench.jobs import result
from workbench.models.shelf import Shelf, load
import toy
with start("fit", "inner") as inner:
    inner.log(step=1, loss=0.5)
    (inner.folder / "note.txt").write_text("kept")
    made = Shelf().add("toy", run=inner.id, **toy.linear_parts(slope=2.0))
for step in range(3):
    print("step", step)
result(n=helper.twice(n), day=str(day), length=len(token.reveal()), champion=load("toy@champion").version)"""
WHERE = """import os
print(os.environ["WORKBENCH_STORE"], os.getcwd(), token.reveal())"""


@pytest.mark.ray
def test_the_record_is_the_one_of_a_run_here(
    write: Any, far: str, project: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_TOKEN", "s3cret-here")
    monkeypatch.setenv("PYTHONPATH", str(Path(toy.__file__).parent))
    Shelf(ledger).add("toy", **toy.linear_parts())
    Shelf(ledger).set_alias("toy", "champion", 1)
    source = write(PARAMETERS, BODY, WHERE, name="nb/job.ipynb")
    (project / "nb" / "helper.py").write_text("def twice(n): return 2 * n\n")
    text = source.read_text()
    there = run(source, {"n": "5"}, on="ray", run_id="far-1")
    here = run(source, {"n": "5"})
    assert there.id == "far-1" and source.read_text() == text
    for name in ("kind", "name", "status", "params", "parents", "error", "user", "host", "cause"):
        assert getattr(there, name) == getattr(here, name), name
    assert set(there.identity) == set(here.identity)
    same = ("code", "notebook", "environment", "environment_list", "data", "seed")
    assert [there.identity[name] for name in same] == [here.identity[name] for name in same]
    assert there.metrics == {"n": 10, "day": "2013-01-01", "length": 12, "champion": 1}
    assert here.metrics == {**there.metrics, "length": 11}, "the secret is the cluster's there, ours here"
    assert set(there.artifacts) == set(here.artifacts) and set(there.cost) == set(here.cost)
    assert there.cost["cpu_s"] > 0 and there.cost["usd"] > 0 and there.heartbeat_at
    stored = find("far-1")
    assert (stored.metrics, stored.cost, stored.identity) == (there.metrics, there.cost, there.identity)
    files = {path.name for path in there.folder.iterdir()}
    assert files - {path.name for path in here.folder.iterdir()} == {"ray.json"}
    assert all(
        Path(path).is_file() and ledger.store.root in Path(path).parents for path in there.artifacts.values()
    )
    book = (there.folder / "notebook.ipynb").read_text()
    said = "".join(json.loads(book)["cells"][-1]["outputs"][0]["text"])
    assert str(project) not in said and "wb-ray-" in said, "it worked elsewhere, on a store of its own"
    assert "s3cret" not in book and "s3cret" not in (there.folder / "report.html").read_text()
    child = runs(parent="far-1")[0]
    assert (child.kind, child.status, child.curve("loss")) == ("fit", "succeeded", [(1, 0.5)])
    assert child.identity["code"] == there.identity["code"]
    assert (child.folder / "note.txt").read_text() == "kept"
    assert Shelf(ledger).versions("toy") == [1, 2, 3] and load("toy/2", ledger).name == "toy"


@pytest.mark.ray
@pytest.mark.slow
def test_a_failing_cell_is_told_with_cell_and_line(write: Any, far: str, ledger: Ledger) -> None:
    source = write("n: int = 1", "ok = n", "before = 1\nraise ValueError('no carrier')", "never = 1")
    with pytest.raises(JobFailed, match="in cell 3 of 4.*raise ValueError") as caught:
        run(source, on="ray")
    failed = runs()[0]
    assert (failed.status, failed.cause, failed.error) == ("failed", "error", str(caught.value))
    assert str(failed.folder / "notebook.ipynb") in caught.value.hint and "wb-ray-" not in failed.error
    cells = json.loads((failed.folder / "notebook.ipynb").read_text())["cells"]
    assert [cell["metadata"]["papermill"]["status"] for cell in cells] == [
        "completed",
        "completed",
        "failed",
        "pending",
    ]


def sleeper(write: Any, seconds: str) -> str:
    "A job whose last cell sleeps in a process of its own; what that is called."
    body = f"import subprocess\nprint('at work', flush=True)\nsubprocess.run(['sleep', '{seconds}'])"
    write("n: int = 1", "first = 1", body)
    return f"sleep {seconds}"


def submitted(work: str) -> "subprocess.Popen[str]":
    "A submitter in a process of its own, whose notebook is at work."
    env = {**os.environ, "WORKBENCH_DISPLAY": "log"}
    driver = subprocess.Popen(
        [*CLI, "run", "job.ipynb", "--on", "ray"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=env,
        start_new_session=True,
    )
    wait_until(lambda: processes(work) or driver.poll() is not None)
    assert driver.poll() is None, driver.communicate()
    return driver


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_ends_the_kernel_there_and_what_it_had_comes_back(
    write: Any, far: str, ledger: Ledger
) -> None:
    work = sleeper(write, f"611.{os.getpid()}")
    driver = submitted(work)
    assert runs()[0].status == "running" and driver.stderr
    while "cells 2/3" not in driver.stderr.readline():  # progress is shown on this side
        assert driver.poll() is None
    os.killpg(driver.pid, signal.SIGINT)
    wait_until(lambda: not processes(work), 15)
    said = driver.communicate(timeout=60)[1]
    assert driver.returncode == 130, said
    stopped = runs()[0]
    assert (stopped.status, stopped.cause) == ("killed", "user")
    cells = json.loads((stopped.folder / "notebook.ipynb").read_text())["cells"]
    assert cells[1]["metadata"]["papermill"]["status"] == "completed" and cells[2]["outputs"]


def test_what_cannot_be_sent_is_said_before_anything_starts(
    write: Any, ledger: Ledger, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write("n: int = 1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WORKBENCH_RAY_ADDRESS", f"127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(Unavailable, match="no Ray answers at ray_address"):
            run(source, on="ray")
    with pytest.raises(BadParameter):
        run(source, {"n": "many"}, on="ray")
    with pytest.raises(BadInput, match="on = 'moon' is no place"):
        run(source, on="moon")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="keep_s is of a run here"):
        run(source, on="ray", keep_s=60)
    with (project / "big.bin").open("wb") as file:
        file.truncate(200 * 10**6)
    with pytest.raises(BadInput, match=r"big\.bin 200\.0 MB"):
        run(source, on="ray")
    done = subprocess.run([*CLI, "run", "nowhere", "--attach"], capture_output=True, text=True)
    assert done.returncode == 3 and "nowhere" in done.stderr
    assert runs() == []


SCHEDULED = """[jobs.night]
notebook = "job.ipynb"
cron = "0 6 * * *"
on = "ray"
params = {day = "{date}"}
"""
DAY = "from datetime import date\nday: date = date(2013, 1, 1)"


def counted(sleep: str) -> str:
    "A cell that leaves a line for each time it began, and one for its key."
    here = str(Path.cwd() / "began")
    return f"""import os, subprocess
from workbench.jobs import result
with open({here!r}, "a") as file:
    file.write(os.environ["WORKBENCH_RUN_KEY"] + chr(10))
subprocess.run(["sleep", "{sleep}"])
result(day=str(day))"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_due_time_runs_on_the_cluster_under_its_key(write: Any, far: str, ledger: Ledger) -> None:
    write(DAY, counted("0"))
    Path("jobs.toml").write_text(SCHEDULED)
    command = [*CLI, "schedule", "run", "night", "--due", "2026-05-01T06:00:00", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    due = dues(ledger)[0]
    assert (due.key, due.status, due.tries) == ("night@2026-05-01T06:00:00Z", "succeeded", 1)
    assert find(due.run).metrics == {"day": "2026-05-01"} and (find(due.run).folder / "ray.json").is_file()
    assert Path("began").read_text().split() == [due.key]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_try_goes_on_on_the_cluster_and_the_next_one_follows_it(
    write: Any, far: str, ledger: Ledger
) -> None:
    work = f"9.{os.getpid()}"
    write(DAY, counted(work))
    Path("jobs.toml").write_text(SCHEDULED)
    control.backfill("night", "2026-05-01", ledger=ledger)
    code = "from workbench.cli.schedule import main; main()"
    scheduler = subprocess.Popen([sys.executable, "-c", code, "start"], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: processes(f"sleep {work}"))
        os.kill(dues(ledger)[0].pid or 0, signal.SIGKILL)
        wait_until(lambda: dues(ledger)[0].status == "succeeded", 90)
    finally:
        scheduler.terminate()
        scheduler.wait()
    due = dues(ledger)[0]
    assert [one.status for one in attempts(ledger, due.key)] == ["interrupted", "succeeded"]
    assert Path("began").read_text().split() == [due.key], "it began once"
    assert find(due.run).status == "succeeded" and find(due.run).metrics == {"day": "2026-05-01"}
    assert [run.id for run in runs(kind="job")] == [due.run]


@pytest.mark.ray
@pytest.mark.slow
def test_the_time_limit_and_a_secret_that_is_not_there(
    write: Any, far: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = sleeper(write, f"612.{os.getpid()}")
    with pytest.raises(JobTimedOut, match="ran out of time"):
        run("job.ipynb", on="ray", timeout_s=4)
    assert (runs()[0].status, runs()[0].cause) == ("timed_out", "timeout") and not processes(work)
    monkeypatch.setenv("ONLY_HERE", "x")
    secret = "from workbench.jobs.secret import Secret\ntoken: Secret = Secret('env:ONLY_HERE')"
    with pytest.raises(NotFound, match="secret 'env:ONLY_HERE': the variable is not set"):
        run(write(secret, "token.reveal()", name="secret.ipynb"), on="ray")
    assert runs()[0].status == "failed"


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_whose_submitter_was_killed_goes_on_and_is_followed_again(
    write: Any, far: str, ledger: Ledger, project: Path
) -> None:
    body = "import subprocess\nfrom workbench.jobs import result\nsubprocess.run(['sleep', '{}'])\nresult(done=1)"
    work = f"8.{os.getpid()}"
    write("n: int = 1", body.format(work))
    driver = submitted(f"sleep {work}")
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    lost = runs()[0]
    assert (lost.status, lost.cause) == ("killed", "process died")
    assert processes(f"sleep {work}"), "the job goes on"
    found = attach(lost.id)
    assert found.id == lost.id and found.status == "succeeded" and found.metrics == {"done": 1}
    assert found.started_at == lost.started_at and found.identity["code"] == lost.identity["code"]
    assert (found.folder / "report.html").is_file()
    with pytest.raises(BadInput, match="its submitter was not lost"):
        attach(lost.id)
    with pytest.raises(BadInput, match="was not sent to Ray"):
        attach(run(write("n: int = 1", name="other.ipynb")).id)


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_that_dies_ends_the_run_with_that_cause(
    write: Any, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing = Standing(tmp_path)
    monkeypatch.setenv("WORKBENCH_RAY_ADDRESS", standing.address)
    work = sleeper(write, f"613.{os.getpid()}")
    driver = submitted(work)
    os.kill(standing.process.pid, signal.SIGKILL)  # its guard ends the rest of it
    said = driver.communicate(timeout=90)[1]
    assert driver.returncode == JobKilled.exit_code, said
    assert (runs()[0].status, runs()[0].cause) == (
        "killed",
        "cluster died",
    ) and "died or cannot be reached" in said
    standing.process.communicate()
    wait_until(lambda: not processes(work), 30)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("by", [None, signal.SIGINT, signal.SIGKILL])
def test_a_cluster_of_its_own_ends_with_the_run(
    write: Any, ledger: Ledger, by: signal.Signals | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(Path("/tmp").glob("wb-ray-*")) | set(Path("/tmp").glob("workbench-ray-*"))
    monkeypatch.setenv("WORKBENCH_RAY_ADDRESS", "local")
    if by is None:
        assert run(write("n: int = 1", "2 + n"), on="ray").status == "succeeded"
    else:
        work = sleeper(write, f"614.{os.getpid()}")
        driver = submitted(work)
        os.killpg(driver.pid, by)
        driver.communicate(timeout=60)
        wait_until(lambda: not processes(work), 30)
        assert runs()[0].status == "killed"
        if by == signal.SIGKILL:
            with pytest.raises(NotFound, match="ended with its submitter"):
                attach(runs()[0].id)

    def left() -> list[Any]:
        "Folders and processes that are of no other test."
        now = set(Path("/tmp").glob("wb-ray-*")) | set(Path("/tmp").glob("workbench-ray-*"))
        return [path for path in now - before if path.exists()]

    wait_until(lambda: not left(), 30)
