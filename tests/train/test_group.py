"""What the driver sees of a group of workers: who is slow, who is silent."""

import json
import time
from pathlib import Path

import pytest

from workbench.train import group
from workbench.train.group import LOOKS, SILENT_S, Watch


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    told: list[str] = []
    made = Watch(tmp_path, 3, lambda rows: None, told.append)
    made.told = told  # type: ignore[attr-defined]
    return made


def beat(watch: Watch, own_s: dict[int, float], step: int = 50, ago_s: float = 0.0) -> list[int]:
    "Each rank gives a sign of life, and the driver looks."
    for rank, spent_s in own_s.items():
        sign = {"at": time.time() - ago_s, "step": step, "own_s": spent_s}
        (watch.control / f"beat-{rank}.json").write_text(json.dumps(sign))
    watch._beats_at = 0.0  # a second has passed
    return watch.silent()


def test_a_straggler_is_named_once(watch: Watch) -> None:
    slow = {0: 0.010, 1: 0.011, 2: 0.030}
    for _ in range(LOOKS - 1):
        beat(watch, slow)
    assert not watch.told, "a moment is no reason"
    for _ in range(3):
        beat(watch, slow)
    (said,) = watch.told
    assert "worker 2 is a straggler: 30 ms of its own a step, the others 10.5 ms" in said


@pytest.mark.parametrize(
    ("own_s", "step"),
    [
        ({0: 0.010, 1: 0.010, 2: 0.019}, 50),  # not twice as long
        ({0: 0.0002, 1: 0.0002, 2: 0.0008}, 50),  # of no weight
        ({0: 0.010, 1: 0.010, 2: 0.050}, 5),  # the first steps are not usual ones
        ({0: 0.010, 2: 0.050}, 50),  # one has not been heard of
    ],
)
def test_no_straggler_without_a_reason(watch: Watch, own_s: dict[int, float], step: int) -> None:
    for _ in range(2 * LOOKS):
        beat(watch, own_s, step)
    assert not watch.told


def test_one_that_catches_up_is_not_named(watch: Watch) -> None:
    for _ in range(4):
        for _ in range(LOOKS - 1):
            beat(watch, {0: 0.01, 1: 0.01, 2: 0.05})
        beat(watch, {0: 0.01, 1: 0.01, 2: 0.01})
    assert not watch.told


def test_a_rank_without_a_sign_of_life_is_silent(watch: Watch) -> None:
    assert beat(watch, {0: 0.01, 1: 0.01, 2: 0.01}) == []
    assert beat(watch, {1: 0.01}, ago_s=group.SILENT_S + 1) == [1]
    assert watch.silent() == [], "it is asked once a second"
    assert SILENT_S >= 30, "a checkpoint of a big model may take that long"
