"""Identity: what decides a result is in the record, and can be brought back."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.base.identity import code_identity, environment, identity_of, notebook_hash
from workbench.base.store import Store


def git(folder: Path, *args: str, data: bytes | None = None) -> str:
    done = subprocess.run(["git", *args], cwd=folder, input=data, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "config", "user.name", "a")
    git(folder, "config", "user.email", "a@example.org")
    (folder / "train.py").write_text("lr = 0.1\n")
    (folder / "gone.py").write_text("x = 1\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "start")
    return folder


def test_a_clean_checkout_has_no_patch(repo: Path, store: Store) -> None:
    found = code_identity(repo, store)
    assert found == {"commit": git(repo, "rev-parse", "HEAD"), "patch": "", "note": ""}


def test_the_patch_brings_back_the_exact_tree_and_leaves_the_index_alone(
    repo: Path, store: Store, tmp_path
) -> None:
    (repo / "train.py").write_text("lr = 0.9\n")
    (repo / "gone.py").unlink()
    (repo / "new.bin").write_bytes(bytes(range(256)))
    before = (repo / ".git/index").read_bytes(), git(repo, "count-objects")
    patch = store.get(code_identity(repo, store)["patch"])
    assert before == ((repo / ".git/index").read_bytes(), git(repo, "count-objects"))
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repo), str(clone))
    git(clone, "apply", "-", data=patch)
    assert (clone / "train.py").read_text() == "lr = 0.9\n"
    assert (clone / "new.bin").read_bytes() == bytes(range(256))
    assert not (clone / "gone.py").exists()


def test_a_change_in_the_second_of_a_commit_is_seen(repo: Path, store: Store) -> None:
    git(repo, "config", "core.trustctime", "false")  # which no test can set back
    then = (int(time.time()) - 10,) * 2
    os.utime(repo / "train.py", then)
    git(repo, "update-index", "--refresh")
    (repo / "train.py").write_text("lr = 0.9\n")  # as long as before
    for path in (repo / "train.py", repo / ".git/index"):
        os.utime(path, then)
    assert b"+lr = 0.9" in patch_of(repo, store)


def patch_of(repo: Path, store: Store) -> bytes:
    return store.get(code_identity(repo, store)["patch"])


def test_what_the_store_holds_is_no_code(repo: Path, tmp_path: Path) -> None:
    own = Store(repo / ".workbench")
    (own.root / "key").write_text("secret")
    assert git(repo, "status", "--porcelain") == "", "it hides itself from git"
    (own.root / ".gitignore").unlink()  # a store of before
    assert code_identity(repo, own) == {"commit": git(repo, "rev-parse", "HEAD"), "patch": "", "note": ""}
    (repo / ".gitignore").write_text(".workbench\n")  # git refuses to be told to leave out what it ignores
    assert b".workbench/" not in patch_of(repo, own)
    (repo / ".gitignore").unlink()
    (repo / "below").mkdir()
    (repo / "below/new.py").write_text("y = 1\n")
    (repo / "train.py").write_text("lr = 0.9\n")
    deeper = Store(repo / "below/store")
    (deeper.root / ".gitignore").unlink()
    for root, store in ((repo, own), (repo / "below", deeper)):
        patch = store.get(code_identity(root, store)["patch"])
        assert b"below/new.py" in patch and b"b/train.py" in patch, "the whole checkout, wherever it is asked"
        assert f"b/{store.root.relative_to(repo)}/".encode() not in patch


def test_without_git_it_says_so(tmp_path: Path, store: Store) -> None:
    assert "not a git checkout" in code_identity(tmp_path, store)["note"]


def test_the_environment_names_every_distribution() -> None:
    found = environment()
    assert found["packages"]["numpy"] and len(found["hash"]) == 64


def test_a_notebook_is_its_code(tmp_path: Path) -> None:
    def hashed(*cells: tuple[str, str]) -> str:
        made = [
            {"cell_type": kind, "source": source.splitlines(True), "outputs": []} for kind, source in cells
        ]
        (tmp_path / "a.ipynb").write_text(json.dumps({"cells": made}))
        return notebook_hash(tmp_path / "a.ipynb")

    base = hashed(("markdown", "# A"), ("code", "x = 1\n%time x"))
    assert base == hashed(("markdown", "# B"), ("code", "x = 1\n%time x"))
    assert base != hashed(("markdown", "# A"), ("code", "x = 2\n%time x"))
    assert hashed(("code", "x=1")) == hashed(("code", "x = 1  # why"))


def test_a_run_in_jupyterlab_knows_its_notebook(tmp_path: Path, store: Store, monkeypatch) -> None:
    book = tmp_path / "train.ipynb"
    book.write_text(json.dumps({"cells": [{"cell_type": "code", "source": "x = 1"}]}))
    assert identity_of(store)["notebook"] == ""
    monkeypatch.setenv("JPY_SESSION_NAME", str(book))
    assert identity_of(store)["notebook"] == notebook_hash(book)
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "console-1"))
    assert identity_of(store)["notebook"] == ""


def test_a_library_that_extends_the_path_does_not_change_the_environment() -> None:
    code = "from workbench.base.identity import environment; print(environment()['hash'])"
    said = [
        subprocess.check_output([sys.executable, "-c", first + code], text=True)
        for first in ("", "import ray; ")
    ]
    assert said[0] == said[1]
