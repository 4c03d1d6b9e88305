"""Whatever claims to be a model: nothing of it runs, and each is refused with a reason."""

import io
import json
import os
import pickle
import random
import shutil
import socket
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from test_encoder import write_folder

from workbench.base.errors import BadInput, Corrupt, NotFound, WorkbenchError
from workbench.base.store import sha256_bytes
from workbench.models import bundle as bundles
from workbench.models.bundle import META, SEAL
from workbench.models.folder import WEIGHTS
from workbench.models.shelf import Shelf, load
from workbench.models.signature import keys_of
from workbench.release.trust import trust

LAYERS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


class Canary:
    "Opening it as a pickle makes a folder."

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code-ran"


@pytest.fixture
def saved(tmp_path: Path) -> bundles.Bundle:
    return bundles.save(tmp_path / "bundle", **toy.linear_parts(metrics={"auc": 0.7}))


def seal(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda meta: None) -> None:
    "What somebody with the store's key can do: list every file as it is, change bundle.json, seal and sign it."
    meta = json.loads((folder / META).read_text())
    for name in list(meta["files"]):
        if (folder / name).is_file():
            data = (folder / name).read_bytes()
            meta["files"][name] = {"sha256": sha256_bytes(data), "size": len(data)}
    change(meta)
    text = json.dumps(meta).encode()
    (folder / META).write_bytes(text)
    (folder / SEAL).write_text(sha256_bytes(text) + "\n")
    bundles.sign(folder, sha256_bytes(text), keys_of())


def joblib(mark: Path) -> bytes:
    import joblib

    joblib.dump(Canary(mark), out := io.BytesIO())
    return out.getvalue()


def torch_pickle(mark: Path, old: bool = False) -> bytes:
    torch.save({"w": Canary(mark)}, out := io.BytesIO(), _use_new_zipfile_serialization=not old)
    return out.getvalue()


def pt2(mark: Path) -> bytes:
    "An exported program, whose example inputs are a pickle."
    with zipfile.ZipFile(out := io.BytesIO(), "w") as archive:
        archive.writestr("model/archive_format", "pt2")
        archive.writestr("model/data/sample_inputs/model.pt", torch_pickle(mark))
    return out.getvalue()


def npz(mark: Path) -> bytes:
    "Arrays, one of them of objects: a pickle inside."
    np.savez(out := io.BytesIO(), w=np.ones(3), o=np.array([Canary(mark)], dtype=object))
    return out.getvalue()


def npy(mark: Path) -> bytes:
    np.save(out := io.BytesIO(), np.array([Canary(mark)], dtype=object))
    return out.getvalue()


def zip_slip(mark: Path) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w") as archive:
        archive.writestr("../" * 9 + str(mark).lstrip("/"), "slipped")
    return out.getvalue()


def tar_slip(mark: Path) -> bytes:
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w") as archive:
        entry = tarfile.TarInfo(str(mark))
        archive.addfile(entry, io.BytesIO())
    return out.getvalue()


def zip_bomb(mark: Path) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights", bytes(5 * 10**7))
    return out.getvalue()


