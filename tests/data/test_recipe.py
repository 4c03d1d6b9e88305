"""Encoding gives the same bits for a row anywhere, and features cannot see the answer."""

import json
import math
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.base.errors import BadInput, NotFound
from workbench.base.objects import load_object
from workbench.data.contract import Columns
from workbench.data.recipe import LIMIT, Recipe, _coded, _texts


def _features(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "wind": columns["wind"],
        "distance": columns["distance"],
        "night": columns["at"].astype("datetime64[h]").astype(int) % 24 < 6,
        "carrier": columns["carrier"],
        "hour": columns["at"].astype("datetime64[h]").astype(int) % 24,
    }


def _late(columns: dict[str, np.ndarray]) -> np.ndarray:
    return columns["delay"] > 15


@pytest.fixture(autouse=True)
def module() -> Iterator[types.ModuleType]:
    made = types.ModuleType("recipe_parts")
    made.features, made.late = _features, _late  # type: ignore[attr-defined]
    sys.modules["recipe_parts"] = made
    yield made
    del sys.modules["recipe_parts"]


def rows(size: int, seed: int = 0) -> Columns:
    rng = np.random.default_rng(seed)
    return Columns(
        {
            "wind": np.where(rng.random(size) < 0.1, np.nan, rng.gamma(2, 5, size)),
            "distance": rng.integers(80, 5000, size),
            "at": rng.integers(0, 10**6, size).astype("datetime64[m]").astype("datetime64[us]"),
            "carrier": rng.choice(np.array(["AA", "B6", "UA", ""], dtype=object), size),
            "delay": rng.normal(5, 20, size),
            "id": np.arange(size),
        },
        inputs=("wind", "distance", "at", "carrier"),
    )


RECIPE = Recipe(
    "recipe_parts:features", "recipe_parts:late", ("wind", "distance", "night"), ("carrier", "hour")
)


def take(columns: Columns, index: Any) -> dict[str, np.ndarray]:
    return {name: values[index] for name, values in columns.items()}


def test_layout() -> None:
    columns = rows(500)
    recipe = RECIPE.fit(columns)
    found = recipe.encode(columns)
    assert (found.dtype, found.shape) == (np.float32, (500, recipe.width))
    assert recipe.names == ["wind", "distance", "night", "wind is missing", "carrier", "hour"]
    assert (recipe.n_dense, recipe.width, recipe.sizes) == (4, 6, [4, 25])
    missing = np.isnan(columns["wind"])
    assert (found[missing, 0] == 0).all() and (found[:, 3] == missing).all()
    known = columns["wind"][~missing]
    want = ((known - known.mean()) / known.std()).astype(np.float32)
    assert found[~missing, 0].tobytes() == want.tobytes()
    assert set(found[columns["carrier"] == "", 4]) == {0} and set(found[columns["carrier"] == "UA", 4]) == {3}
    assert recipe.labels(columns).dtype == np.float32


