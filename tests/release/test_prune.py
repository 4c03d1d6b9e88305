"""What nothing needs goes, once somebody says so; whoever is killed on the way leaves a shelf that reads well."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from workbench.base import audit
from workbench.base.errors import BadInput, NotAllowed, NotFound
from workbench.base.ledger import Ledger
from workbench.base.records import start
from workbench.base.store import Store
from workbench.models.shelf import Shelf
from workbench.release.approval import prepare
from workbench.release.people import Person
from workbench.release.registry import rollback
from workbench.release.retention import prune, retention, sweep
from workbench.serve.traffic import direct, end

ADA = Person("ada", ("admin",))


@pytest.fixture
def eight(shelf: Shelf) -> Shelf:
    for slope in range(1, 9):
        shelf.add("delays", **toy.linear_parts(slope=float(slope)))
    return shelf


def stays(shelf: Shelf, **how) -> dict[int, str]:
    found = retention("delays", **{"keep": 2, "days": 0, "ledger": shelf.ledger, **how})
    return {one.version: one.why for one in found.versions if one.why}


def test_the_newest_and_the_young_stay(eight: Shelf) -> None:
    assert stays(eight) == {8: "one of the newest 2", 7: "one of the newest 2"}
    assert len(stays(eight, days=1)) == 8 and stays(eight, keep=9).keys() == set(range(1, 9))
    assert retention(ledger=eight.ledger).going == []  # the profile's: 10, and 90 days
    for how in ({"keep": 0}, {"days": -1.0}, {"days": float("nan")}):
        with pytest.raises(BadInput):
            retention(ledger=eight.ledger, **how)
    with pytest.raises(BadInput, match="weather"):
        retention("weather", ledger=eight.ledger)


def test_an_alias_its_rollback_and_what_they_came_from_stay(eight: Shelf) -> None:
    for version in (1, 2, 3):
        eight.set_alias("delays", "champion", version)
    eight.set_alias("delays", "edge", 4)
    eight.add("delays", **toy.linear_parts(lineage={"parent": "delays/6"}))
    found = stays(eight, keep=1)
    assert found.keys() == {2, 3, 4, 6, 9}
    assert (
        (found[3], found[4]) == ("@champion", "@edge")
        and "rolled back" in found[2]
        and "delays/9" in found[6]
    )


def test_requests_shadows_and_running_work_hold_a_version(eight: Shelf) -> None:
    prepare(eight.ledger)
    with eight.ledger.change() as db:
        names = "id, name, version, digest, alias, verdict, champion, previous, author, trained_by, why, needed, opened_at, expires_at, state, entry"
        values = (7, "delays", 1, "d", "champion", "v", "", 0, "a", "b", "w", 1, 0, 9e9, "open", 1)
        db.execute(f"insert into approvals ({names}) values ({','.join('?' * len(values))})", values)
    direct("delays", "shadow", 2, ledger=eight.ledger)
    with start("serve", "x", params={"ref": "delays/3"}, ledger=eight.ledger):
        assert stays(eight).keys() == {1, 2, 3, 7, 8}
    end("delays", "shadow", ledger=eight.ledger)
    assert stays(eight).keys() == {1, 7, 8}


def test_pruned_versions_are_gone_told_and_never_numbered_again(eight: Shelf) -> None:
    eight.set_alias("delays", "champion", 1)
    digest = eight.load("delays", 3).digest
    done = prune("delays", keep=2, days=0, why="old", by=ADA, ledger=eight.ledger)
    assert {one.version for one in done.going} == {2, 3, 4, 5, 6} and "5 of 8 versions deleted" in str(done)
    assert eight.versions("delays") == [1, 7, 8]
    folder = eight.ledger.store.path("bundles", "delays")
    assert {path.name for path in folder.iterdir()} == {"1", "7", "8"}
    told = {entry.subject: entry for entry in audit.entries(eight.ledger) if entry.action == "delete"}
    assert told["delays/3"].detail["digest"] == digest and told["delays/3"].actor == "ada" and len(told) == 5
    assert audit.verify(eight.ledger).problems == ()
    with pytest.raises(NotFound, match="version 3"):
        eight.load("delays", 3)
    assert eight.add("delays", **toy.linear_parts()).version == 9
    assert prune("delays", keep=9, days=0, why="again", by=ADA, ledger=eight.ledger).going == []
    json.dumps(done.to_json())


def test_a_rollback_passes_over_what_is_gone(eight: Shelf) -> None:
    for version in (1, 5, 2, 6, 8):
        eight.set_alias("delays", "champion", version)
    prune("delays", keep=2, days=0, why="old", by=ADA, ledger=eight.ledger)
    assert eight.versions("delays") == [6, 7, 8]
    assert rollback("delays", ledger=eight.ledger).version == 6
    with pytest.raises(NotFound, match="no version before 6"):
        rollback("delays", ledger=eight.ledger)
    eight.set_alias("delays", "champion", 7)
    assert rollback("delays", ledger=eight.ledger).version == 6


def test_only_an_admin_with_a_reason_deletes(eight: Shelf) -> None:
    with pytest.raises(NotAllowed):
        prune(keep=1, days=0, why="old", by=Person("bob", ("author", "approver")), ledger=eight.ledger)
    with pytest.raises(BadInput, match="no reason"):
        prune(keep=1, days=0, why=" ", by=ADA, ledger=eight.ledger)
    assert len(eight.versions("delays")) == 8


KILLED = """
import os, signal, shutil, sys
from pathlib import Path
from workbench.base.ledger import Ledger
from workbench.base.store import Store
from workbench.release import retention
from workbench.release.people import Person

left = int(sys.argv[2])
whole = shutil.rmtree

def rmtree(folder):
    global left
    if left == 0:
        next(path for path in Path(folder).iterdir()).unlink()  # half of it
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    whole(folder)

retention.shutil.rmtree = rmtree
if left < 0:
    retention.sweep = lambda ledger: os.kill(os.getpid(), signal.SIGKILL)
    retention.audit.publish = lambda ledger: os.kill(os.getpid(), signal.SIGKILL)
retention.prune(keep=2, days=0, why="old", by=Person("ada", ("admin",)), ledger=Ledger(Store(Path(sys.argv[1]))))
"""


@pytest.mark.parametrize("at", [-1, 0, 3])  # after the commit, in the first folder, in the fourth
def test_killed_half_way_it_reads_well_and_the_next_one_finishes(eight: Shelf, at: int) -> None:
    root = eight.ledger.store.root
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(root), str(at)], env=env, capture_output=True, text=True
    )
    assert done.returncode == -9, done.stderr
    ledger = Ledger(Store(root))
    shelf = Shelf(ledger)
    assert shelf.versions("delays") == [7, 8] and shelf.load("delays", 7).predictor() is not None
    assert len(shelf.table("delays")) == 2 and audit.verify(ledger).problems == ()
    assert len([entry for entry in audit.entries(ledger) if entry.action == "delete"]) == 6
    assert shelf.add("delays", **toy.linear_parts()).version == 9
    prune(keep=9, days=0, why="finish", by=ADA, ledger=ledger)
    folder = root / "bundles" / "delays"
    assert {path.name for path in Path(folder).iterdir()} == {"7", "8", "9"} and sweep(ledger) == 0
