"""The panel's notebook shows what only a kernel can: it is run in one."""

import nbformat
import pytest
from house import ROOT
from nbclient import NotebookClient


@pytest.mark.filterwarnings("default")
def test_the_panel_lesson_runs_in_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_DISPLAY")
    path = ROOT / "notebooks/90_lab/10_panels.ipynb"
    book = nbformat.read(path, as_version=4)
    NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    assert any("stopped" in str(cell.get("outputs")) for cell in book.cells)
