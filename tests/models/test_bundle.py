"""A bundle is data, all of it checked; whatever else claims to be one is refused and runs nothing."""

import importlib
import json
import os
import pickle
import random
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

from workbench.base.errors import BadInput, Corrupt, NotFound, WorkbenchError
from workbench.base.store import sha256_bytes
from workbench.models import bundle as bundles
from workbench.models.bundle import META, SEAL
from workbench.models.folder import WEIGHTS
from workbench.models.signature import SIGNATURE, keys_of


@pytest.fixture
def saved(tmp_path: Path) -> bundles.Bundle:
    return bundles.save(tmp_path / "bundle", **toy.linear_parts(metrics={"auc": 0.7}, lineage={"run": "r1"}))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    "What somebody with the store's key can do: change bundle.json, seal and sign it again."
    meta = json.loads((folder / META).read_text())
    changed = change(meta)
    text = (
        changed if isinstance(changed, bytes) else json.dumps(meta if changed is None else changed).encode()
    )
    (folder / META).write_bytes(text)
    (folder / SEAL).write_text(sha256_bytes(text) + "\n")
    bundles.sign(folder, sha256_bytes(text), keys_of())


def test_what_was_saved_is_loaded(saved: bundles.Bundle) -> None:
    again = bundles.load(saved.path)
    assert again == saved and again.digest == saved.digest
    assert again.contract == toy.CONTRACT and again.recipe == toy.recipe()
    assert again.metrics == {"auc": 0.7} and again.lineage == {"run": "r1"} and again.framework == "numpy"
    assert again.size_bytes == sum(path.stat().st_size for path in saved.path.iterdir())
    columns = toy.columns(50)
    assert again.predictor()(columns).tobytes() == saved.predictor()(columns).tobytes()


def test_it_is_private(saved: bundles.Bundle) -> None:
    assert stat.S_IMODE(saved.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in saved.path.iterdir()} == {0o600}


@pytest.mark.parametrize("name", [META, SEAL, WEIGHTS])
def test_one_wrong_byte_anywhere_is_corrupt(saved: bundles.Bundle, name: str) -> None:
    path, rng = saved.path / name, random.Random(name)
    good = path.read_bytes()
    places = {0, len(good) - 1, *rng.sample(range(len(good)), min(len(good), 330))}
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ (1 << rng.randrange(8))]) + good[place + 1 :])
        with pytest.raises(Corrupt):
            bundles.load(saved.path)
    path.write_bytes(good)
    assert bundles.load(saved.path) == saved


@pytest.mark.parametrize("bit", range(8))
def test_one_wrong_bit_of_the_signature_is_refused(saved: bundles.Bundle, bit: int) -> None:
    path = saved.path / SIGNATURE
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :])
        with pytest.raises((Corrupt, BadInput)):
            bundles.load(saved.path)
    path.write_bytes(good)
    assert bundles.load(saved.path) == saved


@pytest.mark.parametrize("name", [META, SEAL, WEIGHTS])
@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"", lambda b: b[: len(b) // 2]]
)
def test_a_longer_or_shorter_file_is_corrupt(saved: bundles.Bundle, name: str, damage: Any) -> None:
    path = saved.path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Corrupt):
        bundles.load(saved.path)


def test_a_missing_file_is_corrupt_and_a_missing_folder_not_found(saved: bundles.Bundle) -> None:
    (saved.path / WEIGHTS).unlink()
    with pytest.raises(Corrupt, match="has no weights"):
        bundles.load(saved.path)
    with pytest.raises(NotFound):
        bundles.load(saved.path / "nowhere")


