"""A net in stages gives the bits of one process, reads its own layers alone, and leaves nothing behind."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from workbench.base.errors import BadInput, NotFound, WorkbenchError
from workbench.models.reshard import of_tensors, reshard, write
from workbench.models.stages import Part, pipeline
from workbench.models.stream import lazy
from workbench.words.gpt import Gpt

GPT = {"width": 64, "layers": 5, "heads": 4, "context": 32}
PATH = "workbench.words.gpt:Gpt"


def gpt() -> Gpt:
    return Gpt(**GPT)


@pytest.fixture
def whole(tmp_path: Path) -> Gpt:
    "A net, and its checkpoint in `net`."
    torch.manual_seed(0)
    made = gpt()
    for p in made.parameters():
        nn.init.normal_(p, std=0.2)
    write(tmp_path / "one", of_tensors(made.state_dict()))
    reshard(tmp_path / "one", tmp_path / "net", stages=2)
    return made.eval()


def tokens(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 32), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ends", [[5], [2, 5], [1, 2, 3, 4, 5]])
def test_parts_in_a_row_give_the_bits_of_the_whole(whole: Gpt, tmp_path: Path, ends: list[int]) -> None:
    parts = [Part(gpt, tmp_path / "net", *span) for span in zip([0, *ends], ends, strict=False)]
    for seed in range(3):
        sent = None
        for part in parts:
            sent = part((tokens(2, seed),), sent)
        with torch.inference_mode():
            assert torch.equal(sent, whole(tokens(2, seed)))
    seen = [name for part in parts for name in part.shards.entries if name.startswith("blocks")]
    assert sorted(seen) == sorted(n for n in whole.state_dict() if n.startswith("blocks")), "each layer once"


def test_a_part_opens_no_file_of_another_stage(whole: Gpt, tmp_path: Path) -> None:
    for path in (tmp_path / "net").glob("*stage2*"):
        path.unlink()
    Part(gpt, tmp_path / "net", 0, 2)
    with pytest.raises(NotFound, match="stage2"):
        Part(gpt, tmp_path / "net", 3, 5)


class Tuples(nn.Module):
    "Layers that take more than one thing and give a tuple, as the common decoders do."

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.GRU(8, 8, batch_first=True) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.call(layer, x)
        return x

    def call(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return layer(x)[0]


class Around(Tuples):
    def call(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x + layer(x)[0]


class Twice(Tuples):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(super().forward(x))


def in_two(build: Callable[[], nn.Module], folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    "The answer of two parts, and of one process."
    torch.manual_seed(0)
    write(folder / "a", of_tensors(build().state_dict()))
    made, x = lazy(build, folder / "a"), torch.randn(3, 5, 8)
    first, second = (Part(build, folder / "a", *span) for span in ((0, 2), (2, 4)))
    with torch.inference_mode():
        return second((x,), first((x,))), made(x)


def test_layers_that_give_tuples_are_cut_too(tmp_path: Path) -> None:
    found, wanted = in_two(Tuples, tmp_path)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("build", [Around, Twice])
def test_a_net_that_would_be_answered_wrongly_is_refused(tmp_path: Path, build: type[nn.Module]) -> None:
    with pytest.raises(BadInput, match="cannot be cut"):
        in_two(build, tmp_path)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"stages": 6}, "5 layers for 6 stages"),
        ({"stages": 0}, "5 layers for 0 stages"),
        ({"config": {**GPT, "layers": 6}}, "lacks blocks.5"),
        ({"model": "os:system"}, "not in an installed package"),
    ],
)
def test_what_cannot_be_is_refused_before_a_ray_is_started(
    whole: Gpt, tmp_path: Path, how: dict[str, Any], said: str
) -> None:
    with (
        pytest.raises(BadInput, match=said),
        pipeline(**{"model": PATH, "config": GPT, "folder": tmp_path / "net", **how}),
    ):
        pass


def gone(pids: list[int]) -> bool:
    "Whether all of these processes end within some seconds."
    last = time.monotonic() + 10
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < last:
        time.sleep(0.05)
    return not any(map(psutil.pid_exists, pids))


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
@pytest.mark.long
def test_two_stages_on_a_ray(there: Any, whole: Gpt, tmp_path: Path) -> None:
    import ray

    before = set(map(str, Path("/tmp").glob("wb-ray-*")))
    with pipeline(PATH, GPT, tmp_path / "net", max_memory="600kB") as net:
        with torch.inference_mode():
            wanted = [whole(tokens(2, seed)) for seed in range(6)]
        found = list(net.map((tokens(2, seed),) for seed in range(6)))
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
        assert torch.equal(net(tokens(2)), wanted[0])
        pids, names = [one["pid"] for one in net.about], [set(one["names"]) for one in net.about]
        assert len({os.getpid(), *pids}) == 3
        assert names[0] & names[1] == {"norm.weight", "tokens.weight"} and names[0] | names[1] == set(
            whole.state_dict()
        )
        with pytest.raises(IndexError):
            net(tokens(2) + 256)
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(WorkbenchError, match="a stage died"):
            net(tokens(2))
    assert gone(pids)
    pids = []
    with pytest.raises(KeyboardInterrupt), pipeline(PATH, GPT, tmp_path / "net") as net:
        pids += [one["pid"] for one in net.about]
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
        for _ in net.map((tokens(64),) for _ in range(10**6)):
            pass
    assert len(pids) == 2 and gone(pids)
    assert ray.is_initialized(), "a Ray that was there stays"
    assert set(map(str, Path("/tmp").glob("wb-ray-*"))) <= before