def keras(mark: Path) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Lambda", "config": {"function": "..."}}))
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n")
    return out.getvalue()


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: list[int], start: int, end: int, dtype: str = "F64") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FULL = {"bias": tensor([1], 0, 8), "cat.0": tensor([5], 8, 48), "dense": tensor([3], 48, 72)}
AS_WEIGHTS: dict[str, Callable[[Path], bytes]] = {
    "a pickle": lambda mark: pickle.dumps(Canary(mark)),
    "a joblib": joblib,
    "a compressed pickle": lambda mark: zlib.compress(pickle.dumps(Canary(mark))),
    "a torch pickle": torch_pickle,
    "an old torch pickle": lambda mark: torch_pickle(mark, old=True),
    "a .pt2": pt2,
    "a pickle in an .npz": npz,
    "a pickle in an .npy": npy,
    "a zip that slips": zip_slip,
    "a tar that slips": tar_slip,
    "a zip bomb": zip_bomb,
    "a keras lambda": keras,
    "a gguf": lambda mark: b"GGUF\x03\x00\x00\x00" + bytes(64),
    "an HDF5": lambda mark: b"\x89HDF\r\n\x1a\n" + bytes(64),
    "an empty file": lambda mark: b"",
    "seven bytes": lambda mark: b"1234567",
    "a header longer than the file": lambda mark: safetensors(FULL, bytes(72), length=2**62),
    "a header of 100 MB and more": lambda mark: safetensors(b"{}", bytes(16), length=10**8 + 1),
    "a header that is no JSON": lambda mark: safetensors(b"\x80\x04K\x01.", bytes(72)),
    "a header nested deep": lambda mark: safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "a header with NaN": lambda mark: safetensors(b'{"bias":{"dtype":"F64","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)),
    "a header with a name twice": lambda mark: safetensors(
        b'{"bias":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},"bias":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}', bytes(8)
    ),
    "offsets that overlap": lambda mark: safetensors({**FULL, "dense": tensor([3], 40, 64)}, bytes(64)),
    "offsets with a hole": lambda mark: safetensors({**FULL, "dense": tensor([3], 56, 80)}, bytes(80)),
    "offsets outside": lambda mark: safetensors({**FULL, "dense": tensor([3], 10**9, 10**9 + 24)}, bytes(72)),
    "offsets backwards": lambda mark: safetensors({**FULL, "dense": tensor([3], 72, 48)}, bytes(72)),
    "offsets below zero": lambda mark: safetensors({**FULL, "bias": tensor([1], -8, 0)}, bytes(72)),
    "a shape below zero": lambda mark: safetensors({**FULL, "bias": tensor([-1], 0, 8)}, bytes(72)),
    "a shape that overflows": lambda mark: safetensors({**FULL, "bias": tensor([2**33, 2**33], 0, 8)}, bytes(72)),
    "a shape that lies": lambda mark: safetensors({**FULL, "dense": tensor([300], 48, 72)}, bytes(72)),
    "a type that lies": lambda mark: safetensors({**FULL, "dense": tensor([3], 48, 72, "F32")}, bytes(72)),
    "a type that is none": lambda mark: safetensors({**FULL, "dense": tensor([3], 48, 72, "PY")}, bytes(72)),
    "bytes after the tensors": lambda mark: safetensors(FULL, bytes(72) + pickle.dumps(Canary(mark))),
    "tensors cut off": lambda mark: safetensors(FULL, bytes(71)),
    "tensors of another model": lambda mark: safetensors({"w": tensor([1], 0, 8)}, bytes(8)),
    "weights that are no numbers": lambda mark: safetensors(FULL, b"\xff" * 72),
}  # fmt: skip


def refused(run: Callable[[], Any], mark: Path) -> WorkbenchError:
    "The reason; nothing ran."
    with pytest.raises(WorkbenchError) as caught:
        run()
    assert isinstance(caught.value, BadInput | Corrupt | NotFound), caught.value
    assert len(caught.value.what) > 15 and caught.value.hint
    assert not mark.exists()
    return caught.value


@pytest.mark.parametrize("name", AS_WEIGHTS)
def test_hostile_weights_run_nothing_even_signed(saved: bundles.Bundle, name: str, mark: Path) -> None:
    before = saved.path / WEIGHTS
    before.write_bytes(AS_WEIGHTS[name](mark))
    refused(lambda: bundles.load(saved.path), mark)
    seal(saved.path)
    begin = time.process_time()
    refused(lambda: bundles.load(saved.path).predictor()(toy.columns(3)), mark)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "name", [name for name in AS_WEIGHTS if name.startswith(("a ", "an ")) and "header" not in name]
)
def test_a_file_beside_is_refused_by_its_name(saved: bundles.Bundle, name: str, mark: Path) -> None:
    (saved.path / "model.bin").write_bytes(AS_WEIGHTS[name](mark))
    assert "model.bin" in refused(lambda: bundles.load(saved.path), mark).what
    seal(saved.path, lambda meta: meta["files"].update({"model.bin": {"sha256": "0" * 64, "size": 1}}))
    assert "model.bin" in refused(lambda: bundles.load(saved.path), mark).what


