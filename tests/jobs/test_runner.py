"""Jobs in real kernels: what comes out, and what is said when something goes wrong."""

import json
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from books import executed, statuses

from workbench.base.displays import register
from workbench.base.errors import (
    BadInput,
    BadParameter,
    JobFailed,
    JobTimedOut,
    NotFound,
    Stopped,
    Unavailable,
)
from workbench.base.progress import Quiet
from workbench.base.records import Ledger, find, runs
from workbench.jobs.runner import run


def text(cell: Any) -> str:
    return "".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


def test_a_job_is_recorded_with_values_result_files_and_a_kernel_like_this_process(
    write, ledger: Ledger
) -> None:
    body = """import os, sys, json
from pathlib import Path
from workbench.jobs import result
from workbench.base.records import start
with start("check", "inner") as inner:
    pass
ran = Path(os.environ["WORKBENCH_RESULT"]).parent
result(n=n, twice=twice, parent=inner.parents[0], exe=sys.executable, cwd=os.getcwd(), ports=os.environ["WORKBENCH_DISPLAY"])
result(auc=0.71, day=str(day))"""
    source = write(
        "from datetime import date\nn: int = 3\ntwice = n * 2\nday: date = date(2013, 1, 1)", body, "",
        name="deep/er/{job}.ipynb", kernel="not-installed",
    )  # fmt: skip
    before = source.read_bytes(), source.stat().st_mtime_ns
    job = run("deep/er/{job}.ipynb", {"n": "7", "day": "2014-02-28"}, ledger=ledger, timeout_s=120)
    assert (job.kind, job.name, job.status) == ("job", "{job}", "succeeded")
    assert job.params == {"n": 7, "day": "2014-02-28"} and job.identity["notebook"]
    said = job.metrics
    assert (said["n"], said["twice"], said["day"], said["auc"]) == (7, 14, "2014-02-28", 0.71)
    assert said["parent"] == job.id and said["exe"] == sys.executable and said["cwd"] == str(source.parent)
    assert find(job.id, ledger).metrics == said and find(job.id, ledger).artifacts == job.artifacts
    assert [r.name for r in runs(ledger, kind="check")] == ["inner"]
    book = executed(job)
    assert statuses(book) == ["completed"] * 4 and book.metadata.workbench.status == "succeeded"
    assert (
        book.cells[1].metadata.tags == ["injected-parameters"] and book.metadata.papermill.exception is None
    )
    assert (source.read_bytes(), source.stat().st_mtime_ns) == before
    assert sorted(p.name for p in source.parent.iterdir()) == ["{job}.ipynb"]
    files = {p.name: stat.S_IMODE(p.stat().st_mode) for p in job.folder.iterdir()}
    assert files == dict.fromkeys(["kernel.log", "notebook.ipynb", "report.html", "result.json"], 0o600)
    assert "TCP" not in (job.folder / "kernel.log").read_text()
    page = (job.folder / "report.html").read_text()
    assert ">succeeded</b>" in page and "2014-02-28" in page and "<script" not in page


def test_nothing_starts_on_a_bad_parameter(write, ledger: Ledger) -> None:
    path = write("n: int = 3", "open('touched', 'w')")
    for given in ({"n": "five"}, {"m": 1}, {"n = open('touched', 'w'); n": 1}):
        with pytest.raises(BadParameter):
            run(path, given, ledger=ledger)
    with pytest.raises(NotFound):
        run("absent.ipynb", ledger=ledger)
    with pytest.raises(BadInput, match="timeout_s = 0"):
        run(path, ledger=ledger, timeout_s=0)
    assert runs(ledger) == [] and not (path.parent / "touched").exists()


def test_a_failing_cell_is_named_with_its_line_and_the_rest_never_ran(write, ledger: Ledger) -> None:
    path = write(
        "n = 0",
        "from workbench.jobs import result\nresult(seen=1)",
        "def f():\n    return 1 / n\n\nx = f()\ny = x",
        "1",
    )
    with pytest.raises(JobFailed) as caught:
        run(path, {"n": 0}, ledger=ledger)
    job = runs(ledger)[0]
    assert "job failed in cell 4 of 5, In [4], at: x = f()" in caught.value.what
    assert "ZeroDivisionError: division by zero" in caught.value.what and str(job.folder) in caught.value.hint
    assert job.status == "failed" and "ZeroDivisionError" in job.error and job.metrics == {"seen": 1}
    book = executed(job)
    assert (
        statuses(book) == ["completed"] * 3 + ["failed", "pending"]
        and book.metadata.papermill.exception is True
    )
    assert "ZeroDivisionError" in (job.folder / "report.html").read_text()


