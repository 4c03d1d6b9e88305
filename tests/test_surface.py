"""What users import: exact, light, typed, documented, and able to cross processes."""

import inspect
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import distributions
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

import workbench
from workbench.base import errors
from workbench.base.errors import WorkbenchError

NAMES = [
    "Balance", "Bundle", "Column", "Complete", "Contract", "Delta", "Drift", "Engine", "Feed", "Fresh", "Gate", "Profile",
    "Recipe", "Rule", "Run", "Secret", "Shelf", "Sql", "Unique", "Volume", "__version__", "attach", "baselines", "calibrate", "card", "champion",
    "cluster", "cost", "default_gates", "drift", "federated", "fit", "fit_baseline", "judge", "labels", "load", "map", "measure", "plan", "predict",
    "project_path", "promote", "quarantine", "remote", "result", "resume", "right_size", "rollback", "run", "runs", "scale", "search", "serve", "slim",
    "stalls", "track", "write_parquet",
]  # fmt: skip
HEAVY = (
    "torch",
    "ray",
    "pandas",
    "polars",
    "papermill",
    "mlflow",
    "sklearn",
    "matplotlib",
    "fastapi",
    "pydantic",
)
IMPORT_LIMIT_S = 0.2


def test_the_public_names_are_these_and_no_others() -> None:
    assert workbench.__all__ == sorted(NAMES)
    assert dir(workbench) == sorted(NAMES)
    for name in NAMES:
        assert getattr(workbench, name) is not None
    with pytest.raises(AttributeError, match="Feeed"):
        workbench.Feeed  # noqa: B018


def _import(code: str) -> tuple[float, set[str]]:
    "Seconds that `code` takes in a fresh process (best of 3), and the modules it leaves loaded."
    program = (
        f"import sys, time; t = time.perf_counter(); {code}; print(time.perf_counter() - t, *sys.modules)"
    )
    best, loaded = 1e9, set()
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        took, *modules = done.stdout.split()
        best, loaded = min(best, float(took)), set(modules)
    return best, loaded


def test_importing_costs_nothing_heavy() -> None:
    took_s, loaded = _import("import workbench")
    assert loaded.isdisjoint(HEAVY)
    assert took_s < IMPORT_LIMIT_S


def test_a_heavy_import_is_found() -> None:
    took_s, loaded = _import("import workbench, pandas")
    assert not loaded.isdisjoint(HEAVY) and took_s > IMPORT_LIMIT_S / 4


def _problems(thing: Callable[..., Any]) -> list[str]:
    "What a public callable lacks: a docstring, types."
    bad = [] if inspect.getdoc(thing) else ["docstring"]
    signature = inspect.signature(thing.__init__ if inspect.isclass(thing) else thing)
    for name, parameter in signature.parameters.items():
        if name != "self" and parameter.annotation is inspect.Parameter.empty:
            bad.append(f"type of {name}")
    untyped = not inspect.isclass(thing) and signature.return_annotation is inspect.Signature.empty
    return bad + (["return type"] if untyped else [])


@pytest.mark.parametrize("name", [n for n in NAMES if callable(getattr(workbench, n))])
def test_every_public_callable_is_documented_and_typed(name: str) -> None:
    assert _problems(getattr(workbench, name)) == []


def test_a_callable_without_types_or_docstring_is_found() -> None:
    def bare(a, b: int = 1):
        return a

    assert _problems(bare) == ["docstring", "type of a", "return type"]


def _errors() -> list[type[WorkbenchError]]:
    found = [v for v in vars(errors).values() if inspect.isclass(v) and issubclass(v, WorkbenchError)]
    assert len(found) > 10
    return found


@pytest.mark.parametrize("kind", _errors())
def test_every_public_error_pickles(kind: type[WorkbenchError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what", "hint")))
    assert (type(copy), copy.what, copy.hint) == (kind, "what", "hint")


def test_an_error_that_does_not_pickle_is_found() -> None:
    class Keyword(WorkbenchError):
        def __init__(self, *, what: str) -> None:
            super().__init__(what)

    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.loads(pickle.dumps(Keyword(what="x")))


@pytest.mark.parametrize("first", ["wb.Engine", "wb.predict", "__import__('workbench.serve.app')", "None"])
def test_serve_is_a_verb_whatever_was_used_before(first: str) -> None:
    program = f"import workbench as wb; {first}; import workbench.serve.replicas as at, inspect\n"
    program += (
        "shape = lambda f: [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]\n"
    )
    program += "assert shape(wb.serve) == shape(at.serve), shape(wb.serve)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_light_core_says_which_extra_is_missing() -> None:
    "With the heavy libraries hidden, each public verb names the pip command instead of a bare ImportError."
    program = """
    import sys
    for name in ("polars", "pandera", "torch", "fastapi", "papermill", "sklearn", "ray"):
        sys.modules[name] = None
    import workbench as wb
    from workbench.base.errors import MissingExtra
    contract = wb.Contract("x", {"a": wb.Column("int")})
    for verb in (lambda: wb.Feed("x.parquet", contract), lambda: wb.fit, lambda: wb.fit_baseline, lambda: wb.serve):
        try:
            verb()
            print("ran")
        except MissingExtra as error:
            print(error.hint)
        except ImportError as error:
            print("bare", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert "pip install 'workbench[data]'" in done.stdout
    assert "bare" not in done.stdout, done.stdout


def test_what_is_installed_runs_on_the_oldest_python_that_is_promised() -> None:
    wants = {one.name: one.metadata.get("Requires-Python") or "" for one in distributions()}
    assert wants["workbench"] == ">=3.11"
    late = {name: want for name, want in wants.items() if not SpecifierSet(want).contains("3.11.0")}
    assert not late, "pin an older one in constraints.txt"
