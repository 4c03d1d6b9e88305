"""What a notebook costs to run as a job: the wall time of the whole client process, ours against Papermill, `jupyter execute` and jupyter-scheduler.

Every way runs in turn, so that all share the machine's moods; prints medians, the spread, and how many times the Papermill CLI's
time ours is. Ours includes the ledger's record, the identity of code and environment, and the HTML report; the others have none.
The Papermill CLI runs twice: stock, in an environment of its own as pip resolves `papermill jupyterlab` today, and in this one, whose
constraints hold jsonschema at a release that imports a second faster. The first is what its users have, and the ratio's base.
Usage: python benchmarks/jobs.py [rounds]
"""

import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

BIN = Path(sys.executable).parent
BOOKS = {
    "trivial": ("n: int = 3", "print(n)", "n * n"),
    "heavy": ("n: int = 3", "import torch, ray, pandas", "print(torch.ones(n).sum(), len(pandas.DataFrame({'a': [n]})))"),
}  # fmt: skip
TARGETS_S = {"trivial": 0.25, "heavy": 0.45}
POOL = 3


def write(folder: Path) -> dict[str, Path]:
    "The two notebooks."
    made = {}
    for name, sources in BOOKS.items():
        kinds = {"cell_type": "code", "outputs": [], "execution_count": None}
        cells = [{**kinds, "id": f"c{n}", "source": text, "metadata": {}} for n, text in enumerate(sources)]
        cells[0]["metadata"] = {"tags": ["parameters"]}
        spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        made[name] = folder / f"{name}.ipynb"
        made[name].write_text(
            json.dumps({"cells": cells, "metadata": spec, "nbformat": 4, "nbformat_minor": 5})
        )
    return made


def command(*words: str, **env: str) -> Callable[[], float]:
    "Run a process to its end; returns its wall seconds."

    def once() -> float:
        began = time.perf_counter()
        done = subprocess.run(words, env={**os.environ, **env}, capture_output=True, text=True)
        took_s = time.perf_counter() - began
        assert done.returncode == 0, done.stderr
        return took_s

    return once


def stock(folder: Path) -> Path:
    "Papermill's command beside JupyterLab, as pip resolves them; torch, ray and pandas are this environment's."
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    wanted = ["pip", "install", "--quiet", "--python", folder / "bin" / "python", "papermill", "jupyterlab"]
    subprocess.run([BIN / "uv", *wanted], check=True)
    own, others = Path(sysconfig.get_path("purelib")), folder / "others"
    others.mkdir()
    for path in own.iterdir():
        if path.suffix not in (
            ".dist-info",
            ".pth",
        ):  # packages without their entry points: ours is one of Papermill's
            (others / path.name).symlink_to(path)
    (folder / own.relative_to(sys.prefix) / "others.pth").write_text(f"{others}\n")
    return folder / "bin" / "papermill"


def api(book: Path, out: Path) -> Callable[[], float]:
    "Papermill called in a process that has imported it already."
    import papermill

    def once() -> float:
        began = time.perf_counter()
        papermill.execute_notebook(book, out, {"n": 5}, progress_bar=False)
        return time.perf_counter() - began

    return once


Asked = Callable[..., dict[str, str]]


