"""A failed job, opened in a real JupyterLab on the kernel it failed in: its variables are there."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from lab_driver import wait_for

COMMAND = [sys.executable, "-c", "from workbench.cli.cli import main; main()"]
CELLS = ("rows = {'kept': 6 * 7}", "rows['missing']", "print('never')")


def command(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=120)


@pytest.fixture
def failed(project: Path) -> Iterator[str]:
    "The id of a failed run whose kernel stays."
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), project / "score.ipynb")
    done = command("run", "score.ipynb", "--keep", "10m")
    assert done.returncode == 7, done.stderr
    found = re.search(r"its kernel stays for 10 min: workbench debug (\S+)", done.stderr)
    assert found, done.stderr
    yield found[1]
    command("debug", "--end", found[1])


@pytest.fixture
def opened(failed: str) -> Iterator[tuple[dict[str, Any], "subprocess.Popen[str]"]]:
    "`workbench debug RUN --json`, and what it says."
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, "debug", failed, "--json"], text=True, **pipes) as process:
        assert process.stdout and process.stderr
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line), process
        process.kill()


@pytest.mark.browser
@pytest.mark.long
def test_the_variable_of_the_failed_job_is_there(opened: Any, page: Any, tmp_path: Path) -> None:
    said, process = opened
    page.goto(said["url"])
    page.locator(".jp-Notebook .jp-Cell").nth(2).wait_for()
    page.get_by_text("| Idle").wait_for()  # attached
    assert "KeyError" in page.locator(".jp-Notebook").inner_text()
    page.locator(".jp-Cell .cm-content").nth(2).click()
    page.keyboard.press("Control+A")
    page.keyboard.type("print('live', rows['kept'] + 1)")
    page.keyboard.press("Shift+Enter")
    page.get_by_text("live 43").wait_for()
    page.screenshot(path=str(tmp_path / "debug.png"))
    page.keyboard.type("import time; time.sleep(3600)")
    page.keyboard.press("Control+Enter")
    page.get_by_text("[*]").wait_for()
    page.get_by_role("button", name="Interrupt the kernel").click()
    page.get_by_text("KeyboardInterrupt").first.wait_for()
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0 and "the kernel stays for" in process.stderr.read()
    wait_for(lambda: not any(child.is_running() for child in family), 15, "the end of JupyterLab")
    assert psutil.pid_exists(said["kernel"]["pid"])
