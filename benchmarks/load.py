"""A checkpoint of 2 GB: how soon the first answer comes, in how much memory, and how fast a net answers that does not fit.

- first: a net that uses 4 of its 40 blocks, against `torch.load` + `load_state_dict` (the usual way: random first weights, a pickle, a
  copy) and against `torch.load(mmap=True)` on meta. Warm: all files are in the page cache. Cold: each way's own files are taken out of it
  before (posix_fadvise; the share that is left is measured by mincore), the peers' as ours. Each in a process of its own with torch
  imported before the clock starts, in turn, in rounds; what is compared was measured in one round, cold with cold. "disk" is a read
  of as many bytes as are used past the page cache (O_DIRECT, four readers), from the same files in the same round: for scale.
  Claims: warm <= 0.1 s, cold <= 0.2 s, >= 50 times faster than the usual way, peak memory <= 1.2 of the bytes that are used.
- stream: all 40 blocks within max_memory of a quarter of the checkpoint, one row. Bytes of the checkpoint a second of an answer, against a
  copy of the same files from the page cache into one buffer of 64 MB (preadv), in turn in one process. Claim: >= 0.7.
Usage: python benchmarks/load.py [--rounds 3] [--gb 2]     Needs torch, and 4.5 GB under the temporary folder, removed at the end.
"""

import argparse
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

BLOCKS, USED = 40, 4
BUFFER = 64 * 2**20
WAYS = ("lazy", "mapped", "usual")


def net(width: int, used: int = BLOCKS) -> Any:
    "40 blocks of two layers, of which the first so many are used."
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pair = lambda: [nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)]  # noqa: E731
            self.blocks = nn.ModuleList(nn.Sequential(*pair()) for _ in range(BLOCKS))

        def forward(self, x: Any) -> Any:
            for block in self.blocks[:used]:
                x = x + block(x)
            return x

    return Net()


def line(name: str) -> float:
    "A number of this process, MB."
    return next(int(row.split()[1]) / 1e3 for row in Path("/proc/self/status").open() if row.startswith(name))


def files(folder: Path) -> list[Path]:
    "The shards."
    return sorted(folder.glob("*.safetensors"))


def make(folder: Path, width: int) -> None:
    "The checkpoint in 8 shards, and the same as one pickle."
    import torch

    from workbench.models.reshard import Source, write
    from workbench.models.shards import open_shards

    dice, scale = np.random.default_rng(0), np.float32(width**-0.5)
    rows = lambda a, b: (dice.standard_normal((b - a, width), "f4") * scale).view("u4")  # noqa: E731
    one = Source("F32", (width, width), rows)
    names = [f"blocks.{n}.{half}.weight" for n in range(BLOCKS) for half in (0, 1)]
    write(folder / "shards", dict.fromkeys(names, one), max_shard=one.size * len(names) / 8)
    shards = open_shards(folder / "shards")
    torch.save({name: shards.tensor(name).clone() for name in names}, folder / "model.pt")
    with (folder / "model.pt").open("rb") as file:
        os.fsync(file.fileno())


def drop(paths: list[Path]) -> float:
    "Take files out of the page cache; the share that is still in it."
    libc, left, pages = ctypes.CDLL(None), 0, 0
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = path.stat().st_size
            view = np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8)
            marks = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
            libc.mincore(
                ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(marks.ctypes.data)
            )
            left, pages = left + int((marks & 1).sum()), pages + len(marks)
    return left / pages


def warm(paths: list[Path]) -> None:
    "Have files in the page cache."
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(BUFFER):
                pass