@contextlib.contextmanager
def jupyter_scheduler(folder: Path) -> Iterator[Asked]:
    "A Jupyter server with jupyter-scheduler as it comes, over `folder`; yields what asks its REST interface."
    own, token = folder / "jupyter", secrets.token_hex(16)
    places = {f"JUPYTER_{name}_DIR": str(own / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    command = [
        sys.executable,
        "-m",
        "jupyter_server",
        "--no-browser",
        "--port=0",
        "--allow-root",
        f"--ServerApp.root_dir={folder}",
    ]
    env = {**os.environ, **places, "JUPYTER_TOKEN": token}
    own.mkdir(mode=0o700)
    with (own / "log").open("wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    told = own / "runtime" / f"jpserver-{server.pid}.json"

    def asked(path: str, body: dict[str, object] | None = None) -> dict[str, str]:
        data = json.dumps(body).encode() if body else None
        head = {"Authorization": f"token {token}"}
        url = json.loads(told.read_text())["url"] + path
        with urllib.request.urlopen(urllib.request.Request(url, data, head)) as reply:
            return json.loads(reply.read())

    try:
        for _ in range(600):
            with contextlib.suppress(OSError, ValueError):
                asked("scheduler/config")
                break
            assert server.poll() is None, (own / "log").read_text()
            time.sleep(0.1)
        yield asked
    finally:
        server.terminate()
        server.wait()


def created(asked: Asked, book: Path) -> Callable[[], float]:
    "A job of jupyter-scheduler, from its creation until it is completed."

    def once() -> float:
        began = time.perf_counter()
        given = {
            "name": "job",
            "input_uri": book.name,
            "runtime_environment_name": "python",
            "parameters": {"n": "5"},
        }
        job = asked("scheduler/jobs", {**given, "output_formats": ["ipynb"]})["job_id"]
        while (state := asked(f"scheduler/jobs/{job}")["status"]) not in ("COMPLETED", "FAILED"):
            time.sleep(0.02)
        took_s = time.perf_counter() - began
        assert state == "COMPLETED", state
        return took_s

    return once


def ways(book: Path, folder: Path, asked: Asked, peer: Path) -> dict[str, Callable[[], float]]:
    "Each way to run `book`."
    out = folder / "out.ipynb"
    ours = (
        sys.executable,
        "-c",
        "from workbench.cli.main import main; main()",
        "run",
        str(book),
        "-p",
        "n=5",
    )
    nowhere = str(folder / "nowhere")
    words = ("-p", "n", "5", "--no-progress-bar", str(book), str(out))
    return {
        "papermill CLI, stock": command(str(peer), *words),
        "papermill CLI, here": command(str(BIN / "papermill"), *words),
        "papermill API": api(book, out),
        "jupyter execute": command(str(BIN / "jupyter"), "execute", f"--output={out}", str(book)),
        "jupyter-scheduler": created(asked, book),
        "ours, cold": command(*ours, WORKBENCH_KERNELS=nowhere),
        "ours, warm kernel only": command(*ours, WORKBENCH_COLD="1"),
        "ours, warm": command(*ours),
    }


def ready() -> None:
    "Wait until every pool is full: what refills it belongs to the run before."
    from workbench.jobs import kernels

    while not all(zygote.ready >= zygote.size for zygote in kernels.status().zygotes):
        time.sleep(0.05)
    time.sleep(0.2)


def main(rounds: int) -> None:
    "Measure, and print one line a way."
    from workbench.jobs import kernels

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        here = {"WORKBENCH_KERNELS": str(folder / "zygotes"), "WORKBENCH_STORE": str(folder / "store")}
        os.environ |= here | {
            "WORKBENCH_TRACK": "false"
        }  # the mirror is a process of its own, at the lowest priority
        print(kernels.start(POOL, "workbench.cli.cli:main", "workbench.cli.cli:prepare"), flush=True)
        try:
            peer = stock(folder / "stock")
            with jupyter_scheduler(folder) as asked:
                for kind, book in write(folder).items():
                    measure(kind, ways(book, folder, asked, peer), rounds)
        finally:
            kernels.stop()


def measure(kind: str, found: dict[str, Callable[[], float]], rounds: int) -> None:
    "Every way in turn, `rounds` times after one that is not counted."
    took: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 1):
        for name, once in found.items():
            ready()
            took_s = once()
            took[name] += [took_s] if turn else []
    base = statistics.median(took["papermill CLI, stock"])
    print(f"\n{kind}, n={rounds} each, target {TARGETS_S[kind]} s")
    for name, spent in took.items():
        median = statistics.median(spent)
        print(
            f"  {name:24}{median:7.3f} s   [{min(spent):.3f} to {max(spent):.3f}]   {base / median:6.1f} x",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
