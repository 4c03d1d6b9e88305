"""Start a real JupyterLab; do in a browser page what a person would do with a notebook."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from house import train_less

from workbench.lab.launch import scheduling

LIMIT_S = 120  # for whatever is a matter of moments, when every processor is busy and nothing is compiled
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {  # no question and no news over the notebook
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}


@dataclass(frozen=True)
class Lab:
    "A running JupyterLab."

    url: str
    token: str
    folder: Path

    def call(self, path: str, method: str = "GET") -> Any:
        "Ask the server's REST interface."
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=LIMIT_S) as reply:
            body = reply.read()
        return json.loads(body) if body else None


def wait_for(seen: Callable[[], Any], timeout_s: float, what: str) -> Any:
    "Wait until `seen` is true; the message names what never came."
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := seen():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not happen within {timeout_s:g} s")


def copy_project(folder: Path) -> Path:
    "A project to work in: our notebooks (with less to train on) and settings copied, our data linked, its own store."
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    train_less(folder / "notebooks/flights")
    shutil.copy(ROOT / "settings.ini", folder)
    if (ROOT / "data").exists():
        (folder / "data").symlink_to(ROOT / "data")
    return folder


def _write_settings(folder: Path, settings: dict[str, dict[str, Any]]) -> None:
    for name, values in settings.items():
        path = folder / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


def _environment(own: Path, folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WORKBENCH_", "JUPYTER"))}
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    labs = ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    venv = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    ours = {"WORKBENCH_STORE": str(folder / ".workbench"), "WORKBENCH_TRACK": "false"}
    return kept | {name: str(own / name.lower()) for name in (*places, *labs)} | venv | ours


@contextmanager
def start_lab(folder: Path, own: Path, settings: dict[str, dict[str, Any]] | None = None) -> Iterator[Lab]:
    "JupyterLab on loopback over `folder`, with its own settings in `own`; nothing of it is left afterwards."
    token, env = secrets.token_hex(16), _environment(own, folder)
    _write_settings(Path(env["JUPYTERLAB_SETTINGS_DIR"]), SETTINGS | (settings or {}))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--allow-root"]
    command += ["--port=0", f"--ServerApp.root_dir={folder}", "--LabApp.extension_manager=readonly"]
    command += ["--LabApp.expose_app_in_browser=True", *scheduling()]
    env["JUPYTER_TOKEN"] = token  # in the environment: an argument is readable by everybody on the machine
    with (own / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
    try:
        yield _ready(server, Path(env["JUPYTER_RUNTIME_DIR"]), token, folder, own / "server.log")
    finally:
        _end(server)


def _ready(server: subprocess.Popen[bytes], runtime: Path, token: str, folder: Path, log: Path) -> Lab:
    told = runtime / f"jpserver-{server.pid}.json"

    def answer() -> Lab | None:
        assert server.poll() is None, f"JupyterLab ended:\n{log.read_text()[-3000:]}"
        try:
            lab = Lab(json.loads(told.read_text())["url"].rstrip("/"), token, folder)
            return lab if lab.call("/api/status") else None
        except (OSError, ValueError):
            return None

    return wait_for(answer, LIMIT_S, "JupyterLab's start")


def _end(server: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    _, left = psutil.wait_procs(family, timeout=5)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=5)


_CODE_CELLS = "Array.from(panel.content.model.cells).filter(cell => cell.type === 'code')"


class Notebook:
    "A notebook open in the browser."

    def __init__(self, page: Any, lab: Lab, path: str) -> None:
        self.page, self.lab, self.path = page, lab, path
        place = f"{lab.url}/lab/workspaces/auto-{uuid.uuid4().hex[:8]}/tree/{path}"
        page.goto(f"{place}?token={lab.token}")
        page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook").wait_for()
        self.wait_idle()

    def ask(self, expression: str) -> Any:
        "The value of a JavaScript expression over `panel`, the open notebook."
        return self.page.evaluate(f"(panel => {expression})(jupyterapp.shell.currentWidget)")

    def menu(self, name: str, item: str) -> None:
        "Choose a menu item."
        self.page.get_by_role("menubar").get_by_role("menuitem", name=name, exact=True).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()

    def run_all(self) -> None:
        "Run > Run All Cells."
        counts = f"{_CODE_CELLS}.map(cell => cell.executionCount)"
        before = self.ask(counts)
        self.menu("Run", "Run All Cells")
        wait_for(lambda: not self.ran() or self.ask(counts) != before, LIMIT_S, "the first cell's start")

    def busy(self) -> bool:
        "Whether the kernel works."
        return self.ask("panel.context.sessionContext.session?.kernel?.status") != "idle"

    def ran(self) -> bool:
        "Whether no code cell runs or waits for its turn."
        return self.ask(f"{_CODE_CELLS}.every(cell => cell.executionState !== 'running')")

    def wait_idle(self, timeout_s: float = LIMIT_S) -> None:
        "Wait until the kernel has nothing left to do."
        wait_for(lambda: not self.busy() and self.ran(), timeout_s, f"{self.path}: the kernel's rest")

    def outputs(self, cell: int = -1) -> list[dict[str, Any]]:
        "The outputs of a code cell (the last one unless told), as they would be saved."
        return self.ask(f"{_CODE_CELLS}.at({cell}).outputs.toJSON()")

    def text(self, cell: int = -1) -> str:
        "What a code cell shows, as text: streams, plain reprs and errors."
        return "\n".join(_output_text(output) for output in self.outputs(cell))

    def save(self) -> dict[str, Any]:
        "File > Save Notebook; the saved notebook."
        self.menu("File", "Save Notebook")
        wait_for(lambda: not self.ask("panel.context.model.dirty"), LIMIT_S, "the save")
        return json.loads((self.lab.folder / self.path).read_text())


def _output_text(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return "".join(output["text"])
    if output["output_type"] == "error":
        return f"{output['ename']}: {output['evalue']}"
    return "".join(output["data"].get("text/plain", ""))
