"""How soon a service answers its first request after it was begun, and what it holds when idle: ours with onnxruntime and with torch, beside FastAPI with each.

In turn, --rounds times, each a process of its own on one core; the store is prepared beforehand. The time is from the process's start to the
answer. Limits of ours: 1.0 s and 80 MB with onnxruntime, 2.5 s and 260 MB with torch.
Usage: python benchmarks/start.py [--rounds 5]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import MODEL, OURS, PEERS, Peer
from serve import spread
from servers import alone, running

FEATURES = """
def features(columns): return {f"x{i}": columns[f"x{i}"] for i in range(30)}
def label(columns): return columns["y"].astype("float32")
"""
EXPORT = """
import torch
from pathlib import Path
from workbench.models.onnxmodel import from_onnx
net = bench_model.net()
torch.onnx.export(net, (torch.zeros(2, 30),), "net.onnx", input_names=["x"], output_names=["logit"], dynamic_axes={"x": {0: "n"}}, dynamo=False)
recipe = Recipe("bench_features:features", "bench_features:label", tuple(names)).fit({n: np.random.default_rng(i).normal(size=99) for i, n in enumerate(names)})
Shelf(Ledger()).add("graph", **from_onnx(Path("net.onnx"), logits=True), contract=contract, recipe=recipe)
"""
SERVE = "import sys\nfrom workbench.serve.app import serve\nserve(sys.argv[2], port=int(sys.argv[1]))\n"
FASTAPI = """
import sys, numpy as np, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, create_model
if sys.argv[2] == "torch":
    import bench_model
    net = bench_model.net()
    score = lambda row: bench_model.score(net, [row])[0]
else:
    import os, onnxruntime
    options = onnxruntime.SessionOptions(); options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.environ["BENCH_GRAPH"], options)
    score = lambda row: float(session.run(None, {"x": np.array([row], "float32")})[0][0])
app, Row = FastAPI(), create_model("Row", **{f"x{i}": (float, ...) for i in range(30)})
class Body(BaseModel): row: Row
@app.post("/predict")
async def predict(body: Body): return {"prediction": score(list(body.row.model_dump().values()))}
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
"""
LIMITS = {"workbench, onnxruntime": (1.0, 80), "workbench, torch": (2.5, 260)}
PEERS |= {
    "workbench, onnxruntime": Peer(SERVE, "graph/1"),
    "FastAPI, onnxruntime": Peer(FASTAPI, "onnx", "fastapi"),
    "workbench, torch": Peer(SERVE, "net/1"),
    "FastAPI, torch": Peer(FASTAPI, "torch", "fastapi"),
}


def prepare(folder: Path) -> dict[str, str]:
    "A store with both bundles; the variables that lead there."
    (folder / "bench_model.py").write_text(MODEL)
    (folder / "bench_features.py").write_text(FEATURES)
    (folder / "settings.ini").write_text("[laptop]\n")
    own = {"WORKBENCH_STORE": str(folder / "store"), "WORKBENCH_TRACK": "false", "BENCH_NET": "mlp"}
    code = OURS.rpartition("serve(")[0] + EXPORT
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=os.environ | own | {"PYTHONPATH": str(folder)}, check=True, capture_output=True)  # fmt: skip
    return own | {"PYTHONPATH": str(folder), "BENCH_GRAPH": str(folder / "net.onnx")}


def main() -> int:
    "Rounds in turn; are the limits kept?"
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    options.add_argument("--rounds", type=int, default=5)
    asked = options.parse_args()
    alone()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    names = [name for name in PEERS if ", onnx" in name or ", torch" in name]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    held: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as made:
        own = prepare(Path(made))
        for _ in range(asked.rounds):
            for name in names:
                with running(name, **own) as server:
                    time.sleep(2)  # what is put off until it is idle
                    seconds[name].append(server.started_s)
                    held[name].append(server.memory_mb())
    good = True
    for name in names:
        most_s, most_mb = LIMITS.get(name, (float("inf"), float("inf")))
        kept = statistics.median(seconds[name]) <= most_s and statistics.median(held[name]) <= most_mb
        said = f"limits {most_s} s, {most_mb} MB: {'kept' if kept else 'MISSED'}" if name in LIMITS else ""
        print(f"{name:24} first answer after {spread(seconds[name], 2)} s, idle {spread(held[name], 0)} MB  {said}", flush=True)  # fmt: skip
        good = good and kept
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
