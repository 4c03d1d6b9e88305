"""JupyterLab's "Create Notebook Job": a click there is a run of ours, and a mistake is said in the dialog."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from lab_driver import LIMIT_S, Lab, start_lab, wait_for

from workbench.base.ledger import Ledger
from workbench.base.records import find
from workbench.base.store import Store
from workbench.jobs import control
from workbench.jobs.lead import members

CELLS = (
    "n: int = 3  # how many\nlabel: str = 'a'",
    "print(n * 2, label)",
    "if n < 0:\n    raise ValueError('too few')",
)
LONG = ("s: float = 60.0", "import time\ntime.sleep(s)")
ENDED = ("COMPLETED", "FAILED", "STOPPED")
Call = Callable[..., tuple[int, Any]]


def write(path: Path, *sources: str) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata.tags = ["parameters"]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "settings.ini").write_text("[laptop]\n")
    write(folder / "work" / "score.ipynb", *CELLS)
    write(folder / "long.ipynb", *LONG)
    (folder / "jobs.toml").write_text('[jobs.night]\nnotebook = "long.ipynb"\ncron = "0 6 * * *"\n')
    with start_lab(folder, tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def store(served: Lab) -> Store:
    return Store(served.folder / ".workbench")


@pytest.fixture
def call(served: Lab) -> Call:
    "call(method, path, body): what the server answers."

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        head = {"Authorization": f"token {served.token}"}
        request = urllib.request.Request(
            f"{served.url}/scheduler/{path}", method=method, headers=head, data=data
        )
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S) as reply:
                text = reply.read()
                return reply.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    return ask


def asked(uri: str = "work/score.ipynb", **more: Any) -> dict[str, Any]:
    return {"name": "My score", "input_uri": uri, "runtime_environment_name": "workbench", **more}


def until(call: Call, job: str, *states: str) -> dict[str, Any]:
    wait_for(lambda: call("GET", f"jobs/{job}")[1]["status"] in states, 120, f"{job}: {states}")
    return call("GET", f"jobs/{job}")[1]


def test_a_job_is_a_run_of_ours_and_its_files_are_handed_out(call: Call, ledger: Ledger, served: Lab) -> None:
    given = {"n": "-7", "label": "from lab"}
    status, made = call("POST", "jobs", asked(parameters=given, idempotency_token="t1"))
    assert status == 200 and call("POST", "jobs", asked(idempotency_token="t1"))[1] == made
    job = until(call, made["job_id"], *ENDED)
    assert (job["status"], job["parameters"], job["input_filename"]) == ("FAILED", given, "work/score.ipynb")
    assert "in cell 4 of 4" in job["status_message"] and "too few" in job["status_message"]
    assert (
        not job["downloaded"]
        and call("GET", f"jobs/{made['job_id']}/download_files?redownload=false")[0] == 204
    )
    files = {
        file["file_format"]: file["file_path"]
        for file in call("GET", f"jobs/{made['job_id']}")[1]["job_files"]
    }
    assert files["input"] == "work/score.ipynb" and set(files) == {"ipynb", "html", "input"}
    executed = nbformat.read(served.folder / files["ipynb"], as_version=4)
    assert executed.cells[2].outputs[0].text == "-14 from lab\n"
    due = control.dues(ledger)[0]
    record = find(due.run, ledger)
    assert (due.kind, due.status, record.status, record.params) == (
        "hand",
        "failed",
        "failed",
        {"n": -7, "label": "from lab"},
    )
    assert (record.folder / "report.html").read_bytes() == (served.folder / files["html"]).read_bytes()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (asked(parameters={"n": "abc"}), 400, "parameter n = 'abc' is not int"),
        (asked(parameters={"m": "1"}), 400, "has no parameter 'm'"),
        (asked(parameters={"labell": "1"}), 400, "did you mean 'label'?"),
        (asked(parameters={"a-b": "1"}), 400, "'a-b' is not a parameter name"),
        (asked("work/none.ipynb"), 404, "no notebook at"),
        (asked("../../etc/passwd"), 400, "is outside of"),
        (asked(name=""), 400, "name is missing"),
        ([1], 400, "must be a JSON object"),
        (asked(parameters=[1]), 400, "parameters: value is not a valid dict"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_said_before_anything_waits(
    call: Call, ledger: Ledger, body: Any, status: int, said: str
) -> None:
    before = len(control.dues(ledger)) if ledger.query("select 1 from sqlite_master where name='dues'") else 0
    found, told = call("POST", "jobs", body)
    assert found == status and said in told["message"], told
    assert len(control.dues(ledger)) == before


def test_other_wrong_requests_have_a_status_that_fits(call: Call) -> None:
    for path in ("jobs?max_items=x", "jobs?sort_by=desc(foo)", "jobs?status=bad", "jobs?start_time=x"):
        assert call("GET", path)[0] == 400, path
    for method, path in (
        ("GET", "jobs/no-such"),
        ("DELETE", "jobs/no-such"),
        ("GET", "job_definitions/job-none"),
    ):
        assert call(method, path)[0] == 404, path
    body = asked(schedule="0 25 * * *", timezone="UTC")
    status, told = call("POST", "job_definitions", body)
    assert status == 400 and "cron = '0 25 * * *': Bad hour" in told["message"]
    status, told = call(
        "POST", "job_definitions", body | {"schedule": "0 5 * * *", "timezone": "Europe/Berlim"}
    )
    assert status == 400 and "did you mean Europe/Berlin?" in told["message"]


def test_a_job_at_work_is_stopped_and_a_deleted_one_leaves_the_list(call: Call, ledger: Ledger) -> None:
    made = call("POST", "jobs", asked("long.ipynb", name="Long"))[1]["job_id"]
    until(call, made, "IN_PROGRESS")
    wait_for(lambda: ledger.query("select 1 from runs where name='lab-Long'"), 60, "the run")
    assert call("PATCH", f"jobs/{made}", {"status": "STOPPED"})[0] == 204
    job = until(call, made, "STOPPED")
    assert job["status_message"] and call("PATCH", f"jobs/{made}", {"status": "STOPPED"})[0] == 400
    assert call("DELETE", f"jobs/{made}")[0] == 204 and call("GET", f"jobs/{made}")[0] == 404
    assert made not in [one["job_id"] for one in call("GET", "jobs")[1]["jobs"]]
    assert control.dues(ledger, "job='lab-Long'")[0].status == "cancelled"  # the record stays


def test_a_definition_runs_is_paused_changed_and_deleted(call: Call, ledger: Ledger) -> None:
    body = asked(
        name="Every second", schedule="* * * * * *", timezone="Europe/Berlin", parameters={"label": "{date}"}
    )
    name = call("POST", "job_definitions", body)[1]["job_definition_id"]
    seen = wait_for(lambda: call("GET", f"jobs?job_definition_id={name}")[1]["jobs"], 60, "a due time")
    assert seen[0]["name"] == "Every second" and len(seen[0]["parameters"]["label"]) == 10
    assert call("PATCH", f"job_definitions/{name}", {"active": False})[0] == 204
    assert not call("GET", f"job_definitions/{name}")[1]["active"]
    job = call("POST", f"job_definitions/{name}/jobs", {"parameters": {"n": "9", "label": "by hand"}})[1][
        "job_id"
    ]
    assert until(call, job, *ENDED)["status"] == "COMPLETED"
    change = {"schedule": "30 4 * * *", "timezone": "UTC", "active": True}
    assert call("PATCH", f"job_definitions/{name}", change)[0] == 204
    found = call("GET", f"job_definitions/{name}")[1]
    assert (found["schedule"], found["timezone"], found["active"]) == ("30 4 * * *", "UTC", True)
    assert "Every-second" in [line.job.name for line in control.listing("none.toml", ledger)]
    assert (
        call("DELETE", f"job_definitions/{name}")[0] == 204
        and call("GET", f"job_definitions/{name}")[0] == 404
    )


def test_jobs_of_the_file_are_shown_paused_and_not_run_by_the_lab(call: Call, ledger: Ledger) -> None:
    names = {one["job_definition_id"]: one for one in call("GET", "job_definitions")[1]["job_definitions"]}
    assert (
        names["job-night"]["schedule"] == "0 6 * * *" and names["job-night"]["input_filename"] == "long.ipynb"
    )
    status, told = call("PATCH", "job_definitions/job-night", {"schedule": "0 7 * * *"})
    assert status == 400 and "stands in jobs.toml" in told["message"]
    assert call("DELETE", "job_definitions/job-night")[0] == 400
    assert not ledger.query("select 1 from due_jobs where job='night'")
    assert len(members(ledger)) == 1


@pytest.mark.long
@pytest.mark.browser
def test_a_job_is_created_in_the_dialog_and_its_output_opened(page: Any, served: Lab, call: Call) -> None:
    shots = Path(os.environ.get("SHOTS", served.folder))
    page.goto(f"{served.url}/lab/tree/work/score.ipynb?token={served.token}")
    page.locator(".jp-Notebook .jp-Cell").nth(1).wait_for()
    page.locator("[data-command='scheduling:create-from-notebook']").click()
    page.get_by_label("Job name").fill("From the dialog")

    def parameter(position: int, name: str, value: str) -> None:
        page.get_by_role("button", name="Add new parameter").click()
        page.locator(f"[name='parameter-{position}-name']").fill(name)
        page.locator(f"[name='parameter-{position}-value']").fill(value)
        page.keyboard.press("Tab")

    parameter(0, "n", "five")
    page.get_by_role("button", name="Create", exact=True).click()
    wrong = page.get_by_role("alert").filter(has_text="parameter n = 'five' is not int")
    wrong.wait_for()
    page.screenshot(path=str(shots / "wrong.png"))
    page.locator("[name='parameter-0-value']").fill("21")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Create", exact=True).click()
    row = page.locator("tr", has_text="From the dialog")
    row.wait_for()
    job = next(one for one in call("GET", "jobs")[1]["jobs"] if one["name"] == "From the dialog")
    until(call, job["job_id"], "COMPLETED")
    page.get_by_role("button", name="Reload").click()
    row.get_by_text("Completed").wait_for()
    page.screenshot(path=str(shots / "list.png"))
    row.get_by_role("button", name="download").click()
    row.get_by_title("Open output file").first.click()
    page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)").get_by_text("42 a").wait_for()
    page.screenshot(path=str(shots / "output.png"))
