"""What it costs to be able to resume a job, and what resuming saves: wall time of whole runs, with and without snapshots, in turn.

The notebook sorts arrays for as many seconds as are asked for, and keeps all of them; then it fails, is mended, and is resumed and
run again. Prints medians, the ratio with and without, its spread from round to round, and the share that the run itself reports.
Usage: python benchmarks/resume.py [rounds] [seconds ...]
"""

import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

SORT = """
for k in range({loops}):
    x{n} = np.sort(np.sin(np.random.default_rng(k).normal(size=500_000)))
"""
LIMIT = 1.05


def write(folder: Path, loops: int, last: str) -> Path:
    "Eight cells with the same work each time, then a last one."
    sources = ["n: int = 1", "import numpy as np"]
    sources += [SORT.format(n=n, loops=loops) for n in range(8)] + [last]
    kinds = {"cell_type": "code", "outputs": [], "execution_count": None}
    cells = [{**kinds, "id": f"c{n}", "source": text, "metadata": {}} for n, text in enumerate(sources)]
    cells[0]["metadata"] = {"tags": ["parameters"]}
    path = folder / "job.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def timed(path: Path, share: str) -> tuple[float, float]:
    "Seconds that a run takes, and the share of it that it says snapshots took."
    from workbench.jobs.runner import run

    os.environ["WORKBENCH_SNAPSHOT_SHARE"] = share
    begin = time.perf_counter()
    job = run(path)
    took_s = time.perf_counter() - begin
    book = json.loads((job.folder / "notebook.ipynb").read_text())
    return took_s, book["metadata"]["workbench"]["snapshots"]["share"]


def overhead(folder: Path, rounds: int, seconds: float) -> float:
    "The ratio of the medians, with snapshots to without."
    loops = max(1, round(seconds / 8 / loop_s()))
    path = write(folder, loops, "x0.sum()")
    took: dict[str, list[float]] = {"0": [], "0.04": []}
    shares = []
    for turn in range(rounds):
        for share in ("0", "0.04") if turn % 2 else ("0.04", "0"):
            took_s, said = timed(path, share)
            took[share].append(took_s)
            shares += [said] if share != "0" else []
    without, with_them = (statistics.median(took[share]) for share in ("0", "0.04"))
    ratios = [a / b for a, b in zip(took["0.04"], took["0"], strict=True)]
    print(
        f"  {without:5.1f} s without, {with_them:5.1f} s with snapshots: x {with_them / without:.3f}"
        f" (round by round {min(ratios):.3f} to {max(ratios):.3f}; without, {min(took['0']):.1f} to {max(took['0']):.1f} s);"
        f" the run says {statistics.median(shares):.1%}"
    )
    return with_them / without


def loop_s() -> float:
    "Seconds that one turn of the work takes here."
    import numpy as np

    begin = time.perf_counter()
    for k in range(4):
        np.sort(np.sin(np.random.default_rng(k).normal(size=500_000)))
    return (time.perf_counter() - begin) / 4


def saved(folder: Path, seconds: float) -> None:
    "Time to resume a run that failed in its last cell, against running it again."
    from workbench.base.errors import JobFailed
    from workbench.base.records import runs
    from workbench.jobs.resume import resume
    from workbench.jobs.runner import run

    os.environ["WORKBENCH_SNAPSHOT_SHARE"] = "0.04"
    loops = max(1, round(seconds / 8 / loop_s()))
    with contextlib.suppress(JobFailed):
        run(write(folder, loops, "1 / 0"))
    write(folder, loops, "print(x0.sum(), x7.sum())")
    begin, plans = time.perf_counter(), []
    resume(runs(limit=1)[0], say=plans.append)
    resumed_s = time.perf_counter() - begin
    begin = time.perf_counter()
    run(folder / "job.ipynb")
    whole_s = time.perf_counter() - begin
    again = len(plans[0].steps) - len(plans[0].restored)
    print(
        f"  resumed in {resumed_s:.1f} s ({again} of 11 cells ran), run again in {whole_s:.1f} s: {whole_s / resumed_s:.1f} x"
    )


def main() -> None:
    "Print both, for each length."
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    lengths = [float(text) for text in sys.argv[2:]] or [3.0, 17.0]
    folder = Path(tempfile.mkdtemp(prefix="workbench-bench-resume-"))
    os.chdir(folder)
    (folder / "settings.ini").write_text("[laptop]\n")
    os.environ |= {
        "WORKBENCH_STORE": str(folder / "store"),
        "WORKBENCH_DISPLAY": "quiet",
        "WORKBENCH_TRACK": "false",
    }
    worst = 0.0
    try:
        for seconds in lengths:
            print(f"a notebook with {seconds:g} s of work and 32 MB of arrays, {rounds} rounds")
            worst = max(worst, overhead(folder, rounds, seconds))
            saved(folder, seconds)
    finally:
        shutil.rmtree(folder)
    print(f"target: at most x {LIMIT}; {'met' if worst <= LIMIT else 'not met'} (worst x {worst:.3f})")


if __name__ == "__main__":
    main()
