"""What a notebook says came out of it."""

from pathlib import Path

import numpy as np
import pytest

from workbench.base.errors import BadInput
from workbench.jobs.outcome import RESULT_VARIABLE, read_result, result


def test_without_a_job_nothing_is_written(project: Path) -> None:
    before = sorted(project.iterdir())
    assert result(auc=0.7) == {"auc": 0.7}
    assert sorted(project.iterdir()) == before


def test_calls_add_up_and_a_refused_call_changes_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "result.json"
    monkeypatch.setenv(RESULT_VARIABLE, str(path))
    result(auc=np.float32(0.5), rows=np.int64(3), by={"UA": [1, np.float64(2)]})
    with pytest.raises(BadInput, match="result model is of type"):
        result(auc=0.9, model=object())
    with pytest.raises(BadInput, match="result x is of type ndarray"):
        result(x=np.zeros(3))
    result(auc=0.6)
    assert read_result(path) == {"auc": 0.6, "rows": 3, "by": {"UA": [1, 2.0]}}


def test_a_number_that_json_cannot_hold_is_null(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESULT_VARIABLE, str(project / "result.json"))
    values = {"auc": float("nan"), "by": [float("inf"), np.float32("-inf"), 0.5]}
    assert result(**values) == {"auc": None, "by": [None, None, 0.5]}
    assert "NaN" not in (project / "result.json").read_text()
    assert read_result(project / "result.json") == {"auc": None, "by": [None, None, 0.5]}
