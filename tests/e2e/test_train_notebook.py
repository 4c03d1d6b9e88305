"""The worked example in a real JupyterLab: Run All, and the last cell shows the gate report."""

import pytest
from lab_driver import wait_for


@pytest.mark.browser
def test_train_runs_top_to_bottom_and_shows_its_gates(open_notebook, tmp_path) -> None:
    for name in ("1_features", "2_train"):
        opened = open_notebook(f"notebooks/flights/{name}.ipynb")
        opened.run_all()
        opened.wait_idle(300)
    # The kernel may be at rest a moment before the page has drawn what came last.
    wait_for(lambda: "Verdict flights/" in opened.text(), 30, "the verdict in the last cell")
    opened.page.screenshot(path=str(tmp_path / "2_train.png"))
    shown = opened.text()
    assert "gates passed" in shown
    for gate in ("auc_over_baseline", "worst_slice", "latency_p99_ms", "brier_over_champion"):
        assert gate in shown
