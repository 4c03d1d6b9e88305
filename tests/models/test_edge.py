"""A pack is the bundle's answers in one file, or there is no pack."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import toy
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.tree import DecisionTreeClassifier

from workbench.base.errors import BadInput, Corrupt, GateRefused, NotFound
from workbench.base.store import sha256_bytes
from workbench.data.contract import Column, Contract
from workbench.data.feed import Feed
from workbench.data.recipe import Recipe
from workbench.models import bundle as bundles
from workbench.models import edge, graph, runner
from workbench.models.shelf import Shelf
from workbench.models.trees import scorer_of

TRICKY = """
import numpy as np
from numpy import minimum

TABLE = np.array([0.5, -0.5, 2.0])

def _third(values):
    return values / 3

def features(rows, cut=np.float64(2.5)):
    n, x = rows["n"], rows["x"]
    return {
        "third": _third(n), "root": np.sqrt(np.abs(n)), "half": n // 2, "rest": n % 7, "back": -n // 3,
        "least": minimum(n, 4) * 0.1, "table": TABLE[n % 3], "gap": np.where(np.isnan(x), -1.0, x * cut),
        "x": x, "sign": np.where(n < 0, "minus" == "plus", n > 3).astype(np.int64), "word": rows["word"],
        "flag": rows["flag"], "bucket": n // 10, "level": np.floor(x),
    }

def label(rows):
    return rows["n"] > 0
"""
KINDS = Contract(
    "tricky",
    {"n": Column("int"), "x": Column("float", nullable=True), "word": Column("str"), "flag": Column("bool")},
)


def rows(count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 30, count)
    x[rng.random(count) < 0.2] = np.nan
    words = np.array(rng.choice(["a", "b", ""], count), dtype=object)
    return {"n": rng.integers(-50, 50, count), "x": x, "word": words, "flag": rng.random(count) < 0.5}


def encoded(module: graph.Preprocessing, columns: dict[str, np.ndarray]) -> np.ndarray:
    "What the drawn preprocessing gives, before it is a file."
    given = []
    with torch.no_grad():
        module(
            *(
                torch.ones(2, dtype=torch.int64 if n in module.text else _kind(columns[n]))
                for n in module.names
            )
        )
        for name in module.names:
            values = columns[name]
            if name in module.text:
                values = np.array([module.codes[name].get(text, 0) for text in values.tolist()])
            given.append(torch.from_numpy(values))
        return module(*given).numpy()


def _kind(values: np.ndarray) -> torch.dtype:
    return torch.from_numpy(values[:1]).dtype


def test_what_numpy_computes_is_drawn_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tricky.py").write_text(TRICKY)
    monkeypatch.syspath_prepend(str(tmp_path))
    numeric = ("third", "root", "half", "rest", "back", "least", "table", "gap", "x")
    recipe = Recipe("tricky:features", "tricky:label", numeric, ("sign", "word", "flag", "bucket", "level"))
    recipe = recipe.fit(rows(500, 0))
    other = rows(2000, 1)
    other["word"][:50] = "never seen"
    assert np.array_equal(encoded(graph.Preprocessing(recipe, KINDS), other), recipe.encode(other))


ORDINARY = """
import numpy as np

def features(r):
    x, n, kids, flag = r["x"], r["n"], r["kids"], r["flag"]
    small, near = x.astype(np.float32), np.abs(x - 15) <= 5
    return {
        "over": x > 15, "under": 15 >= x, "more": kids > 2, "part": n > 2.5, "same": n == flag, "truths": flag > near,
        "yes": flag == True, "mixed": small > n, "weak": small > 0.1,
        "ends": np.where(x > 15.0, 1.0, 0.0), "whole": np.where(x > 15, 1, 0) * x, "either": np.where(x > 15, n, 0.5),
        "tall": np.where(near, flag, n > 2), "said": np.where(kids == 2, True, False), "wide": np.where(flag, small, n),
        "thin": np.where(flag, small, 0.1), "any": np.where(n, 1.0, x), "gap": np.where(np.isnan(x), 0, x),
        "times": (x > 15) * 1.0, "both": flag * near, "sum": flag + near, "most": np.maximum(flag, near),
        "tenth": n * 0.1, "first": 2.0 * np.pi * x, "root": np.abs(n) ** 0.5, "rest": n % 2.5, "floor": np.floor(n),
    }

def label(r):
    return r["n"] > 0
