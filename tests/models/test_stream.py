"""A net whose weights come from disk answers like one in memory, in the memory it was allowed."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from safetensors.torch import save_file
from torch import nn

import workbench
from workbench.base.errors import BadInput, Corrupt
from workbench.base.records import Ledger
from workbench.models.shards import SINGLE
from workbench.models.shelf import Shelf
from workbench.models.stream import layers, lazy, stream_of, unfilled
from workbench.words.gpt import Gpt

GPT = {"width": 32, "layers": 6, "heads": 2, "context": 16}


def gpt() -> Gpt:
    return Gpt(**GPT)


def saved(folder: Path, model: nn.Module, drop: tuple[str, ...] = ()) -> Path:
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    kept = {name: t.contiguous() for name, t in model.state_dict().items() if name not in drop}
    save_file(kept, folder / SINGLE)
    return folder


class Zoo(nn.Module):
    "Of each kind one, with what is computed, what is kept and what is tied."

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 16)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(depth)
        )
        self.past = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
        self.look = nn.Sequential(
            nn.Conv1d(32, 8, 3, padding=1), nn.BatchNorm1d(8), nn.PReLU(), nn.GroupNorm(2, 8)
        )
        self.scale = nn.Parameter(torch.randn(8) * 0.1)
        self.back = nn.Linear(8, 16, bias=False)
        self.out = nn.Linear(16, 11, bias=False)
        self.out.weight = self.words.weight
        self.register_buffer("angles", torch.arange(16) / 16, persistent=False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.angles + self.seen
        for layer in self.layers:
            x = layer(x)
        x = self.look(self.past(x)[0].transpose(1, 2)).transpose(1, 2) * self.scale
        return self.out(self.back(x))


@pytest.mark.parametrize("limited", [False, True])
def test_every_kind_of_module_gives_the_bits_it_gives_in_memory(tmp_path: Path, limited: bool) -> None:
    torch.manual_seed(0)
    whole = Zoo()
    whole.seen += 3
    saved(tmp_path, whole, drop=("out.weight",))
    ids = torch.randint(0, 11, (3, 7))
    found = lazy(Zoo, tmp_path)
    if limited:
        least = sum(p.nbytes for layer in found.layers for p in layer.parameters())
        found = lazy(Zoo, tmp_path, stream_of(found).outside + least)
    with torch.no_grad():
        wanted = whole.eval().requires_grad_(False)(ids)
        assert torch.equal(found(ids), wanted) and torch.equal(found(ids), wanted)
    assert found.out.weight is found.words.weight
    assert not any(p.requires_grad for p in found.parameters())


def test_a_gpt_in_a_third_of_its_memory_gives_the_same_logits_from_many_threads(tmp_path: Path) -> None:
    whole = gpt()
    saved(tmp_path, whole)
    size = sum(p.nbytes for p in whole.parameters())
    limit = stream_of(lazy(gpt, tmp_path)).outside + size / 3
    found, tokens = lazy(gpt, tmp_path, limit), torch.arange(32).view(2, 16)
    wanted, got = whole(tokens), []

    def ask() -> None:
        for _ in range(10):
            with torch.no_grad():
                got.append(torch.equal(found(tokens), wanted))
            assert stream_of(found).held <= limit

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [True] * 40


def test_of_layers_used_round_and_round_those_that_fit_stay(tmp_path: Path) -> None:
    saved(tmp_path, gpt())
    free = lazy(gpt, tmp_path)
    layer = sum(p.nbytes for p in layers(free)[0].parameters())
    found, tokens = (
        lazy(gpt, tmp_path, stream_of(free).outside + 4 * layer),
        torch.zeros(1, 4, dtype=torch.long),
    )
    stream, read = stream_of(found), []
    for _ in range(6):
        before = stream.fetched
        found(tokens)
        read.append((stream.fetched - before) // layer)
    assert read[0] == 6, "the first time all six, one after another"
    assert max(read[1:]) <= 5 and sum(read[2:]) <= 4 * 4, f"with room for four, two stay: {read}"


def test_layers_that_are_not_used_are_not_read(tmp_path: Path) -> None:
    saved(tmp_path, gpt())
    found = lazy(gpt, tmp_path)
    found.blocks = found.blocks[:2]
    found(torch.zeros(1, 4, dtype=torch.long))
    assert stream_of(found).fetched == sum(p.nbytes for b in found.blocks for p in b.parameters())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda: Gpt(**{**GPT, "layers": 7}),
            "lacks blocks.6.down.weight, blocks.6.one.weight, .* and 3 more",
        ),
        (lambda: Gpt(**{**GPT, "layers": 5}), "holds blocks.5.down.weight, .* the net has no such"),
        (
            lambda: Gpt(**{**GPT, "vocabulary": 255}),
            r"tokens.weight is \(256, 32\) in .*, \(255, 32\) in the net",
        ),
        (lambda: gpt().to(torch.bfloat16), "is float32 in .*, torch.bfloat16 in the net"),
    ],
)
def test_a_checkpoint_of_another_net_is_refused(tmp_path: Path, build: Callable[[], Any], said: str) -> None:
    saved(tmp_path, gpt())
    with pytest.raises(BadInput, match=said):
        lazy(build, tmp_path)


def test_what_no_checkpoint_holds_and_nobody_computed_is_refused(tmp_path: Path) -> None:
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.register_buffer("noise", torch.randn(2), persistent=False)

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = float(self.a.weight.sum())

    saved(tmp_path, Noise())
    with pytest.raises(BadInput, match="noise is in no checkpoint"):
        lazy(Noise, tmp_path)
    with pytest.raises(BadInput, match="cannot be built without its weights"):
        lazy(Sums, tmp_path)


@pytest.mark.parametrize("memory", ["1kB", 0, "two"])
def test_a_memory_in_which_no_two_layers_fit_is_refused(tmp_path: Path, memory: Any) -> None:
    saved(tmp_path, gpt())
    with pytest.raises(BadInput, match="memory"):
        lazy(gpt, tmp_path, memory)


def weights_may_learn(bundle: Any) -> list[bool]:
    "torch multiplies by another kernel, with other last bits, where a weight could ask for its gradient."
    seen: list[bool] = []
    hook = nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: seen.extend(p.requires_grad for p in module.parameters())
    )
    with hook:
        bundle.predictor()(toy.columns(5))
    assert seen
    return seen


def test_a_bundle_gives_the_same_scores_in_little_memory(ledger: Ledger) -> None:
    model = Shelf(ledger).add("delays", **toy.net_parts())
    columns, loaded = toy.columns(50), workbench.load("delays/1", ledger, max_memory="100kB")
    assert loaded.digest == model.digest
    assert np.array_equal(loaded.predictor()(columns), model.predictor()(columns))
    with pytest.raises(BadInput, match="two layers"):
        workbench.load("delays/1", ledger, max_memory="1kB").predictor()
    for wrong in ("lots", -1, 0, float("nan")):
        with pytest.raises(BadInput, match="memory"):
            workbench.load("delays/1", ledger, max_memory=wrong)
    assert not any(weights_may_learn(loaded)) and not any(weights_may_learn(model))
    weights = model.path / "weights.safetensors"
    weights.write_bytes(bytes(reversed(weights.read_bytes())))
    with pytest.raises(Corrupt, match="sha256"):
        loaded.predictor()


def test_of_a_bundle_that_is_no_net_nothing_is_streamed(ledger: Ledger) -> None:
    Shelf(ledger).add("delays", **toy.linear_parts())
    assert workbench.load("delays/1", ledger, max_memory="1MB").predictor()(toy.columns(5)).shape == (5,)
    with pytest.raises(BadInput, match="only nets of PyTorch"):
        workbench.load("delays/1", ledger, max_memory=10)
    with pytest.raises(BadInput, match="write 500MB or 4GB"):
        workbench.load("delays/1", ledger, max_memory="much")


def test_building_takes_no_memory() -> None:
    assert all(p.is_meta for p in unfilled(lambda: nn.Linear(10**6, 10**6)).parameters())


PEAK = """
import sys, torch
from torch import nn
from workbench.models.stream import lazy
def build():
    return nn.Sequential(*[nn.Linear(1024, 1024, bias=False) for _ in range(32)])
def line(name):
    return next(int(l.split()[1]) / 1e3 for l in open("/proc/self/status") if l.startswith(name))
torch.set_num_threads(1)
x = torch.ones(1, 1024)
nn.Linear(1024, 1024)(x)
for memory in ("32MB", ""):
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = line("VmRSS")
    net = lazy(build, sys.argv[1], memory)
    with torch.inference_mode():
        for _ in range(3):
            net(x)
    print(line("VmHWM") - before)
"""


def test_the_process_stays_in_the_memory_it_was_allowed(tmp_path: Path) -> None:
    save_file({f"{n}.weight": torch.ones(1024, 1024) for n in range(32)}, tmp_path / SINGLE)
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    limited_mb, free_mb = map(float, done.stdout.split())
    assert limited_mb < 1.2 * 32, "of 134 MB"
    assert free_mb > 100, "without a limit all that is used is there"