def test_the_canaries_are_alive(mark: Path) -> None:
    "Each of these does run when it is opened the usual way: the tests above can fail."
    opened: dict[str, Callable[[bytes], Any]] = {
        "a pickle": pickle.loads,
        "a joblib": lambda data: __import__("joblib").load(io.BytesIO(data)),
        "a torch pickle": lambda data: torch.load(io.BytesIO(data), weights_only=False),
        "an old torch pickle": lambda data: torch.load(io.BytesIO(data), weights_only=False),
        "a pickle in an .npy": lambda data: np.load(io.BytesIO(data), allow_pickle=True),
        "a pickle in an .npz": lambda data: np.load(io.BytesIO(data), allow_pickle=True)["o"],
    }
    for name, run in opened.items():
        data = AS_WEIGHTS[name](mark)
        assert not mark.exists()
        run(data)
        assert mark.exists(), name
        mark.rmdir()


def distcp(folder: Path, mark: Path) -> None:
    "A distributed checkpoint in the place of a bundle: .metadata is a pickle."
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Canary(mark)))
    (folder / "__0_0.distcp").write_bytes(torch_pickle(mark))


def mlflow(folder: Path, mark: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {python_function: {loader_module: mlflow.sklearn}}")
    (folder / "model.pkl").write_bytes(pickle.dumps(Canary(mark)))


def hidden(folder: Path, mark: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Canary(mark)))


