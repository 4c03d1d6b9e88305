"""Every kind of model in a bundle: the same bits in fresh processes, with little more than the light core installed."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from test_encoder import SHAPE, TEXTS, write_folder

from workbench.base.errors import BadInput, Corrupt, NotFound
from workbench.base.ledger import Ledger
from workbench.base.store import Store
from workbench.data.contract import Column, Contract
from workbench.data.recipe import Recipe
from workbench.models import bundle as bundles
from workbench.models import encoder
from workbench.models.folder import INDEX, weight_names
from workbench.models.onnxmodel import OnnxScorer, from_onnx
from workbench.models.shards import open_shards
from workbench.models.shelf import Shelf, load
from workbench.models.trees import TreeScorer, from_sklearn, scorer_of

ROWS = """
import numpy as np

def features(columns):
    return {name: columns[name] for name in ("rain", "wind", "carrier")}

def late(columns):
    return (columns["delay"] > 15).astype("float32")

def columns(rows, seed=0):
    rng = np.random.default_rng(seed)
    carrier = np.array(rng.choice(["AA", "DL", "UA", "WN"], rows), dtype=object)
    rain, wind = rng.gamma(1.0, 2.0, rows), rng.normal(10, 4, rows)
    return {"rain": rain, "wind": wind, "carrier": carrier, "delay": 10 * rain + 9 * (carrier == "UA") - wind}
"""
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.config = {"width": width, "hidden": hidden}
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, x):
        return self.body(x).squeeze(1)
"""
CONTRACT = Contract(
    "rows",
    {
        "rain": Column("float"),
        "wind": Column("float"),
        "carrier": Column("str"),
        "delay": Column("float", role="outcome"),
    },
)
CATEGORY = 2  # of the encoded columns
GROWN = {
    "forest": RandomForestClassifier(25, random_state=0),
    "extra": ExtraTreesClassifier(10, max_depth=7, random_state=0),
    "tree": DecisionTreeClassifier(max_depth=5, random_state=0),
    "boosting": GradientBoostingClassifier(n_estimators=30, subsample=0.7, random_state=0),
    "histograms": HistGradientBoostingClassifier(
        max_iter=40, categorical_features=[CATEGORY], random_state=0
    ),
    "numbers": HistGradientBoostingClassifier(max_iter=10, random_state=0),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    "A folder with the modules that bundles name, and with a store."
    folder = tmp_path_factory.mktemp("home")
    (folder / "plainrows.py").write_text(ROWS)
    (folder / "plainnet.py").write_text(NET)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in ("plainrows", "plainnet"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def rows(home: Path) -> Any:
    import plainrows

    return plainrows


@pytest.fixture(scope="module")
def recipe(rows: Any) -> Recipe:
    made = Recipe("plainrows:features", "plainrows:late", numeric=("rain", "wind"), categorical=("carrier",))
    return made.fit(rows.columns(800))


@pytest.fixture(scope="module")
def shelf(home: Path) -> Shelf:
    return Shelf(Ledger(Store(home / "store")))


@pytest.fixture(scope="module")
def xy(rows: Any, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    columns = rows.columns(800)
    assert recipe.n_dense == CATEGORY
    return recipe.encode(columns), rows.late(columns)


def graph(width: int, name: str = "logit", rows: Any = "rows", two: bool = False) -> bytes:
    rng = np.random.default_rng(3)
    wide = 2 if two else 1
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, width])]
    ends += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, wide])]
    fixed = [numpy_helper.from_array(rng.normal(0, 0.5, (width, wide)).astype("f4"), "w")]
    made = helper.make_graph([helper.make_node("MatMul", ["x", "w"], [name])], "g", ends[:1], ends[1:], fixed)
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()


def net_parts(width: int) -> dict[str, Any]:
    from plainnet import Net

    torch.manual_seed(0)
    net = Net(width, 64)
    weights = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
    return {"model": "plainnet:Net", "config": net.config, "weights": weights, "framework": "torch"}


