"""A service of benchmarks/peers.py as a process: started, asked until it answers, weighed, ended."""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peers import MODEL, PEERS, TOKEN

from workbench.serve.load import Target, fire
from workbench.serve.wire import listen


def alone() -> None:
    "From here on this process and what it starts see loopback and nothing else: one of the peers listens on every address."
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended too
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
        return  # not allowed: then it may
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x49))  # SIOCSIFFLAGS: up, loopback, running


def tree(pid: int) -> list[int]:
    "A process and all below it."
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = path.read_text()
            parents.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(text.split()[0]))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


@dataclass
class Server:
    "A service that answers."

    name: str
    process: subprocess.Popen[bytes]
    target: Target
    started_s: float  # to the first answer
    net: str = "mlp"
    pids: Sequence[int] = ()  # all its processes, once it has answered

    @property
    def connections(self) -> int:
        "At once, to saturate it: fewer where more would be refused, as by a limit or with a net that takes long."
        return 30 if "limited" in self.name or self.net == "transformer" else 64

    def requests(self, n: int, seed: int) -> list[bytes]:
        "Different rows, as this service wants them."
        rows = np.random.default_rng(seed).normal(size=(n, 30)).tolist()
        return [self._request({f"x{i}": value for i, value in enumerate(row)}) for row in rows]

    def _request(self, row: dict[str, float]) -> bytes:
        form = PEERS[self.name].form
        body = {"row": row, "rows": [row], "inputs": [list(row.values())]}[form]
        return self.target.request(body, form)

    def cpu_s(self) -> float:
        "Seconds of CPU that it has used, all its processes."
        total = 0
        for pid in self.pids or tree(self.process.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        "Its share of memory (PSS), all its processes."
        total = 0
        for pid in self.pids or tree(self.process.pid):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:")))
        return total / 1024


def _begin(name: str, net: str, folder: Path, port: int, extra: dict[str, str]) -> subprocess.Popen[bytes]:
    peer = PEERS[name]
    own = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "BENCH_NET": net, "BENCH_TOKEN": TOKEN}
    own |= {"WORKBENCH_TRACK": "false", "WORKBENCH_SERVE_TOKEN": "env:BENCH_TOKEN"}
    own |= {"WORKBENCH_STORE": tempfile.mkdtemp(dir=folder), "BENTOML_DO_NOT_TRACK": "true", **extra}
    own |= {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0", **dict(peer.environment)}
    (folder / "bench_model.py").write_text(MODEL)
    (folder / "settings.ini").write_text("[laptop]\n")
    where = Path(tempfile.mkdtemp(dir=folder))
    (where / "service.py").write_text(peer.code)
    command = [peer.python, "service.py", str(port), peer.mode]
    if name == "BentoML":
        command = [peer.python, "-m", "bentoml", "serve", "service:Net", "--port", str(port), "--host", "127.0.0.1"]  # fmt: skip
    log = (where / "log.txt").open("wb")
    ours = peer.module == "workbench"
    cwd = folder if ours else where
    command[1:2] = [str(where / "service.py")] if ours else command[1:2]
    return subprocess.Popen(
        ["taskset", "-c", peer.cores, *command],
        env=os.environ | own,
        cwd=cwd,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


@contextlib.contextmanager
def running(name: str, net: str = "mlp", **extra: str) -> Iterator[Server]:
    "A service that has answered once; `extra` are variables of its environment."
    with tempfile.TemporaryDirectory() as made, listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
        free.close()
        begun = time.perf_counter()
        process = _begin(name, net, Path(made), port, extra)
        target = Target.of(f"http://127.0.0.1:{port}", TOKEN, path=PEERS[name].path)
        server = Server(name, process, target, 0.0, net)
        try:
            request = server.requests(1, 1)
            while not _answers(target, request):
                if process.poll() is not None or time.perf_counter() - begun > 120:
                    logs = "\n".join(p.read_text()[-3000:] for p in Path(made).glob("*/log.txt"))
                    raise SystemExit(f"{name} did not start\n{logs}")
                time.sleep(0.01)
            server.started_s = time.perf_counter() - begun
            server.pids = tree(process.pid)
            yield server
        finally:
            _end(process)


def _answers(target: Target, request: list[bytes]) -> bool:
    with contextlib.suppress(Exception):
        return int(fire(target, request, np.zeros(1), connections=1, timeout_s=20).status[0]) == 200
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    all_of_it = tree(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    for pid in all_of_it:  # what it left behind
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
