"""The command as a user types it: answers, exit codes, and every wrong input said before work starts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import toy
from typed import typed
from typer.main import get_command

from workbench.base import records
from workbench.base.ledger import Ledger
from workbench.cli.cli import app
from workbench.data.feed import write_parquet
from workbench.models.shelf import Shelf

COMMAND = [sys.executable, "-c", "from workbench.cli.cli import main; main()"]
TESTS = Path(__file__).parents[1]


def workbench(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return typed(*args, cwd=cwd, env={**os.environ, "PYTHONPATH": str(TESTS)})


def notebook(path: Path, *cells: str) -> Path:
    made = [
        {
            "cell_type": "code",
            "id": f"c{n}",
            "source": text,
            "outputs": [],
            "execution_count": None,
            "metadata": {},
        }
        for n, text in enumerate(cells)
    ]
    if made:
        made[0]["metadata"] = {"tags": ["parameters"]}
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


@pytest.fixture
def delays(project: Path) -> Path:
    columns = toy.columns(400, seed=5)
    frame = pl.DataFrame({name: list(values) for name, values in columns.items()}, strict=False)
    return write_parquet(project / "delays.parquet", frame.fill_nan(None))


@pytest.fixture
def shelf(ledger: Ledger) -> Shelf:
    found = Shelf(ledger)
    for slope in (1.0, 2.0):
        version = found.add("delays", **toy.linear_parts(slope=slope)).version
        found.set_alias("delays", "champion", version)
    return found


def refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    "The command ended with `code`, said `parts` on standard error, printed no answer and no stack trace."
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["epohcs=5"], ["epohcs", "did you mean 'epochs'"]),
        (["epochs=abc"], ["epochs", "'abc'", "int"]),
        (["epochs"], ["no '='"]),
        (["a-b=1"], ["a-b"]),
        (["x\nimport os=1"], ["not a parameter name"]),
    ],
)
def test_a_bad_parameter_is_said_before_the_kernel_starts(
    project: Path, given: list[str], parts: list[str]
) -> None:
    book = notebook(project / "job.ipynb", "epochs: int = 3", "open('ran', 'w').close()")
    done = workbench("run", str(book), *(part for pair in given for part in ("-p", pair)))
    refused(done, 2, *parts)
    assert not (project / "ran").exists()


def test_a_notebook_runs_with_typed_parameters(project: Path) -> None:
    book = notebook(
        project / "job.ipynb",
        "from datetime import datetime\nepochs: int = 3\nnames: list[str] = []\n"
        "when: datetime = datetime(2013, 1, 1)",
        "from workbench import result\nresult(double=epochs * 2, names=names, when=when.isoformat())",
    )
    when = "2026-01-01T00:00:00+00:00"
    given = (part for pair in ("epochs=5", 'names=["a"]', f"when={when}") for part in ("-p", pair))
    done = workbench("run", "job.ipynb", *given, "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert found["metrics"] == {"double": 10, "names": ["a"], "when": when} and found["params"]["epochs"] == 5
    assert found["cost"]["cpu_s"] > 0 and " object at 0x" not in done.stdout
    shown = workbench("show", found["id"])
    assert "metric    double = 10" in shown.stdout and "param     epochs = 5" in shown.stdout
    assert book.read_text().count("injected") == 0


def test_missing_things_are_not_found(project: Path, shelf: Shelf, delays: Path) -> None:
    refused(workbench("run", "nope.ipynb"), 3, "nope.ipynb")
    refused(workbench("show", "nope"), 3, "nope")
    refused(workbench("serve", "delay"), 3, "delay", "did you mean 'delays'")
    refused(
        workbench("predict", "delays@champoin", str(delays), "--to", "x.parquet"), 3, "champoin", "champion"
    )
    refused(workbench("rollback", "nope"), 3, "nope")
    refused(
        workbench("predict", "delays@champion", "none/*.parquet", "--to", "x.parquet"), 2, "none/*.parquet"
    )


@pytest.mark.parametrize("profile", ["nope", "lapton"])
def test_an_unknown_profile_is_named(project: Path, profile: str) -> None:
    refused(workbench("--profile", profile, "runs"), 2, profile, "settings.ini")


def test_an_unknown_key_in_settings_is_named(project: Path) -> None:
    (project / "settings.ini").write_text("[laptop]\nprot = 80\n")
    refused(workbench("runs"), 2, "settings.ini [laptop]", "unknown key 'prot'", "did you mean 'port'")


def test_feeds_that_cannot_be_read_are_named(project: Path, delays: Path) -> None:
    def check(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return workbench("check", str(path), "--contract", "toy:CONTRACT", *more)

    assert check(delays).returncode == 0
    column = next(iter(toy.CONTRACT.inputs))
    write_parquet(project / "less.parquet", pl.read_parquet(delays).drop(column))
    refused(check(project / "less.parquet"), 2, column, "less.parquet")
    (project / "cut.parquet").write_bytes(delays.read_bytes()[:-100])
    refused(check(project / "cut.parquet"), 2, "cut.parquet")
    (project / "empty.parquet").touch()
    refused(check(project / "empty.parquet"), 2, "empty.parquet")
    pl.read_parquet(delays).write_csv(project / "short.csv")
    lines = (project / "short.csv").read_text().splitlines()
    (project / "short.csv").write_text(
        "\n".join([*lines[:5], lines[5].rpartition(",")[0], *lines[6:]]) + "\n"
    )
    refused(check(project / "short.csv"), 2, "short.csv", "line 6")
    refused(check(delays, "--where", "nope > 1"), 2, "nope")
    refused(workbench("check", str(delays), "--contract", "nope:X"), 3, "nope")


def test_score_promote_and_roll_back(project: Path, shelf: Shelf, delays: Path) -> None:
    done = workbench("predict", "delays@champion", str(delays), "--to", "scores.parquet", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout[done.stdout.index("{\n") :])["rows"] == 400
    scores = pl.read_parquet(project / "scores.parquet")
    assert scores.height == 400 and scores["model"].unique().to_list() == ["delays/2"]
    back = workbench("rollback", "delays", "--json")
    assert json.loads(back.stdout)["version"] == 1
    refused(workbench("promote", "delays/2"), 6, "never judged")
    refused(workbench("promote", "delays/2", "--feed", str(delays)), 2, "--baseline")
    refused(workbench("rollback", "delays"), 3)


def test_one_flipped_byte_in_a_bundle_is_corrupt(project: Path, shelf: Shelf, delays: Path) -> None:
    weights = next((project / ".workbench/bundles/delays/2").glob("*.safetensors"))
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(flipped)
    refused(
        workbench("predict", "delays@champion", str(delays), "--to", "x.parquet"), 5, "weights.safetensors"
    )
    refused(workbench("serve", "delays@champion"), 5, "weights.safetensors")


def test_a_port_in_use_is_named(project: Path, shelf: Shelf) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(workbench("serve", "delays@champion", "--port", port), 8, port)


def test_errors_are_json_when_asked(project: Path) -> None:
    done = workbench("show", "nope", "--json")
    found = json.loads(done.stderr)
    assert found["exit_code"] == done.returncode == 3 and found["hint"] and "run" not in found


@pytest.mark.parametrize(
    ("cell", "code", "status"),
    [
        ("1 / 0", 7, "failed"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", 10, "killed"),
        ("import time\ntime.sleep(60)", 9, "timed_out"),
    ],
)
def test_a_run_that_ended_badly_is_named_in_json(project: Path, cell: str, code: int, status: str) -> None:
    book = notebook(project / "job.ipynb", "n: int = 1", cell)
    done = workbench("run", str(book), "--cell-timeout", "6", "--json")
    found = json.loads(done.stderr.strip().splitlines()[-1])
    assert (done.returncode, found["exit_code"]) == (code, code)
    assert records.find(found["run"]).status == status


def test_debug_shows_the_stack_trace(project: Path) -> None:
    done = workbench("--debug", "show", "nope")
    assert "Traceback" in done.stderr and done.returncode == 3


def test_stdout_is_the_answer_and_nothing_else(
    project: Path, shelf: Shelf, delays: Path, monkeypatch
) -> None:
    monkeypatch.setenv("WORKBENCH_DISPLAY", "log")
    done = workbench("check", str(delays), "--contract", "toy:CONTRACT", "--json")
    assert json.loads(done.stdout)["rows"] == 400 and "check delays" in done.stderr
    assert json.loads(workbench("models", "--json").stdout)[0]["aliases"] == {"champion": 2}
    told = workbench("models", "delays").stdout
    assert "champion is 2" in told and {"delays/1", "delays/2"} <= set(told.split())
    done = workbench("runs", "--limit", "0", "--json")
    assert json.loads(done.stderr)["exit_code"] == done.returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_is_said_and_recorded(project: Path, number: int) -> None:
    book = notebook(
        project / "job.ipynb", "n: int = 1", "open('started', 'w').close()\nimport time\ntime.sleep(60)"
    )
    child = subprocess.Popen(
        [*COMMAND, "run", str(book), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while not (project / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(number)
    out, said = child.communicate(timeout=30)
    assert (child.returncode, out) == (130, b"")
    assert json.loads(said.decode().strip().splitlines()[-1])["exit_code"] == 130
    assert records.runs(kind="job")[0].status == "killed"


def test_ctrl_c_while_the_command_is_imported_says_nothing(project: Path) -> None:
    code = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, *rest):
        if name == "workbench.cli.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from workbench.cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_path_that_cannot_be_written_is_named(project: Path, shelf: Shelf) -> None:
    (project / "taken").write_text("a file")
    deploy = ("deploy", "delays@champion", "--to", "systemd", "--folder")
    refused(workbench(*deploy, "taken/x"), 8, "taken")
    made = json.loads(workbench(*deploy, "out", "--json").stdout)
    assert made["to"] == "systemd" and Path(made["file"]).is_file()


def test_nothing_that_was_typed_is_dropped(project: Path, shelf: Shelf, delays: Path) -> None:
    book = notebook(project / "job.ipynb", "n: int = 1")
    refused(workbench("run", str(book), "-p", "n=1", "-p", "n=2"), 2, "given twice")
    refused(workbench("promote", "delays"), 2, "names no version")
    given = ("promote", "delays/2", "--feed", str(delays), "--baseline", "delays/1")
    refused(workbench(*given, "--waive", "auc"), 2, "gives no reason", "auc=why")
    refused(workbench(*given, "--rate", "-3"), 2, "--rate")
    refused(workbench("promote", "delays/2", "--where", "a > 1"), 2, "--feed")
    refused(workbench("runs", "--kind", "foo"), 2, "foo")
    refused(workbench("check", str(delays), "--contract", "toy:features"), 2, "toy:features", "Contract")
    assert workbench("serve", "delays@champion", "--port", "0").returncode == 2


def test_usage_errors_are_bad_input(project: Path) -> None:
    assert workbench("frobnicate").returncode == 2
    assert workbench("run").returncode == 2


def test_every_verb_takes_json_and_explains_itself() -> None:
    listed = workbench("--help").stdout
    verbs = (
        "demo",
        "run",
        "runs",
        "show",
        "check",
        "predict",
        "serve",
        "promote",
        "rollback",
        "lab",
        "doctor",
    )
    for verb in verbs:
        assert verb in listed
        assert "--json" in workbench(verb, "--help").stdout


def test_doctor_finds_what_is_wrong(project: Path, tmp_path: Path) -> None:
    assert workbench("doctor").returncode == 0
    nowhere = workbench("doctor", cwd=tmp_path)
    assert nowhere.returncode == 0 and f"no settings.ini in {tmp_path}" in nowhere.stdout
    (project / "settings.ini").write_text("[laptop]\nprot = 80\n")
    broken = json.loads(workbench("doctor", "--json").stdout)
    assert [f["check"] for f in broken if f["level"] == "bad"][0] == "settings" and len(broken) > 10
    (project / "settings.ini").write_text("[laptop]\n")
    (project / ".workbench").chmod(0o755)
    done = workbench("doctor", "--json")
    bad = [finding for finding in json.loads(done.stdout) if finding["level"] == "bad"]
    assert done.returncode == 1 and [finding["check"] for finding in bad] == ["store"]


def test_a_cell_has_a_limit_and_the_one_that_passed_it_is_named(project: Path) -> None:
    path = notebook(project / "slow.ipynb", "n = 0", "import time\ntime.sleep(60)", "1")
    done = workbench("run", str(path), "--cell-timeout", "4")
    assert done.returncode == 9 and records.runs()[0].status == "timed_out"
    assert "in cell 2 of 3" in done.stderr and "the cell ran out of time (4 s)" in done.stderr
    done = workbench("run", str(path), "--cell-timeout", "0")
    assert done.returncode == 2 and "cell_timeout_s = 0.0 is no time" in done.stderr


def _words(command: Any, path: str) -> list[str]:
    "What a verb asks for without saying what it is."
    if verbs := getattr(command, "commands", {}):
        return [line for name, verb in verbs.items() for line in _words(verb, f"{path} {name}")]
    return [f"{path}: {one.name}" for one in command.params if not getattr(one, "help", "")]


def test_every_verb_says_what_it_asks_for() -> None:
    assert _words(get_command(app), "workbench") == []
