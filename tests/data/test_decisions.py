"""What people decided about labels: on disk at once, theirs, and applied only where they agree."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from workbench.base.errors import BadInput, Corrupt
from workbench.data.decisions import Decisions, row_ids

IDS = row_ids({"x": np.arange(4.0)})
LABELS = np.array([0, 1, 0, 1])


def opened(who: str = "ann", **given: str) -> Decisions:
    return Decisions.open("decided", classes=[0, 1], who=who, **given)


def test_decisions_change_and_drop_rows_and_can_be_taken_back() -> None:
    mine = opened()
    mine.add(IDS[0], "change", label=1, was=0)
    mine.add(IDS[1], "drop", was=1)
    mine.add(IDS[2], "keep", was=0)
    labels, kept = opened().apply(IDS, LABELS)
    assert labels.tolist() == [1, 1, 0, 1] and kept.tolist() == [True, False, True, True]
    before = mine.digest
    assert mine.undo().verb == "keep" and mine.digest == before
    assert mine.undo().verb == "drop" and mine.digest != before
    assert opened().apply(IDS, LABELS)[1].all() and LABELS.tolist() == [0, 1, 0, 1]


def test_where_two_people_differ_nothing_is_applied() -> None:
    opened("ann").add(IDS[0], "change", label=1, was=0)
    opened("bob").add(IDS[0], "keep", was=0)
    opened("ann").add(IDS[1], "drop", was=1)
    opened("bob").add(IDS[1], "unsure", was=1)
    both = opened()
    assert list(both.conflicts) == [IDS[0]] and list(both.settled) == [IDS[1]]
    labels, kept = both.apply(IDS, LABELS)
    assert labels[0] == 0 and kept.tolist() == [True, False, True, True]


def _decide(who: str) -> None:
    mine = opened(who)
    for row in IDS:
        mine.add(row, "keep")


def test_people_who_write_at_once_lose_nothing(project: Path) -> None:
    opened()
    with multiprocessing.get_context("forkserver").Pool(4) as pool:
        pool.map(_decide, [f"p{n}" for n in range(8)])
    assert sum(len(opened().of(row)) for row in IDS) == 32


def test_a_torn_line_costs_that_line_only(project: Path) -> None:
    mine = opened()
    mine.add(IDS[0], "drop", was=0)
    with mine.path.open("ab") as file:
        file.write(b'{"row": "half')
    opened().add(IDS[1], "drop", was=1)
    assert sorted(opened().settled) == sorted(IDS[:2].tolist())


def test_a_test_set_is_never_pruned() -> None:
    with pytest.raises(BadInput, match="a test row is never dropped"):
        opened(role="test").add(IDS[0], "drop", was=0)


def test_nonsense_is_refused() -> None:
    with pytest.raises(BadInput, match="label is 7"):
        opened().add(IDS[0], "change", label=7)
    with pytest.raises(BadInput, match="not \\[1, 2\\]"):
        Decisions.open("decided", classes=[1, 2])
    (opened().folder / "manifest.json").write_text("{")
    with pytest.raises(Corrupt, match="no manifest"):
        opened()


def test_what_is_no_decision_about_a_row_is_refused_before_it_is_written(project: Path) -> None:
    with pytest.raises(BadInput, match="row_ids"):
        opened().add("row 7", "keep")
    with pytest.raises(BadInput, match="2 rows and 1 labels"):
        opened().drop(IDS[:2], [0])
    assert not opened().mine
    (project / "taken").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        Decisions.open("taken")
