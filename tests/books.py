"""Small notebooks for the tests of jobs, and a look at them when they were executed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.base.records import Run

Write = Callable[..., Path]


def write_book(path: Path, sources: tuple[str, ...], tagged: int = 1, kernel: str = "python3") -> Path:
    "A notebook of these cells; the first `tagged` have the parameters tag."
    kinds = {"cell_type": "code", "outputs": [], "execution_count": None}
    tags = [["parameters"] if n < tagged else [] for n in range(len(sources))]
    made = [
        {**kinds, "id": f"cell{n}", "source": text, "metadata": {"tags": tags[n]}}
        for n, text in enumerate(sources)
    ]
    spec = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": made, "metadata": spec, "nbformat": 4, "nbformat_minor": 5}))
    return path


def executed(job: Run) -> Any:
    "The executed notebook of a run, valid."
    import nbformat

    book = nbformat.read(job.folder / "notebook.ipynb", 4)
    nbformat.validate(book)
    return book


def statuses(book: Any) -> list[str]:
    "How each cell ended."
    return [cell.metadata.papermill.status for cell in book.cells]