def direct(paths: list[Path], size: int) -> float:
    "Seconds to read so many bytes past the page cache, four readers at once."
    buffers, each = [mmap.mmap(-1, BUFFER // 16) for _ in range(4)], size // len(paths)

    def part(at: int) -> None:
        for path in paths[at::4]:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
            for start in range(0, each, len(buffers[at])):
                os.preadv(handle, [buffers[at]], start)
            os.close(handle)

    begin = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(part, range(4)))
    return time.perf_counter() - begin


def answered(build: Callable[[], Any], x: Any) -> dict[str, float]:
    "Seconds to the first answer, and MB at the peak above what was there."
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = line("VmRSS"), time.perf_counter()
    found = build()(x)
    took = time.perf_counter() - begin
    return {"s": took, "mb": line("VmHWM") - before, "sum": float(found.sum())}


def first(folder: Path, width: int, way: str) -> dict[str, float]:
    "One way to a first answer."
    import torch

    from workbench.models.stream import lazy

    def usual() -> Any:
        made = net(width, USED)
        made.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        return made

    def mapped() -> Any:
        with torch.device("meta"):
            made = net(width, USED)
        made.load_state_dict(torch.load(folder / "model.pt", weights_only=True, mmap=True), assign=True)
        return made

    ways = {
        "usual": usual,
        "mapped": mapped,
        "lazy": lambda: lazy(lambda: net(width, USED), folder / "shards"),
    }
    with torch.inference_mode():
        torch.nn.Linear(64, 64)(torch.ones(1, 64))
        return answered(ways[way], torch.ones(1, width))


def copied(paths: list[Path], buffer: memoryview) -> float:
    "Seconds to copy files from the page cache into one buffer."
    begin = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - begin


def stream(folder: Path, width: int, rounds: int) -> dict[str, Any]:
    "Answers of a net four times larger than its memory, and copies, in turn."
    import torch

    from workbench.models.stream import lazy, stream_of

    paths, buffer, x = files(folder / "shards"), memoryview(bytearray(BUFFER)), torch.ones(1, width)
    size = width * width * 4 * 2 * BLOCKS
    with torch.inference_mode():
        torch.nn.Linear(64, 64)(torch.ones(1, 64))
        copied(paths, buffer)
        Path("/proc/self/clear_refs").write_text("5")
        before, made, rows = line("VmRSS"), lazy(lambda: net(width), folder / "shards", size / 4), []
        for _ in range(rounds):
            copy_s, begin = copied(paths, buffer), time.perf_counter()
            made(x)
            rows.append({"copy": size / copy_s / 1e9, "answer": size / (time.perf_counter() - begin) / 1e9})
    read = stream_of(made).fetched / rounds / size
    return {"rows": rows, "mb": line("VmHWM") - before, "limit_mb": size / 4e6, "read": read}


def child(*arguments: Any) -> Any:
    "What a process of its own says."
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def spread(values: list[float], form: str = ".3f") -> str:
    "Median and range."
    return f"{statistics.median(values):{form}} [{min(values):{form}}-{max(values):{form}}]"


def main(rounds: int, gb: float) -> None:
    "Both parts."
    width = int((gb * 1e9 / (BLOCKS * 2 * 4)) ** 0.5) // 64 * 64
    size = width * width * 4 * 2 * BLOCKS
    with tempfile.TemporaryDirectory(prefix="wb-load-") as name:
        folder = Path(name)
        make(folder, width)
        shards, pickle = files(folder / "shards"), folder / "model.pt"
        found: dict[str, list[dict[str, float]]] = {
            f"{way} {how}": [] for how in ("warm", "cold") for way in WAYS
        }
        left, disk = 0.0, []
        for _ in range(rounds):
            for way in WAYS:
                left = max(left, drop([*shards, pickle]))
                found[f"{way} cold"].append(child("first", folder, width, way))
            left = max(left, drop(shards))
            disk.append(direct(shards, size * USED // BLOCKS))
            warm([*shards, pickle])
            for way in WAYS:
                found[f"{way} warm"].append(child("first", folder, width, way))
        used = size * USED / BLOCKS / 1e6
        print(f"{size / 1e9:.2f} GB, {USED} of {BLOCKS} blocks used ({used:.0f} MB), {rounds} rounds")
        for name, rows in found.items():
            usual = found["usual " + name.split()[1]]
            faster = [slow["s"] / row["s"] for slow, row in zip(usual, rows, strict=True)]
            took, peak = spread([row["s"] for row in rows]), spread([row["mb"] / used for row in rows], ".2f")
            print(f"{name:11} {took} s, {spread(faster, '.0f')} x usual, peak {peak} x used")
        print(f"disk: {spread(disk)} s; {left:.1%} of the files at most was left in the page cache")
        sums = {row["sum"] for rows in found.values() for row in rows}
        print(f"answers: {'the same bits' if len(sums) == 1 else sorted(sums)}")
        last = child("stream", folder, width, 3 * rounds)
    ratios = [row["answer"] / row["copy"] for row in last["rows"]]
    print(f"stream: {spread([r['answer'] for r in last['rows']], '.2f')} GB/s, "
          f"copy {spread([r['copy'] for r in last['rows']], '.2f')} GB/s, ratio {spread(ratios, '.2f')}, "
          f"peak {last['mb']:.0f} MB of {last['limit_mb']:.0f} allowed, {last['read']:.0%} of the files read an answer")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        what, place, wide, more = sys.argv[2:]
        call: Any = first if what == "first" else stream
        print(json.dumps(call(Path(place), int(wide), more if what == "first" else int(more))))
    else:
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--gb", type=float, default=2.1)
        main(**vars(parser.parse_args()))