@given(st.integers(1, 200), st.integers(0, 10**6), st.lists(st.integers(1, 199), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_split_gives_the_same_bits(size: int, seed: int, cuts: list[int]) -> None:
    made = sys.modules.setdefault("recipe_parts", types.ModuleType("recipe_parts"))
    made.features, made.late = _features, _late  # type: ignore[attr-defined]
    recipe, columns = RECIPE.fit(rows(300)), rows(size, seed)
    whole = recipe.encode(columns)
    edges = sorted({0, size, *(cut for cut in cuts if cut < size)})
    parts = [recipe.encode(take(columns, slice(a, b))) for a, b in zip(edges, edges[1:], strict=False)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    alone = [recipe.encode(take(columns, slice(i, i + 1))) for i in range(min(size, 40))]
    assert np.concatenate(alone).tobytes() == whole[:40].tobytes()
    order = np.random.default_rng(seed).permutation(size)
    assert recipe.encode(take(columns, order)).tobytes() == whole[order].tobytes()


def test_unknown_categories_are_code_zero() -> None:
    recipe, columns = RECIPE.fit(rows(300)), rows(3)
    columns["carrier"] = np.array(["ZZ", "", None], dtype=object)
    assert recipe.encode(columns)[:, 4].tolist() == [0, 0, 0]


def test_numbers_as_categories_do_not_depend_on_their_type(module: types.ModuleType) -> None:
    module.features = lambda columns: columns  # type: ignore[attr-defined]
    recipe = Recipe("recipe_parts:features", "recipe_parts:late", (), ("x",)).fit({"x": np.array([5, 7])})
    assert recipe.encode({"x": np.array([7.0, 5.0, math.nan, 5.5])})[:, 0].tolist() == [2, 1, 0, 0]
    assert recipe.encode({"x": np.array(["7", "5"])})[:, 0].tolist() == [2, 1]
    with pytest.raises(BadInput, match="datetime64"):
        recipe.encode({"x": np.array(["2013-01-01"], dtype="datetime64[us]")})


@pytest.mark.parametrize("value", [1e300, -1e300, 1e308, -0.0, 5e-324, np.inf, -np.inf, np.nan])
def test_no_number_overflows(module: types.ModuleType, value: float) -> None:
    module.features = lambda columns: columns  # type: ignore[attr-defined]
    recipe = Recipe("recipe_parts:features", "recipe_parts:late", ("x",)).fit({"x": np.array([1e-9, 2e-9])})
    found = recipe.encode({"x": np.array([value])})
    assert np.isfinite(found).all() and np.abs(found).max() <= LIMIT


def test_fit_meets_every_kind_of_column(module: types.ModuleType) -> None:
    module.features = lambda columns: columns  # type: ignore[attr-defined]
    recipe = Recipe("recipe_parts:features", "recipe_parts:late", ("x",))
    constant = recipe.fit({"x": np.full(9, 0.1)})
    assert constant.encode({"x": np.full(2, 0.1)}).tolist() == [[0], [0]]
    empty = recipe.fit({"x": np.full(9, np.nan)})
    assert empty.encode({"x": np.array([np.nan, 1.0])}).tolist() == [[0, 1], [1, 0]]
    with pytest.raises(BadInput, match="infinite"):
        recipe.fit({"x": np.array([1.0, np.inf])})
    with pytest.raises(BadInput, match="too large"):
        recipe.fit({"x": np.array([1e308, -1e308, 1e308])})
    with pytest.raises(BadInput, match="not a number"):
        recipe.fit({"x": np.array(["a"], dtype=object)})


def test_features_see_inputs_only(module: types.ModuleType) -> None:
    seen: list[set[str]] = []

    def spy(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(set(columns))
        return _features(columns)

    module.features = spy  # type: ignore[attr-defined]
    columns = rows(50)
    recipe = RECIPE.fit(columns)
    recipe.encode(columns), recipe.encode(take(columns, slice(5))), recipe.encode(dict(columns))
    assert seen == [{"wind", "distance", "at", "carrier"}] * 4
    module.features = lambda columns: {"wind": columns["delay"]}  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="asked for 'delay', an outcome or a key"):
        RECIPE.fit(columns)
    module.features = lambda columns: {"wind": columns["widn"]}  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="asked for 'widn', not among the columns"):
        RECIPE.fit(columns)


def test_a_features_function_that_gives_too_little_is_named(module: types.ModuleType) -> None:
    module.features = lambda columns: {"wind": columns["wind"]}  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="gave no 'distance'"):
        RECIPE.fit(rows(5))
    module.features = lambda columns: _features(columns) | {"wind": 1.0}  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match=r"'wind' has shape \(\)"):
        RECIPE.fit(rows(5))


@pytest.mark.parametrize(
    "label", [np.array([0, 1]), np.array([[0]] * 5), np.array([0, 1, 2, 0, 0]), np.full(5, np.nan)]
)
def test_labels_are_one_0_or_1_a_row(module: types.ModuleType, label: np.ndarray) -> None:
    module.late = lambda columns: label  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="recipe_parts:late gave"):
        RECIPE.labels(rows(5))


