"""A real JupyterLab and a real browser.

- `lab` serves a copy of the project, so a test may run and save any notebook.
- `page` is a fresh page of Debian's chromium; `open_notebook(path)` opens a notebook in it.
- `lab_driver.Notebook` does what a person would: run all cells, wait, press, read an output, save.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_driver import LIMIT_S, Lab, Notebook, copy_project, start_lab

CHROMIUM = Path("/usr/bin/chromium")
BROWSER_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    own = tmp_path_factory.mktemp("lab")
    with start_lab(copy_project(tmp_path_factory.mktemp("project")), own) as running:
        yield running


@pytest.fixture(scope="module")  # playwright holds an event loop: it ends before the next file's asyncio.run
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=BROWSER_ARGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(LIMIT_S * 1000)
    yield context.new_page()
    context.close()


@pytest.fixture
def open_notebook(page: Any, lab: Lab) -> Callable[[str], Notebook]:
    "Open a notebook by its path in the project."
    return lambda path: Notebook(page, lab, path)
