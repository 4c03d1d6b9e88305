"""Sharded checkpoints are opened without being read, and a file that lies is refused with the reason."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from workbench.base.errors import BadInput, Corrupt, NotFound, WorkbenchError
from workbench.models.shards import INDEX, SINGLE, open_shards


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {
        f"t.{kind}": torch.randn(3, 5).to(kind) for kind in (torch.float32, torch.bfloat16, torch.float16)
    }
    made |= {
        "odd": torch.arange(3, dtype=torch.uint8),
        "flag": torch.tensor([True, False]),
        "n": torch.tensor(7),
    }
    return made | {
        "none": torch.zeros(0, 4),
        "f8": torch.randn(4).to(torch.float8_e4m3fn),
        "d": torch.randn(2).double(),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    "Two shards and their index."
    made = tensors()
    names = sorted(made)
    parts = {"model-1.safetensors": names[:4], "model-2.safetensors": names[4:]}
    for file, some in parts.items():
        save_file({name: made[name] for name in some}, tmp_path / file)
    listed = {name: file for file, some in parts.items() for name in some}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return tmp_path


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (found, wanted)]
    return found.dtype == wanted.dtype and found.shape == wanted.shape and torch.equal(*raw)


def test_every_type_has_the_bits_that_were_written(folder: Path) -> None:
    shards, wanted = open_shards(folder), tensors()
    assert shards.entries.keys() == wanted.keys()
    assert all(same(shards.tensor(name), wanted[name]) for name in wanted)
    assert shards.size == sum(t.nbytes for t in wanted.values())
    shards.release(wanted)
    shards.expect(wanted)
    shards.fetch(wanted)
    assert all(same(shards.tensor(name), wanted[name]) for name in wanted)


def test_a_number_at_an_odd_byte_is_read_right(tmp_path: Path) -> None:
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    header["b"] = {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}
    write(tmp_path / SINGLE, header, b"\7" + np.array([1.5, -2], "f4").tobytes())
    shards = open_shards(tmp_path)
    assert shards.tensor("b").tolist() == [1.5, -2] and shards.array("b").view("f4").tolist() == [1.5, -2]


def test_what_is_written_into_a_view_stays_out_of_the_file(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    view = open_shards(folder).tensor("t.torch.float32")
    view.zero_()
    assert not view.any() and {path: path.read_bytes() for path in folder.iterdir()} == before
    assert open_shards(folder).tensor("t.torch.float32").any()


def test_only_the_files_that_are_needed_are_opened(folder: Path) -> None:
    name = min(tensors())
    (folder / "model-2.safetensors").unlink()
    assert open_shards(folder, [name]).entries.keys() == {name}
    with pytest.raises(NotFound, match="no model-2.safetensors"):
        open_shards(folder)


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def line(**other: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **other}


@pytest.mark.parametrize(
    ("header", "data", "error", "said"),
    [
        ({"a": line()}, b"\0" * 7, Corrupt, "cut off"),
        ({"a": line()}, b"\0" * 9, Corrupt, "has 78 bytes, its tensors end at 77"),
        ({"a": line(shape=[3])}, b"\0" * 8, Corrupt, "needs 12 bytes"),
        ({"a": line(shape=[2**62])}, b"\0" * 8, Corrupt, "cannot be read"),
        ({"a": line(shape=[-2])}, b"\0" * 8, Corrupt, "cannot be read"),
        ({"a": line(shape=[True, 2])}, b"\0" * 8, Corrupt, "cannot be read"),
        ({"a": line(data_offsets=[-8, 0])}, b"\0" * 8, Corrupt, "the header gives it"),
        ({"a": line(data_offsets=[8, 16])}, b"\0" * 16, Corrupt, "begins at byte"),
        ({"a": line(), "b": line()}, b"\0" * 8, Corrupt, "begins at byte"),
        ({"a": line(), "b": line(data_offsets=[4, 12])}, b"\0" * 12, Corrupt, "begins at byte"),
        ({"a": line(dtype="F4")}, b"\0" * 8, BadInput, "of type 'F4'"),
        ({"a": line(dtype=["F32"])}, b"\0" * 8, BadInput, "of type"),
        ({"a": line(more=1)}, b"\0" * 8, Corrupt, "cannot be read"),
        ({"a": 3}, b"\0" * 8, Corrupt, "cannot be read"),
        ([1], b"", Corrupt, "a list, not an object"),
        (b"{" * 5000, b"", Corrupt, "not JSON"),
        (b'{"a":1,"a":2}', b"", Corrupt, "twice"),
        (b"\xff\xfe", b"", Corrupt, "not JSON"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(
    tmp_path: Path, header: Any, data: bytes, error: type[WorkbenchError], said: str
) -> None:
    write(tmp_path / SINGLE, header, data)
    with pytest.raises(error, match=said):
        open_shards(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 10**9, 2**63])
def test_a_header_longer_than_its_file_is_refused(tmp_path: Path, length: int) -> None:
    write(tmp_path / SINGLE, {"a": line()}, b"\0" * 8, length)
    with pytest.raises(Corrupt, match="its header would take"):
        open_shards(tmp_path)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", 3, "a\0", "..\\x"]
)
def test_an_index_stays_in_its_folder(folder: Path, file: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(BadInput, match="files of its own folder"):
        open_shards(folder)


def moved(listed: dict[str, str]) -> None:
    listed["odd"] = "model-1.safetensors" if listed["odd"] == "model-2.safetensors" else "model-2.safetensors"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (moved, "the index says otherwise"),
        (lambda listed: listed.pop("n"), "the index says otherwise"),
        (lambda listed: listed.update(zzz="model-1.safetensors"), "has no 'zzz'"),
    ],
)
def test_an_index_that_lies_is_refused(folder: Path, change: Callable[[dict], Any], said: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(Corrupt, match=said):
        open_shards(folder)


def test_what_is_no_plain_safetensors_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot be opened"):
        open_shards(tmp_path / "gone.safetensors")
    with pytest.raises(NotFound, match=f"no {SINGLE}"):
        open_shards(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(NotFound, match="only pytorch_model.bin"):
        open_shards(tmp_path)
    with pytest.raises(BadInput, match="a pickle is a program"):
        open_shards(tmp_path / "pytorch_model.bin")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(BadInput, match="no plain file"):
        open_shards(tmp_path / "pipe.safetensors")


def test_damage_to_a_header_is_refused_or_changes_no_place(folder: Path) -> None:
    path, dice = folder / "model-1.safetensors", random.Random(0)
    whole, refused = path.read_bytes(), 0
    length = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(500):
        at, bit = dice.randrange(length), 1 << dice.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        try:
            found = open_shards(folder)
        except WorkbenchError:
            refused += 1
        else:  # another type of the same width, or another key of equal length: each byte still has its tensor
            assert found.size == sum(t.nbytes for t in tensors().values())
    assert refused > 400
