"""Warm kernels: the same results as cold ones, earlier; and nothing left, whoever is killed."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from workbench.base.displays import register
from workbench.base.errors import BadInput, JobFailed, Stopped, Unavailable
from workbench.base.ledger import Ledger
from workbench.base.progress import Quiet
from workbench.base.records import runs
from workbench.jobs import kernels, line
from workbench.jobs.runner import run

TARGET, PREPARE = "workbench.cli.cli:main", "workbench.cli.cli:prepare"
COMMAND = [sys.executable, "-c", "from workbench.cli.main import main; main()"]
POOL = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    "A folder with warm kernels and commands of this module's own."
    folder = tmp_path_factory.mktemp("zygotes")
    folder.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_KERNELS", str(folder))
        patch.setenv("OPENBLAS_VERBOSE", "a-value-nobody-should-read")
        patch.delenv("PYTEST_CURRENT_TEST", raising=False)
        kernels.start(POOL, TARGET, PREPARE)
        yield folder
        kernels.stop()
    assert not list(folder.glob("kernel-*"))


@pytest.fixture
def warm(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kernels.Status]:
    "Warm kernels in reach of this process and of those it starts, all of them ready."
    monkeypatch.setenv("WORKBENCH_KERNELS", str(place))
    monkeypatch.setenv("OPENBLAS_VERBOSE", "a-value-nobody-should-read")
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    yield filled()


def filled(within_s: float = 20) -> kernels.Status:
    "The status once every pool is full."
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    until = time.monotonic() + within_s
    while True:
        found = kernels.status()
        if len(found.zygotes) == 2 and all(zygote.ready >= zygote.size for zygote in found.zygotes):
            return found
        assert time.monotonic() < until, found
        time.sleep(0.05)


def executed(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "notebook.ipynb").read_text())


def how(folder: Path) -> str:
    return executed(folder)["metadata"]["workbench"]["kernel"]


def gone(pids: list[int], within_s: float = 5) -> bool:
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return psutil.wait_procs(left, timeout=within_s)[1] == []


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    "These tests have a temporary folder of their own: others start kernels at the same time."
    tmp_path_factory.getbasetemp()  # pytest's own stays where it is for the tests after these
    with tempfile.TemporaryDirectory(prefix="wb-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield
        assert list(Path(folder).glob("workbench-kernel-*")) == []


def appears(path: Path, within_s: float = 30) -> None:
    until = time.monotonic() + within_s
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.02)


# ---------------------------------------------------------------- the same results
SAME = {
    "streams": "import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.stdout.write('no newline')",
    "raw": "import os, time\nos.write(1, b'raw out\\n'); time.sleep(0.5); os.write(2, b'raw err\\n'); time.sleep(0.5)",
    "value": "{'a': [1, 2.5, None], 'b': 'é🛫'}",
    "display": "from IPython.display import HTML, Markdown, display\ndisplay(HTML('<b>x</b>'), Markdown('# y'))",
    "update": "h = display('one', display_id='d'); h.update('two')",
    "error": "def f(x):\n    return 1 / x\nf(0)",
    "syntax": "x = (",
    "exit": "raise ValueError('é' * 3)",
    "tqdm": "from tqdm import tqdm\nfor _ in tqdm(range(3), bar_format='{n_fmt}'): pass",
    "widget": "import ipywidgets\nprint(ipywidgets.IntSlider(3).value)",
    "await": "import asyncio\nprint(await asyncio.gather(asyncio.sleep(0.01, 1), asyncio.sleep(0, 2)))",
    "threads": "import threading\nt = threading.Thread(target=lambda: print('thread')); t.start(); t.join()",
    "pool": "from concurrent.futures import ThreadPoolExecutor as P\nprint(list(P(4).map(abs, [-1, -2])))",
    "process": "import subprocess\nprint(subprocess.run(['sh', '-c', 'echo $0 $MINE; pwd'], capture_output=True, text=True).stdout)",
    "shell": "!echo $MINE; exit 3",
    "magic": "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);",
    "forks": "import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p: print(p.map(abs, [-1, -2]))",
    "spawns": "with m.get_context('spawn').Pool(1) as p: print(p.map(abs, [-3]))",
    "numbers": "import numpy as np\nprint(np.linalg.eigvalsh(np.arange(9.).reshape(3, 3)), (np.ones((300, 300)) @ np.ones((300, 300))).sum())",
    "torch": "import torch\ntorch.manual_seed(0)\nprint(torch.get_num_threads(), (torch.rand(200, 200) @ torch.rand(200, 200)).sum())",
    "pandas": "import pandas as pd\nimport io\nb = io.BytesIO(); pd.DataFrame({'a': [1, 2]}).to_parquet(b)\npd.read_parquet(b)",
    "polars": "import polars as pl\npl.DataFrame({'a': [1, 1, 2]}).lazy().group_by('a').len().sort('a').collect(engine='streaming')",
    "process facts": "import sys, os, signal, resource\nprint(sys.executable, sys.flags, os.getcwd(), os.umask(0o22), os.environ['MINE'], os.environ.get('MPLBACKEND'))\n"
    "print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGCHLD), sys.stdin.read(), os.isatty(0))\n"
    "print(len(sys.argv), os.path.basename(sys.argv[0]), __name__, 'workbench' in sys.modules, [p for p in sys.path if 'ray' not in p], _dh)",
    "warnings": "import warnings\nwarnings.warn('said once')",
    "logging": "import logging\nlogging.warning('logged'); logging.info('not logged')",
    "ours": "import workbench\nprint(workbench.result(a=1), os.environ['WORKBENCH_DISPLAY'])",
    "history": "In[1], get_ipython().history_manager.hist_file",
    "gc": "import gc\ngc.isenabled(), gc.get_threshold()",
}  # fmt: skip


def outputs(folder: Path) -> dict[str, Any]:
    "By cell: everything it put out, without what names a process or moment."
    import re

    found = {}
    for name, cell in zip(SAME, executed(folder)["cells"][1:], strict=True):
        streams = [o for o in cell["outputs"] if o["output_type"] == "stream"]  # which comes first is a race
        rest = [o for o in cell["outputs"] if o["output_type"] != "stream"]
        kept = sorted(streams, key=lambda o: o["name"]) + rest
        text = json.dumps([kept, cell["execution_count"]], sort_keys=True)
        found[name] = re.sub(r"ipykernel_\d+|/tmp/\S*?\d+\.py|0x[0-9a-f]+", "*", text)
    return found


@pytest.mark.long
def test_everything_a_cell_puts_out_is_what_it_puts_out_cold(
    write, ledger: Ledger, warm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("n = 0", *SAME.values())
    book = json.loads(path.read_text())
    for cell in book["cells"][1:]:
        cell["metadata"]["tags"] = ["raises-exception"]
    path.write_text(json.dumps(book))
    monkeypatch.setenv("MINE", "é")
    early = run(path, ledger=ledger)
    monkeypatch.setenv("WORKBENCH_KERNELS", str(path.parent / "none"))
    late = run(path, ledger=ledger)
    assert how(early.folder) == "warm" and how(late.folder).startswith("cold: no warm kernels run")
    first, second = outputs(early.folder), outputs(late.folder)
    for name in SAME:
        assert first[name] == second[name], name
    assert early.metrics == late.metrics == {"a": 1}


def test_a_kernel_that_was_left_can_be_asked_how_it_is(warm: Any, tmp_path: Path) -> None:
    kernel, why = kernels.take(os.environ, str(tmp_path))
    assert kernel, why
    assert kernel.poll() is None
    kernel.leave()
    assert kernel.poll() is None and kernel.returncode is None


def test_what_a_notebook_left_for_its_end_is_done(write, ledger: Ledger, warm: Any, tmp_path: Path) -> None:
    "Handlers, a thread that still works and what is buffered, as at the end of a cold kernel."
    late = f"open({str(tmp_path / 'thread')!r}, 'w').write('done')"
    code = f"""import atexit, threading, time, weakref
