"""Warm kernels for whoever starts kernels: the Papermill CLI by its engine, jupyter_client by a kernelspec."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from workbench.jobs import kernels, kernelspec

PAPERMILL = Path(sys.executable).parent / "papermill"
CELLS = (
    "n: int = 3",
    "import os, sys\nprint(n, os.getcwd())\nprint('to stderr', file=sys.stderr)\nn * 2",
    "1 / (n - 5)",
)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    "A folder with warm kernels of this module's own."
    folder = Path(tempfile.mkdtemp(prefix="wb-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_KERNELS", str(folder))
        patch.delenv("PYTEST_CURRENT_TEST", raising=False)
        kernels.start(2)
        yield folder
        kernels.stop()
    assert not list(folder.glob("kernel-*"))
    shutil.rmtree(folder)


@pytest.fixture
def warm(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_KERNELS", str(place))
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    return place


def papermill(source: Path, *words: str, **env: str) -> tuple[int, str, Any]:
    "The Papermill CLI: its exit code, what it says, and the notebook it wrote."
    out = source.with_name(f"out-{time.monotonic_ns()}.ipynb")
    command = [str(PAPERMILL), *words, "--no-progress-bar", str(source), str(out)]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr, nbformat.read(out, as_version=4) if out.exists() else None


def shown(book: Any) -> list[Any]:
    "Sources, counts and outputs, as they would be read."
    return [(cell.source, cell.get("execution_count"), cell.get("outputs")) for cell in book.cells]


@pytest.mark.long
def test_papermill_with_the_engine_gives_what_it_gives_without(write, warm: Path) -> None:
    source = write(*CELLS)
    for value, code in (("7", 0), ("5", 1)):
        plain = papermill(source, "-p", "n", value)
        ours = papermill(source, "-p", "n", value, "--engine", "workbench")
        assert (plain[0], ours[0]) == (code, code), (plain[1], ours[1])
        assert ours[2].metadata.workbench.kernel == "warm"
        assert shown(ours[2]) == shown(plain[2])
        assert ours[2].metadata.papermill.parameters == {"n": int(value)}


def test_papermill_says_why_a_kernel_was_cold(write, warm: Path, tmp_path: Path) -> None:
    source = write("n: int = 3", "print(n)")
    code, said, book = papermill(source, "--engine", "workbench", WORKBENCH_KERNELS=str(tmp_path / "none"))
    assert code == 0 and book.metadata.workbench.kernel.startswith("cold: no warm kernels run for")
    assert "cold kernel: no warm kernels run" in said and book.cells[1].outputs[0].text == "3\n"
    code, said, book = papermill(source, "--engine", "workbench", OMP_NUM_THREADS="7")
    assert code == 0 and "OMP_NUM_THREADS is '7' here" in book.metadata.workbench.kernel
    code, said, book = papermill(source, "--engine", "workbench", "-k", "no-such")
    assert code == 1 and "No such kernel" in said


def test_papermill_has_a_cell_limit_with_the_engine_and_leaves_no_kernel(write, warm: Path) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    code, said, _ = papermill(
        write("import time; time.sleep(60)", tagged=0), "--engine", "workbench", "--execution-timeout", "1"
    )
    assert code == 1 and "timed out" in said.lower()
    until = time.monotonic() + 10
    while kernels.status().zygotes[0].waiting > 2 and time.monotonic() < until:
        time.sleep(0.1)
    left = [p for p in psutil.Process().children(recursive=True) if p.is_running()]
    assert not [p for p in left if p.pid not in before]


@pytest.fixture
def named(project: Path) -> KernelSpecManager:
    "Finds the kernelspec, which is installed where only this test finds it."
    folder = project / "kernels" / kernelspec.NAME
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(kernelspec.spec()))
    return KernelSpecManager(kernel_dirs=[str(folder.parent)])


def started(specs: KernelSpecManager, **options: Any) -> tuple[KernelManager, Any]:
    manager = KernelManager(kernel_name=kernelspec.NAME, kernel_spec_manager=specs)
    manager.start_kernel(**options)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    return manager, client


def told(client: Any, code: str) -> str:
    "What a cell prints."
    parts: list[str] = []
    client.execute_interactive(
        code, timeout=60, output_hook=lambda m: parts.append(m["content"].get("text", ""))
    )
    return "".join(parts).strip()


def ended(manager: KernelManager, client: Any) -> None:
    client.stop_channels()
    manager.shutdown_kernel()


def test_a_kernelspec_asks_for_a_warm_kernel(named: KernelSpecManager, warm: Path, project: Path) -> None:
    manager, client = started(named, cwd=str(project))
    try:
        assert (
            told(client, "import os; print(os.environ['WORKBENCH_KERNEL'], os.getcwd())") == f"warm {project}"
        )
        client.execute("import time; time.sleep(60)", stop_on_error=False)
        time.sleep(0.5)
        manager.interrupt_kernel()
        assert told(client, "print('on')").endswith("on") and manager.is_alive()
        folder = Path(manager.ip).parent
        manager.restart_kernel()
        client.wait_for_ready(timeout=60)
        assert told(client, "print(os.environ['WORKBENCH_KERNEL'][:5])") == ""  # its variables have gone
        assert told(client, "import os; print(os.environ['WORKBENCH_KERNEL'])").startswith(
            "cold: a kernel that is restarted"
        )
    finally:
        ended(manager, client)
    assert not manager.is_alive() and not folder.exists()


def test_a_kernelspec_falls_back_to_a_cold_kernel_and_says_why(named: KernelSpecManager, warm: Path) -> None:
    for extra, why in (
        ({"OMP_NUM_THREADS": "7"}, "OMP_NUM_THREADS is '7' here"),
        ({"WORKBENCH_KERNELS": ""}, ""),
    ):
        manager, client = started(named, env={**os.environ, **extra})
        try:
            assert why in told(client, "import os; print(os.environ['WORKBENCH_KERNEL'])")
            assert told(client, "print(6 * 7)") == "42"
        finally:
            ended(manager, client)


def test_the_kernelspec_is_installed_by_a_verb(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(project / "data"))
    done = subprocess.run(
        [sys.executable, "-c", "from workbench.cli.cli import main; main()", "kernels", "install", "--user"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((project / "data/kernels/workbench/kernel.json").read_text()) == kernelspec.spec()