KILL = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("source", "said", "status", "cause"),
    [
        (KILL, "the kernel was killed by SIGKILL", "killed", "signal SIGKILL"),
        ("import os\nos._exit(0)", "the kernel exited with status 0", "failed", "exit 0"),
        (
            "import ctypes\nctypes.string_at(0)",
            "the kernel was killed by SIGSEGV",
            "killed",
            "signal SIGSEGV",
        ),
        ("raise SystemExit(3)", "SystemExit: 3", "failed", "exit 3"),
        ("input('name?')", "asks for input, and nobody is there", "failed", "asks for input"),
        ("x = (", "SyntaxError", "failed", "error"),
    ],
)
def test_every_way_to_end_badly_is_said(
    write, ledger: Ledger, source: str, said: str, status: str, cause: str
) -> None:
    with pytest.raises(JobFailed) as caught:
        run(write("n = 0", source, "print('never')"), ledger=ledger)
    assert said in caught.value.what and "in cell 2 of 3" in caught.value.what
    job = runs(ledger)[0]
    book = executed(job)
    assert statuses(book) == ["completed", "failed", "pending"]
    assert book.metadata.workbench.status == status and said in book.metadata.workbench.error
    assert (job.status, job.cause, book.metadata.workbench.cause) == (status, cause, cause)
    assert (caught.value.exit_code, caught.value.cause) == (10 if status == "killed" else 7, cause)


def test_early_success_expected_errors_and_skipped_cells(write, ledger: Ledger) -> None:
    path = write("n = 0", "1 / 0", "import sys\nprint('end')\nsys.exit()", "print('never')")
    book = json.loads(path.read_text())
    book["cells"][1]["metadata"]["tags"] = ["raises-exception"]
    path.write_text(json.dumps(book))
    job = run(path, ledger=ledger)
    assert job.status == "succeeded" and text(executed(job).cells[2]).startswith("end\n")
    assert statuses(executed(job))[3] == "pending"


def test_the_time_limit_holds_for_the_whole_notebook(write, ledger: Ledger) -> None:
    path = write("n = 0", "import time\ntime.sleep(0.1)", "time.sleep(60)", "1")
    with pytest.raises(JobTimedOut, match=r"job timed out in cell 3 of 4.*\n  it ran out of time \(4 s\)"):
        run(path, ledger=ledger, timeout_s=4)
    job = runs(ledger)[0]
    assert (job.status, job.cause) == ("timed_out", "timeout") and job.heartbeat_at
    assert job.wall_s < 20 and statuses(executed(job)) == ["completed", "completed", "failed", "pending"]


def test_large_outputs_are_capped_and_the_cell_says_so(write, ledger: Ledger) -> None:
    path = write(
        "n = 0",
        "print('a' * 30_000_000)",
        "for i in range(40):\n    print('b' * 1_000_000, flush=True)\nprint('end')",
        "from IPython.display import HTML, display\ndisplay(HTML('c' * 20_000_000))",
        "raise ValueError('d' * 50_000_000)",
    )
    with pytest.raises(JobFailed, match="ValueError: d"):
        run(path, ledger=ledger)
    job = runs(ledger)[0]
    assert (job.folder / "notebook.ipynb").stat().st_size < 35_000_000
    assert len(job.error) < 2_000
    for cell in executed(job).cells[1:4]:
        assert "beyond 10 MB are not kept" in text(cell) and len(text(cell)) < 10_100_000


def test_odd_text_survives(write, ledger: Ledger) -> None:
    job = run(write("s = 'x'", "print(s, '\\x00 \\u2028 </script>')"), {"s": "é\"\\\n'{}🛫"}, ledger=ledger)
    assert text(executed(job).cells[2]).startswith("é\"\\\n'{}🛫")


def test_runs_at_the_same_time_have_folders_of_their_own(write, ledger: Ledger) -> None:
    path = write("n = 0", "from workbench.jobs import result\nresult(n=n)")
    with ThreadPoolExecutor(3) as pool:
        jobs = list(pool.map(lambda n: run(path, {"n": n}, ledger=ledger), range(3)))
    assert [job.metrics["n"] for job in jobs] == [0, 1, 2] and len({job.folder for job in jobs}) == 3
    for n, job in enumerate(jobs):
        assert executed(job).cells[1].source == f"# Parameters\nn = {n}"


def test_an_executed_notebook_can_be_run_again(write, ledger: Ledger) -> None:
    first = run(write("n = 1", "print(n)"), {"n": 2}, ledger=ledger)
    again = run(first.folder / "notebook.ipynb", {"n": 3}, ledger=ledger)
    assert (
        again.folder != first.folder and [c.source for c in executed(again).cells][1] == "# Parameters\nn = 3"
    )
    assert text(executed(again).cells[2]) == "3\n" and text(executed(first).cells[2]) == "2\n"


class StopAtOnce(Quiet):
    def __init__(self, tracker: Any) -> None:
        threading.Timer(4, tracker.stop).start()


