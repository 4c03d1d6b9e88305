"""Pipelines: order from what is read and written, nothing done twice, a failure blocks only what needs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.base import records
from workbench.base.errors import BadInput, JobFailed, NotFound
from workbench.base.ledger import Ledger
from workbench.jobs.jobsfile import pipeline_steps
from workbench.jobs.pipeline import Flow, Outcome, Step, levels, needs, run_pipeline


def notebook(path: Path, source: str) -> None:
    cells = [
        {"cell_type": "code", "id": "p", "metadata": {"tags": ["parameters"]}, "source": "n: int = 1"},
        {"cell_type": "code", "id": "b", "metadata": {}, "source": source},
    ]
    made = [{**cell, "outputs": [], "execution_count": None} for cell in cells]
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture
def steps(project: Path) -> list[Step]:
    "a -> b -> d"
    log = "open('log.txt', 'a').write('{0} ')\nopen('{0}.txt', 'w').write('{0}' + str(n))"
    for name in "abd":
        notebook(project / f"{name}.ipynb", log.format(name))
    return [
        Step("d", "d.ipynb", ("b.txt",), ("d.txt",)),
        Step("b", "b.ipynb", ("a.txt",), ("b.txt",)),
        Step("a", "a.ipynb", (), ("a.txt",)),
    ]


def ran(project: Path) -> str:
    "Names of the notebooks that really ran since last asked."
    path = project / "log.txt"
    found = path.read_text() if path.exists() else ""
    path.unlink(missing_ok=True)
    return "".join(sorted(found.replace(" ", "")))


def statuses(flow: Flow) -> dict[str, str]:
    return {name: outcome.status for name, outcome in sorted(flow.outcomes.items())}


def test_order_follows_from_reads_and_writes(steps: list[Step]) -> None:
    assert levels(needs(steps)) == [["a"], ["b"], ["d"]]


def test_bad_pipelines_are_refused_before_anything_runs(project: Path, steps: list[Step]) -> None:
    with pytest.raises(BadInput, match="written by"):
        needs([*steps, Step("e", "a.ipynb", (), ("a.txt",))])
    with pytest.raises(BadInput, match="wait for each other: x, y"):
        needs([Step("x", "x.ipynb", ("2",), ("1",)), Step("y", "y.ipynb", ("1",), ("2",))])
    with pytest.raises(BadInput, match="share a name"):
        needs([steps[0], steps[0]])
    with pytest.raises(NotFound, match="step 'z'"):
        run_pipeline("p", [*steps, Step("z", "z.ipynb")])
    assert ran(project) == "" and records.runs(kind="job") == []


def test_only_what_changed_runs_again(project: Path, steps: list[Step], ledger: Ledger) -> None:
    first = run_pipeline("p", steps, ledger=ledger)
    assert (ran(project), set(statuses(first).values())) == ("abd", {"succeeded"})
    picture = (records.find(first.run, ledger).folder / "report.html").read_text()
    assert picture.startswith("<!doctype html>") and "<svg" in picture and "succeeded" in picture
    jobs = records.runs(ledger, kind="job")
    assert len(jobs) == 3 and all(job.parents == [first.run] for job in jobs)

    again = run_pipeline("p", steps, ledger=ledger)
    assert (ran(project), set(statuses(again).values())) == ("", {"skipped"})
    assert again.outcomes["d"].run == first.outcomes["d"].run

    (project / "b.txt").write_text("damaged")
    third = run_pipeline("p", steps, ledger=ledger)
    assert statuses(third) == {"a": "skipped", "b": "succeeded", "d": "skipped"}
    assert ran(project) == "b"

    changed = [
        step if step.name != "b" else Step("b", "b.ipynb", step.reads, step.writes, {"n": 2})
        for step in steps
    ]
    fourth = run_pipeline("p", changed, ledger=ledger)
    assert statuses(fourth) == {"a": "skipped", "b": "succeeded", "d": "succeeded"}


@pytest.mark.slow
def test_new_code_or_force_runs_everything(project: Path, steps: list[Step], ledger: Ledger) -> None:
    run_pipeline("p", steps, ledger=ledger)
    (project / "helper.py").write_text("X = 1\n")
    assert set(statuses(run_pipeline("p", steps, ledger=ledger)).values()) == {"succeeded"}
    assert set(statuses(run_pipeline("p", steps, force=True, ledger=ledger)).values()) == {"succeeded"}


@pytest.mark.slow
def test_a_failure_blocks_what_needs_it_and_is_mended(
    project: Path, steps: list[Step], ledger: Ledger
) -> None:
    notebook(project / "b.ipynb", "raise ValueError('busted feed')")
    with pytest.raises(JobFailed, match="busted feed"):
        run_pipeline("p", steps, ledger=ledger)
    assert ran(project) == "a"
    found = records.runs(ledger, kind="pipeline")[0]
    assert {n: s["status"] for n, s in found.metrics["steps"].items()} == {
        "a": "succeeded", "b": "failed", "d": "blocked",
    }  # fmt: skip
    notebook(project / "b.ipynb", "open('log.txt', 'a').write('b')\nopen('b.txt', 'w').write('b')")
    mended = run_pipeline("p", steps, ledger=ledger)
    assert statuses(mended) == {"a": "skipped", "b": "succeeded", "d": "succeeded"}


def test_a_step_that_does_not_write_what_it_said_has_failed(project: Path, ledger: Ledger) -> None:
    notebook(project / "a.ipynb", "pass")
    with pytest.raises(JobFailed, match=r"did not write a\.txt"):
        run_pipeline("p", [Step("a", "a.ipynb", (), ("a.txt",))], ledger=ledger)


def test_a_bad_parameter_fails_its_step_only(project: Path, ledger: Ledger) -> None:
    notebook(project / "a.ipynb", "pass")
    with pytest.raises(JobFailed, match="'m' is unknown|unknown parameter|'m'"):
        run_pipeline("p", [Step("a", "a.ipynb", params={"m": 1})], ledger=ledger)


def test_ctrl_c_ends_every_step(project: Path) -> None:
    for name in "ab":
        notebook(
            project / f"{name}.ipynb", f"open('{name}.started', 'w').close()\nimport time\ntime.sleep(120)"
        )
    code = "from workbench.jobs.pipeline import Step, run_pipeline\n"
    code += "run_pipeline('p', [Step('a', 'a.ipynb'), Step('b', 'b.ipynb')])"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=project, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 40
    while len(list(project.glob("*.started"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    child.wait(20)
    mark, left = str(project).encode(), ["?"]
    deadline = time.monotonic() + 6
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        left = [
            p.name for p in Path("/proc").glob("[0-9]*") if int(p.name) != os.getpid() and mark in _environ(p)
        ]
    assert left == []
    assert records.runs(kind="pipeline")[0].status == "killed"


def _environ(process: Path) -> bytes:
    try:
        return b"" if " Z " in (process / "stat").read_text() else (process / "environ").read_bytes()
    except OSError:
        return b""


def test_it_shows_itself_escaped() -> None:
    flow = Flow("<b>", {"<i>": [], "x": ["<i>"]}, {"<i>": Outcome("failed", error="<script>")})
    shown = flow._repr_html_()
    assert "<i>" not in shown and "<script>" not in shown and "<svg" in shown
    assert str(flow).splitlines()[1].split() == ["failed", "<i>"]


def test_the_jobs_file_names_the_steps(project: Path, ledger: Ledger) -> None:
    notebook(project / "a.ipynb", "open('a.txt', 'w').write(str(n))")
    (project / "jobs.toml").write_text(
        '[jobs.a]\nnotebook = "a.ipynb"\npipeline = "p"\nwrites = ["a.txt"]\nparams = {n = 3}\n'
    )
    flow = run_pipeline("p", pipeline_steps("p"), ledger=ledger)
    assert statuses(flow) == {"a": "succeeded"} and (project / "a.txt").read_text() == "3"
    with pytest.raises(NotFound, match="did you mean 'p'|pipeline 'pp'"):
        pipeline_steps("pp")
