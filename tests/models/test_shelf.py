"""Versions are given once, aliases have a history, a reference means one bundle."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import toy

from workbench.base.errors import BadInput, Corrupt, NotFound
from workbench.base.ledger import Ledger
from workbench.base.store import Store
from workbench.models import bundle as bundles
from workbench.models.shelf import Shelf, as_bundle, load


@pytest.fixture
def shelf(ledger: Ledger) -> Shelf:
    return Shelf(ledger)


def fill(shelf: Shelf, count: int, name: str = "flights") -> None:
    for slope in range(count):
        shelf.add(name, **toy.linear_parts(slope=slope + 1.0, metrics={"auc": slope + 1}))


def test_versions_count_from_one_for_each_name(shelf: Shelf) -> None:
    fill(shelf, 2)
    first = shelf.add("prices", run="r7", **toy.linear_parts())
    assert (first.name, first.version, first.ref) == ("prices", 1, "prices/1")
    assert shelf.names() == ["flights", "prices"] and shelf.versions("flights") == [1, 2]
    assert load("flights/2", shelf.ledger) == shelf.load("flights", 2)
    assert shelf.path("flights/2") == shelf.ledger.store.root / "bundles" / "flights" / "2"


def _adds(root: Path, start: Any, out: Any) -> None:
    shelf = Shelf(Ledger(Store(root)))
    start.wait()
    out.put([shelf.add("flights", **toy.linear_parts()).version for _ in range(3)])


def test_eight_processes_get_their_own_versions(shelf: Shelf) -> None:
    context = multiprocessing.get_context("forkserver")
    start, out = context.Barrier(8), context.Queue()
    made = [context.Process(target=_adds, args=(shelf.ledger.store.root, start, out)) for _ in range(8)]
    for process in made:
        process.start()
    given = [version for _ in made for version in out.get(timeout=120)]
    for process in made:
        process.join(30)
    assert sorted(given) == list(range(1, 25)) == shelf.versions("flights")
    assert all(shelf.load("flights", version).version == version for version in given)


def _dies_half_way(root: Path) -> None:
    def killed(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    bundles.save = killed
    Shelf(Ledger(Store(root))).add("flights", **toy.linear_parts())


def test_a_version_whose_process_died_is_never_seen_and_never_reused(shelf: Shelf) -> None:
    fill(shelf, 1)
    process = multiprocessing.get_context("forkserver").Process(
        target=_dies_half_way, args=(shelf.ledger.store.root,)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert shelf.versions("flights") == [1]
    with pytest.raises(NotFound):
        load("flights/2", shelf.ledger)
    assert shelf.add("flights", **toy.linear_parts()).version == 3
    assert load("flights/3", shelf.ledger).version == 3


def test_an_add_that_fails_leaves_nothing(shelf: Shelf) -> None:
    with pytest.raises(BadInput):
        shelf.add("flights", **{**toy.linear_parts(), "model": "toy:NotAModel"})
    assert shelf.names() == [] and shelf.ledger.query("select * from versions") == []
    assert not any((shelf.ledger.store.root / "bundles" / "flights").iterdir())


def test_references(shelf: Shelf) -> None:
    fill(shelf, 3)
    with pytest.raises(NotFound, match="'flights' has no champion") as caught:
        load("flights", shelf.ledger)
    assert "flights/3 is the newest" in caught.value.hint
    shelf.set_alias("flights", "champion", 2)
    shelf.set_alias("flights", "challenger", 3)
    wanted = {"flights": 2, "flights@champion": 2, "flights@challenger": 3, "flights/1": 1}
    assert {ref: load(ref, shelf.ledger).version for ref in wanted} == wanted
    path = shelf.path("flights/1")
    assert load(path).digest == load(str(path)).digest == shelf.load("flights", 1).digest
    assert shelf.aliases("flights") == {"challenger": 3, "champion": 2}


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("fligths", "did you mean 'flights'"),
        ("flights/9", "there are: 1, 2"),
        ("flights/0", "there are: 1, 2"),
        ("flights/99999999999999999999", "flights"),
        ("flights/latest", "flights"),
        ("flights@champoin", "did you mean 'champion'"),
        ("flights@", "champion"),
        ("weather@champion", "flights"),
        ("", "flights"),
        ("flights/../../etc", "flights"),
        ("flights/\u0663\u00b2", "flights"),
    ],
)
def test_what_is_not_there_says_what_is(shelf: Shelf, ref: str, says: str) -> None:
    fill(shelf, 2)
    shelf.set_alias("flights", "champion", 1)
    with pytest.raises(NotFound, match="not on the shelf") as caught:
        load(ref, shelf.ledger)
    assert says in caught.value.hint


@pytest.mark.parametrize("wrong", [None, 3, {"name": "flights"}])
def test_what_is_no_reference_is_said(shelf: Shelf, wrong: Any) -> None:
    for call in (load, as_bundle):
        with pytest.raises(BadInput, match="model is .*expected str or Path"):
            call(wrong, shelf.ledger)
    with pytest.raises(BadInput, match="expected str"):
        shelf.add(wrong, **toy.linear_parts())


def test_a_bundle_or_its_reference(shelf: Shelf) -> None:
    fill(shelf, 1)
    found = as_bundle("flights/1", shelf.ledger)
    assert as_bundle(found) is found and found.ref == "flights/1"


def test_a_reference_is_no_name(shelf: Shelf) -> None:
    with pytest.raises(BadInput, match="is a reference") as caught:
        shelf.add("flights@champion", **toy.linear_parts())
    assert "'flights' alone" in caught.value.hint


def test_an_empty_shelf_says_so(shelf: Shelf) -> None:
    with pytest.raises(NotFound) as caught:
        load("flights", shelf.ledger)
    assert "none yet" in caught.value.hint


@pytest.mark.parametrize("name", ["", "..", "a/b", "a@b", "/etc", "a b", "-x", "x" * 65, "a\0", "é", "a\n"])
def test_names_that_are_no_names(shelf: Shelf, name: str) -> None:
    with pytest.raises(BadInput):
        shelf.add(name, **toy.linear_parts())
    fill(shelf, 1)
    with pytest.raises(BadInput):
        shelf.set_alias("flights", name, 1)
    assert shelf.names() == ["flights"] and shelf.aliases("flights") == {}


def test_an_alias_points_at_a_version_that_exists(shelf: Shelf) -> None:
    fill(shelf, 1)
    with pytest.raises(NotFound):
        shelf.set_alias("flights", "champion", 2)
    with pytest.raises(NotFound):
        shelf.set_alias("weather", "champion", 1)
    with pytest.raises(BadInput, match="reads like a version"):
        shelf.set_alias("flights", "7", 1)


def test_moving_back_walks_the_history(shelf: Shelf) -> None:
    fill(shelf, 4)
    for version in (1, 3, 3, 2):
        shelf.set_alias("flights", "champion", version, why=f"to {version}", run="r1")
    assert shelf.move_back("flights", "champion", why="2 is slow") == 3
    shelf.set_alias("flights", "champion", 4)
    assert [shelf.move_back("flights", "champion") for _ in range(2)] == [3, 1]
    with pytest.raises(NotFound, match="no version before 1"):
        shelf.move_back("flights", "champion")
    assert shelf.aliases("flights") == {"champion": 1}
    with pytest.raises(NotFound, match="is not set"):
        shelf.move_back("flights", "shadow")
    changes = shelf.changes("flights")
    assert [c["version"] for c in changes] == [1, 3, 3, 2, 3, 4, 3, 1]
    assert [c["previous"] for c in changes] == [None, 1, 3, 3, 2, 3, 4, 3]
    assert changes[4]["why"] == "2 is slow" and changes[4]["moved_back"] and changes[0]["run"] == "r1"
    assert all(c["user"] and c["at"] <= time.time() for c in changes)


def _moves(root: Path, start: Any) -> None:
    shelf = Shelf(Ledger(Store(root)))
    start.wait()
    for version in (1, 2, 3) * 5:
        shelf.set_alias("flights", "champion", version)


def test_alias_moves_by_many_leave_one_history(shelf: Shelf) -> None:
    fill(shelf, 3)
    context = multiprocessing.get_context("forkserver")
    start = context.Barrier(4)
    made = [context.Process(target=_moves, args=(shelf.ledger.store.root, start)) for _ in range(4)]
    for process in made:
        process.start()
    for process in made:
        process.join(120)
    changes = shelf.changes("flights")
    assert len(changes) == 60 and changes[-1]["version"] == shelf.aliases("flights")["champion"]
    assert [c["previous"] for c in changes[1:]] == [c["version"] for c in changes[:-1]]


def test_a_swapped_or_lost_folder_is_noticed(shelf: Shelf) -> None:
    fill(shelf, 2)
    shutil.rmtree(shelf.path("flights/2"))
    with pytest.raises(NotFound):
        load("flights/2", shelf.ledger)
    shutil.copytree(shelf.path("flights/1"), shelf.path("flights/2"))
    with pytest.raises(Corrupt, match="not the bundle that was added"):
        load("flights/2", shelf.ledger)


def test_it_shows_versions_and_aliases(shelf: Shelf) -> None:
    fill(shelf, 2)
    shelf.set_alias("flights", "champion", 1)
    shown = shelf._repr_html_()
    assert "flights/1" in shown and "champion" in shown and "<script" not in shown
    assert str(shelf) == "Shelf of 1 models"