def test_stop_works_in_the_middle_of_a_cell(write, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    register("stopping", StopAtOnce)
    monkeypatch.setenv("WORKBENCH_DISPLAY", "stopping")
    with pytest.raises(Stopped):
        run(write("n = 0", "import time\ntime.sleep(60)"), ledger=ledger)
    job = runs(ledger)[0]
    assert job.status == "killed" and job.wall_s < 15 and statuses(executed(job)) == ["completed", "failed"]


def test_a_store_that_cannot_be_written_is_said(write, project: Path, ledger: Ledger) -> None:
    path = write("n = 0", "1")
    (ledger.store.root / "runs").write_text("a file in place of the folder")
    with pytest.raises(Unavailable, match="a file stands where the store wants a folder"):
        run(path, ledger=ledger)
    assert runs(ledger)[0].status == "failed"


def test_importing_the_runner_is_light() -> None:
    code = "import sys, workbench.jobs.runner; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert "workbench.jobs.runner" in loaded
    assert not loaded & {
        "papermill",
        "nbformat",
        "nbconvert",
        "jupyter_client",
        "IPython",
        "pandas",
        "torch",
        "ray",
    }


def test_the_environment_of_this_process_is_left_alone(write, ledger: Ledger) -> None:
    before, threads = dict(os.environ), threading.active_count()
    run(write("n = 0"), ledger=ledger)
    until = time.monotonic() + 2
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.01)  # one that was told to end is just ending
    assert dict(os.environ) == before and threading.active_count() <= threads


def test_a_cell_has_a_limit_of_its_own(write, ledger: Ledger) -> None:
    path = write("n = 0", *["import time\ntime.sleep(0.8)"] * 3, "time.sleep(60)")
    with pytest.raises(JobTimedOut, match=r"in cell 5 of 5.*\n  the cell ran out of time \(3 s\)"):
        run(path, ledger=ledger, cell_timeout_s=3)
    asleep = write("import time; time.sleep(60)", tagged=0)
    with pytest.raises(JobTimedOut, match="in cell 1 of 1"):  # not before it, however long a kernel takes
        run(asleep, ledger=ledger, cell_timeout_s=0.2)
    with pytest.raises(BadInput, match="cell_timeout_s = -1"):
        run(path, ledger=ledger, cell_timeout_s=-1)


def test_what_a_cell_took_is_in_the_notebook_and_the_report(write, ledger: Ledger) -> None:
    body = ["import time\ntime.sleep(0.5)", "block = bytearray(300_000_000)\ndel block", "1"]
    job = run(write("n = 0", *body), ledger=ledger)
    took = [cell.metadata.workbench for cell in executed(job).cells]
    assert took[1].took_s >= 0.5 > took[3].took_s
    assert took[2].peak_mb > took[3].peak_mb + 250 and took[1].peak_mb < took[2].peak_mb - 250
    page = (job.folder / "report.html").read_text()
    assert "The longest cells" in page and "all 4 executed cells" in page


class Watching(Quiet):
    seen: list[float | None] = []

    def update(self, state: Any) -> None:
        Watching.seen.append(state.expected_s)


def test_a_run_is_expected_to_take_what_the_last_ones_took(write, ledger: Ledger, monkeypatch) -> None:
    register("watching", Watching)
    monkeypatch.setenv("WORKBENCH_DISPLAY", "watching")
    path = write("n = 0")
    first = run(path, ledger=ledger)
    assert Watching.seen and set(Watching.seen) == {None}
    run(path, ledger=ledger)
    assert Watching.seen[-1] == pytest.approx(first.wall_s, abs=0.01)


def test_a_queued_run_is_run_once_under_its_id(write, ledger: Ledger) -> None:
    from workbench.base.records import queue

    path = write(
        "n = 0", "import os\nfrom workbench.jobs import result\nresult(run=os.environ['WORKBENCH_RUN_ID'])"
    )
    waiting = queue("job", "job", ledger=ledger)
    job = run(path, run_id=waiting.id, ledger=ledger)
    assert job.id == waiting.id == job.metrics["run"] and len(runs(ledger)) == 1
    before = (job.folder / "notebook.ipynb").read_bytes()
    with pytest.raises(BadInput, match="is there already: succeeded"):
        run(path, run_id=waiting.id, ledger=ledger)
    assert (job.folder / "notebook.ipynb").read_bytes() == before


def test_bounds_choices_and_required_values_arrive(write, ledger: Ledger) -> None:
    cell = """from enum import Enum
from datetime import date
from typing import Annotated
from annotated_types import Ge

class Mode(Enum):
    FAST = "fast"
    SLOW = "slow"

day: date
mode: Mode = Mode.FAST
year: Annotated[int, Ge(2000)] = 2013
first = day.replace(year=year)"""
    body = (
        "from workbench.jobs import result\nresult(mode=mode.name, same=mode is Mode.SLOW, first=str(first))"
    )
    job = run(write(cell, body), {"day": "2020-02-03", "mode": "SLOW", "year": "2014"}, ledger=ledger)
    assert job.metrics == {"mode": "SLOW", "same": True, "first": "2014-02-03"}
    assert job.params == {"day": "2020-02-03", "mode": "slow", "year": 2014}
