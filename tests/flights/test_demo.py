"""The main job, end to end, in a project of its own: four jobs, a service, one page."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from house import ROOT, train_less

COMMAND = [sys.executable, "-c", "from workbench.cli.cli import main; main()"]


def environment(project: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WORKBENCH_")}
    return {**clean, "WORKBENCH_STORE": str(project / ".workbench"), "WORKBENCH_TRACK": "false"}


def checkout(folder: Path) -> Path:
    "A project with the worked example's notebooks and nothing else; `scripts/demo` trains on all months."
    shutil.copytree(ROOT / "notebooks/flights", folder / "notebooks/flights")
    train_less(folder / "notebooks/flights")
    shutil.copy(ROOT / "settings.ini", folder)
    return folder


def processes(mark: str) -> list[str]:
    "Command lines of processes that mention `mark` in their command or environment."
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "cmdline").read_bytes() + b" " + (path / "environ").read_bytes()
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mark.encode() in text and state != "Z" and int(path.name) != os.getpid():
            found.append(text[:200].decode(errors="replace"))
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    project = checkout(tmp_path_factory.mktemp("demo"))
    command = [*COMMAND, "demo", "--json"]
    ran = subprocess.run(command, cwd=project, env=environment(project), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return project, json.loads(ran.stdout[ran.stdout.index("{\n") :])


def test_every_row_is_accounted_for(done: tuple[Path, dict]) -> None:
    found = done[1]["jobs"]["1_features"]
    assert (found["rows"], found["accepted"], found["quarantined"]) == (336_776, 327_346, 9_430)
    assert found["rules"] == {"cancelled": 8_255, "diverted": 1_175}
    assert found["weather_quarantined"] == 1


def test_the_smaller_model_is_promoted_when_it_is_as_good(done: tuple[Path, dict]) -> None:
    found = done[1]["jobs"]["2_train"]
    assert found["chosen"] == "baseline" and found["verdict"]["passed"]
    for evidence in found["evidence"].values():
        assert evidence["metrics"]["auc"] > 0.68 and evidence["serving_skew"] == 0
    assert {row["slice"] for row in found["evidence"]["net"]["slices"]} == {"carrier", "origin"}


def test_the_service_answers_what_the_batch_scored(done: tuple[Path, dict]) -> None:
    found = done[1]
    assert found["served"]["requests"] == 1000 and found["served"]["identical"]
    assert found["jobs"]["3_score"]["rows"] == 55_403


def test_december_is_colder(done: tuple[Path, dict]) -> None:
    drift = {row["column"]: row for row in done[1]["jobs"]["4_monitor"]["drift"]}
    assert drift["temp"]["level"] == "drifted" and drift["carrier"]["level"] == "stable"


def test_the_report_is_one_file_with_pictures(done: tuple[Path, dict]) -> None:
    text = Path(done[1]["report"]).read_text(encoding="utf-8")
    own = text.replace("http://www.w3.org/", "")  # names of SVG, not addresses
    assert text.count("<svg") >= 5 and "<script" not in text
    assert "http://" not in own and "https://" not in own


def test_the_records_hold_together(done: tuple[Path, dict]) -> None:
    project, page = done
    env = environment(project)
    listed = subprocess.run(
        [*COMMAND, "runs", "--json", "--limit", "200"], cwd=project, env=env, capture_output=True
    )
    runs = json.loads(listed.stdout)
    assert {run["status"] for run in runs} == {"succeeded"}
    demo = next(run for run in runs if run["kind"] == "demo")
    jobs = [run for run in runs if run["kind"] == "job"]
    assert len(jobs) == 4 and all(run["parents"] == [demo["id"]] for run in jobs)
    trained = next(run for run in runs if run["name"] == "2_train")
    fits = [run for run in runs if run["kind"] == "fit" and run["parents"] == [trained["id"]]]
    assert fits and all(run["identity"]["seed"] == 7 and run["identity"]["data"] for run in fits)
    assert page["cost_usd"] > 0


def test_nothing_is_left_running(done: tuple[Path, dict]) -> None:
    assert processes(str(done[0])) == []


def test_ctrl_c_leaves_no_process_and_a_killed_run(tmp_path: Path) -> None:
    project = checkout(tmp_path)
    env = environment(project)
    demo = subprocess.Popen(
        [*COMMAND, "demo"], cwd=project, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not list(project.glob(".workbench/runs/*/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(4)  # the first notebook's kernel is at work
    demo.send_signal(signal.SIGINT)
    _, said = demo.communicate(timeout=30)
    assert demo.returncode == 130, said.decode()[-500:]
    assert b"Traceback" not in said
    deadline = time.monotonic() + 5
    while processes(str(project)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes(str(project)) == []
    listed = subprocess.run(
        [*COMMAND, "runs", "--json"], cwd=project, env=env, capture_output=True, check=True
    )
    assert {run["status"] for run in json.loads(listed.stdout) if run["kind"] in ("demo", "job")} == {
        "killed"
    }