def archive(folder: Path, mark: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(zip_slip(mark))


def gone(folder: Path, mark: Path) -> None:
    (folder / WEIGHTS).unlink()


def linked_folder(folder: Path, mark: Path) -> None:
    (folder / "1_Pooling").symlink_to("/etc")


def linked_key(folder: Path, mark: Path) -> None:
    (folder / "bundle.sig").unlink()
    (folder / "bundle.sig").symlink_to("/etc/passwd")


def linked_to_nothing(folder: Path, mark: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("nowhere")


def hard_linked(folder: Path, mark: Path) -> None:
    mark.with_name("secret").write_text("of somebody else")
    (folder / WEIGHTS).unlink()
    os.link(mark.with_name("secret"), folder / WEIGHTS)


def device(folder: Path, mark: Path) -> None:
    (folder / WEIGHTS).unlink()
    try:
        os.mknod(folder / WEIGHTS, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


def door(folder: Path, mark: Path) -> None:
    (folder / WEIGHTS).unlink()
    here = os.getcwd()
    os.chdir(folder)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(WEIGHTS)
    finally:
        os.chdir(here)


def pretends_to_be_huge(folder: Path, mark: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(2**40)  # a hole of a terabyte


def ten_thousand_files(folder: Path, mark: Path) -> None:
    (folder / "1_Pooling").mkdir()
    for n in range(10_001):
        os.mknod(folder / "1_Pooling" / f"{n}.json")


def listing(*names: str) -> Callable[[Path, Path], None]:
    entry = {"sha256": "0" * 64, "size": 1}
    return lambda folder, mark: seal(folder, lambda meta: meta["files"].update(dict.fromkeys(names, entry)))


def text(data: bytes) -> Callable[[Path, Path], None]:
    def write(folder: Path, mark: Path) -> None:
        (folder / META).write_bytes(data)
        (folder / SEAL).write_text(sha256_bytes(data) + "\n")
        bundles.sign(folder, sha256_bytes(data), keys_of())

    return write


def meta_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], None]:
    return lambda folder, mark: seal(folder, change)


FOLDERS: dict[str, Callable[[Path, Path], None]] = {
    "a distributed checkpoint": distcp,
    "an MLflow model": mlflow,
    "a hidden pickle": hidden,
    "an archive for a folder": archive,
    "a missing file": gone,
    "a linked folder": linked_folder,
    "a linked signature": linked_key,
    "a link to nothing": linked_to_nothing,
    "a hard link to a secret": hard_linked,
    "a device": device,
    "a socket": door,
    "a file of a terabyte": pretends_to_be_huge,
    "ten thousand files": ten_thousand_files,
    "a name with dots": listing("../../../etc/cron.d/x"),
    "an absolute name": listing("/etc/cron.d/x.safetensors"),
    "a name with NUL": listing("model\0.safetensors"),
    "a name with a backslash": listing("..\\evil.safetensors"),
    "a name of another script": listing("weights\u2024safetensors"),
    "a name in capitals": listing("WEIGHTS.SAFETENSORS"),
    "a shard without its index": listing(LAYERS[0]),
    "shards of another count": listing(*LAYERS, "model-00003-of-00003.safetensors"),
    "a size below zero": meta_with(lambda meta: meta["files"][WEIGHTS].update(size=-1)),
    "a size that is true": meta_with(lambda meta: meta["files"][WEIGHTS].update(size=True)),
    "a wrong sha256": meta_with(lambda meta: meta["files"][WEIGHTS].update(sha256="0" * 64)),
    "a sha256 of text": meta_with(lambda meta: meta["files"][WEIGHTS].update(sha256="x" * 64)),
    "a model of a terabyte": meta_with(lambda meta: meta.update(config={"n_dense": 2**57, "sizes": []})),
    "a net named in a dotted path": meta_with(lambda meta: meta.update(model="os.path:join")),
    "features of a builtin": meta_with(lambda meta: meta["recipe"].update(features="builtins:exec")),
    "a label that evaluates": meta_with(lambda meta: meta["recipe"].update(label="ast:literal_eval")),
    "an encoder that is none": meta_with(lambda meta: meta.update(framework="encoder")),
    "JSON of many digits": text(b'{"format": ' + b"1" * 100_000 + b"}"),
    "JSON nested deep": text(b'{"format":' * 100_000),
    "JSON with a name twice": text(b'{"format": "workbench-bundle", "format": "workbench-bundle"}'),
    "JSON of half a surrogate": text(b'{"format": "\\ud800"}'),
    "an endless list": text(b"[" + b"[]," * 10**4 + b"[]]"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_folder_is_refused_and_runs_nothing(saved: bundles.Bundle, name: str, mark: Path) -> None:
    FOLDERS[name](saved.path, mark)
    refused(lambda: bundles.load(saved.path).predictor()(toy.columns(3)), mark)
    refused(lambda: load(saved.path).predictor(), mark)
    if not saved.path.is_file():
        refused(lambda: bundles.examine(saved.path).predictor()(toy.columns(3)), mark)


@pytest.mark.parametrize(
    "name",
    ["a distributed checkpoint", "a hidden pickle", "a missing file", "a wrong sha256", "a name with dots"],
)
def test_nobody_can_trust_what_is_not_whole(saved: bundles.Bundle, name: str, mark: Path) -> None:
    FOLDERS[name](saved.path, mark)
    refused(lambda: trust(saved.path, "looks fine", name="taken"), mark)
    assert Shelf().versions("taken") == []


def auto_map(folder: Path, mark: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Net"}}))
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')")


def pickled_weights(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(torch_pickle(mark))


def pickle_by_another_name(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").write_bytes(torch_pickle(mark))


def index_outside(folder: Path, mark: Path) -> None:
    index = {"weight_map": {"embeddings.LayerNorm.weight": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def vocabulary_of_billions(folder: Path, mark: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 2**31 - 1, "hidden_size": 2**20}))


def tokenizer_nested_deep(folder: Path, mark: Path) -> None:
    (folder / "tokenizer.json").write_text('{"a":' * 100_000)


OPEN = {
    "auto_map": auto_map,
    "a pickle for weights": pickled_weights,
    "a pickle named safetensors": pickle_by_another_name,
    "an index that leads outside": index_outside,
    "a vocabulary of billions": vocabulary_of_billions,
    "a tokenizer nested deep": tokenizer_nested_deep,
}


@pytest.mark.parametrize("name", OPEN)
def test_a_hostile_open_model_is_refused_before_and_after(tmp_path: Path, name: str, mark: Path) -> None:
    source = write_folder(tmp_path / "model")
    good = bundles.save_encoder(tmp_path / "good", source)
    OPEN[name](source, mark)
    refused(lambda: bundles.save_encoder(tmp_path / "bad", source), mark)
    assert not (tmp_path / "bad").exists()
    OPEN[name](good.path, mark)
    refused(lambda: bundles.load(good.path).encoder(), mark)
    seal(good.path)
    refused(lambda: bundles.load(good.path).encoder(), mark)


def external_data() -> Any:
    "A graph whose weights are said to be in somebody else's file."
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=1, dims=[4, 1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../secret.bin")
    ends = [helper.make_tensor_value_info("x", 1, ["n", 4]), helper.make_tensor_value_info("y", 1, ["n", 1])]
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def own_operator() -> Any:
    "A graph that asks for an operator of a library."
    from onnx import helper

    ends = [helper.make_tensor_value_info("x", 1, ["n", 4]), helper.make_tensor_value_info("y", 1, ["n", 1])]
    node = helper.make_node("Shell", ["x"], ["y"], domain="evil")
    made = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("evil", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(
    "make", [external_data, own_operator, lambda: None], ids=["a file outside", "an operator", "garbage"]
)
def test_a_hostile_graph_is_refused(tmp_path: Path, mark: Path, make: Callable[[], Any]) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    made = make()
    data = made.SerializeToString() if made else b"\x08\x0a" * 40
    parts = {"model": "workbench.models.onnxmodel:OnnxScorer", "config": {}, "framework": "numpy"}
    given = {**parts, "contract": toy.CONTRACT, "recipe": toy.recipe()}
    graph = {"graph": np.frombuffer(data, np.uint8)}
    refused(lambda: bundles.save(tmp_path / "b", **given, weights=graph), mark)
    assert not (tmp_path / "b").exists()


def test_a_thousand_flipped_bits_are_a_thousand_refusals(tmp_path: Path) -> None:
    parts = {**toy.linear_parts(), "shard_bytes": 30}
    bundle = bundles.save(tmp_path / "flipped", **parts)
    paths = sorted(bundle.path.iterdir())
    assert len(paths) == 7  # three shards, their index, and the three of every bundle
    draw, reasons, keys = random.Random(7), {}, keys_of()
    for n in range(1000):
        path = paths[n % len(paths)]
        good = path.read_bytes()
        bit = draw.randrange(8 * len(good))
        wrong = bytearray(good)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        with pytest.raises((Corrupt, BadInput)) as caught:
            bundles.load(bundle.path, keys=keys)
        reasons.setdefault(path.name, set()).add(caught.value.what.replace(str(tmp_path), ""))
        path.write_bytes(good)
    assert set(reasons) == {path.name for path in paths}
    assert bundles.load(bundle.path, keys=keys) == bundle


@pytest.mark.parametrize("digest", [True, False])
def test_a_flip_after_the_check_is_noticed_too(tmp_path: Path, digest: bool) -> None:
    bundle = bundles.save(tmp_path / "b", **{**toy.linear_parts(), "shard_bytes": 30})
    found = bundles.load_pinned(bundle.path, bundle.digest) if digest else bundles.load(bundle.path)
    path = bundle.path / "model-00002-of-00003.safetensors"
    wrong = bytearray(path.read_bytes())
    wrong[-1] ^= 1
    path.write_bytes(wrong)
    with pytest.raises(Corrupt):
        found.predictor()
