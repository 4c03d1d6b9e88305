"""A zygote that is killed, begins again or finds nothing compiled; small ones, that import little."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient

from workbench.jobs import kernels, line
from workbench.jobs.bytecode import bare

SMALL = """import sys
import workbench.jobs.zygote as zygote
zygote.PRELOAD = ("ipykernel.kernelapp", "never_compiled")
zygote.main(sys.argv[1], "kernels", "1")"""
Begin = Callable[[], subprocess.Popen[bytes]]


def until(seen: Callable[[], Any], what: str, within_s: float = 60) -> Any:
    end = time.monotonic() + within_s
    while not (found := seen()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


def ready() -> dict[str, Any] | None:
    "What the zygote says of itself once a kernel is ready."
    found = line.known("kernels")
    return found if found and found["ready"] else None


@pytest.fixture
def site(tmp_path: Path) -> Path:
    "Where packages are installed, for these zygotes."
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "never_compiled.py").write_text("import os\nos.environ['RAY_OF_IMPORT'] = '0'\n")
    return folder


@pytest.fixture
def begin(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    "begin(): one more zygote in the folder of these tests."
    folder, begun = tmp_path / "own", list[subprocess.Popen[bytes]]()
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("WORKBENCH_KERNELS", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(site))

    def one() -> subprocess.Popen[bytes]:
        os.environ.pop("PYTEST_CURRENT_TEST", None)
        command = [sys.executable, "-c", SMALL, str(folder)]
        begun.append(subprocess.Popen(command))
        return begun[-1]

    yield one
    for process in begun:
        process.kill()
        process.wait()


def taken() -> kernels.WarmKernel:
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    return kernels.WarmKernel(os.environ, "/")


def test_one_that_is_killed_leaves_its_kernel_at_work_and_its_place_to_the_next(begin: Begin) -> None:
    first = begin()
    until(ready, "the first is ready")
    kernel = taken()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert line.known("kernels") is None
    second = begin()
    assert until(ready, "the second is ready")["pid"] == second.pid
    assert kernel.poll() is None
    other = taken()
    for one in (kernel, other):
        one.terminate()
        assert one.wait(10) == -signal.SIGTERM


def test_one_that_begins_again_keeps_its_place_while_its_kernel_is_at_work(begin: Begin, site: Path) -> None:
    process = begin()
    before = until(ready, "it is ready")
    kernel = taken()
    (site / "new-1.0.dist-info").mkdir()
    after = until(
        lambda: (found := ready()) and found["started_at"] > before["started_at"] and found, "again"
    )
    assert after["pid"] == process.pid and after["served"] == 0 and kernel.poll() is None
    kernel.terminate()
    assert kernel.wait(10) == -signal.SIGTERM
    assert after["read"] == before["read"], "what an import has set is not taken for the user's"


def test_a_first_import_is_no_installation_and_two_at_once_are_one(
    begin: Begin, site: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = begin()
    before = until(ready, "it is ready")
    (site / "__pycache__").mkdir(exist_ok=True)
    (site / "__pycache__" / "another.pyc").write_bytes(b"")
    kernel = taken()  # it looks once more before it hands over
    kernel.terminate()
    kernel.wait(10)
    assert begin().wait(60) == 0 and "another one serves" in capfd.readouterr().out
    after = line.known("kernels") or {}
    assert (after["pid"], after["started_at"]) == (first.pid, before["started_at"])


def test_where_no_bytecode_may_be_written_it_is_kept_apart_and_kernels_know_nothing_of_it(
    begin: Begin, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    begin()
    until(ready, "it is ready")
    own = tmp_path / "own" / "bytecode"
    assert own.stat().st_mode & 0o777 == 0o700 and list(own.rglob("never_compiled.*.pyc"))
    assert not (site / "__pycache__").exists()
    kernel, client = taken(), BlockingKernelClient()
    client.load_connection_file(kernel.file)
    client.start_channels()
    asked = {"it": "__import__('sys').pycache_prefix, __import__('sys').dont_write_bytecode"}
    said = client.execute("", user_expressions=asked, reply=True, timeout=60)["content"]["user_expressions"]
    client.stop_channels()
    kernel.terminate()
    assert kernel.wait(10) == -signal.SIGTERM
    assert said["it"]["data"]["text/plain"] == "(None, True)"


def test_where_it_may_be_written_it_stands_beside_the_package(begin: Begin, site: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(sys, "pycache_prefix", None)
    assert bare(["never_compiled"]) and not bare(["no_such_package"])
    begin()
    until(ready, "it is ready")
    assert not bare(["never_compiled"])


def test_one_that_cannot_begin_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "own"
    (folder / "kernels.json").mkdir(parents=True)
    folder.chmod(0o700)
    monkeypatch.setenv("WORKBENCH_KERNELS", str(folder))
    with pytest.raises(kernels.Unavailable, match=r"(?s)zygote of kernels has ended: .*kernels.json"):
        kernels.start(1)
