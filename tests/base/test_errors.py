"""Every public error crosses a process boundary whole."""

import pickle
import re
import subprocess
import sys

import pytest

from workbench.base import errors
from workbench.base.errors import MissingExtra, WorkbenchError, need


def tree(kind: type[WorkbenchError]) -> list[type[WorkbenchError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in tree(child))]


@pytest.mark.parametrize("kind", tree(WorkbenchError))
def test_an_error_pickles_with_its_hint_and_keeps_its_exit_code(kind: type[WorkbenchError]) -> None:
    error = kind("what", "do this")
    error.run = "20260101-000000-abcdef"
    copy = pickle.loads(pickle.dumps(error))
    assert copy.run == error.run and not kind("what").run
    assert (type(copy), copy.what, copy.hint, copy.exit_code) == (kind, "what", "do this", kind.exit_code)
    assert str(copy) == "what\n  Hint: do this"


def test_the_tree_drawn_in_the_docstring_is_the_tree() -> None:
    for kind in (found for found in tree(WorkbenchError) if found.__module__ == errors.__name__):
        assert re.search(rf"\b{kind.__name__} ", errors.__doc__)


def test_a_missing_extra_names_the_pip_command() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'workbench\[ray\]'"):
        need("no_such_module.inside", extra="ray")


def test_a_library_that_is_broken_inside_is_not_called_missing(tmp_path, monkeypatch) -> None:
    (tmp_path / "half_installed.py").write_text("import something_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        need("half_installed", extra="ray")


def test_a_notebook_shows_the_callers_lines_and_not_ours() -> None:
    code = "import workbench as wb\ndef mine():\n    return wb.Feed('x.parquet', 3)\nmine()"
    command = [sys.executable, "-m", "IPython", "--colors=NoColor", "-c", code]
    said = subprocess.run(command, capture_output=True, text=True)
    assert "mine()" in said.stdout and "contract is 3, expected Contract" in said.stdout, said.stderr
    assert "workbench/data" not in said.stdout and "Hint: say what a row must be" in said.stdout
