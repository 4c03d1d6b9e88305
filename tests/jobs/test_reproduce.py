"""A job made again from its record, in a real git repository: what is the same, and what is named when it is not."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from workbench.base.errors import BadInput, JobFailed, NotFound, Unavailable
from workbench.base.ledger import Ledger
from workbench.base.records import Run, start
from workbench.jobs import runner
from workbench.jobs.compare import compare_cells
from workbench.jobs.reproduce import reproduce

COMMAND = [sys.executable, "-c", "from workbench.cli.cli import main; main()"]
RESULT = "from workbench.jobs.outcome import result\n"
SUM = "rows = [int(line) for line in open('data/rows.txt')]"


def git(folder: Path, *args: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *who, *args], cwd=folder, check=True, capture_output=True, text=True).stdout


def snapshot(folder: Path) -> dict[str, Any]:
    "All that a user has: files with their times, branches, index, worktrees."
    kept = [p for p in sorted(folder.rglob("*")) if p.is_file() and ".workbench" not in p.parts]
    files = {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in kept if "objects" not in p.parts}
    return {**files, "": git(folder, "worktree", "list")}


@pytest.fixture
def repository(project: Path) -> Path:
    "The project as a repository; `data/` and the store are not in it."
    (project / ".gitignore").write_text("data/\n.workbench/\n")
    (project / "data").mkdir()
    (project / "data" / "rows.txt").write_text("1\n2\n3\n")
    git(project, "init", "-q")
    return project


@pytest.fixture
def job(repository: Path, write: Any, ledger: Ledger) -> Any:
    "job(source, ...): write, commit and run a notebook."

    def make(
        *sources: str, params: dict[str, Any] | None = None, tagged: int = 0, commit: bool = True
    ) -> Run:
        path = write(*sources, tagged=tagged)
        if commit:
            git(repository, "add", "-A")
            git(repository, "commit", "-qm", "work", "--allow-empty")
        return runner.run(path, params, ledger=ledger)

    return make


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    "Temporary clones are made where they can be counted."
    with tempfile.TemporaryDirectory(prefix="wb-") as short:
        with monkeypatch.context() as patched:
            patched.setattr(tempfile, "tempdir", short)
            patched.setenv("TMPDIR", short)
            yield Path(short)
        assert not list(Path(short).glob("workbench-reproduce-*"))


def names(found: Any) -> list[tuple[str, bool, bool]]:
    return [(f.path, f.saved, f.differs) for f in found.files if f.path != "settings.ini"]


def test_same_code_is_reproduced_and_nothing_of_the_user_is_touched(
    job: Any, repository: Path, ledger: Ledger
) -> None:
    total = RESULT + "result(total=sum(rows) * scale)"
    run = job("scale = 2", SUM, total, "print(object())", tagged=1, params={"scale": 5})
    before = snapshot(repository)
    found = reproduce(run.id, ledger=ledger)
    assert found.reproduced and found.exact_code and found.environment == []
    assert {each.answer for each in found.metrics} == {"exact"}
    assert {each.answer for each in found.cells} == {"exact", "same"}  # an address
    assert names(found) == [("data/rows.txt", False, False)]
    assert snapshot(repository) == before
    assert "reproduced" in str(found) and "reproduced" in found._repr_html_()
    assert (ledger.store.root / "runs" / found.again / "notebook.ipynb").is_file()


def test_the_recorded_code_runs_whatever_the_tree_is_now(
    job: Any, repository: Path, write: Any, ledger: Ledger
) -> None:
    git(repository, "config", "diff.noprefix", "true")  # the user's taste must not spoil the patch
    (repository / "helper.py").write_text("factor = 1\n")
    job("1")
    (repository / "helper.py").write_text("factor = 10\n")  # not committed
    (repository / "fresh.py").write_text("more = 5\n")  # not even known to git
    (repository / "blob.bin").write_bytes(bytes(range(256)))
    source = "import helper, fresh\nsize = len(open('blob.bin', 'rb').read())\n" + RESULT
    run = job(source + "result(value=helper.factor + fresh.more, size=size)", commit=False)
    (repository / "helper.py").write_text("factor = 999\n")
    (repository / "fresh.py").unlink()
    (repository / "blob.bin").unlink()
    write("raise ValueError('edited')", tagged=0)
    found = reproduce(run.id, ledger=ledger)
    assert found.reproduced and found.exact_code and found.patch, str(found)
    assert {each.wanted for each in found.metrics} == {"15", "256"}
    assert {"helper.py", "fresh.py", "blob.bin"} == {name for name, saved, differs in names(found) if saved}


@pytest.mark.long
def test_a_changed_or_missing_data_file_is_named(job: Any, repository: Path, ledger: Ledger) -> None:
    run = job(SUM, RESULT + "result(total=sum(rows))")
    (repository / "data" / "rows.txt").write_text("1\n2\n4\n")
    found = reproduce(run.id, ledger=ledger)
    assert not found.reproduced
    (file,) = [f for f in found.files if f.differs]
    assert file.path == "data/rows.txt" and len(file.found) == 64 and "not saved" in str(file)
    assert [(m.wanted, m.found) for m in found.differing if m.name == "total"] == [("6", "7")]
    (repository / "data" / "rows.txt").unlink()
    found = reproduce(run.id, ledger=ledger)
    assert found.status == ("succeeded", "failed") and "FileNotFoundError" in found.error
    assert "data/rows.txt: was" in str(found) and "is not there" in str(found)


@pytest.mark.long
def test_a_file_that_the_record_does_not_name_can_be_brought(job: Any, ledger: Ledger) -> None:
    run = job(
        "name = 'rows' + '.txt'\nopen('/'.join(['data', name][:2])).read()".replace("'data'", "'da' + 'ta'")
    )
    assert not reproduce(run.id, ledger=ledger).reproduced
    assert reproduce(run.id, bring=["data"], ledger=ledger).reproduced
    for name in ("nothing", "../out", "/etc"):
        with pytest.raises(NotFound):
            reproduce(run.id, bring=[name], ledger=ledger)


@pytest.mark.long
def test_a_changed_package_is_named_with_both_versions(job: Any, ledger: Ledger) -> None:
    run = job("print(1)")
    then = json.loads(ledger.store.get(run.identity["environment_list"]))
    then["packages"]["numpy"] = "1.0.0"
    then["packages"]["gone-since"] = "2.0"
    run.identity["environment_list"] = ledger.store.put(json.dumps(then).encode())
    with ledger.change() as db:
        db.execute("update runs set identity=? where id=?", (json.dumps(run.identity), run.id))
    found = reproduce(run.id, ledger=ledger)
    said = {each.what: (each.wanted, each.found) for each in found.environment}
    assert said["gone-since"] == ("2.0", "") and said["numpy"][0] == "1.0.0" and len(said) == 2
    assert found.reproduced  # what came out is the same


def test_what_differs_is_named_metric_by_metric_and_cell_by_cell(job: Any, ledger: Ledger) -> None:
    run = job(
        "import random",
        RESULT + "_ = result(luck=random.random(), seen=3, took_s=random.random())",
        "print('same')\nprint('luck', random.random())",
        "import sys; print(random.random(), file=sys.stderr)",
    )
    found = reproduce(run.id, ledger=ledger)
    assert [each.name for each in found.differing] == ["luck", "cell 3"]
    cell = found.differing[1]
    assert cell.wanted.startswith("luck 0.") and cell.found.startswith("luck 0.")
    shown = {e.name for e in (*found.metrics, *found.cells) if e.answer == "different" and not e.counts}
    assert shown == {"took_s", "cell 4, standard error"}


def test_a_failure_is_reproduced_too(job: Any, ledger: Ledger) -> None:
    with pytest.raises(JobFailed):
        job("1 / 0")
    (row,) = ledger.query("select id from runs")
    found = reproduce(row["id"], ledger=ledger)
    assert found.reproduced and found.status == ("failed", "failed")


def test_a_model_of_the_store_is_one_of_its_own_to_the_copy_too(job: Any, ledger: Ledger) -> None:
    run = job("from workbench.models.shelf import Shelf\nprint(Shelf().keys.sign('0' * 64))")
    found = reproduce(run.id, ledger=ledger)
    assert found.reproduced and {cell.answer for cell in found.cells} == {"exact"}


def test_how_often_progress_was_said_is_no_difference_and_where_it_ended_is() -> None:
    def cell(*lines: str) -> dict[str, Any]:
        text = [f"fit net: train {line}\n" for line in lines]
        shown = {"output_type": "stream", "name": "stdout", "text": ["begin\n", *text, "3/4 rows (75%)\n"]}
        return {"cells": [{"cell_type": "code", "source": "fit()", "outputs": [shown]}]}

    slow = cell("0/4,000 rows (0%)", "1,000/4,000 rows auc=0.6 (25%)", "4,000/4,000 rows auc=0.7 (100%)")
    fast = cell("0/4,000 rows (0%)", "4,000/4,000 rows auc=0.7 (100%)")
    worse = cell("0/4,000 rows (0%)", "4,000/4,000 rows auc=0.5 (100%)")
    stuck = cell("0/4,000 rows (0%)")
    answers = [[c.answer for c in compare_cells(slow, other, 1e-6)] for other in (fast, worse, stuck)]
    assert answers == [["exact"], ["different"], ["different"]]


def test_what_the_notebook_keeps_in_the_store_is_not_kept_twice(job: Any, ledger: Ledger) -> None:
    adds = "from workbench.base.ledger import Ledger\nledger = Ledger()\n"
    adds += "ledger.create('create table if not exists t (x);')\n"
    adds += "with ledger.change() as db:\n    _ = db.execute('insert into t values (1)')\n"
    run = job(adds)
    assert reproduce(run.id, ledger=ledger).reproduced
    assert ledger.query("select count(*) from t")[0][0] == 1


@pytest.mark.long
def test_a_secret_is_given_by_its_reference(
    job: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_TOKEN", "correct-horse")
    cells = ("from workbench.jobs.secret import Secret\ntoken: Secret", "print(len(token.reveal()))")
    run = job(*cells, tagged=1, params={"token": "env:THE_TOKEN"})
    assert reproduce(run.id, ledger=ledger).reproduced
    monkeypatch.delenv("THE_TOKEN")
    with pytest.raises(Unavailable, match="THE_TOKEN"):
        reproduce(run.id, ledger=ledger)


def test_what_cannot_be_made_again_is_refused_before_anything_starts(
    job: Any, repository: Path, write: Any, ledger: Ledger
) -> None:
    with start("check", "rows", ledger=ledger) as check:
        pass
    with pytest.raises(BadInput, match="is a check, not a job"):
        reproduce(check.id, ledger=ledger)
    with pytest.raises(NotFound, match="no run is called"):
        reproduce("20130101", ledger=ledger)
    with pytest.raises(BadInput, match="timeout_s = 0 is no time"):
        reproduce(check.id, timeout_s=0, ledger=ledger)
    without = runner.run(write("1", name="early.ipynb", tagged=0), ledger=ledger)
    with pytest.raises(BadInput, match="has no commit"):
        reproduce(without.id, ledger=ledger)
    job("1")
    (repository / "new.py").write_text("x = 1\n")
    dirty = job("1", commit=False)
    patch = dirty.identity["code"]["patch"]
    kept = ledger.store.path("cache", patch[:2], patch)
    kept.rename(kept.with_suffix(".away"))
    with pytest.raises(NotFound, match="uncommitted changes .* are missing"):
        reproduce(dirty.id, ledger=ledger)
    kept.with_suffix(".away").rename(kept)
    git(repository, "commit", "-q", "--amend", "-m", "other")
    git(repository, "reflog", "expire", "--expire=now", "--all")
    git(repository, "prune", "--expire=now")
    with pytest.raises(NotFound, match="is not in .* any more"):
        reproduce(dirty.id, ledger=ledger)
    assert len(ledger.query("select id from runs")) == 4


@pytest.mark.long
def test_the_command_answers_by_exit_code(job: Any, ledger: Ledger) -> None:
    same, other = job(SUM), job("import random; print(random.random())")
    for run, code in ((same, 0), (other, 11)):
        done = subprocess.run([*COMMAND, "reproduce", run.id, "--json"], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert json.loads(done.stdout)["reproduced"] is (code == 0)
    done = subprocess.run([*COMMAND, "reproduce", "nope"], capture_output=True, text=True)
    assert done.returncode == 3 and "no run is called" in done.stderr


def _is_kernel(process: psutil.Process) -> bool:
    try:
        return "ipykernel_launcher" in " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


@pytest.mark.long
def test_kill_of_the_command_leaves_no_process(job: Any, repository: Path, nothing_left: Path) -> None:
    source = "import pathlib, time\ntime.sleep(0 if pathlib.Path('data/rows.txt').exists() else 600)"
    run = job(source)
    (repository / "data" / "rows.txt").unlink()
    process = subprocess.Popen([*COMMAND, "reproduce", run.id])
    family: list[psutil.Process] = []
    until = time.monotonic() + 60
    while not any(_is_kernel(child) for child in family):
        assert process.poll() is None and time.monotonic() < until
        family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(family, timeout=20)
    assert left == []
    while list(nothing_left.glob("workbench-reproduce-*")) and time.monotonic() < until:
        time.sleep(0.1)
