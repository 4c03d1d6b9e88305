"""Jobs in real kernels that failed, ran out of time or were killed, and went on where they were."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from books import Write, executed, statuses
from typer.testing import CliRunner

from workbench.base.errors import BadInput, JobFailed, JobKilled, JobTimedOut, NotFound
from workbench.base.ledger import Ledger
from workbench.base.records import Run, runs
from workbench.cli.cli import app
from workbench.jobs import kernels
from workbench.jobs.attempt import work
from workbench.jobs.dues import claim, dues, launching, prepare
from workbench.jobs.jobsfile import Job
from workbench.jobs.pipeline import Step, run_pipeline
from workbench.jobs.resume import resume, run_or_resume
from workbench.jobs.runner import run
from workbench.jobs.schedule import Decision

CELLS = (
    "n: int = 1\nm: int = 2",
    "open('one', 'a').write('x')\na = [n]\nprint('made', a)",
    "open('two', 'a').write('x')\nb = a + [m]\nb",
)
END = "from workbench.jobs import result\nresult(b=b)"


@pytest.fixture(autouse=True)
def kept(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Snapshots after every cell."
    monkeypatch.setenv("WORKBENCH_SNAPSHOT_AFTER_S", "0")
    monkeypatch.setenv("WORKBENCH_SNAPSHOT_SHARE", "1")


def ran() -> tuple[int, int]:
    "How often the first and the second cell have run until now."
    return tuple(len(Path(name).read_text()) if Path(name).exists() else 0 for name in ("one", "two"))  # type: ignore[return-value]


def newest(ledger: Ledger) -> Run:
    return runs(ledger, 1)[0]


def test_only_what_is_left_runs_and_the_notebook_is_whole(write: Write, ledger: Ledger) -> None:
    with pytest.raises(JobFailed):
        run(write(*CELLS, "c = 1 / 0", END), ledger=ledger)
    failed = newest(ledger)
    write(*CELLS, "c = 1", END)
    done = CliRunner().invoke(app, ["resume", failed.id[:-2], "--json"])
    answer = json.loads(done.stdout)
    assert answer["plan"]["restored"] == [1, 2, 3] and list(answer["plan"]["run"]) == ["4", "5"]
    assert "cell 4 runs: its code is new or was edited" in done.stderr
    assert (answer["status"], answer["metrics"], answer["parents"]) == (
        "succeeded",
        {"b": [1, 2]},
        [failed.id],
    )
    assert ran() == (1, 1)
    book = executed(newest(ledger))
    assert statuses(book) == ["completed"] * 5 and book.metadata.workbench.snapshots.resumed_from == failed.id
    assert [c.metadata.workbench.get("restored_from") for c in book.cells] == [failed.id] * 3 + [None] * 2
    assert book.cells[1].outputs[0].text == "made [1]\n" and "[1, 2]" in str(book.cells[2].outputs)
    assert [c.execution_count for c in book.cells] == [1, 2, 3, 4, 5]
    assert not (newest(ledger).folder / "snapshots").exists()  # nothing is left to resume
    answer = json.loads(CliRunner().invoke(app, ["resume", failed.id, "-p", "m=7", "--json"]).stdout)
    assert answer["metrics"] == {"b": [1, 7]} and ran() == (1, 2)


def test_out_of_time(write: Write, ledger: Ledger) -> None:
    with pytest.raises(JobTimedOut):
        run(write(*CELLS, "import time\ntime.sleep(60)", END), ledger=ledger, cell_timeout_s=4)
    write(*CELLS, "import time", END)
    assert resume(newest(ledger), ledger=ledger).metrics == {"b": [1, 2]} and ran() == (1, 1)


def test_a_kernel_that_was_killed(write: Write, ledger: Ledger) -> None:
    with pytest.raises(JobKilled):
        run(write(*CELLS, "import os\nos.kill(os.getpid(), 9)", END), ledger=ledger)
    write(*CELLS, "import os", END)
    assert resume(newest(ledger), ledger=ledger).metrics == {"b": [1, 2]} and ran() == (1, 1)


def test_a_runner_that_was_killed(write: Write, ledger: Ledger) -> None:
    path = write(*CELLS, "open('reached', 'w')\nimport time\ntime.sleep(60)", END)
    code = f"from workbench.jobs.runner import run; run({str(path)!r})"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not Path("reached").exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    write(*CELLS, "", END)
    assert newest(ledger).status == "killed"
    assert resume(newest(ledger), ledger=ledger).metrics == {"b": [1, 2]} and ran() == (1, 1)


def test_what_cannot_be_resumed_is_said(
    write: Write, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(write("n = 1"), ledger=ledger)
    with pytest.raises(BadInput, match="is succeeded"):
        resume(done, ledger=ledger)
    monkeypatch.setenv("WORKBENCH_SNAPSHOT_SHARE", "0")
    with pytest.raises(JobFailed):
        run(write("n = 1", "1 / 0"), ledger=ledger)
    failed = newest(ledger)
    assert not (failed.folder / "snapshots").exists()
    with pytest.raises(NotFound, match="no record to resume from"):
        resume(failed, ledger=ledger)
    (failed.folder / "ray.json").write_text("{}")
    with pytest.raises(BadInput, match="ran on Ray"):
        resume(failed, ledger=ledger)


def test_a_run_under_the_same_name_takes_over_what_is_true(write: Write, ledger: Ledger) -> None:
    plans: list[str] = []
    path = write(*CELLS, "1 / 0")
    for _ in range(2):
        with pytest.raises(JobFailed):
            run_or_resume(path, ledger=ledger, say=lambda plan: plans.append(str(plan)))
    assert ran() == (1, 1) and plans == ["cell 4 runs again: it failed; cells 1, 2, 3 restored"]


def test_a_pipeline_resumes_its_failed_step(project: Path, write: Write, ledger: Ledger) -> None:
    steps = [Step("b", "job.ipynb", (), ("out.txt",))]
    write(*CELLS, "1 / 0")
    with pytest.raises(JobFailed, match="what failed is resumed"):
        run_pipeline("flow", steps, ledger=ledger)
    write(*CELLS, "open('out.txt', 'w').write(str(b))")
    flow = run_pipeline("flow", steps, ledger=ledger)
    assert flow.passed and ran() == (1, 1) and Path("out.txt").read_text() == "[1, 2]"
    assert "cells 1, 2, 3 restored" in flow.outcomes["b"].resumed and "resumed: cell 4" in str(flow)
    run_pipeline("flow", steps, ledger=ledger, force=True)
    assert ran() == (2, 2)


def test_with_warm_kernels(
    write: Write, ledger: Ledger, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("zygotes")
    folder.chmod(0o700)
    monkeypatch.setenv("WORKBENCH_KERNELS", str(folder))
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    kernels.start(1)
    try:
        with pytest.raises(JobFailed):
            run(write(*CELLS, "1 / 0"), ledger=ledger)
        assert executed(newest(ledger)).metadata.workbench.kernel == "warm"
        write(*CELLS, END)
        os.environ.pop("PYTEST_CURRENT_TEST", None)
        job = resume(newest(ledger), ledger=ledger)
        assert job.metrics == {"b": [1, 2]} and ran() == (1, 1)
    finally:
        kernels.stop()


def test_a_retry_resumes_where_the_policy_says_so(project: Path, write: Write, ledger: Ledger) -> None:
    job = Job(name="job", notebook="job.ipynb", cron="0 6 * * *", retries=1, backoff_s=0, resume=True)
    prepare(ledger)
    with ledger.change() as db:
        key = claim(db, job, Decision(0.0, "run"), "cron", 0.0)
    for end in ("1 / 0", END):
        write(*CELLS, end)
        with ledger.change() as db:
            number = launching(db, key)
        work(str(ledger.store.root), key, number)
    assert (
        dues(ledger)[0].status == "succeeded" and newest(ledger).metrics == {"b": [1, 2]} and ran() == (1, 1)
    )