def test_weights_that_rot_after_loading_are_noticed(saved: bundles.Bundle) -> None:
    data = bytearray((saved.path / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (saved.path / WEIGHTS).write_bytes(data)
    with pytest.raises(Corrupt):
        saved.predictor()


def test_another_whole_bundle_is_noticed_where_the_digest_is_known(
    saved: bundles.Bundle, tmp_path: Path
) -> None:
    other = bundles.save(tmp_path / "other", **toy.linear_parts(slope=2.0))
    assert bundles.load(other.path, other.digest) == other
    with pytest.raises(Corrupt, match="not the bundle"):
        bundles.load(other.path, saved.digest)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def extra_file(folder: Path, mark: Path) -> None:
    (folder / "model.pkl").write_bytes(pickle.dumps(Bomb(mark)))


def pickled_weights(folder: Path, mark: Path) -> None:
    data = pickle.dumps(Bomb(mark))
    (folder / WEIGHTS).write_bytes(data)
    rewrite(folder, lambda m: m["files"].update({WEIGHTS: {"sha256": sha256_bytes(data), "size": len(data)}}))


def code_beside(folder: Path, mark: Path) -> None:
    (folder / "net.py").write_text(f"import os; os.mkdir({str(mark)!r})")


def linked_weights(folder: Path, mark: Path) -> None:
    shutil.move(folder / WEIGHTS, folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def linked_meta(folder: Path, mark: Path) -> None:
    (folder / META).unlink()
    (folder / META).symlink_to("/dev/zero")


def folder_for_weights(folder: Path, mark: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def pipe_for_weights(folder: Path, mark: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def setting(**values: Any) -> Callable[[Path, Path], None]:
    return lambda folder, mark: rewrite(folder, lambda meta: meta.update(values))


def text(data: bytes) -> Callable[[Path, Path], None]:
    return lambda folder, mark: rewrite(folder, lambda meta: data)


def features_that_run_a_program(folder: Path, mark: Path) -> None:
    rewrite(folder, lambda meta: meta["recipe"].update(features="subprocess:Popen"))


def class_that_runs_a_program(folder: Path, mark: Path) -> None:
    rewrite(folder, lambda meta: meta.update(model="subprocess:Popen", config={"args": ["mkdir", str(mark)]}))


SIZED = {"sha256": "0" * 64, "size": 1}
HOSTILE = {
    "a pickle beside": extra_file,
    "a pickle as weights": pickled_weights,
    "code beside": code_beside,
    "linked weights": linked_weights,
    "linked meta": linked_meta,
    "a folder for weights": folder_for_weights,
    "a pipe for weights": pipe_for_weights,
    "features that run a program": features_that_run_a_program,
    "a class that runs a program": class_that_runs_a_program,
    "a class that is no model": setting(model="toy:NotAModel"),
    "a class that is no net": setting(model="toy:NotAModel", framework="torch"),
    "a numpy class as a net": setting(framework="torch"),
    "a function as model": setting(model="toy:late"),
    "a path as model": setting(model="/tmp/evil.py:Net"),
    "dots as model": setting(model="..evil:Net"),
    "a model of no type": setting(model=7),
    "files outside": setting(files={WEIGHTS: SIZED, "../../etc/passwd": SIZED}),
    "files outside alone": setting(files={"../weights.safetensors": SIZED}),
    "an absolute file": setting(files={"/etc/passwd": SIZED}),
    "no digests": setting(files={WEIGHTS: {}}),
    "digests of no form": setting(files={WEIGHTS: 5}),
    "a later version": setting(version=2),
    "another format": setting(format="mlflow"),
    "another framework": setting(framework="pickle"),
    "an unknown key": setting(hook="os:system"),
    "probes of no form": setting(probes=[1]),
    "probes without rows": setting(probes={"rows": {}, "scores": [0.5], "code": {}}),
    "probes of no column": setting(probes={"rows": {"x": [1]}, "scores": [0.5], "code": {}}),
    "probes of text": setting(probes={"rows": {}, "scores": ["a"], "code": {}}),
    "a wrong config": setting(config={"n_dense": 10**6, "sizes": []}),
    "an unknown argument": setting(config={"command": "ls"}),
    "no contract": setting(contract={}),
    "no recipe": setting(recipe={"features": 5}),
    "an empty file": text(b""),
    "a list": text(b"[]"),
    "not JSON": text(b"\x80\x04K\x01."),
    "not UTF-8": text(b'{"format": "\xff"}'),
    "NaN": text(b'{"format": NaN}'),
    "deep nesting": text(b"[" * 200_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_refused_with_a_reason_and_runs_nothing(
    saved: bundles.Bundle, name: str, tmp_path: Path
) -> None:
    mark, made = tmp_path / "code-ran", toy.NotAModel.made
    HOSTILE[name](saved.path, mark)
    with pytest.raises(WorkbenchError) as caught:
        bundles.load(saved.path).predictor()(toy.columns(3))
    assert isinstance(caught.value, BadInput | Corrupt | NotFound)
    assert len(caught.value.what) > 15 and caught.value.hint
    assert not mark.exists() and toy.NotAModel.made == made


def test_what_cannot_answer_is_not_published(tmp_path: Path) -> None:
    good = toy.linear_parts()
    bad = [
        {"weights": {**good["weights"], "dense": np.zeros(9)}},
        {"weights": {**good["weights"], "bias": np.array([np.nan])}},
        {"config": {"n_dense": 1, "sizes": []}},
        {"config": {"n_dense": object(), "sizes": []}},
        {"model": "toy:NotAModel"},
        {"framework": "pickle"},
        {"recipe": toy.Recipe("toy:features", "toy:late", numeric=("rain",))},
        {"recipe": replace(good["recipe"], features="toy:nothing")},
    ]
    for change in bad:
        with pytest.raises(BadInput):
            bundles.save(tmp_path / "store" / "bad", **{**good, **change})
    assert not list((tmp_path / "store").iterdir())


def test_a_bundle_is_never_overwritten(saved: bundles.Bundle) -> None:
    with pytest.raises(BadInput, match="exists already"):
        bundles.save(saved.path, **toy.linear_parts(slope=9.0))
    assert bundles.load(saved.path) == saved


def test_numbers_json_cannot_hold_become_null(tmp_path: Path) -> None:
    metrics = {
        "auc": float("nan"),
        "rate": np.float32(0.25),
        "rows": np.int64(7),
        "by": {("a", 1): float("inf")},
    }
    found = bundles.save(tmp_path / "b", **toy.linear_parts(metrics=metrics)).metrics
    assert found == {"auc": None, "rate": 0.25, "rows": 7, "by": {"('a', 1)": None}}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_weights_keep_type_shape_and_layout(tmp_path: Path, dtype: type) -> None:
    from safetensors.numpy import load

    parts = toy.linear_parts()
    wide = np.arange(8, dtype=dtype)[::2][: parts["weights"]["cat.0"].size]
    parts["weights"]["cat.0"] = np.resize(wide, parts["weights"]["cat.0"].shape)[::-1]
    bundle = bundles.save(tmp_path / "b", **parts)
    kept = load((bundle.path / WEIGHTS).read_bytes())["cat.0"]
    assert kept.dtype == dtype and np.array_equal(kept, parts["weights"]["cat.0"])


def test_it_shows_itself_escaped(tmp_path: Path) -> None:
    bundle = bundles.save(tmp_path / "b", **toy.linear_parts(lineage={"note": "<script>alert(1)</script>"}))
    assert "<script>" not in bundle._repr_html_() and "&lt;script&gt;" in bundle._repr_html_()
    assert "LinearScorer" in str(bundle) and "\n" not in str(bundle)


OWN = """
def features(columns):
    return {name: columns[name] for name in ("rain", "wind", "carrier")}


def late(columns):
    return (columns["delay"] > 15).astype("float32")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    "Writes the module `own_flights` and has the next import read it."
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> None:
        (tmp_path / "own_flights.py").write_text(text)
        sys.modules.pop("own_flights", None)
        importlib.invalidate_caches()

    write(OWN)
    yield write
    sys.modules.pop("own_flights", None)


def own_bundle(folder: Path) -> bundles.Bundle:
    made = replace(toy.recipe(), features="own_flights:features", label="own_flights:late")
    return bundles.save(folder, **{**toy.linear_parts(), "recipe": made})


def test_features_that_changed_under_a_bundle_are_refused(own: Any, tmp_path: Path) -> None:
    saved = own_bundle(tmp_path / "b")
    assert len(saved.meta["probes"]["scores"]) == 8 == len(set(saved.meta["probes"]["scores"]))
    own(OWN + "# a comment changes nothing\n")
    assert bundles.load(saved.path).predictor()(toy.columns(5)).shape == (5,)
    own(OWN.replace("columns[name] for", 'columns[name] * (0.5 if name == "rain" else 1) for'))
    with pytest.raises(BadInput, match="does not answer as it did.*; own_flights changed"):
        bundles.load(saved.path).predictor()
    own(OWN.replace("columns[name] for", "columns[name[::-1]] for"))
    with pytest.raises(BadInput, match="asking it raises BadInput"):
        bundles.load(saved.path).predictor()
    own(OWN)
    assert bundles.load(saved.path).predictor()(toy.columns(5)).shape == (5,)


def test_what_the_features_import_counts_too(
    own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "FACTOR", 1.0, raising=False)
    own("import toy\n" + OWN.replace('columns[name] for name in ("rain", "wind", "carrier")', ROWS_BY_FACTOR))
    saved = own_bundle(tmp_path / "b")
    monkeypatch.setattr(toy, "FACTOR", 1.0 + 1e-9)
    saved.predictor()  # within what another processor may do
    monkeypatch.setattr(toy, "FACTOR", 1.01)
    with pytest.raises(BadInput, match="a module that they import changed"):
        saved.predictor()


ROWS_BY_FACTOR = '(columns[name] * toy.FACTOR if name == "rain" else columns[name]) for name in ("rain", "wind", "carrier")'


def test_a_bundle_without_probes_loads_and_answers(saved: bundles.Bundle) -> None:
    wanted = saved.predictor()(toy.columns(9)).tobytes()
    rewrite(saved.path, lambda meta: {key: value for key, value in meta.items() if key != "probes"})
    assert bundles.load(saved.path).predictor()(toy.columns(9)).tobytes() == wanted


def test_features_that_never_answer_alike_are_not_saved(own: Any, tmp_path: Path) -> None:
    own(
        "import random\n"
        + OWN.replace(
            "columns[name] for", '(columns[name] * random.random() if name == "rain" else columns[name]) for'
        )
    )
    with pytest.raises(BadInput, match="does not answer as it did"):
        own_bundle(tmp_path / "b")


def test_a_row_the_features_cannot_do_is_no_probe(own: Any, tmp_path: Path) -> None:
    own(OWN.replace("    return {name", '    assert (columns["rain"] < 2.5).all()\n    return {name'))
    saved = own_bundle(tmp_path / "b")
    assert 0 < len(saved.meta["probes"]["scores"]) < 8
    saved.predictor()


@pytest.mark.parametrize("key", ["model", "features", "label"])
def test_a_module_that_does_not_define_the_name_is_not_imported(
    saved: bundles.Bundle, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "code-ran"
    (tmp_path / "bystander.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nModel = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = "bystander:Model"
    rewrite(saved.path, lambda m: m.update(model=path) if key == "model" else m["recipe"].update({key: path}))
    with pytest.raises(BadInput, match="does not define"):
        bundles.load(saved.path).predictor()
    assert not mark.exists()
