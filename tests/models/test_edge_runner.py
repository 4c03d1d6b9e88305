"""A device refuses what the service refuses, and finds out when it computes something else."""

import ast
import json
import math
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.base.errors import BadRow
from workbench.base.store import sha256_bytes
from workbench.data.contract import Column, Contract, Rule
from workbench.models import edge, runner

CONTRACT = Contract(
    "all kinds",
    {
        "whole": Column("int", ge=-5, le=9),
        "part": Column("float", nullable=True, ge=0),
        "word": Column("str", max_len=3),
        "place": Column("str", isin=("EWR", "JFK"), nullable=True),
        "flag": Column("bool"),
    },
    rules=(
        Rule("low", "whole < 9 or flag", "nine needs a flag"),
        Rule("in", "whole not in (4, 6)", "no 4, 6"),
    ),
)
GOOD = {"whole": 3, "part": 1.5, "word": "ab", "place": "JFK", "flag": True}
VALUES = [
    None,
    True,
    False,
    0,
    -6,
    9,
    4,
    10**17,
    2**53,
    1.0,
    -1.0,
    math.nan,
    math.inf,
    "",
    "abc",
    "abcd",
    "JFK",
    "\ud800",
    [],
    {},
]
META = edge._terms(CONTRACT)


def refused(row: Any) -> tuple[bool, bool]:
    "Whether the contract and the device refuse a row."
    found = []
    for ask, error in (
        (lambda: CONTRACT.parse_rows([row]), BadRow),
        (lambda: runner.check(META, row), runner.Refused),
    ):
        try:
            ask()
            found.append(False)
        except error:
            found.append(True)
    return found[0], found[1]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_read_as_strictly_as_by_the_service(name: str, value: Any) -> None:
    here, there = refused({**GOOD, name: value})
    assert here == there


@given(
    st.fixed_dictionaries(
        {"whole": st.integers(-7, 11), "flag": st.booleans(), "part": st.floats() | st.none()}
    )
)
@settings(max_examples=60, deadline=None)
def test_rows_are_refused_by_both_or_by_none(some: dict[str, Any]) -> None:
    here, there = refused({**GOOD, **some})
    assert here == there


@pytest.mark.parametrize(
    "row", [[], "x", None, {}, {**GOOD, "more": 1}, {k: v for k, v in GOOD.items() if k != "part"}]
)
def test_what_is_no_such_row_is_refused(row: Any) -> None:
    assert refused(row) == (True, True)


def test_it_imports_nothing_but_numpy_onnxruntime_and_what_python_brings() -> None:
    tree = ast.parse(Path(runner.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"numpy", "onnxruntime"}


def packed(folder: Path, **changes: Any) -> Path:
    "A pack whose graph hands `part` on as the probability."
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, ["rows"]) for n in ("part", "probability")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["part"], ["probability"])], "same", ends[:1], ends[1:]
    )
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    meta = {**META, "ref": "same/1", "codes": {}, "inputs": {"part": "float64"}, "files": {}}
    meta["model"] = sha256_bytes(model)
    meta["probes"] = {"rows": [GOOD], "scores": [1.5]}
    with zipfile.ZipFile(folder / "same.zip", "w") as pack:
        pack.writestr(runner.META, json.dumps({**meta, **changes}))
        pack.writestr(runner.MODEL, model)
    return folder / "same.zip"


def test_rows_in_answers_out_and_the_first_bad_row_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = packed(tmp_path)
    assert runner.Runner(path).predict([GOOD, {**GOOD, "part": 0.25}]).tolist() == [1.5, 0.25]
    assert np.isnan(runner.Runner(path).predict([{**GOOD, "part": None}])).all()
    assert runner.main(str(path), [json.dumps(GOOD), json.dumps({**GOOD, "whole": "3"})]) == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"prediction": 1.5, "model": "same/1"}
    assert shown.err == "refused: row 0: 'whole' '3' is not of type int\n"


def test_a_device_that_computes_something_else_answers_nobody(tmp_path: Path) -> None:
    for score in (1.5001, math.nan):
        path = packed(tmp_path, probes={"rows": [GOOD], "scores": [score]})
        with pytest.raises(runner.Refused, match="a score moved by"):
            runner.Runner(path)


def test_another_model_under_the_same_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(runner.Refused, match="does not match its sha256"):
        runner.Runner(packed(tmp_path, model="0" * 64))


def test_a_folder_is_as_good_as_a_zip(tmp_path: Path) -> None:
    zipfile.ZipFile(packed(tmp_path)).extractall(tmp_path / "unpacked")
    assert runner.Runner(tmp_path / "unpacked").predict([GOOD]).tolist() == [1.5]


def test_a_rule_that_two_engines_read_differently_is_not_packed() -> None:
    from workbench.base.errors import BadInput

    with pytest.raises(BadInput, match="differ about a row"):
        edge._terms(Contract("half", CONTRACT.columns, rules=(Rule("half", "whole / 2 = 1.5", "three"),)))
    assert edge._terms(toy.CONTRACT)["rules"] == []
