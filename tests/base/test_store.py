"""The store: whole or not at all, inside its folder, and checked when read."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.base.errors import BadInput, Corrupt, NotFound, Unavailable
from workbench.base.store import Store, atomic_folder, atomic_path, atomic_write, safe_path


@given(
    st.lists(
        st.sampled_from(["..", ".", "a", "/", "/etc", "a/../..", "%2e%2e", "\0", "~", "a/b"]), max_size=4
    )
)
@settings(max_examples=300, deadline=None)
def test_no_name_leaves_the_folder(parts: list[str]) -> None:
    root = Path("/tmp/workbench-safe-root")
    try:
        path = safe_path(root, *parts)
    except BadInput:
        return
    assert root.resolve() in path.parents


def test_a_link_out_of_the_folder_is_refused(store: Store, tmp_path: Path) -> None:
    (store.root / "link").symlink_to(tmp_path)
    with pytest.raises(BadInput, match="leaves"):
        store.path("link", "x")


def test_folders_and_files_are_private(store: Store) -> None:
    path = atomic_write(store.path("a", "b"), "x")
    assert store.root.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    deep = atomic_write(store.path("x", "y", "z"), "x")
    assert {folder.stat().st_mode & 0o777 for folder in (deep.parent, deep.parent.parent)} == {0o700}


def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = atomic_write(tmp_path / "x", "old")
    with pytest.raises(RuntimeError), atomic_path(target) as part:
        part.write_text("new")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


_WRITER = """
import sys, pathlib
from workbench.base.store import atomic_write
n = 0
while True:
    n += 1
    atomic_write(pathlib.Path(sys.argv[1]), str(n % 10) * 2_000_000)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    target, rng = tmp_path / "x", random.Random(7)
    for _ in range(12):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(target)])
        while not target.exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        text = target.read_text()
        assert len(text) == 2_000_000 and len(set(text)) == 1


def test_a_folder_appears_whole_and_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "v1") as folder:
        (folder / "x").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with atomic_folder(tmp_path / "v1") as folder:
        (folder / "x").write_text("x")
    with pytest.raises(BadInput, match="exists"), atomic_folder(tmp_path / "v1"):
        pass
    assert (tmp_path / "v1" / "x").read_text() == "x"


def test_every_flipped_bit_is_found(store: Store) -> None:
    digest = store.put(b"the rows of a feed")
    path = store.path("cache", digest[:2], digest)
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(Corrupt):
            store.get(digest)
    path.write_bytes(whole)
    assert store.get(digest) == b"the rows of a feed"


def test_unknown_content_and_bad_digests(store: Store) -> None:
    with pytest.raises(NotFound):
        store.get("0" * 64)
    with pytest.raises(BadInput):
        store.get("../../etc/passwd")


def _put(root: Path) -> str:
    return Store(root).put(b"same bytes")


def test_the_same_content_from_many_processes(store: Store) -> None:
    with multiprocessing.get_context("forkserver").Pool(4) as pool:
        assert len(set(pool.map(_put, [store.root] * 8))) == 1


@pytest.mark.parametrize("place", ["/proc/nope/store", "a-file"])
def test_a_store_that_cannot_be_is_said_so(tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(Unavailable, match="cannot be used"):
        Store(tmp_path / place)
