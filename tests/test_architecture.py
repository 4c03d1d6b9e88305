"""The house stands as its rules say, and each rule is seen to fail on a planted violation."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import house
import pytest
from house import ROOT


def notebook(path: Path, *sources: str, tags: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"cell_type": "code", "outputs": [], "execution_count": None}
    made = [
        {**kinds, "id": f"cell{n}", "source": s, "metadata": {"tags": tags or []}}
        for n, s in enumerate(sources)
    ]
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


def module(root: Path, name: str, text: str) -> None:
    path = root / "workbench" / (name.replace(".", "/") + ".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    "A small house without fault: base.a, and data.b which imports it."
    root = tmp_path / "tree"
    notebook(root / "notebooks/00_base/10_a.ipynb", "#| default_exp base.a")
    notebook(root / "notebooks/20_data/10_b.ipynb", "#| default_exp data.b")
    notebook(root / "notebooks/flights/1_job.ipynb", "n: int = 1", tags=["parameters"])
    module(root, "base.a", "X: int = 1\n")
    module(root, "data.b", "from ..base.a import X\n\nY: int = X\n")
    return root


def test_notebook_order_is_dependency_order() -> None:
    assert house.order_violations(ROOT) == []


@pytest.mark.parametrize(
    "line", ["from ..data.b import Y", "from ..data import b", "import workbench.data.b"]
)
def test_a_backward_import_is_found(tree: Path, line: str) -> None:
    assert house.order_violations(tree) == []
    module(tree, "base.a", f"def f() -> None:\n    {line}\n")
    assert house.order_violations(tree) == ["base.a imports data.b, which does not sort before it"]


def test_a_module_that_imports_itself_in_a_cycle_is_found(tree: Path) -> None:
    module(tree, "data.b", "from .b import Y\n")
    assert house.order_violations(tree) == ["data.b imports data.b, which does not sort before it"]


def test_notebooks_and_modules_map_one_to_one() -> None:
    assert house.mapping_violations(ROOT) == []


def test_mapping_violations_are_found(tree: Path) -> None:
    assert house.mapping_violations(tree) == []
    notebook(tree / "notebooks/30_models/10_c.ipynb", "#| default_exp base.a")
    module(tree, "base.orphan", "")
    assert house.mapping_violations(tree) == [
        "30_models/10_c exports base.a, not models.c",
        "30_models/10_c and 00_base/10_a both export base.a",
        "workbench/base/orphan.py has no notebook",
    ]


def test_every_job_notebook_has_one_parameters_cell() -> None:
    assert house.job_violations(ROOT) == []


@pytest.mark.parametrize("sources", [[], ["a = 1", "b = 2"]])
def test_a_job_without_one_parameters_cell_is_found(tree: Path, sources: list[str]) -> None:
    assert house.job_violations(tree) == []
    notebook(tree / "notebooks/flights/1_job.ipynb", *sources, tags=["parameters"])
    assert house.job_violations(tree) == [
        f"notebooks/flights/1_job.ipynb has {len(sources)} cells tagged 'parameters'"
    ]


def test_no_conflict_markers() -> None:
    assert house.conflict_violations(ROOT) == []


def test_conflict_markers_are_found(tree: Path) -> None:
    notebook(tree / "notebooks/00_base/10_a.ipynb", "#| default_exp base.a", "<" * 7 + " HEAD")
    assert house.conflict_violations(tree) == ["notebooks/00_base/10_a.ipynb holds conflict markers"]


def test_exported_code_is_in_sync(tmp_path: Path) -> None:
    assert house.sync_violations(ROOT, tmp_path) == []


def test_sync_violations_are_found(tmp_path: Path) -> None:
    copy, scratch = tmp_path / "copy", tmp_path / "scratch"
    scratch.mkdir()
    for folder in ("workbench/base", "notebooks/00_base"):
        shutil.copytree(ROOT / folder, copy / folder)
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copy(ROOT / "workbench/__init__.py", copy / "workbench")
    edited = copy / "workbench/base/errors.py"
    edited.write_text(edited.read_text() + "\nX = 1\n")
    stale = copy / "workbench/base/old.py"
    stale.write_text(edited.read_text())
    found = house.sync_violations(copy, scratch)
    assert "differs: workbench/base/errors.py" in found
    assert "stale: no notebook exports workbench/base/old.py" in found


def test_functions_and_modules_are_small_typed_and_documented() -> None:
    assert house.size_violations(ROOT) == []


def test_size_violations_are_found(tree: Path) -> None:
    assert house.size_violations(tree) == []
    body = "    x = 1\n" * 51
    module(
        tree,
        "base.a",
        f"from os import *\n\ndef f(a) -> None:\n    'Doc.'\n{body}\ndef g() -> None:\n    pass\n",
    )
    found = house.size_violations(tree)
    assert len(found) == 5, found


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split()


def test_the_tree_in_the_readme_is_the_disk() -> None:
    assert house.tree_violations(ROOT, _tracked()) == []


def test_a_wrong_tree_is_found(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("## The tree\n```text\nnotebooks/    map\n  gone.ipynb   x\n```\n")
    found = house.tree_violations(tmp_path, ["notebooks/here.ipynb"])
    assert found == [
        "README's tree lacks notebooks/here.ipynb",
        "README's tree lists notebooks/gone.ipynb, which is not there",
    ]


def test_every_extra_that_an_error_names_can_be_installed() -> None:
    named = {
        name
        for path in (ROOT / "workbench").rglob("*.py")
        for name in re.findall(r'extra="(\w+)"', path.read_text())
    }
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert named - {"allow", "forbid", "ignore"} <= extras.keys()
