"""A service: requests a second and CPU per request, ours beside FastAPI and a raw echo, server on one core, generator on the other.

python benchmarks/serve.py [--rounds 5] [--requests 20000]; peers in another environment: BENCH_PYTHON=/path/to/python.
Ratios are of CPU seconds per request as the kernel counts them for the server, which other load on the machine disturbs
less than a clock does; requests a second of the clock are printed beside them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from workbench.serve.load import Target, fire
from workbench.serve.wire import listen

TOKEN = "0123456789abcdef0123"
MODEL = """
import torch
from torch import nn
def features(columns): return {f"x{i}": columns[f"x{i}"] for i in range(30)}
def label(columns): return columns["y"].astype("float32")
class Mlp(nn.Module):
    def __init__(self, **config):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
    def forward(self, x): return self.net(x).squeeze(1)
"""
OURS = """
import sys, numpy as np, torch, bench_model
from workbench.base.ledger import Ledger
from workbench.data.contract import Column, Contract
from workbench.data.recipe import Recipe
from workbench.models.shelf import Shelf
from workbench.serve.app import serve
torch.set_num_threads(1); torch.manual_seed(0)
names = [f"x{i}" for i in range(30)]
contract = Contract("bench", {n: Column("float", ge=-100, le=100) for n in names} | {"y": Column("bool", role="outcome")})
recipe = Recipe("bench_model:features", "bench_model:label", tuple(names)).fit({n: np.random.default_rng(i).normal(size=99) for i, n in enumerate(names)})
weights = {k: v.numpy() for k, v in bench_model.Mlp().state_dict().items()}
Shelf(Ledger()).add("mlp", model="bench_model:Mlp", config={}, weights=weights, framework="torch", contract=contract, recipe=recipe)
serve("mlp/1", port=int(sys.argv[1]))
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
import sys, asyncio, torch, uvicorn, bench_model
from fastapi import FastAPI
from pydantic import BaseModel, create_model
torch.set_num_threads(1)
net, app, batching, waiting = bench_model.Mlp().eval(), FastAPI(), sys.argv[2] != "plain", []
Row = create_model("Row", **{f"x{i}": (float, ...) for i in range(30)})
class Body(BaseModel): row: Row
def score(rows):
    with torch.inference_mode(): return torch.sigmoid(net(torch.tensor(rows))).tolist()
async def flush():
    await asyncio.sleep(0.002); batch = waiting[:]; waiting.clear()
    for (_, future), value in zip(batch, score([row for row, _ in batch])): future.set_result(value)
@app.get("/readyz")
async def ready(): return {}
@app.post("/predict")
async def predict(body: Body):
    row = list(body.row.model_dump().values())
    if not batching: return {"prediction": score([row])[0]}
    future = asyncio.get_running_loop().create_future(); waiting.append((row, future))
    if len(waiting) == 1: asyncio.ensure_future(flush())
    return {"prediction": await future}
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False, limit_concurrency=64 if sys.argv[2] == "limited" else None)
"""
PEERS = {"workbench": (OURS, ""), "echo": (ECHO, ""), "FastAPI": (FASTAPI, "plain"), "FastAPI + batcher": (FASTAPI, "batched"), "FastAPI + batcher, limited": (FASTAPI, "limited")}  # fmt: skip


def cpu_s(pid: int) -> float:
    "Seconds of CPU that a process has used."
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(name: str, folder: Path) -> tuple[subprocess.Popen, int]:
    "A server on core 0, ready."
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    code, mode = PEERS[name]
    own = {
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "WORKBENCH_TRACK": "false",
        "BENCH_TOKEN": TOKEN,
    }
    own |= {"WORKBENCH_SERVE_TOKEN": "env:BENCH_TOKEN", "WORKBENCH_STORE": tempfile.mkdtemp(dir=folder)}
    python = sys.executable if name == "workbench" else os.environ.get("BENCH_PYTHON", sys.executable)
    server = subprocess.Popen(
        ["taskset", "-c", "0", python, "-c", code, str(port), mode], env=os.environ | own, cwd=folder
    )
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).close()
            return server, port
        except OSError:
            time.sleep(0.1)
    server.kill()
    raise SystemExit(f"{name} did not start")


def measure(name: str, folder: Path, requests: int, seed: int) -> dict[str, float]:
    "Saturate one server: everything is due at once, 64 connections."
    server, port = start(name, folder)
    try:
        target = Target.of(f"http://127.0.0.1:{port}", TOKEN)
        rows = np.random.default_rng(seed).normal(size=(requests, 30)).tolist()
        asked = [target.request({f"x{i}": value for i, value in enumerate(row)}) for row in rows]
        limit = 60 if "limited" in name else 64
        fire(target, asked[:500], np.zeros(500), connections=limit, timeout_s=600)
        before, began = cpu_s(server.pid), time.perf_counter()
        fired = fire(target, asked, np.zeros(requests), connections=limit, timeout_s=600)
        took_s, ok = time.perf_counter() - began, int((fired.status == 200).sum())
        return {
            "cpu_us": (cpu_s(server.pid) - before) / requests * 1e6,
            "rps": ok / took_s,
            "ok": ok / requests,
        }
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    "Rounds in turn, medians and their spread."
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--requests", type=int, default=20_000)
    options.add_argument("--only", nargs="*", default=list(PEERS))
    asked = options.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in asked.only}
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "bench_model.py").write_text(MODEL)
        (Path(made) / "settings.ini").write_text("[laptop]\n")
        for number in range(asked.rounds):
            for name in asked.only:
                found[name].append(measure(name, Path(made), asked.requests, number))
    ours = np.array([one["cpu_us"] for one in found["workbench"]]) if "workbench" in found else None
    for name, rounds in found.items():
        cpu, rps = np.array([one["cpu_us"] for one in rounds]), np.median([one["rps"] for one in rounds])
        line = {
            "peer": name,
            "cpu_us": round(float(np.median(cpu))),
            "lowest": round(float(cpu.min())),
            "highest": round(float(cpu.max())),
        }
        line |= {
            "requests_per_s": round(float(rps)),
            "per_cpu_second": round(1e6 / float(np.median(cpu))),
            "answered": min(one["ok"] for one in rounds),
        }
        if ours is not None:
            line["times_ours"] = round(float(np.median(cpu / ours)), 2)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
