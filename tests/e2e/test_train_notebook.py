"""The worked example in a real JupyterLab: Run All, and the last cell shows the gate report."""

from pathlib import Path

import pytest
from lab_driver import Lab


@pytest.mark.browser
def test_train_runs_top_to_bottom_and_shows_its_gates(
    open_notebook, lab: Lab, done: tuple[Path, dict], tmp_path: Path
) -> None:
    if not (lab.folder / "data").exists():
        (lab.folder / "data").symlink_to(done[0] / "data")
    opened = open_notebook("notebooks/flights/2_train.ipynb")
    opened.run_all()
    opened.wait_idle(300)
    opened.page.screenshot(path=str(tmp_path / "2_train.png"))
    shown = opened.text()
    assert "Verdict flights/" in shown and "gates passed" in shown
    for gate in ("auc_over_baseline", "worst_slice", "latency_p99_ms", "brier_over_champion"):
        assert gate in shown