def test_json_round_trip_is_exact() -> None:
    columns = rows(300)
    recipe = RECIPE.fit(columns)
    copy = Recipe.from_json(json.loads(json.dumps(recipe.to_json(), allow_nan=False)))
    assert copy == recipe and copy.encode(columns).tobytes() == recipe.encode(columns).tobytes()
    assert Recipe.from_json(RECIPE.to_json()) == RECIPE
    for data in ({}, [], {"features": "a:b"}, RECIPE.to_json() | {"surprise": 1}):
        with pytest.raises(BadInput, match="no recipe"):
            Recipe.from_json(data)  # type: ignore[arg-type]


def test_what_is_not_fitted_says_so() -> None:
    for use in (
        lambda: RECIPE.encode(rows(3)),
        lambda: RECIPE.width,
        lambda: RECIPE.sizes,
        lambda: RECIPE.names,
    ):
        with pytest.raises(BadInput, match="not fitted"):
            use()
    assert "not fitted" in str(RECIPE) and "fitted" in RECIPE._repr_html_()


@pytest.mark.parametrize("names", [((), ()), (("a", "a"), ()), (("a",), ("a",))])
def test_each_feature_is_named_once(names: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    with pytest.raises(BadInput):
        Recipe("m:f", "m:l", *names)


@pytest.mark.parametrize(
    "path", ["os", "os:", ":system", "os:path.join", "os system:x", "a/b:c", "..x:y", "os:a()", "", None, 3]
)
def test_an_import_path_is_only_identifiers(path: Any) -> None:
    with pytest.raises(BadInput):
        load_object(path)


def test_what_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound, match="has no 'nothing'"):
        load_object("os:nothing")
    with pytest.raises(NotFound, match="cannot be imported"):
        load_object("workbench.no_such_room:x")
    assert load_object("os.path:join") is __import__("os").path.join


def test_a_service_needs_no_heavy_library() -> None:
    code = "import sys, workbench.data.contract, workbench.data.recipe; print([m for m in ('polars', 'pandera', 'pandas', 'torch', 'pyarrow', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        {"features": _features},
        {"label": _late},
        {"features": "no path"},
        {"numeric": "wind"},
        {"numeric": (3,)},
        {"categorical": None},
        {"stats": None},
    ],
)
def test_a_recipe_of_the_wrong_kinds_is_refused_when_it_is_made(arguments: dict[str, Any]) -> None:
    parts = {"features": "recipe_parts:features", "label": "recipe_parts:late", "numeric": ("wind",)}
    with pytest.raises(BadInput):
        Recipe(**parts | arguments)


@pytest.mark.parametrize("columns", [None, "feed", [1, 2], object()])
def test_what_is_no_columns_is_named(columns: Any) -> None:
    fitted = RECIPE.fit(rows(50))
    for verb in (RECIPE.fit, fitted.encode, fitted.labels):
        with pytest.raises(BadInput, match="columns is"):
            verb(columns)


@pytest.mark.parametrize("rows", [3, 500])
def test_a_code_is_found_whatever_kind_of_array_holds_the_category(rows: int) -> None:
    kinds = {
        "text": np.array(["AA", None, "5", "zz", 5, True] * rows, dtype=object),
        "whole": np.array([5, 7, 5, -1, 12, 0] * rows),
        "half": np.array([5.0, np.nan, 0.5, np.inf, 7.0, -0.0] * rows),
        "flag": np.array([True, False, True, True, False, True] * rows),
        "fixed": np.array(["AA", "zz", "5", "", "5", "AA"] * rows),
    }
    names = tuple(kinds)
    words = {"categorical": {name: ["0", "0.5", "1", "5", "AA", "True"] for name in names}, "numeric": {}}
    recipe = Recipe("a:b", "a:c", (), names, stats={"inputs": list(names), **words})
    for name, values in kinds.items():
        want = [recipe._codes[name].get(text, 0) for text in _texts(name, values)]
        assert _coded(name, values, recipe._codes[name]).tolist() == want, name


def test_functions_that_err_are_told_what_they_may_use(module: types.ModuleType) -> None:
    module.features = lambda columns: [1]  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="what recipe_parts:features gave is a list, expected Mapping"):
        RECIPE.fit(rows(9))
    module.late = lambda columns: columns["dely"] > 15  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="recipe_parts:late asked for 'dely', not among the columns") as caught:
        RECIPE.labels(rows(9))
    assert "delay" in caught.value.hint
