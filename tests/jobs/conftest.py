"""Small notebooks, written where a test wants them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[..., Path]


@pytest.fixture
def write(project: Path) -> Write:
    "write(source, ..., name=, tagged=): a notebook of these cells; the first `tagged` cells have the parameters tag."

    def make(*sources: str, name: str = "job.ipynb", tagged: int = 1, kernel: str = "python3") -> Path:
        kinds = {"cell_type": "code", "outputs": [], "execution_count": None}
        tags = [["parameters"] if n < tagged else [] for n in range(len(sources))]
        made = [
            {**kinds, "id": f"cell{n}", "source": text, "metadata": {"tags": tags[n]}}
            for n, text in enumerate(sources)
        ]
        spec = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
        book = {"cells": made, "metadata": spec, "nbformat": 4, "nbformat_minor": 5}
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(book))
        return path

    return make


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    "ipykernel does not look at file descriptors while this variable is set; warm kernels refuse such a client."
    if "warm" in pyfuncitem.fixturenames:
        os.environ.pop("PYTEST_CURRENT_TEST", None)
