"""Every test has its own project folder and store."""

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from books import Write, write_book
from rays import there  # noqa: F401

from workbench.base.records import Ledger
from workbench.base.store import Store

# A shell's background jobs ignore an interrupt, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What the processes of a test import, imported once: they are forked from one that has no threads.
multiprocessing.set_forkserver_preload(
    ["pytest", "numpy", "workbench.models.shelf", "workbench.release.registry"]
)

# Tests that run beside others have a core, not all of them: threads that wait for each other there only burn it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")

# Each takes a core for half a minute or more: they start first, so that none runs alone at the end.
LONG = (
    "flights/test_demo.py", "cli/test_cli.py", "jobs/test_reproduce.py", "jobs/test_entry_points.py",
    "jobs/test_pipeline.py", "jobs/test_resume_jobs.py", "e2e/", "jobs/test_kernels.py", "faults/", "words/",
    "models/test_shelf.py", "jobs/", "release/", "train/test_exact_resume.py", "models/", "serve/",
)  # fmt: skip


verdict: list[int] = []


# A process that had several Rays may crash where native threads meet destructors, after its last verdict
# (ray-project/ray#31145). Registered first, this runs last, and ends without them.
@atexit.register
def end_without_destructors() -> None:
    if verdict and "ray" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(verdict[0])


def pytest_sessionfinish(exitstatus: int) -> None:
    verdict.append(int(exitstatus))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Tests with a Ray of their own come first: there is one at a time in a process.
    items.sort(key=lambda item: "there" in getattr(item, "fixturenames", ()))
    if not hasattr(config, "workerinput"):  # one process: nothing to share out
        return

    def place(item: pytest.Item) -> int:
        return next((n for n, part in enumerate(LONG) if f"tests/{part}" in item.path.as_posix()), len(LONG))

    items.sort(key=place)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        "By file, but those with a JupyterLab share one; the longest of them would keep the others waiting."

        def _split_scope(self, nodeid: str) -> str:
            path = super()._split_scope(nodeid)
            alone = not path.startswith("tests/e2e/") or path.endswith("/test_train_notebook.py")
            return path if alone else "tests/e2e"

    return Together(config, log)


@pytest.fixture(autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in [name for name in os.environ if name.startswith("WORKBENCH_")]:
        monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp("project")
    (folder / "settings.ini").write_text("[laptop]\n[production]\nlog_format = json\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WORKBENCH_STORE", str(folder / ".workbench"))
    monkeypatch.setenv("WORKBENCH_DISPLAY", "quiet")
    monkeypatch.setenv("WORKBENCH_TRACK", "false")
    yield folder


@pytest.fixture
def store(project: Path) -> Store:
    return Store()


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store)


@pytest.fixture
def write(project: Path) -> Write:
    "write(source, ..., name=, folder=, tagged=, kernel=): a notebook of these cells, `job.ipynb` of the project."

    def make(*sources: str, name: str = "job.ipynb", folder: Path = project, **how: Any) -> Path:
        return write_book(folder / name, sources, **how)

    return make


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    "A disk of 3 MB; only root can have one."
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