@pytest.fixture(scope="module")
def kept(
    home: Path, shelf: Shelf, recipe: Recipe, xy: Any, tmp_path_factory: pytest.TempPathFactory
) -> Shelf:
    "One model of each kind, each of them champion."
    parts = {name: from_sklearn(model.fit(*xy)) for name, model in GROWN.items()}
    parts["logistic"] = from_sklearn(LogisticRegression().fit(*xy))
    parts["graph"] = from_onnx(graph(recipe.width), logits=True)
    parts["net"] = net_parts(recipe.width)
    parts["shards"] = {**net_parts(recipe.width), "shard_bytes": 2000}
    for name, part in parts.items():
        shelf.add(name, **part, contract=CONTRACT, recipe=recipe)
        shelf.set_alias(name, "champion", 1)
    shelf.add("sentences", source=write_folder(tmp_path_factory.mktemp("open") / "model"))
    shelf.set_alias("sentences", "champion", 1)
    return shelf


FRESH = """
import hashlib, json, sys
blocked = set(sys.argv[2].split(","))

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import workbench as wb
out = {}
for name in sys.argv[3].split(","):
    bundle = wb.load(f"{name}@champion")
    if bundle.framework == "encoder":
        found = bundle.encoder().encode(json.loads(sys.argv[4]))
    else:
        import plainrows
        found = bundle.predictor()(plainrows.columns(777, seed=5))
    out[name] = hashlib.sha256(found.tobytes()).hexdigest()
loaded = sorted(blocked & set(sys.modules))
print(json.dumps({"out": out, "loaded": loaded}))
"""
EXTRAS = (
    "sklearn,scipy,pandas,polars,pyarrow,pandera,ray,mlflow,papermill,fastapi,uvicorn,matplotlib,onnx,joblib"
)
PLAIN = [*GROWN, "logistic"]


