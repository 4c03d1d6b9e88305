"""What travels to a cluster and back: nothing private goes, nothing is overwritten, nothing leaves its folder."""

import io
import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import toy

from workbench.base.errors import BadInput, Corrupt
from workbench.base.ledger import Ledger
from workbench.base.records import start
from workbench.base.store import Store, sha256_file
from workbench.jobs.parcel import (
    PROJECT_LIMIT_MB,
    pack_project,
    pack_shelf,
    pack_store,
    unpack_shelf,
    unpack_store,
)
from workbench.models.shelf import Shelf, load


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Ledger, Ledger]:
    return Ledger(Store(tmp_path / "here")), Ledger(Store(tmp_path / "there"))


def saved(ledger: Ledger, name: str, slope: float = 1.0) -> Any:
    return Shelf(ledger).add(name, **toy.linear_parts(slope=slope))


def names(archive: Path) -> list[str]:
    return zipfile.ZipFile(archive).namelist()


def fill(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


@pytest.mark.parametrize("git", [True, False])
def test_the_project_travels_without_what_is_private(project: Path, tmp_path: Path, git: bool) -> None:
    fill(
        project,
        "a.ipynb",
        "src/f.py",
        ".env",
        "keys/token",
        "env/pyvenv.cfg",
        "env/lib/x.py",
        "out/job.ipynb",
    )
    fill(project, ".workbench/ledger.db", "__pycache__/x.pyc", "new.py")
    if git:
        (project / ".gitignore").write_text("out/\nenv/\n")
        run = {"cwd": project, "check": True, "capture_output": True}
        subprocess.run(["git", "init"], **run)
        subprocess.run(["git", "add", "a.ipynb", "src"], **run)
        (project / "src/f.py").write_text("changed")
    (project / "link").symlink_to("/etc/passwd")
    packed = pack_project(project, project / "out/job.ipynb", tmp_path / "p.zip", [project / "keys/token"])
    listed = {"a.ipynb", "new.py", "out/job.ipynb", "settings.ini", "src/f.py"} | (
        {".gitignore"} if git else set()
    )
    assert set(names(packed)) == listed
    again = pack_project(project, project / "out/job.ipynb", tmp_path / "q.zip", [project / "keys/token"])
    assert sha256_file(packed) == sha256_file(again), "the same files are the same package"
    assert zipfile.ZipFile(packed).read("src/f.py") == (b"changed" if git else b"src/f.py")


def test_too_much_is_refused_with_the_files_that_make_it_so(project: Path, tmp_path: Path) -> None:
    fill(project, "job.ipynb", "small.py")
    with (project / "flights.parquet").open("wb") as file:
        file.truncate(PROJECT_LIMIT_MB * 10**6 + 1)
    with pytest.raises(BadInput, match=r"at most 100 travel: flights\.parquet 100\.0 MB") as caught:
        pack_project(project, project / "job.ipynb", tmp_path / "p.zip")
    assert ".gitignore" in caught.value.hint and not (tmp_path / "p.zip").exists()


def came(there: Ledger, here: Ledger, tmp_path: Path, sent: Path | None = None, run: str = "job") -> Any:
    said = pack_store(there, tmp_path / "back.tar", sent)
    return unpack_store(tmp_path / "back.tar", here, run, {"code": {"commit": "abc"}}, said["sha256"])


def test_runs_files_and_rows_arrive_and_nothing_is_overwritten(pair: Any, tmp_path: Path) -> None:
    here, there = pair
    with (
        start("job", "score", ledger=there, run_id="job") as job,
        start("check", "feed", ledger=there) as child,
    ):
        child.log(step=1, loss=0.5)
        child.keep("note", child.folder / "note.txt")
        (child.folder / "note.txt").write_text("theirs")
        (job.folder / "notebook.ipynb").write_text("executed")
        fill(there.store.root, "quarantine/x.parquet", "quarantine/y.parquet", "token", "kept/secret.json")
    fill(here.store.root, "quarantine/x.parquet", "runs/job/notebook.ipynb")
    (here.store.root / "quarantine/x.parquet").write_text("ours")
    row = came(there, here, tmp_path)
    assert row["status"] == "succeeded" and row["id"] == "job"
    root = here.store.root
    assert (root / "quarantine/x.parquet").read_text() == "ours"
    assert (root / "quarantine/y.parquet").is_file() and (
        root / "runs/job/notebook.ipynb"
    ).read_text() == "executed"
    assert not (root / "token").exists() and not (root / "kept").exists()
    found = here.query("select * from runs")
    assert [row["id"] for row in found] == [child.id], "the job's own row is the submitter's"
    assert json.loads(found[0]["artifacts"]) == {"note": str(root / "runs" / child.id / "note.txt")}
    assert json.loads(found[0]["identity"])["code"] == {"commit": "abc"}
    assert here.query("select value from points")[0]["value"] == 0.5
    came(there, here, tmp_path)
    assert len(here.query("select * from runs")) == 1, "taken in twice is taken in once"
    assert not list(root.glob(".parcel-*"))


def test_models_go_there_and_new_versions_come_back_with_a_number_of_their_own(
    pair: Any, tmp_path: Path
) -> None:
    here, there = pair
    shelf, far = Shelf(here), Shelf(there)
    saved(here, "toy")
    shelf.set_alias("toy", "champion", 1)
    saved(here, "toy")  # no alias: it does not travel
    sent = pack_shelf(here, tmp_path / "sent.tar")
    unpack_shelf(sent, there)
    assert load("toy@champion", there).digest == load("toy@champion", here).digest
    assert not (there.store.root / "bundles/toy/2").exists()
    made = saved(there, "toy", 2.0)
    assert made.version == 3, "numbers go on where they were"
    far.set_alias("toy", "champion", 3, why="better")
    saved(here, "toy", 3.0)  # meanwhile here: version 3 is taken
    came(there, here, tmp_path, sent)
    assert shelf.versions("toy") == [1, 2, 3, 4] and shelf.aliases("toy") == {"champion": 4}
    assert load("toy@champion", here).digest == made.digest
    assert [change["why"] for change in shelf.changes("toy")][-1] == "better"


def test_an_alias_that_moved_here_meanwhile_stays(pair: Any, tmp_path: Path) -> None:
    here, there = pair
    for _ in range(2):
        saved(here, "toy")
    Shelf(here).set_alias("toy", "champion", 1)
    sent = pack_shelf(here, tmp_path / "sent.tar")
    unpack_shelf(sent, there)
    saved(there, "toy")
    Shelf(there).set_alias("toy", "champion", 3)
    Shelf(here).set_alias("toy", "champion", 2)
    came(there, here, tmp_path, sent)
    assert Shelf(here).aliases("toy") == {"champion": 2} and Shelf(here).versions("toy") == [1, 2, 3]


def hostile(path: Path, member: tarfile.TarInfo, data: bytes = b"") -> str:
    rows = json.dumps(
        {"root": "/there", "runs": [], "points": [], "versions": [], "alias_changes": []}
    ).encode()
    with tarfile.open(path, "w") as archive:
        said = tarfile.TarInfo("rows.json")
        said.size = len(rows)
        archive.addfile(said, io.BytesIO(rows))
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return sha256_file(path)


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped-parcel", "runs/../../escaped"])
def test_a_parcel_that_would_leave_the_store_is_refused(pair: Any, tmp_path: Path, name: str) -> None:
    here, _ = pair
    digest = hostile(tmp_path / "bad.tar", tarfile.TarInfo(name), b"x")
    if name.startswith("/"):  # taken as a relative name: of no known folder, so it goes nowhere
        unpack_store(tmp_path / "bad.tar", here, "job", {}, digest)
    else:
        with pytest.raises(Corrupt):
            unpack_store(tmp_path / "bad.tar", here, "job", {}, digest)
    assert not os.path.exists("/tmp/escaped-parcel") and not list(tmp_path.rglob("escaped"))


def test_links_and_other_bytes_do_not_come_in(pair: Any, tmp_path: Path) -> None:
    here, _ = pair
    link = tarfile.TarInfo("runs/job/notebook.ipynb")
    link.type, link.linkname = tarfile.SYMTYPE, "rows.json"
    digest = hostile(tmp_path / "bad.tar", link)
    unpack_store(tmp_path / "bad.tar", here, "job", {}, digest)
    assert not (here.store.root / "runs").exists()
    with pytest.raises(Corrupt, match="does not match its sha256"):
        unpack_store(tmp_path / "bad.tar", here, "job", {}, "0" * 64)
