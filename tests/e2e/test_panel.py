"""The panel in a real JupyterLab: seen, pressed, saved, opened again."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from lab_driver import Lab, Notebook, wait_for

pytestmark = pytest.mark.browser

SETUP = """
import time
from workbench.base.errors import Stopped
from workbench.base.progress import track
"""
LOOP = """
try:
    with track("fit flights", unit="epochs") as tracker:
        tracker.stage("epoch", total=100_000)
        for epoch in range(100_000):
            time.sleep(0.02)
            tracker.advance(1, loss=1 / (epoch + 1))
except Stopped:
    print("stopped at", time.time())
"""
HANG = """
try:
    with track("one long step"):
        time.sleep(600)
except KeyboardInterrupt:
    print("interrupted at", time.time())
"""


def write(lab: Lab, name: str, *sources: str) -> str:
    kinds = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [{**kinds, "id": f"cell{i}", "source": source.strip()} for i, source in enumerate(sources)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    whole = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (lab.folder / name).write_text(json.dumps(whole))
    return name


def press(page: Any, name: str) -> float:
    "Press a button; when it was pressed."
    button = page.get_by_role("button", name=name, exact=True)
    button.wait_for()
    pressed_at = page.evaluate("Date.now() / 1000")
    button.click()
    return pressed_at


def test_stop_ends_a_busy_cell_within_a_second(
    lab: Lab, page: Any, open_notebook: Callable[[str], Notebook]
) -> None:
    notebook = open_notebook(write(lab, "stop.ipynb", SETUP, LOOP))
    notebook.run_all()
    page.get_by_role("progressbar", name="fit flights").wait_for()
    page.get_by_role("img", name="loss:").wait_for()
    pressed_at = press(page, "Stop")
    notebook.wait_idle(20)
    assert float(notebook.text().split()[-1]) - pressed_at < 1
    assert "fit flights: stopped after" in notebook.text()
    assert page.get_by_role("button", name="Stop", exact=True).count() == 0


@pytest.mark.long
def test_a_second_press_interrupts_a_step_that_hangs(
    lab: Lab, page: Any, open_notebook: Callable[[str], Notebook]
) -> None:
    notebook = open_notebook(write(lab, "hang.ipynb", SETUP, HANG))
    notebook.run_all()
    page.get_by_role("button", name="Stop", exact=True).dblclick()  # a double click is one press
    page.wait_for_timeout(700)
    pressed_at = press(page, "Stop now")
    notebook.wait_idle(20)
    assert float(notebook.text().split()[-1]) - pressed_at < 1


@pytest.mark.long
def test_the_saved_notebook_needs_no_widgets(
    lab: Lab, page: Any, open_notebook: Callable[[str], Notebook]
) -> None:
    body = "with track('check flights') as t:\n    for i in range(5): t.advance(1, loss=1 / (i + 1))"
    notebook = open_notebook(write(lab, "saved.ipynb", SETUP, body))
    notebook.run_all()
    notebook.wait_idle(20)
    saved = notebook.save()
    assert "widgets" not in saved["metadata"]
    (output,) = saved["cells"][-1]["outputs"]
    assert set(output["data"]) == {"text/html", "text/plain"}
    saved["cells"][-1]["source"] += "\n# copied, so nobody trusts it"
    (lab.folder / "copy.ipynb").write_text(json.dumps(saved))
    open_notebook("copy.ipynb")
    page.get_by_text("check flights", exact=True).wait_for()
    picture = page.get_by_role("img", name="loss: 5 points")
    wait_for(lambda: picture.evaluate("image => image.naturalWidth") == 132, 5, "the curve")