"""


def test_onnxruntime_computes_ordinary_numpy_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    (tmp_path / "ordinary.py").write_text(ORDINARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    contract = Contract("ordinary", {**KINDS.columns, "kids": Column("int", nullable=True)})
    seen, other = rows(500, 0), rows(2000, 1)
    for columns in (seen, other):
        columns["kids"] = np.where(columns["flag"], np.nan, columns["n"] % 5)
        columns["x"][:3] = 15.0, 20.0, 0.0
    names = tuple(re.findall(r'"(\w+)":', ORDINARY))
    recipe = Recipe("ordinary:features", "ordinary:label", names).fit(seen)
    proto, codes = graph.preprocessing(recipe, contract)
    assert codes == {"word": {}}
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    word = np.zeros(2000, dtype=np.int64)
    found = session.run(None, {**{name: other[name] for name in contract.inputs}, "word": word})[0]
    assert np.array_equal(found, recipe.encode(other))


def test_the_flights_are_drawn_to_the_last_bit() -> None:
    from workbench.flights import features as flights

    rng, count, columns = np.random.default_rng(0), 3000, {}
    for name in flights.FlightContract.inputs:
        column = flights.FlightContract.columns[name]
        if column.dtype == "str":
            columns[name] = np.array(rng.choice(["EWR", "JFK", "UA", "ORD"], count), dtype=object)
        elif column.dtype == "int":
            columns[name] = rng.integers(column.ge, column.le + 1, count)
        else:
            columns[name] = rng.uniform(column.ge, column.le, count)
            columns[name][rng.random(count) < (0.2 if column.nullable else 0)] = np.nan
    recipe = Recipe(
        "workbench.flights.features:features",
        "workbench.flights.features:late",
        flights.NUMERIC,
        flights.CATEGORICAL,
    ).fit(columns)
    drawn = encoded(graph.Preprocessing(recipe, flights.FlightContract), columns)
    assert np.array_equal(drawn, recipe.encode(columns))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{'a': rows['word'] + 'x'}", "TypeError"),
        ("{'a': rows['x'] if rows['x'].sum() > 0 else rows['n']}", "cannot be drawn"),
        ("{'a': math.sqrt(rows['x'][0]) + rows['x']}", "cannot be drawn"),
        ("{'a': 1.0}", "feature 'a' is float"),
        ("{'a': np.tan(rows['x'])}", "implementation for Tan"),
        ("{'a': np.full(len(rows['x']), 3.0)}", "invalid dimensions"),
    ],
)
def test_features_that_cannot_be_drawn_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, why: str
) -> None:
    module = f"odd{abs(hash(body)) % 10**8}"
    (tmp_path / f"{module}.py").write_text(
        f"import math\nimport numpy as np\n\ndef features(rows):\n    return {body}\n\nlabel = features\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    stats = {"inputs": ["n", "x", "word"], "numeric": {"a": {"mean": 0.0, "std": 1.0, "has_missing": False}}}
    recipe = Recipe(f"{module}:features", f"{module}:label", ("a",), (), {**stats, "categorical": {}})
    with pytest.raises(BadInput, match=f"{module}:features cannot be drawn") as caught:
        graph.preprocessing(recipe, KINDS)
    assert why in str(caught.value)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bundles.Bundle, Feed, edge.Edge]:
    folder = tmp_path_factory.mktemp("edge")
    bundle = bundles.save(folder / "bundle", **toy.net_parts())
    pl.DataFrame(toy.columns(2000, 3)).with_columns(pl.col("wind").fill_nan(None)).write_parquet(
        folder / "rows.parquet"
    )
    feed = Feed(folder / "rows.parquet", toy.CONTRACT)
    return bundle, feed, edge.pack(bundle, folder / "delays.zip", feed)


@pytest.mark.parametrize("kind", ["forest", "tree", "boosting", "histograms"])
@pytest.mark.parametrize("gaps", [False, True])
def test_trees_are_drawn_to_the_last_bit(kind: str, gaps: bool) -> None:
    made, seen, other = toy.recipe(), toy.columns(800), toy.columns(2000, 3)
    x, z = made.encode(seen), made.encode(other)
    z[::9, made.n_dense] = 99  # a category that nobody has seen
    if gaps and kind != "boosting":  # which takes none
        x[::7, 0] = z[::5, 0] = np.nan
    scorer = scorer_of(GROWN[kind](made.n_dense).fit(x, toy.late(seen)))
    with torch.no_grad():
        assert np.array_equal(graph._Trees(scorer)(torch.from_numpy(z)).numpy(), scorer(z))


GROWN = {
    "forest": lambda at: RandomForestClassifier(7, random_state=0),
    "tree": lambda at: DecisionTreeClassifier(max_depth=5, random_state=0),
    "boosting": lambda at: GradientBoostingClassifier(n_estimators=9, random_state=0),
    "histograms": lambda at: HistGradientBoostingClassifier(
        max_iter=3, categorical_features=[at], random_state=0
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("parts", [toy.linear_parts, toy.tree_parts])
def test_a_model_without_torch_is_packed_too(tmp_path: Path, parts: Callable[[], dict[str, Any]]) -> None:
    bundle = bundles.save(tmp_path / "bundle", **parts())
    found = edge.pack(bundle, tmp_path / "delays.zip")
    columns = toy.columns(2000, 3)
    assert np.abs(found.runner().scores(columns) - bundle.predictor()(columns)).max() <= 1e-7
    assert found.meta["verified"]["feed"] == "its kept rows"


Packed = tuple[bundles.Bundle, Feed, edge.Edge]


def test_every_row_of_the_feed_is_compared(packed: Packed) -> None:
    _, feed, found = packed
    seen = found.meta["verified"]
    assert (seen["rows"], seen["fingerprint"]) == (2000, feed.fingerprint())
    assert 0 <= seen["largest_difference"] <= 1e-6
    assert "verified on delays: 2,000 rows" in str(found) and "largest_difference" in found._repr_html_()


def test_rows_give_the_bundle_s_answers_in_any_number(packed: Packed) -> None:
    bundle, _, found = packed
    some = [{"rain": 1.0, "wind": None, "carrier": "UA"}, {"rain": 0.0, "wind": 3.5, "carrier": "new"}] * 20
    want = bundle.predictor()(toy.CONTRACT.parse_rows(some))
    model = found.runner()
    assert np.abs(model.predict(some) - want).max() <= 1e-6
    assert np.abs(model.predict(some[:1]) - want[:1]).max() <= 1e-6


def test_the_file_runs_as_a_program_outside_of_any_package(packed: Packed, tmp_path: Path) -> None:
    bundle, _, found = packed
    row = toy.CONTRACT.example()
    command = [sys.executable, "-I", "-S", "-c", _WITHOUT_US, str(found.path), json.dumps(row)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer, *modules = done.stdout.splitlines()
    want = float(bundle.predictor()(toy.CONTRACT.parse_rows([row]))[0])
    assert abs(json.loads(answer)["prediction"] - want) <= 1e-6
    assert not {"workbench", "torch", "polars", "pydantic"} & set(modules)


def test_the_program_in_a_pack_is_a_hundred_plain_lines(packed: Packed, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_bytes(zipfile.ZipFile(packed[2].path).read("__main__.py"))
    assert len(path.read_text().splitlines()) <= 100
    for check in (("format", "--check"), ("check", "--select", "E,F,I,B,UP", "--ignore", "E501")):
        done = subprocess.run(
            ["ruff", *check, "--isolated", "--line-length", "110", str(path)], capture_output=True
        )
        assert done.returncode == 0, done.stdout


_WITHOUT_US = f"""
import atexit, runpy, sys
sys.path += {[p for p in sys.path if "site-packages" in p]!r}
sys.argv = sys.argv[1:]
atexit.register(lambda: print(*sorted(name for name in sys.modules if "." not in name), sep="\\n"))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_graph_that_is_not_the_bundle_s_is_no_pack(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, feed, found = packed
    other = bundles.save(tmp_path / "other", **toy.linear_parts())
    with pytest.raises(GateRefused, match=r"is not the bundle: row \d+ moved by"):
        edge.verify(found.runner(), other, feed.columns())
    proto = zipfile.ZipFile(found.path).read("model.onnx")
    import onnx

    monkeypatch.setattr(edge, "graph_of", lambda bundle: (onnx.load_from_string(proto), found.meta["codes"]))
    with pytest.raises(GateRefused, match="is not the bundle"):
        edge.pack(other, tmp_path / "other.zip", feed)
    assert not list(tmp_path.glob("*.zip*")) and not list(tmp_path.glob(".*part"))


def test_a_graph_that_onnxruntime_does_not_take_is_refused_by_name(packed: Packed, tmp_path: Path) -> None:
    path, model = tmp_path / "odd.zip", b"no graph"
    edge._zip(path, {**packed[2].meta, "model": sha256_bytes(model)}, model, Shelf().keys)
    with pytest.raises(BadInput, match="graph of bundle does not run in onnxruntime: InvalidProtobuf"):
        edge._opens(path, "bundle")


def test_a_text_column_that_no_feature_uses_is_checked_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import numpy as np\ndef features(r):\n    return {'v': np.log1p(r['x'])}\ndef label(r):\n    return r['x'] > 1\n"
    (tmp_path / "unread.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    columns = {
        "x": Column("float", ge=0),
        "note": Column("str", max_len=30),
        "more": Column("str", nullable=True),
    }
    contract, texts = Contract("unread", columns), np.array(["a", "b"] * 50, dtype=object)
    recipe = Recipe("unread:features", "unread:label", ("v",))
    recipe = recipe.fit({"x": np.linspace(0, 9, 100), "note": texts, "more": texts})
    weights = {"bias": np.array([0.5]), "dense": np.array([2.0])}
    config = {"n_dense": recipe.n_dense, "sizes": recipe.sizes}
    parts = {"model": toy.LINEAR, "config": config, "weights": weights, "framework": "numpy"}
    bundle = bundles.save(tmp_path / "bundle", **parts, contract=contract, recipe=recipe)
    model = edge.pack(bundle, tmp_path / "unread.zip").runner()
    some = [{"x": 2.5, "note": "a", "more": None}, {"x": 0.0, "note": "größe", "more": "never seen"}]
    want = bundle.predictor()(contract.parse_rows(some))
    assert np.abs(model.predict(some) - want).max() <= 1e-6
    for note in ("a" * 31, None, 5):
        with pytest.raises(runner.Refused, match="'note'"):
            model.predict([{**some[0], "note": note}])


def test_whose_a_pack_is(packed: Packed, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="signed by another store"):
        edge.opened(packed[2].path)
    whole, model = tmp_path / "whole.zip", zipfile.ZipFile(packed[2].path).read("model.onnx")
    signed = edge._zip(whole, packed[2].meta, model, Shelf().keys)
    with zipfile.ZipFile(whole) as pack:
        files = {name: pack.read(name) for name in pack.namelist()}
    line = files[edge.SIGNATURE].decode().split()
    assert edge.opened(whole).signed == signed == " ".join(line[:2])
    meta = json.loads(files[runner.META])
    for name, change, error, said in (
        ("index.html", b"<p>", Corrupt, "index.html does not match its sha256"),
        ("__main__.py", None, Corrupt, "__main__.py is missing"),
        (runner.META, json.dumps({**meta, "ref": "other/1"}).encode(), Corrupt, "does not fit it"),
        (runner.META, json.dumps({**meta, "files": {}}).encode(), Corrupt, "nobody said what it must be"),
        (edge.SIGNATURE, None, BadInput, "is not signed"),
        (edge.SIGNATURE, b"hmac-sha256 " + b"0" * 16 + b" " + b"0" * 64 + b"\n", BadInput, "another store"),
        ("more.py", b"", BadInput, "holds"),
    ):
        changed = {n: c for n, c in {**files, name: change}.items() if c is not None}
        with zipfile.ZipFile(tmp_path / "changed.zip", "w") as pack:
            for each, content in changed.items():
                pack.writestr(each, content)
        with pytest.raises(error, match=said):
            edge.opened(tmp_path / "changed.zip")
        if name.startswith("index"):  # a device has no key, and checks the sums
            with pytest.raises(runner.Refused, match=said):
                runner.Runner(tmp_path / "changed.zip")
    (tmp_path / "cut.zip").write_bytes(whole.read_bytes()[:-50])
    with pytest.raises(NotFound, match="no pack at"):
        edge.opened(tmp_path / "nowhere.zip")
    with pytest.raises(Corrupt, match="no whole pack"):
        edge.opened(tmp_path / "cut.zip")


def test_the_alias_edge_says_what_a_device_gets() -> None:
    shelf = Shelf()
    for slope in (1.0, 2.0, 3.0):
        shelf.add("delays", **toy.linear_parts(slope))
    shelf.set_alias("delays", "champion", 1)
    assert edge.placed("delays").version == 1
    shelf.set_alias("delays", "edge", 2)
    assert [edge.placed(ref).version for ref in ("delays", "delays@champion", "delays/3")] == [2, 1, 3]


@pytest.mark.slow
def test_a_fresh_environment_of_150_mb_is_enough(packed: Packed, tmp_path: Path) -> None:
    bundle, _, found = packed
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = str(place / "bin/python")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-compile",
        "onnxruntime",
        "numpy",
    ]
    subprocess.run(pip, check=True)
    size_mb = (
        sum(path.stat().st_size for path in place.rglob("*") if path.is_file() and not path.is_symlink())
        / 1e6
    )
    row = toy.CONTRACT.example()
    for name, parts in {"net": None, "linear": toy.linear_parts, "trees": toy.tree_parts}.items():
        if parts:
            bundle = bundles.save(tmp_path / name, **parts())
            found = edge.pack(bundle, tmp_path / f"{name}.zip")
        command = [python, str(found.path), json.dumps(row)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        want = float(bundle.predictor()(toy.CONTRACT.parse_rows([row]))[0])
        assert abs(json.loads(done.stdout)["prediction"] - want) <= 1e-6, done.stderr
    print(f"a venv with numpy and onnxruntime: {size_mb:.0f} MB")
    assert size_mb <= 150
