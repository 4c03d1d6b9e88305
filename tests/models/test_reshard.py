"""Checkpoints in other files and cut for ranks hold the same bits, and nobody holds the whole."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_shards import same, tensors

from workbench.base.errors import BadInput, WorkbenchError
from workbench.models.reshard import balanced, of_tensors, reshard, sources_of, write
from workbench.models.shards import INDEX, SINGLE, open_shards
from workbench.models.stream import lazy
from workbench.words.gpt import Gpt

PLAN = {"*.qkv.weight": (0, 3), "*.up.weight": 0, "*.out.weight": 1, "*.down.weight": 1, "tokens.weight": 0}


def gpt() -> Gpt:
    return Gpt(width=32, layers=4, heads=4, context=16)


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn_like(t) for name, t in gpt().state_dict().items()}


def read(folder: Path) -> dict[str, torch.Tensor]:
    shards = open_shards(folder)
    return {name: shards.tensor(name) for name in shards.entries}


def equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("max_shard", ["5GB", 40, 1])
def test_every_type_is_written_as_it_was_and_others_can_read_it(tmp_path: Path, max_shard: Any) -> None:
    made, wanted = write(tmp_path / "a", of_tensors(tensors()), max_shard), tensors()
    assert equal(read(tmp_path / "a"), wanted)
    files = sorted((tmp_path / "a").glob("*.safetensors"))
    others = {name: t for file in files for name, t in load_file(file).items()}
    assert equal(others, wanted)
    limit = 10**9 if max_shard == "5GB" else max_shard
    for file in files:
        sizes = [e.size for e in made.entries.values() if e.file == file.name]
        assert sum(sizes) <= limit or len([s for s in sizes if s]) == 1


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_a_stage_needs_its_own_files_alone(tmp_path: Path, stages: int) -> None:
    write(tmp_path / "a", of_tensors(weights()))
    reshard(tmp_path / "a", tmp_path / "b", stages=stages)
    assert equal(read(tmp_path / "b"), weights())
    if stages > 1:
        mine = [name for name in weights() if name.startswith("blocks.0.")]
        for path in (tmp_path / "b").glob("*.safetensors"):
            if "stage1" not in path.name:
                path.unlink()
        assert open_shards(tmp_path / "b", mine).entries.keys() == set(mine)


def test_ranks_are_cut_anew_and_put_together(tmp_path: Path) -> None:
    write(tmp_path / "1", of_tensors(weights()), max_shard="20kB")
    for before, after in (("1", "2"), ("2", "4"), ("4", "2again")):
        reshard(tmp_path / before, tmp_path / after, "30kB", ranks=int(after[0]), plan=PLAN)
    reshard(tmp_path / "2again", tmp_path / "whole")
    assert equal(read(tmp_path / "whole"), weights())
    for rank in range(2):
        some = read(tmp_path / "2" / f"rank-{rank}")
        assert equal(some, read(tmp_path / "2again" / f"rank-{rank}"))
        q, k, v = weights()["blocks.0.qkv.weight"].chunk(3)
        half = slice(16 * rank, 16 * rank + 16)
        assert torch.equal(some["blocks.0.qkv.weight"], torch.cat([q[half], k[half], v[half]]))
        assert torch.equal(some["blocks.0.down.weight"], weights()["blocks.0.down.weight"].chunk(2, 1)[rank])
        assert torch.equal(some["norm.weight"], weights()["norm.weight"])


def test_a_net_streams_what_was_written(tmp_path: Path) -> None:
    whole = gpt()
    whole.load_state_dict(weights())
    write(tmp_path / "a", of_tensors(whole.state_dict()), "40kB")
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(lazy(gpt, tmp_path / "a", "150kB")(tokens), whole(tokens))


def test_layers_are_shared_out_evenly() -> None:
    for sizes in ([1] * 7, [5, 1, 1, 1], [1, 1, 1, 9], [0, 0, 0], [3, 1, 4, 1, 5, 9, 2, 6]):
        for stages in range(1, len(sizes) + 1):
            found = balanced(sizes, stages)
            assert found == sorted(found) and set(found) == set(range(stages)), (sizes, stages, found)
    assert balanced([1] * 8, 2) == [0] * 4 + [1] * 4
    with pytest.raises(BadInput, match="2 layers for 3 stages"):
        balanced([1, 1], 3)


def index(folder: Path, **about: Any) -> None:
    path = folder / "rank-1" / INDEX
    found = json.loads(path.read_text())
    found["metadata"] = {**found["metadata"], "tensor_parallel": about} if about else []
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: shutil.rmtree(folder / "rank-0"),
        lambda folder: index(folder),
        lambda folder: index(folder, rank=0, of=2, cut={}),
        lambda folder: index(folder, rank=1, of=2, cut={}),
        lambda folder: index(folder, rank=1, of=2, cut={"nobody": [0, 1]}),
        lambda folder: index(folder, rank=1, of=2, cut={"tokens.weight": [0, 0]}),
        lambda folder: index(folder, rank=1, of=2, cut={"tokens.weight": "0"}),
        lambda folder: (folder / "rank-1" / INDEX).unlink(),
    ],
)
def test_ranks_that_do_not_belong_together_are_refused(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    write(tmp_path / "a", of_tensors(weights()))
    reshard(tmp_path / "a", tmp_path / "b", ranks=2, plan=PLAN)
    damage(tmp_path / "b")
    with pytest.raises(WorkbenchError):
        sources_of(tmp_path / "b")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"ranks": 3, "plan": PLAN}, "cannot be cut into 3"),
        ({"ranks": 2, "plan": {"norm.weight": 1}}, "cannot be cut into 2 along 1"),
        ({"ranks": 2, "plan": {"nothing*": 0}}, "no tensor is named 'nothing"),
        ({"ranks": 2}, "cutting takes both"),
        ({"plan": PLAN}, "cutting takes both"),
        ({"stages": 5}, "4 layers for 5 stages"),
        ({"max_shard": "big"}, "write 500MB"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(tmp_path: Path, how: dict[str, Any], said: str) -> None:
    write(tmp_path / "a", of_tensors(weights()))
    with pytest.raises(BadInput, match=said):
        reshard(tmp_path / "a", tmp_path / "b", **how)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(BadInput, match="exists already"):
        reshard(tmp_path / "a", tmp_path / "a")


PEAK = """
import sys
from workbench.models.reshard import reshard
import workbench.models.shards
def line(name):
    return next(int(l.split()[1]) / 1e3 for l in open("/proc/self/status") if l.startswith(name))
for how in ({"max_shard": "30MB"}, {"stages": 2}, {"ranks": 2, "plan": {"layers.*": 1, "big": 0}}):
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = line("VmRSS")
    reshard(sys.argv[1], f"{sys.argv[1]}-{len(how)}{list(how)[0]}", **how)
    print(line("VmHWM") - before)
reshard(f"{sys.argv[1]}-2ranks", f"{sys.argv[1]}-again")
print(line("VmHWM") - before)
"""


def test_the_whole_is_never_in_memory(tmp_path: Path) -> None:
    made = {f"layers.{n}.weight": torch.full((1024, 2048), float(n)) for n in range(6)}
    (tmp_path / "a").mkdir()
    save_file({"big": torch.arange(2.0**24).view(2**12, 2**12), **made}, tmp_path / "a" / SINGLE)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "a")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peaks_mb = list(map(float, done.stdout.split()))
    assert max(peaks_mb) < 45, f"of 117 MB, with one tensor of 67 MB: {peaks_mb}"
    assert equal(read(tmp_path / "a-again"), read(tmp_path / "a"))