def fresh(home: Path, blocked: str, names: list[str]) -> dict[str, str]:
    env = {**os.environ, "WORKBENCH_STORE": str(home / "store"), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", FRESH, str(home), blocked, ",".join(names), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["loaded"] == []
    return found["out"]


def here(shelf: Shelf, rows: Any, name: str) -> str:
    bundle = load(f"{name}@champion", shelf.ledger)
    if name == "sentences":
        return hashlib.sha256(bundle.encoder().encode(TEXTS).tobytes()).hexdigest()
    return hashlib.sha256(bundle.predictor()(rows.columns(777, seed=5)).tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("names", "blocked"),
    [
        (PLAIN, f"{EXTRAS},torch,onnxruntime,tokenizers"),
        (["graph"], f"{EXTRAS},torch,tokenizers"),
        (["net", "shards", "sentences"], f"{EXTRAS},onnxruntime"),
    ],
    ids=["numpy", "onnxruntime", "torch"],
)
def test_repeatable(kept: Shelf, home: Path, rows: Any, names: list[str], blocked: str) -> None:
    wanted = {name: here(kept, rows, name) for name in names}
    assert fresh(home, blocked, names) == wanted == fresh(home, blocked, names)


@pytest.mark.slow  # makes environments
@pytest.mark.parametrize(
    ("names", "more"),
    [
        (PLAIN, []),
        (["graph"], ["onnxruntime"]),
        (["net", "shards"], ["torch"]),
        (["sentences"], ["torch", "tokenizers"]),
    ],
    ids=["core", "onnxruntime", "torch", "text"],
)
def test_the_light_core_and_an_engine_are_enough(
    kept: Shelf, home: Path, rows: Any, tmp_path: Path, names: list[str], more: list[str]
) -> None:
    root, source, place = Path(__file__).parents[2], tmp_path / "source", tmp_path / "venv"
    shutil.copytree(root / "workbench", source / "workbench", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = str(place / "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile"]
    subprocess.run([*pip, "-c", str(root / "constraints.txt"), str(source), *more], check=True)
    env = {"WORKBENCH_STORE": str(home / "store"), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [python, "-c", FRESH, str(home), "", ",".join(names), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["out"] == {name: here(kept, rows, name) for name in names}
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"a venv with the light core{''.join(f' and {name}' for name in more)}: {size / 1e6:.0f} MB")


@pytest.mark.parametrize("name", GROWN)
def test_trees_have_the_bits_of_scikit_learn(kept: Shelf, rows: Any, recipe: Recipe, name: str) -> None:
    columns = rows.columns(20_000, seed=9)
    columns["carrier"][::50] = "never seen"
    wanted = GROWN[name].predict_proba(recipe.encode(columns))[:, 1].astype(np.float32)
    predict = load(f"{name}@champion", kept.ledger).predictor()
    assert predict(columns).tobytes() == wanted.tobytes()
    assert predict.rows_per_tile == 32


def test_a_logistic_model_moves_by_a_last_bit_at_most(
    kept: Shelf, rows: Any, recipe: Recipe, xy: Any
) -> None:
    columns = rows.columns(20_000, seed=9)
    model = LogisticRegression().fit(*xy)
    wanted = model.predict_proba(recipe.encode(columns).astype(np.float64))[:, 1]
    assert np.abs(load("logistic@champion", kept.ledger).predictor()(columns) - wanted).max() < 1.2e-7


@pytest.mark.parametrize("kind", ["forest", "boosting", "histograms"])
def test_gaps_go_where_scikit_learn_sends_them(xy: Any, kind: str) -> None:
    x, y = xy[0].copy(), xy[1]
    if kind != "boosting":  # which takes none
        x[::7, 0] = np.nan
    few = {"max_iter" if kind == "histograms" else "n_estimators": 9}
    model = type(GROWN[kind])(random_state=1, **few).fit(x, y)
    assert np.array_equal(scorer_of(model)(x), model.predict_proba(x)[:, 1].astype(np.float32))


def test_what_is_not_built_is_refused_by_name(xy: Any) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    x, y = xy
    for model, said in [
        (RandomForestClassifier(2), "no fitted classifier"),
        (RandomForestClassifier(2).fit(x, np.arange(len(x)) % 3), "3 classes"),
        (KNeighborsClassifier().fit(x, y), "is not built here"),
        (GradientBoostingClassifier(n_estimators=2, loss="exponential").fit(x, y), "is not built here"),
        (GradientBoostingClassifier(n_estimators=2, init=LogisticRegression()).fit(x, y), "of its own"),
        (object(), "no fitted classifier"),
    ]:
        with pytest.raises(BadInput, match=said):
            from_sklearn(model)


@pytest.mark.parametrize("name", ["left", "right", "feature", "root", "bits"])
@pytest.mark.parametrize("value", [-2, 10**6])
def test_trees_that_point_outside_are_refused(xy: Any, name: str, value: int) -> None:
    parts = from_sklearn(GROWN["tree"].fit(*xy))
    if name == "bits" and value < 0:
        value = 5  # below zero means: a number
    parts["weights"][name][0] = value
    with pytest.raises(BadInput, match="points outside"):
        TreeScorer(**parts["config"]).load_weights(parts["weights"])


def test_a_graph_of_any_origin_says_what_to_ask(recipe: Recipe) -> None:
    x = np.random.default_rng(0).normal(size=(5, recipe.width)).astype(np.float32)
    both = from_onnx(graph(recipe.width, two=True), column=1, logits=True)
    made = OnnxScorer(**both["config"]).load_weights(both["weights"])
    assert made(x).shape == (5,) and (made(x) != OnnxScorer().load_weights(both["weights"])(x)).any()
    with pytest.raises(BadInput, match="picked here"):
        made.onnx_model()
    assert from_onnx(graph(recipe.width, rows=1))["config"]["by_row"] is True
    for wrong, said in [
        (lambda: from_onnx(graph(recipe.width, rows=7)), "exactly 7 rows"),
        (lambda: from_onnx(graph(recipe.width), output="nothing"), "outputs logit"),
        (lambda: from_onnx(b"PK\x03\x04"), "cannot read the graph"),
    ]:
        with pytest.raises(BadInput, match=said):
            wrong()


def test_large_weights_are_shards_that_open_lazily(kept: Shelf, rows: Any) -> None:
    bundle, whole = load("shards@champion", kept.ledger), load("net@champion", kept.ledger)
    names = weight_names(bundle.meta["files"])
    assert (
        len(names) == 3 and INDEX in bundle.meta["files"] and names[0] == "model-00001-of-00003.safetensors"
    )
    assert bundle.size_bytes == sum(path.stat().st_size for path in bundle.path.iterdir())
    columns = rows.columns(50)
    assert bundle.predictor()(columns).tobytes() == whole.predictor()(columns).tobytes()
    little = load("shards@champion", kept.ledger, max_memory="0.02MB")
    assert little.predictor()(columns).tobytes() == whole.predictor()(columns).tobytes()
    lazily = open_shards(bundle.path)
    net = net_parts(bundle.recipe.width)
    assert all(np.array_equal(lazily.tensor(name).numpy(), net["weights"][name]) for name in net["weights"])


@pytest.mark.parametrize("what", ["missing", "swapped", "cut", "another index"])
def test_shards_that_are_not_as_they_were_are_corrupt(kept: Shelf, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(load("shards@champion", kept.ledger).path, folder)
    first, second = (folder / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
    if what == "missing":
        second.unlink()
    elif what == "swapped":
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    elif what == "cut":
        second.write_bytes(second.read_bytes()[:-1])
    else:
        (folder / INDEX).write_text((folder / INDEX).read_text().replace("00001-of", "00002-of"))
    with pytest.raises(Corrupt):
        bundles.load(folder, keys=kept.keys)


def test_an_open_encoder_is_a_bundle(kept: Shelf, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "model")
    bundle = load("sentences@champion", kept.ledger)
    assert bundle.encoder().encode(TEXTS).tobytes() == encoder.load(source).encode(TEXTS).tobytes()
    assert bundle.encoder(torch.bfloat16).encode(TEXTS).shape == (len(TEXTS), SHAPE.hidden_size)
    assert "encoder" in str(bundle) and "texts" in bundle._repr_html_()
    with pytest.raises(BadInput, match=r"sentences into vectors") as caught:
        bundle.predictor()
    assert "encoder().encode" in caught.value.hint
    with pytest.raises(BadInput, match="is no encoder"):
        load("forest@champion", kept.ledger).encoder()


def test_of_an_open_model_only_its_layout_comes_along(kept: Shelf, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "model")
    (source / "README.md").write_text("hello")
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (source / "modeling.py").write_text("raise SystemExit")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    made = bundles.save_encoder(tmp_path / "b", source, keys=kept.keys)
    names = {path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file()}
    assert names == {
        "config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json",
        "bundle.json", "bundle.sha256", "bundle.sig",
    }  # fmt: skip
    assert made.encoder().net.shape.pooling == "cls"
    (made.path / "1_Pooling" / "evil.py").write_text("")
    with pytest.raises(BadInput, match="unknown file '1_Pooling/evil.py'"):
        bundles.load(made.path, keys=kept.keys)
    (made.path / "1_Pooling" / "evil.py").unlink()
    moved = json.loads((made.path / "config.json").read_text()) | {"layer_norm_eps": 0.1}
    (made.path / "config.json").write_text(json.dumps(moved))
    with pytest.raises(Corrupt, match="config.json"):
        made.encoder()


def test_an_open_model_that_cannot_be_read_is_no_bundle(kept: Shelf, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "model")
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(NotFound, match="only pytorch_model.bin"):
        kept.add("pickled", source=source)
    assert kept.versions("pickled") == []
