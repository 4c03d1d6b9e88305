"""Same row, same bits: alone, in a batch, elsewhere, in another process, with other thread settings."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy

from workbench.base.errors import BadInput, NotFound
from workbench.models import bundle as bundles
from workbench.models.predictor import TILE_ROWS, Predictor, _plans, check_object, torch_score

PARTS = {"net": toy.net_parts, "linear": toy.linear_parts}


@pytest.fixture(params=PARTS)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> bundles.Bundle:
    return bundles.save(tmp_path / "bundle", **PARTS[request.param]())


def take(columns: dict[str, np.ndarray], rows: Any) -> dict[str, np.ndarray]:
    return {name: values[rows] for name, values in columns.items()}


def test_alone_in_a_batch_and_elsewhere(bundle: bundles.Bundle) -> None:
    predict, columns = bundle.predictor(), toy.columns(1000, seed=3)
    whole = predict(columns)
    assert whole.dtype == np.float32 and whole.shape == (1000,) and len(np.unique(whole)) > 900
    alone = np.concatenate([predict(take(columns, slice(i, i + 1))) for i in range(300)])
    assert alone.tobytes() == whole[:300].tobytes()
    order = np.random.default_rng(0).permutation(1000)
    assert predict(take(columns, order)).tobytes() == whole[order].tobytes()
    for rows in (2, 31, 32, 33, 64, 999):
        assert predict(take(columns, slice(rows))).tobytes() == whole[:rows].tobytes()


def test_every_place_in_the_tile(bundle: bundles.Bundle) -> None:
    predict, columns = bundle.predictor(), toy.columns(96, seed=4)
    whole = predict(columns)
    for shift in range(TILE_ROWS):
        turned = predict(take(columns, np.roll(np.arange(96), shift)))
        assert np.roll(turned, -shift).tobytes() == whole.tobytes()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_thread_settings_do_not_matter_and_are_left_alone(threads: int, tmp_path: Path) -> None:
    bundle, columns = bundles.save(tmp_path / "b", **toy.net_parts()), toy.columns(64)
    wanted, before = bundle.predictor()(columns), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert bundle.predictor()(columns).tobytes() == wanted.tobytes()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_another_process(bundle: bundles.Bundle, threads: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(toy.__file__).parent)!r})\n"
        "import toy\nfrom workbench.models import bundle\n"
        f"print(bundle.load({str(bundle.path)!r}).predictor()(toy.columns(200)).tobytes().hex())"
    )
    env = {"OMP_NUM_THREADS": threads, "PATH": "/usr/bin", "HOME": str(bundle.path.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == bundle.predictor()(toy.columns(200)).tobytes().hex()


def test_no_rows(bundle: bundles.Bundle) -> None:
    assert bundle.predictor()(toy.columns(0)).shape == (0,)


def test_a_library_that_rounds_by_place_gets_a_tile_a_row() -> None:
    shape = SimpleNamespace(width=2, n_dense=2, sizes=[])

    def wobbly(tile: np.ndarray) -> np.ndarray:
        steps = np.arange(TILE_ROWS, dtype=np.float32) * np.float32(1e-8)
        return (0.001 * tile[:, 0] + 0.01 + steps).astype(np.float32)

    predict, x = Predictor(shape, wobbly), np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    assert predict.rows_per_tile == 1
    assert predict.scores(x[::-1]).tobytes() == predict.scores(x)[::-1].tobytes()


def test_a_model_that_mixes_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="mixes rows"):
        bundles.save(tmp_path / "b", **toy.net_parts(toy.Mixer))
    assert not (tmp_path / "b").exists() and not list(tmp_path.glob(".b*"))


@pytest.mark.parametrize("answer", [lambda x: x, lambda x: x[:1, 0], lambda x: x[:, 0] * float("nan")])
def test_a_model_that_gives_no_number_a_row_is_refused(answer) -> None:
    with pytest.raises(BadInput, match="answers 32 rows with"):
        Predictor(SimpleNamespace(width=2, n_dense=2, sizes=[]), torch_score(answer))


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("subprocess:Popen", BadInput),
        ("os:system", BadInput),
        ("__main__:Net", BadInput),
        ("builtins:eval", BadInput),
        ("toy:late", BadInput),
        ("toy:Nothing", BadInput),
        ("toy", BadInput),
        ("toy:Net.forward", BadInput),
        ("../toy:Net", BadInput),
        (".toy:Net", BadInput),
        ("no_such_package.at_all:Net", NotFound),
        ("toy.inner:Net", NotFound),
        ("numpy._core._multiarray_umath:ndarray", NotFound),
    ],
)
def test_names_that_are_no_class(path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_object(path, "class")


def test_looking_a_name_up_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "loud_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('ran')")
    (package / "part.py").write_text("raise SystemExit('ran')\nclass Real: pass")
    monkeypatch.syspath_prepend(tmp_path)
    check_object("loud_package.part:Real", "class")
    with pytest.raises(BadInput):
        check_object("loud_package.part:Missing", "class")
    assert "loud_package" not in sys.modules


def test_wide_blocks_give_the_bits_of_tiles(bundle: bundles.Bundle) -> None:
    tiles, wide = bundle.predictor(), bundle.predictor()
    x = tiles.recipe.encode(toy.columns(5000, seed=9))
    wide.widen()
    for rows in (1, 31, 300, 1500, 5000):
        assert np.array_equal(tiles.scores(x[:rows]), wide.scores(x[:rows]))


def test_wide_blocks_that_round_otherwise_are_given_up(bundle: bundles.Bundle) -> None:
    exact = bundle.predictor()
    x = exact.recipe.encode(toy.columns(1000, seed=9))
    want = exact.scores(x)
    moved = bundle.predictor()
    score = moved._score
    moved._score = lambda rows: score(rows) + np.float32(1e-7 * (len(rows) > 32))
    assert moved.widen() == ()  # measured
    moved._wide = (256,)  # or measured before the machine changed its mind
    assert np.array_equal(moved.scores(x), want) and moved._wide == ()


class Deep(torch.nn.Module):
    "Rows of tokens, and a last layer that sees one row a row."

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.place = torch.nn.Parameter(torch.randn(8, 64))
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = torch.nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layers(x.unsqueeze(2) * self.place).mean(1)).squeeze(1)


def test_few_rows_in_small_tiles_have_the_bits_of_many() -> None:
    recipe = SimpleNamespace(n_dense=8, sizes=[])
    x = np.random.default_rng(5).normal(size=(70, 8)).astype(np.float32)
    want = Predictor(recipe, torch_score(Deep().eval())).scores(x)
    small = Predictor(recipe, torch_score(Deep().eval()))
    assert small.tiles[-1] == TILE_ROWS and all(sum(plan) >= n for n, plan in enumerate(small._plans))
    for rows in (*range(1, 34), 70):
        assert small.scores(x[:rows]).tobytes() == want[:rows].tobytes(), rows


def test_layers_that_see_four_rows_answer_as_before_and_can_be_put_back() -> None:
    net = Deep().eval()
    x = torch.randn(32, 8)
    undo = torch_score(net).even()
    with torch.inference_mode():
        whole, few = net(x), torch.cat([net(x[i : i + 1]) for i in range(32)])
        assert few.shape == whole.shape and torch.allclose(few, whole, atol=1e-6)
        undo()
        assert torch.equal(net(x), whole) and not any("forward" in vars(one) for one in net.modules())


def test_the_tiles_for_some_rows_are_those_that_take_the_least_time_together() -> None:
    flat, steep = _plans(dict.fromkeys((4, 8, 16, 32), 1.0)), _plans({1: 1.0, 2: 1.9, 4: 3.5, 32: 28.0})
    assert {len(plan) for plan in flat[1:]} == {1} and flat[0] == ()
    assert sorted(steep[5]) == [1, 4] and sorted(steep[7]) == [1, 2, 4] and sum(steep[32]) == 32
    disturbed = _plans({1: 12.5, 2: 18.0, 4: 27.0, 8: 56.0, 16: 110.0, 32: 230.0})
    assert disturbed[8] == (8,) and disturbed[9] == (1, 8), "twice four is hardly faster than eight"
