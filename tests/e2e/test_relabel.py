"""The relabelling panel in a real JupyterLab, by keyboard alone: what is on disk is what was typed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab_driver import Lab, Notebook, wait_for
from test_panel import write

pytestmark = pytest.mark.browser

PANEL = """
import numpy as np
from sklearn.datasets import load_digits
import workbench as wb
digits = load_digits()
given, p = digits.target.copy(), np.full((len(digits.target), 10), 0.02) + 0.8 * np.eye(10)[digits.target]
wrong = np.arange(0, 120, 10)
given[wrong] = (given[wrong] + 1) % 10
audit = wb.labels.audited(given, p, name="digits", columns={"image": digits.images})
panel = wb.labels.panel(audit, "decisions", who="ada", rows=wrong)
panel
"""
LEFT = "print(wb.labels.Decisions('decisions', 'ada').table())"


def lines(lab: Lab) -> list[dict[str, Any]]:
    path = Path(lab.folder) / "decisions" / "decisions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_rows_are_decided_with_one_key_each(
    lab: Lab, page: Any, open_notebook: Callable[[str], Notebook], tmp_path: Path
) -> None:
    notebook = open_notebook(write(lab, "relabel.ipynb", PANEL, LEFT))
    notebook.run_all()
    field = page.get_by_placeholder("type here")
    field.wait_for()
    notebook.wait_idle(60)
    picture = page.get_by_role("img", name="row 0")
    wait_for(lambda: picture.evaluate("image => image.naturalWidth") == 8, 10, "the picture of the row")
    field.focus()
    page.keyboard.type("ckud5", delay=120)
    wait_for(lambda: len(lines(lab)) == 5, 20, "five decisions")
    page.keyboard.press("z")
    wait_for(lambda: len(lines(lab)) == 6, 20, "the undo")
    page.get_by_text("taken back: change").wait_for()
    page.get_by_role("progressbar", name="rows decided").wait_for()
    page.screenshot(path=str(tmp_path / "relabel.png"))
    page.keyboard.type("cccccccc")  # as fast as a machine: none is lost, the list ends
    page.get_by_text("Nothing is left to decide.").wait_for()
    page.screenshot(path=str(tmp_path / "done.png"))
    said = [(line["verb"], line["who"]) for line in lines(lab)]
    assert [verb for verb, _ in said[:6]] == ["change", "keep", "unsure", "drop", "change", "undo"]
    assert {who for _, who in said} == {"ada"} and len(said) == 14
    assert lines(lab)[0]["label"] == 0 and lines(lab)[4]["label"] == 5
