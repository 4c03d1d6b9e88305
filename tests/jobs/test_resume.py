"""What runs again after what, with its reason; what is kept how; and what is not believed."""

import json
import os
import pickle
import shutil
import stat
from pathlib import Path

import pytest
from shell import Shell

from workbench.base.ledger import Ledger
from workbench.base.store import sha256_file

CELLS = (
    "n = 1\nm = 2",
    "a = [n]",
    "b = [m]",
    "c = a + [3]",
    "d = b + [4]",
)


@pytest.fixture
def shell(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("WORKBENCH_SNAPSHOT_AFTER_S", "0")
    monkeypatch.setenv("WORKBENCH_SNAPSHOT_SHARE", "1")
    return Shell(ledger, monkeypatch)


@pytest.mark.parametrize(
    ("edited", "ran", "why"),
    [
        ({}, [6], "cell 6 runs: its code is new or was edited; cells 1, 2, 3, 4, 5 restored"),
        ({0: "n = 5\nm = 2"}, [1, 2, 4, 6], "cell 2 runs again: parameter n changed"),
        ({0: "n = 1\nm = 5"}, [1, 3, 5, 6], "cell 5 runs again: b of cell 3 may differ"),
        ({2: "b = [m, m]"}, [3, 5, 6], "cell 3 runs: its code is new"),
        ({2: "b = [ m ]  # the same"}, [6], ""),
        ({1: "a = [n]\nz = 0"}, [2, 6], ""),  # what made `a` is the same statement
        ({1: "a = [n, n]\nz = 0"}, [2, 4, 6], "cell 4 runs again: a of cell 2 may differ"),
        ({3: "c = a + [3]\nd = 1"}, [4, 6], ""),
    ],
)
def test_an_edit_runs_what_depends_on_it(
    shell: Shell, edited: dict[int, str], ran: list[int], why: str
) -> None:
    failed = shell.run(*CELLS, "1 / 0")
    cells = [edited.get(n, source) for n, source in enumerate(CELLS)] + ["print(a, b, c, d)"]
    done = shell.run(*cells, earlier=failed.run)
    assert done.ran == ran and why in done.said, done.said
    assert done.outputs[-1] == shell.run(*cells).outputs[-1]


def test_an_input_file_that_changed_runs_its_readers_again(shell: Shell) -> None:
    Path("one.txt").write_text("1")
    Path("two.txt").write_text("2")
    cells = (
        "from pathlib import Path\nn = 1",
        "one = Path('one.txt').read_text()",
        "two = Path('two.txt').read_text()",
        "both = one + two",
        "other = 3",
    )
    failed = shell.run(*cells, "1 / 0")
    os.utime("one.txt")  # the same content at another time is no change
    assert shell.run(*cells, "both", earlier=failed.run).ran == [6]
    Path("one.txt").write_text("7")
    done = shell.run(*cells, "print(both)", earlier=failed.run)
    assert done.ran == [2, 4, 6] and "cell 2 runs again: input file one.txt changed" in done.said
    assert done.outputs[-1] == "72\n"


def test_a_file_that_an_earlier_cell_wrote_is_followed(shell: Shell) -> None:
    cells = (
        "n = 1",
        "from pathlib import Path\nPath('out.txt').write_text(str(n))",
        "text = Path('out.txt').read_text()",
        "rest = 2",
    )
    failed = shell.run(*cells, "1 / 0")
    done = shell.run("n = 5", *cells[1:], "print(text)", earlier=failed.run)
    assert done.ran == [1, 2, 3, 5] and done.outputs[-1] == "5\n"
    failed = shell.run(*cells, "1 / 0")
    Path("out.txt").unlink()
    done = shell.run(*cells, "print(text)", earlier=failed.run)
    assert 2 in done.ran and "what it wrote, out.txt, is gone or changed" in done.said
    assert done.outputs[-1] == "1\n" and Path("out.txt").exists()


def test_a_run_can_be_resumed_twice_and_a_resumed_run_too(shell: Shell) -> None:
    cells = ("n = 1", "a = [n]", "b = a + [2]")
    failed = shell.run(*cells, "1 / 0", "c = 3")
    again = shell.run(*cells, "b.append(3)", "1 / 0", earlier=failed.run)
    assert again.ran == [4, 5]
    assert shell.run(*cells, "b.append(3)", "print(b)", earlier=again.run).outputs[-1] == "[1, 2, 3]\n"
    last = shell.run(*cells, "b.append(4)", "print(b)", earlier=failed.run)
    assert (last.ran, last.outputs[-1]) == ([4, 5], "[1, 2, 4]\n")
    shutil.rmtree(failed.run.folder / "snapshots")  # a resumed run holds what it needs itself
    done = shell.run(*cells, "b.append(3)", "print(b, a)", earlier=again.run)
    assert (done.ran, done.outputs[-1]) == ([5], "[1, 2, 3] [1]\n")


def test_code_of_the_project_that_changed_runs_its_users_again(
    shell: Shell, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(project))
    (project / "mine_of_resume.py").write_text("def double(x):\n    return 2 * x\n")
    cells = ("n = 1", "import mine_of_resume", "a = mine_of_resume.double(n)", "b = 3")
    failed = shell.run(*cells, "1 / 0")
    (project / "mine_of_resume.py").write_text("def double(x):\n    return 20 * x\n")
    done = shell.run(*cells, "a + b", earlier=failed.run)
    assert {2, 3} <= set(done.ran) and 4 not in done.ran
    assert "module mine_of_resume.py changed" in done.said


def test_another_environment_runs_what_calls_something_again(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = shell.run("n = 1", "import json", "a = json.dumps([n])", "1 / 0")
    from workbench.jobs import resume

    monkeypatch.setattr(resume, "environment", lambda: {"hash": "another"})
    done = shell.run("n = 1", "import json", "a = json.dumps([n])", "print(a)", earlier=failed.run)
    assert {2, 3} <= set(done.ran) and "cell 3 runs again: the environment changed" in done.said


@pytest.mark.parametrize(
    ("source", "use"),
    [
        ("lines = open('job.ipynb')", "print(lines.read()); lines.close()"),
        ("made = (n for n in range(4))", "print(list(made))"),
        ("import threading\nlock = threading.Lock()", "print(lock.acquire())"),
        (
            "import sqlite3\ndb = sqlite3.connect(':memory:')",
            "print(db.execute('select 1').fetchall()); db.close()",
        ),
        (
            "def outer():\n    lines = iter([n, 2])\n    return lambda: next(lines)\nnext_one = outer()",
            "print(next_one())",
        ),
    ],
)
def test_what_cannot_be_kept_is_made_again_when_it_is_needed(shell: Shell, source: str, use: str) -> None:
    cells = ("n = 1", source, "other = [n]")
    failed = shell.run(*cells, "1 / 0")
    done = shell.run(*cells, use, earlier=failed.run)
    assert done.ran == [2, 4] and "which is not kept" in done.said, done.said
    assert done.outputs[-1] == shell.run(*cells, use).outputs[-1]
    for left in (failed, done):
        for name in ("lines", "db"):
            if hasattr(left.names.get(name), "close"):
                left.names[name].close()
    assert shell.run(*cells, "print(other)", earlier=failed.run).ran == [4]


def test_a_lambda_that_closes_over_a_module_is_kept(shell: Shell) -> None:
    cells = ("n = 2", "import math\ndef make(k):\n    return lambda: math.sqrt(k) + n\nf = make(16)")
    failed = shell.run(*cells, "1 / 0")
    done = shell.run(*cells, "n = 10\nprint(f())", earlier=failed.run)
    assert (done.ran, done.outputs[-1]) == ([3], "14.0\n")


def test_a_setting_of_a_module_is_set_again(shell: Shell) -> None:
    cells = ("n = 1", "import decimal\ndecimal.setcontext(decimal.Context(prec=5))", "slow = 1")
    failed = shell.run(*cells, "1 / 0")
    done = shell.run(*cells, "print(decimal.Decimal(1) / 3)", earlier=failed.run)
    assert (done.ran, done.outputs[-1]) == ([2, 4], "0.33333\n")
    assert "which no snapshot holds" in done.said


TABLES = """
import numpy as np, pandas as pd, polars as pl, pyarrow as pa, torch
torch.set_num_threads(1)
array = np.arange(6.0).reshape(2, 3)
view = array[1]
net = torch.nn.Linear(2, 1)
weight = net.weight
half = weight.detach()[:, :1]
halves = torch.arange(3, dtype=torch.bfloat16)
lazy = pl.DataFrame({"x": [1, None, 3], "s": ["a", "b", None]})
table = pa.table({"d": pa.array([1, 2], pa.date32())})
frame = pd.DataFrame({"x": [1.5, 2.5], "t": pd.to_datetime(["2013-01-01", None])}, index=pd.Index([3, 4], name="k"))
objects = pd.DataFrame({"o": [{1}, "two"]})
"""
TOLD = """
view[0] = 70
weight.data.zero_()
print(array.tolist(), net.weight.tolist(), half.tolist(), halves, lazy.rows(), table.to_pylist(), frame.to_dict(), frame.dtypes, frame.index, objects)
"""


def test_tensors_and_tables_are_kept_in_formats_of_their_own(shell: Shell) -> None:
    failed = shell.run("n = 1", TABLES, "1 / 0")
    done = shell.run("n = 1", TABLES, TOLD, earlier=failed.run)
    assert (
        done.ran == [3]
        and done.outputs[-1] == shell.run("n = 1", TABLES, TOLD).outputs[-1]
        or "70" in done.outputs[-1]
    )
    folder = failed.run.folder / "snapshots"
    from safetensors import safe_open

    stored = [safe_open(path, "np") for path in folder.glob("*.safetensors")]
    assert sum(len(list(file.keys())) for file in stored) >= 4
    assert (
        list(folder.glob("*.arrow")) and sum(path.stat().st_size for path in folder.glob("*.pickle")) < 20_000
    )
    kinds = {
        section["kind"]
        for record in failed.last()
        for piece in record["pieces"]
        for section in piece["sections"]
    }
    assert kinds >= {"array", "table", "pickle"}


def test_only_what_changed_is_written(shell: Shell) -> None:
    done = shell.run(
        "n = 1", "import numpy as np\nbig = np.zeros(300_000)", "small = 1", "big.sum()", "small = 2", "1 / 0"
    )
    written = [
        sum(f.stat().st_size for f in (done.run.folder / "snapshots").glob(f"{k:04}-*")) for k in range(5)
    ]
    assert written[1] > 2_000_000 and max(written[2:]) < 20_000


class Planted:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("planted", "w")


def _plant(folder: Path, other: Path) -> None:
    for path in folder.glob("*.pickle"):
        path.write_bytes(pickle.dumps(Planted()))


def _plant_and_mark(folder: Path, other: Path) -> None:
    "As one who knows the format, but not the key."
    for path in folder.glob("*.pickle"):
        path.write_bytes(pickle.dumps(Planted()))
    for path in folder.glob("0*.json"):
        found = json.loads(path.read_text())
        record = json.loads(found["body"])
        for section in [s for piece in record["pieces"] for s in piece["sections"]]:
            if section["kind"] == "pickle":
                section |= {
                    "at": 0,
                    "size": (folder / section["file"]).stat().st_size,
                    "sha256": sha256_file(folder / section["file"]),
                }
        path.write_text(json.dumps({**found, "body": json.dumps(record)}))


def _flip(folder: Path, other: Path) -> None:
    for path in folder.glob("*.pickle"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def _elsewhere(folder: Path, other: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    for path in other.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def _link(folder: Path, other: Path) -> None:
    for path in folder.glob("*.pickle"):
        kept = path.rename(folder / f"moved.{path.name}")
        path.symlink_to(kept)


@pytest.mark.parametrize("touch", [_plant, _plant_and_mark, _flip, _elsewhere, _link])
def test_a_snapshot_that_was_touched_or_is_from_elsewhere_is_not_opened(shell: Shell, touch) -> None:
    cells = ("n = 1", "a = [n]", "b = a + [2]")
    other, failed = shell.run(*cells, "1 / 0"), shell.run(*cells, "1 / 0")
    touch(failed.run.folder / "snapshots", other.run.folder / "snapshots")
    try:
        done = shell.run(*cells, "print(b)", earlier=failed.run)
    except (KeyError, AssertionError):
        assert touch is _elsewhere  # no head: nothing to resume
        return
    assert done.ran == [1, 2, 3, 4] and done.outputs[-1] == "[1, 2]\n"
    assert "signed" in done.said or "symbolic" in done.said or touch is _elsewhere, done.said
    assert not Path("planted").exists()


def test_snapshots_are_for_their_owner_only(shell: Shell) -> None:
    folder = shell.run("n = 1", "a = [n]\nimport random", "1 / 0").run.folder / "snapshots"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    key = folder.parents[2] / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 32


def test_there_is_an_end_to_what_is_kept(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_SNAPSHOT_GB", "0.001")
    cells = ("n = 1", "import numpy as np\nbig = np.zeros(300_000)", "small = 1")
    failed = shell.run(*cells, "1 / 0")
    kept = sum(path.stat().st_size for path in (failed.run.folder / "snapshots").iterdir())
    assert kept < 1_000_000
    done = shell.run(*cells, "print(big.sum() + small)", earlier=failed.run)
    assert done.ran == [2, 4] and "there is no room for it" in done.said and done.outputs[-1] == "1.0\n"


def test_when_its_share_of_the_time_is_spent_no_more_is_kept(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_SNAPSHOT_SHARE", "0.0001")
    failed = shell.run("n = 1", "a = [n]", "b = 2", "1 / 0")
    assert not list((failed.run.folder / "snapshots").glob("*.pickle"))
    assert any("of the time already" in why for why in failed.watch.left_out)
    done = shell.run("n = 1", "a = [n]", "b = 2", "print(a)", earlier=failed.run)
    assert done.ran == [1, 2, 4] and "no snapshot was taken after it" in done.said
