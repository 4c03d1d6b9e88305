"""Whether a training's going would give a waiting service its room."""

from typing import Any

import pytest

from workbench.compute.demand import fits, makes_room

TWO = {"a": {"CPU": 1.0}, "b": {"CPU": 1.0, "GPU": 1.0}}


@pytest.mark.parametrize(
    ("waiting", "held", "helps"),
    [
        ([], {"a": {"CPU": 4}}, False),  # nobody waits
        ([{"CPU": 1}], {"a": {"CPU": 4}}, False),  # has room as it is
        ([{"CPU": 3}], {"a": {"CPU": 2}}, True),
        ([{"CPU": 3}], {"a": {"CPU": 1}, "b": {"CPU": 1}}, False),  # two halves on two nodes
        ([{"CPU": 9}, {"CPU": 3}], {"a": {"CPU": 2}}, True),  # one of them is helped
        ([{"CPU": 9}], {"a": {"CPU": 2}}, False),  # nobody's going helps
        ([{"GPU": 2}], {"a": {"CPU": 8}}, False),  # not what is held
        ([{"GPU": 2, "CPU": 1}], {"b": {"GPU": 1, "CPU": 1}}, True),
        ([{"CPU": 3}], {}, False),  # nothing is held
        ([{"CPU": 1}], {"gone": {"CPU": 1}}, False),
        ([{"TPU": 1}], {"gone": {"TPU": 1}}, True),  # a node with nothing free
    ],
)
def test_only_what_would_help_counts(waiting: Any, held: Any, helps: bool) -> None:
    assert makes_room(waiting, TWO, held) is helps


def test_fractions_that_add_up_to_a_whole_fit() -> None:
    assert fits({"CPU": 1.0}, {"CPU": 0.1 + 0.2 + 0.7}) and not fits({"CPU": 1.0}, {"CPU": 0.9999})
    assert fits({}, {}) and not fits({"GPU": 0.5}, {"CPU": 8})