atexit.register(lambda: open({str(tmp_path / "handler")!r}, 'w').write('done'))
open_file = open({str(tmp_path / "buffered")!r}, 'w'); open_file.write('done')
weakref.finalize(time, lambda: open({str(tmp_path / "finalizer")!r}, 'w').write('done'))
threading.Thread(target=lambda: (time.sleep(0.3), {late})).start()"""
    job = run(write("n = 0", code), ledger=ledger)
    assert how(job.folder) == "warm"
    assert [(tmp_path / name).read_text() for name in ("thread", "handler", "finalizer", "buffered")] == [
        "done"
    ] * 4


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "the kernel was killed by SIGKILL"),
        ("import os\nos._exit(0)", "the kernel exited with status 0"),
        ("import ctypes\nctypes.string_at(0)", "the kernel was killed by SIGSEGV"),
        ("import os\nos._exit(3)", "the kernel exited with status 3"),
        ("input('name?')", "StdinNotImplementedError"),
    ],
)
def test_every_way_to_end_badly_is_said(write, ledger: Ledger, warm: Any, source: str, said: str) -> None:
    with pytest.raises(JobFailed) as caught:
        run(write("n = 0", source, "print('never')"), ledger=ledger)
    folder = runs(ledger)[0].folder
    assert how(folder) == "warm" and said in caught.value.what and "in cell 2 of 3" in caught.value.what
    kept = [cell["metadata"]["papermill"]["status"] for cell in executed(folder)["cells"]]
    assert kept == ["completed", "failed", "pending"]


def test_what_a_kernel_says_beside_its_cells_is_in_the_log(write, ledger: Ledger, warm: Any) -> None:
    code = "import os, sys\nos.write(sys.stderr._original_stdstream_copy, b'beside\\n')"
    job = run(write("n = 0", code), ledger=ledger)
    assert (job.folder / "kernel.log").read_text() == "beside\n"


class StopAtOnce(Quiet):
    def __init__(self, tracker: Any) -> None:
        threading.Timer(1, tracker.stop).start()


@pytest.mark.slow
def test_stop_time_limit_and_output_cap_hold(
    write, ledger: Ledger, warm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = write("n = 0", "import time\ntime.sleep(60)")
    with pytest.raises(JobFailed, match=r"it ran out of time \(1 s\)"):
        run(sleeper, ledger=ledger, timeout_s=1)
    register("stopping-soon", StopAtOnce)
    monkeypatch.setenv("WORKBENCH_DISPLAY", "stopping-soon")
    with pytest.raises(Stopped):
        run(sleeper, ledger=ledger)
    assert [job.wall_s < 8 and how(job.folder) for job in runs(ledger)] == ["warm", "warm"]
    monkeypatch.setenv("WORKBENCH_DISPLAY", "quiet")
    job = run(write("n = 0", "print('a' * 30_000_000)"), ledger=ledger)
    assert (job.folder / "notebook.ipynb").stat().st_size < 11_000_000 and how(job.folder) == "warm"


def test_kernels_share_no_random_numbers(write, ledger: Ledger, warm: Any) -> None:
    draw = "import random, uuid\nimport numpy as np\nimport torch\nfrom workbench import result\n"
    draw += "result(python=random.random(), legacy=np.random.rand(), new=np.random.default_rng().random(), torch=torch.rand(1).item(), uuid=str(uuid.uuid4()))"
    found = []
    for _ in range(3):
        filled()
        found.append(run(write("n = 0", draw), ledger=ledger))
    assert all(how(job.folder) == "warm" for job in found)
    for name in found[0].metrics:
        assert len({job.metrics[name] for job in found}) == 3, name


def test_a_kernel_imports_this_package_as_it_is_on_disk(
    write, ledger: Ledger, warm: Any, monkeypatch
) -> None:
    monkeypatch.setenv("WORKBENCH_SNAPSHOT_SHARE", "0")  # what records a job is of the package itself
    code = "import sys\nfrom pathlib import Path\nassert not any(m.startswith('workbench') for m in sys.modules)\nimport workbench.base.store"
    assert run(write("n = 0", code), ledger=ledger).status == "succeeded"


# ---------------------------------------------------------------- the pool
def test_the_pool_refills_and_more_than_it_holds_can_be_had(warm: kernels.Status) -> None:
    before = warm.zygotes[0].served
    taken = [kernels.WarmKernel(os.environ, "/") for _ in range(POOL + 2)]
    assert len({kernel.pid for kernel in taken}) == len({kernel.info["ip"] for kernel in taken}) == POOL + 2
    for kernel in taken:
        assert Path(kernel.file).parent.stat().st_mode & 0o777 == 0o700
        assert Path(kernel.file).stat().st_mode & 0o777 == 0o600
        kernel.terminate()
        assert kernel.wait(10) == -signal.SIGTERM and not Path(kernel.file).parent.exists()
    assert filled().zygotes[0].served == before + POOL + 2


def test_a_waiting_kernel_costs_little_memory(warm: kernels.Status) -> None:
    cost = warm.zygotes[0].private_mb
    assert cost is not None and 5 < cost <= 60


def test_a_child_that_is_killed_while_it_waits_is_replaced(warm: kernels.Status, place: Path) -> None:
    state = json.loads((place / "kernels.json").read_text())
    tree = [p.pid for pid in state["waiting"] for p in psutil.Process(pid).children()]
    for pid in state["waiting"]:
        os.kill(pid, signal.SIGKILL)
    assert gone(tree)  # the kernels went with their keepers
    filled()
    kernel = kernels.WarmKernel(os.environ, "/")
    kernel.terminate()
    assert kernel.wait(10) == -signal.SIGTERM


def test_nonsense_and_silence_hold_up_nobody(warm: Any, place: Path) -> None:
    import socket

    silent, rude = (socket.socket(socket.AF_UNIX) for _ in range(2))
    silent.connect(str(place / "kernels.sock"))
    rude.connect(str(place / "kernels.sock"))
    rude.sendall(b"\xff" * 4096)
    kernel = kernels.WarmKernel(os.environ, "/")
    kernel.terminate()
    assert kernel.wait(10) == -signal.SIGTERM
    silent.close()
    rude.close()
    filled()


# ---------------------------------------------------------------- cold, and why
@pytest.mark.parametrize(
    ("name", "value"),
    [("OMP_NUM_THREADS", "7"), ("PYTHONPATH", "/x"), ("PYTHONHASHSEED", "0"), ("HOME", "/nowhere"), ("LANG", "xx"),
     ("MPLBACKEND", "agg"), ("PANDAS_COPY_ON_WRITE", "warn"), ("RAY_DEDUP_LOGS", "0"), ("OPENBLAS_VERBOSE", None)],
)  # fmt: skip
def test_a_variable_that_was_read_while_importing_starts_a_cold_kernel(
    warm: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    kernel, why = kernels.take(os.environ, "/")
    assert kernel is None and why.startswith(f"{name} is ") and "read while importing" in why
    if name in ("PYTHONPATH", "OMP_NUM_THREADS", "HOME"):  # what is read by everything
        assert line.forward(["workbench", "runs"]) is None
    assert f"start cold: {name}" in str(kernels.status())


def test_a_cold_job_says_why_in_its_notebook_and_log(
    write, ledger: Ledger, warm: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    job = run(write("n = 0", "import os\nprint(os.environ['OMP_NUM_THREADS'])"), ledger=ledger)
    why = how(job.folder).removeprefix("cold: ")
    assert why.startswith("OMP_NUM_THREADS is '3' here, ") and why.endswith(
        "there, and was read while importing"
    )
    assert why in capsys.readouterr().err
    assert executed(job.folder)["cells"][1]["outputs"][0]["text"] == ["3\n"]


def test_variables_that_nothing_read_make_no_difference(warm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    others = ("MY_DATE", "WORKBENCH_PROFILE", "TERM", "SHLVL", "SSH_TTY")
    by_libraries = ("_RJEM_MALLOC_CONF", "TORCHINDUCTOR_CACHE_DIR")  # by polars, and torch's compiler
    for name in (*others, *by_libraries):
        monkeypatch.setenv(name, "other")
    kernel, why = kernels.take(os.environ, "/")
    assert kernel and why == ""
    kernel.terminate()
    kernel.wait(10)


def test_other_limits_interpreters_and_start_up_files(warm: Any, place: Path, tmp_path: Path) -> None:
    state = json.loads((place / "kernels.json").read_text())
    assert kernels.why_cold(state, os.environ) == ""
    assert "another interpreter, /usr/bin/python" in kernels.why_cold(
        {**state, "python": ["/usr/bin/python", ""]}, os.environ
    )
    before = resource.getrlimit(resource.RLIMIT_CORE), os.umask(0o27)
    try:
        assert "umask is 23 here" in kernels.why_cold(state, os.environ)
        os.umask(before[1])
        other = 1 << 20 if before[0][0] != 1 << 20 else 0
        resource.setrlimit(
            resource.RLIMIT_CORE, (min(other, before[0][1]) if before[0][1] >= 0 else other, before[0][1])
        )
        assert "RLIMIT_CORE is" in kernels.why_cold(state, os.environ)
    finally:
        os.umask(before[1])
        resource.setrlimit(resource.RLIMIT_CORE, before[0])
    (tmp_path / "profile_default" / "startup").mkdir(parents=True)
    (tmp_path / "profile_default" / "startup" / "00.py").write_text("x = 1")
    read = {**state["read"], "IPYTHONDIR": line.digest(str(tmp_path))}
    assert "00.py runs code" in kernels.why_cold(
        {**state, "read": read}, {**os.environ, "IPYTHONDIR": str(tmp_path)}
    )


def test_nothing_of_the_environment_is_written_down(place: Path) -> None:
    for file in place.iterdir():
        assert stat.S_IMODE(file.lstat().st_mode) & 0o077 == 0, file
        if file.is_file():
            assert "a-value-nobody-should-read" not in file.read_text()


def test_a_folder_of_someone_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    monkeypatch.setenv("WORKBENCH_KERNELS", str(tmp_path / "open"))
    with pytest.raises(Unavailable, match="not a private folder"):
        kernels.start()
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setenv("WORKBENCH_KERNELS", str(tmp_path / "link"))
    with pytest.raises(Unavailable):
        kernels.folder()
    with pytest.raises(BadInput, match="a pool of 0"):
        kernels.start(0)


# ---------------------------------------------------------------- whoever is killed
BODY = """import os, subprocess, time
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
child = subprocess.Popen(["sleep", "300"], **quiet)
own = subprocess.Popen(["sleep", "300"], start_new_session=True, **quiet)
open("pids.part", "w").write(f"{os.getpid()} {os.getppid()} {child.pid} {own.pid}")
os.rename("pids.part", "pids")
time.sleep(300)"""
RUNNER = [sys.executable, "-c", "from workbench.jobs.runner import run; run('job.ipynb')"]


@contextlib.contextmanager
def started(command: list[str], project: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    "`command` at work in a cell, and the pids of its kernel, the keeper and what the cell started."
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=project, text=True, **pipes)
    try:
        appears(project / "pids")
        yield process, [int(pid) for pid in (project / "pids").read_text().split()]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_with_its_runner_a_warm_kernel_and_its_children_end(
    write, project: Path, warm: Any, number: signal.Signals
) -> None:
    write("n = 0", BODY)
    with started(RUNNER, project) as (process, pids):
        assert how(runs(Ledger())[0].folder) == "warm"
        process.send_signal(number)
        process.wait(10)
        assert gone(pids)
    assert runs(Ledger())[0].status == "killed"


@pytest.mark.slow
@pytest.mark.parametrize("which", ["keeper", "kernel"])
def test_a_keeper_or_kernel_that_is_killed_fails_the_job_and_leaves_nothing(
    write, project: Path, warm: Any, which: str
) -> None:
    write("n = 0", BODY)
    with started(RUNNER, project) as (process, pids):
        os.kill(pids[1] if which == "keeper" else pids[0], signal.SIGKILL)
        assert "the kernel was killed by SIGKILL" in process.communicate(timeout=20)[1]
        assert gone(pids[:2] if which == "keeper" else pids)
        for pid in pids[2:]:  # a keeper that was shot cannot sweep; as with a cold kernel
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_with_its_client_a_handed_over_command_ends(
    write, project: Path, warm: Any, number: signal.Signals
) -> None:
    write("n = 0", BODY)
    with started([*COMMAND, "run", "job.ipynb"], project) as (process, pids):
        runner = runs(Ledger())[0]
        assert how(runner.folder) == "warm"
        process.send_signal(number)
        said = process.communicate(timeout=15)[1]
        assert process.returncode in {signal.SIGKILL: (-9,), signal.SIGTERM: (-15, 130)}.get(number, (130,))
        assert gone(pids) and "Traceback" not in said
    until = time.monotonic() + 5
    while runs(Ledger())[0].status == "running" and time.monotonic() < until:
        time.sleep(0.05)
    assert runs(Ledger())[0].status == "killed"


@pytest.mark.slow
def test_when_the_zygotes_are_killed_jobs_go_on_waiting_children_go_and_the_next_job_starts_cold(
    write, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    folder = tmp_path / "own"
    monkeypatch.setenv("WORKBENCH_KERNELS", str(folder))
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    kernels.start(1, TARGET, PREPARE)
    filled()
    write("n = 0", BODY.replace("time.sleep(300)", "time.sleep(2)\nopen('done', 'w')"))
    with started([*COMMAND, "run", "job.ipynb"], project) as (process, pids):
        filled()
        zygotes = [psutil.Process(zygote.pid) for zygote in kernels.status().zygotes]
        below = {p.pid for zygote in zygotes for p in zygote.children(recursive=True)}
        at_work = {*pids, *(p.pid for p in psutil.Process(pids[1]).parents())}
        for zygote in zygotes:
            zygote.kill()
        assert process.wait(20) == 0 and (project / "done").exists()
        assert gone([*pids, *(below - at_work)])
    assert runs(ledger)[0].status == "succeeded"
    assert kernels.status().zygotes == ()
    assert how(run(write("n = 0"), ledger=ledger).folder).startswith("cold: no warm kernels run")
    assert kernels.start(1).ready  # and they can be started again
    kernels.stop()


# ---------------------------------------------------------------- whole commands
@dataclass
class Done:
    "How a command ended."

    pid: int
    returncode: int
    stdout: str
    stderr: str


def workbench(*args: str, cwd: Path, **env: str) -> Done:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*COMMAND, *args], cwd=cwd, env={**os.environ, **env}, **pipes)
    stdout, stderr = process.communicate(timeout=60)
    return Done(process.pid, process.returncode, stdout, stderr)


def test_a_handed_over_command_is_the_command(write, project: Path, warm: kernels.Status) -> None:
    write("n: int = 3", "from workbench import result\nimport os\nresult(n=n, mine=os.environ.get('MINE'))")
    for cold in ("", "1"):
        done = workbench(
            "run", "job.ipynb", "-p", "n=5", "--json", cwd=project, MINE="yes", WORKBENCH_COLD=cold
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["metrics"] == {"n": 5, "mine": "yes"} and found["status"] == "succeeded"
        assert how(Path(found["artifacts"]["notebook"]).parent) == "warm"
        ran_here = Ledger().query("select pid from runs where id=?", found["id"])[0]["pid"] == done.pid
        assert ran_here == bool(cold)
        filled()
    bad = workbench("run", "job.ipynb", "-p", "n=x", cwd=project)
    assert bad.returncode == 2 and "n = 'x' is not int" in bad.stderr and bad.stdout == ""
    assert workbench("run", "--nonsense", cwd=project).returncode == 2
    assert workbench("run", "nope.ipynb", cwd=project).returncode == 3
    write("n = 0", "1 / 0", name="bad.ipynb")
    failed = workbench("run", "bad.ipynb", cwd=project)
    assert failed.returncode == 7 and "ZeroDivisionError" in failed.stderr


def test_the_client_needs_only_the_standard_library() -> None:
    code = "import sys, workbench.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert not {"pydantic", "typer", "structlog", "psutil", "numpy", "jupyter_client"} & set(loaded)


@pytest.mark.slow
def test_changed_code_is_what_the_next_command_runs(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(kernels.__file__).parents[1]
    shutil.copytree(root, tmp_path / "lib" / "workbench", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("WORKBENCH_KERNELS", str(tmp_path / "own"))
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    env.pop("PYTEST_CURRENT_TEST")
    code = (
        f"from workbench.jobs import kernels as k; k.PRELOAD = (); print(k.start(1, {TARGET!r}), k.folder())"
    )
    begin = [sys.executable, "-c", code]
    assert (
        "runs: 1 of 1" in subprocess.run(begin, env=env, cwd=project, capture_output=True, text=True).stdout
    )
    show = [*COMMAND, "runs"]
    first = subprocess.run(show, env=env, cwd=project, capture_output=True, text=True)
    module = tmp_path / "lib" / "workbench" / "cli" / "cli.py"
    module.write_text(module.read_text().replace("no runs yet", "NOTHING YET"))
    second = subprocess.run(show, env=env, cwd=project, capture_output=True, text=True)
    assert "no runs yet" in first.stdout and "NOTHING YET" in second.stdout
    code = "from workbench.jobs import kernels as k; k.start(1, 'x'); print(k.status()); k.stop()"
    again = subprocess.run([sys.executable, "-c", code], env=env, cwd=project, capture_output=True, text=True)
    assert "0 served" in again.stdout.splitlines()[1]  # it started again by itself


def test_the_verbs(warm: Any) -> None:
    import typer

    from workbench.cli import kernels as verbs

    app = typer.Typer()
    verbs.register(app)
    said = CliRunner().invoke(app, ["kernels", "status"]).output
    assert "kernels: 2 of 2 ready" in said and "runs: 2 of 2 ready" in said
    found = json.loads(CliRunner().invoke(app, ["kernels", "start", "--json"]).output)
    assert [zygote["role"] for zygote in found["zygotes"]] == ["kernels", "runs"] and found["why"] == ""


def test_what_a_kernel_uses_is_in_the_cost_of_its_run_warm_or_cold(
    write, ledger: Ledger, warm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        "n = 0", "import time\nuntil = time.process_time() + 1\nwhile time.process_time() < until: pass"
    )
    jobs = [run(path, ledger=ledger)]
    monkeypatch.setenv("WORKBENCH_KERNELS", str(ledger.store.root))
    jobs.append(run(path, ledger=ledger))
    assert [how(job.folder).partition(":")[0] for job in jobs] == ["warm", "cold"]
    for job in jobs:
        assert 1 <= job.cost["cpu_s"] < 10 and job.cost["peak_mb"] > 30
        assert job.cost["usd"] == pytest.approx(job.cost["cpu_s"] / 3600 * 0.04, rel=0.01)
        said = re.search(r"(\d\.\d{5}) USD", (job.folder / "report.html").read_text())
        assert said and 0.00001 <= float(said[1]) <= job.cost["usd"] + 0.00001
