"""A row is accepted or refused for the same reasons by request and by feed, and the message names them."""

import json
import math
import pickle
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandera.errors import SchemaErrors

from workbench.base.errors import BadInput, BadRow
from workbench.data.check import is_clean
from workbench.data.column import MAX_INT, moment
from workbench.data.contract import Column, Contract, Rule
from workbench.data.whole import Unique, Volume

FLIGHTS = Contract(
    "flights",
    {
        "id": Column("str", role="key"),
        "carrier": Column("str", isin=("AA", "UA"), about="airline"),
        "tail": Column("str", nullable=True, max_len=6),
        "distance": Column("int", ge=1, le=5000),
        "seats": Column("int", nullable=True),
        "wind": Column("float", nullable=True, ge=0),
        "night": Column("bool"),
        "snow": Column("bool", nullable=True),
        "at": Column("datetime", ge="2013-01-01", le="2014-01-01"),
        "delay": Column("float", nullable=True, role="outcome"),
    },
    rules=(Rule("arrived", "delay is not null", "it never arrived"),),
)
ROW: dict[str, Any] = {
    "carrier": "UA",
    "tail": "N14228",
    "distance": 1400,
    "seats": None,
    "wind": 12.5,
    "night": False,
    "snow": None,
    "at": "2013-01-01T10:00:00Z",
}

WRONG = [
    ("distance", "1400", "'1400' is not an integer"),
    ("distance", True, "true is not an integer"),
    ("distance", 3.0, "3.0 is not an integer"),
    ("distance", None, "null is not an integer"),
    ("distance", 0, "0 is below 1"),
    ("distance", 5001, "5001 is above 5000"),
    ("distance", MAX_INT + 1, "over 2**53"),
    ("distance", -(10**5000), "over 2**53"),
    ("distance", [[1]], "(list) is not an integer"),
    ("wind", "12.5", "'12.5' is not a number"),
    ("wind", False, "false is not a number"),
    ("wind", math.nan, "nan is not finite"),
    ("wind", math.inf, "inf is not finite"),
    ("wind", -math.inf, "-inf is not finite"),
    ("wind", 10**400, "over 2**53"),
    ("wind", Fraction(10**400, 3), "(Fraction) is not a number"),
    ("wind", -0.5, "-0.5 is below 0.0"),
    ("wind", {"deep": 1}, "(dict) is not a number"),
    ("carrier", "ZZ", "'ZZ' is not one of AA, UA"),
    ("carrier", 7, "7 is not a string"),
    ("carrier", None, "null is not a string"),
    ("tail", "N1422899", "is 8 characters, over 6"),
    ("tail", "\ud800", "is not text"),
    ("tail", b"N1", "(bytes) is not a string"),
    ("night", 0, "0 is not true or false"),
    ("night", "true", "'true' is not true or false"),
    ("at", "yesterday", "is not a moment"),
    ("at", 1357034400, "is not a moment"),
    ("at", "2012-12-31T23:59:59Z", "is below 2013-01-01T00:00:00"),
    ("at", "2014-01-01T00:00:01+00:00", "is above 2014-01-01T00:00:00"),
    ("at", "0001-01-01T00:00:00+14:00", "is not a moment"),
]


@pytest.mark.parametrize(
    ("field", "value", "says"), WRONG, ids=[f"{f}-{i}" for i, (f, _, _) in enumerate(WRONG)]
)
def test_a_bad_value_names_field_row_and_reason(field: str, value: Any, says: str) -> None:
    with pytest.raises(BadRow) as caught:
        FLIGHTS.parse_rows([ROW, ROW | {field: value}])
    assert (caught.value.field, caught.value.row) == (field, 1)
    assert says in caught.value.what and f"'{field}'" in caught.value.what
    assert len(str(caught.value)) < 300
    assert pickle.loads(pickle.dumps(caught.value)).field == field


@pytest.mark.parametrize("name", list(ROW))
def test_every_input_must_be_sent(name: str) -> None:
    with pytest.raises(BadRow, match=f"'{name}' is missing") as caught:
        FLIGHTS.parse_rows([{key: value for key, value in ROW.items() if key != name}])
    assert caught.value.field == name


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(BadRow, match="did you mean 'carrier'"):
        FLIGHTS.parse_rows([ROW | {"carier": "UA"}])
    with pytest.raises(BadRow, match="'delay' is known only afterwards"):
        FLIGHTS.parse_rows([ROW | {"delay": 3.0}])
    with pytest.raises(BadRow) as caught:
        FLIGHTS.parse_rows([ROW | {"x" * 10_000: 1}])
    assert len(caught.value.what) < 200


@pytest.mark.parametrize("rows", [[], {}, "rows", b"rows", None, 3, ROW, [None], [[1, 2]], ["row"]])
def test_what_is_no_list_of_rows_is_refused(rows: Any) -> None:
    with pytest.raises(BadRow):
        FLIGHTS.parse_rows(rows)


def test_deep_nesting_is_refused_without_recursion() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for rows in ([ROW | {"wind": deep}], [deep], [ROW | {"carrier": deep}]):
        with pytest.raises(BadRow):
            FLIGHTS.parse_rows(rows)
    while deep:  # taken apart by hand: its deallocation nests as well
        deep = deep.pop()


def test_keys_are_optional_but_all_or_none() -> None:
    assert "id" not in FLIGHTS.parse_rows([ROW])
    assert FLIGHTS.parse_rows([ROW | {"id": "a"}])["id"].tolist() == ["a"]
    with pytest.raises(BadRow, match="'id' is missing"):
        FLIGHTS.parse_rows([ROW | {"id": "a"}, ROW])


def test_rules_about_keys_are_asked_of_requests_that_carry_them() -> None:
    made = Contract(
        "rows",
        {"n": Column("int"), "id": Column("int", role="key"), "y": Column("int", role="outcome")},
        rules=(Rule("id", "n <> id", "n is the id"), Rule("known", "y > id", "y is not above the id")),
        whole=(Unique("id"), Volume(least=10**9)),
    )
    assert made.parse_rows([{"n": 1}])["n"].tolist() == [1]
    assert made.parse_rows([{"n": 1, "id": 2}, {"n": 1, "id": 2}])["id"].tolist() == [2, 2]
    with pytest.raises(BadRow, match="row 1: n is the id") as caught:
        made.parse_rows([{"n": 1, "id": 2}, {"n": 1, "id": 1}])
    assert caught.value.row == 1


def test_arrays_have_the_promised_types() -> None:
    found = FLIGHTS.parse_rows([ROW, ROW | {"seats": 3, "snow": True, "wind": None, "tail": None}])
    assert {name: values.dtype.str for name, values in found.items()} == {
        "carrier": "|O",
        "tail": "|O",
        "distance": "<i8",
        "seats": "<f8",
        "wind": "<f8",
        "night": "|b1",
        "snow": "<f8",
        "at": "<M8[us]",
    }
    assert found["tail"].tolist() == ["N14228", ""]
    assert found.inputs == tuple(ROW)
    assert found["at"][0] == np.datetime64("2013-01-01T10:00:00")


def test_numpy_scalars_are_values_too() -> None:
    row = ROW | {
        "distance": np.int32(7),
        "wind": np.float32(0.5),
        "night": np.True_,
        "carrier": np.str_("AA"),
    }
    found = FLIGHTS.parse_rows([row | {"at": datetime(2013, 5, 1, tzinfo=UTC)}])
    assert found["wind"][0] == 0.5 and found["night"][0] and type(found["carrier"][0]) is str


def test_moments_are_utc() -> None:
    assert moment("2013-01-01T12:00:00+02:00") == moment("2013-01-01T10:00:00Z") == datetime(2013, 1, 1, 10)
    assert moment("2013-01-01") == datetime(2013, 1, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": "number"},
        {"dtype": "int", "role": "label"},
        {"dtype": "int", "ge": 5, "le": 1},
        {"dtype": "int", "ge": 1.5},
        {"dtype": "int", "ge": "1"},
        {"dtype": "float", "le": math.inf},
        {"dtype": "str", "ge": "a"},
        {"dtype": "bool", "isin": (True,)},
        {"dtype": "str", "isin": "AA"},
        {"dtype": "str", "isin": ()},
        {"dtype": "str", "isin": (1,)},
        {"dtype": "int", "max_len": 3},
        {"dtype": "str", "max_len": 0},
        {"dtype": "datetime", "ge": "soon"},
        {"dtype": "int", "nullable": "no"},
        {"dtype": "int", "ge": 5, "isin": (1, 2)},
        {"dtype": "int", "isin": 5},
        {"dtype": "str", "max_len": "3"},
        {"dtype": "str", "about": 3},
    ],
)
def test_a_senseless_column_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Column(**arguments)


def test_a_senseless_contract_is_refused() -> None:
    rule = Rule("a", "x > 1", "x is low")
    for arguments in (
        {"columns": {}},
        {"columns": {"": Column("int")}},
        {"columns": {"x": "int"}},
        {"columns": ["x"]},
        {"columns": {"x": Column("int", role="key")}},
        {"columns": {"x": Column("int")}, "error_budget": 1.5},
        {"columns": {"x": Column("int")}, "error_budget": "5%"},
        {"columns": {"x": Column("int")}, "rules": ("x > 1",)},
        {"columns": {"x": Column("int")}, "rules": rule},
        {"columns": {"x": Column("int")}, "rules": (rule, rule)},
    ):
        with pytest.raises(BadInput):
            Contract("c", **arguments)  # type: ignore[arg-type]
    for name in ("", 3, None):
        with pytest.raises(BadInput, match="a contract's name"):
            Contract(name, {"x": Column("int")})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data", [{}, {"name": "x"}, {"name": "x", "columns": [], "rules": [], "error_budget": 0}]
)
def test_what_is_no_contract_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Contract.from_json(data)
    changed = FLIGHTS.to_json() | {"columns": {"x": {"dtype": "int", "surprise": 1}}}
    with pytest.raises(BadInput, match="surprise"):
        Contract.from_json(changed)


def test_the_json_schema_says_what_a_request_is() -> None:
    schema = json.loads(json.dumps(FLIGHTS.json_schema(), allow_nan=False))
    assert schema["required"] == FLIGHTS.inputs and schema["additionalProperties"] is False
    assert set(schema["properties"]) == {*FLIGHTS.inputs, "id"}
    assert schema["properties"]["distance"] == {"type": "integer", "minimum": 1, "maximum": 5000}
    assert schema["properties"]["wind"] == {"type": ["number", "null"], "minimum": 0}
    assert schema["properties"]["carrier"]["enum"] == ["AA", "UA"]
    FLIGHTS.parse_rows(schema["examples"])


def test_markup_is_escaped() -> None:
    contract = Contract("<b>", {"<i>": Column("str", about="<img>")}, (Rule("<u>", "x > 1", "<s>"),))
    assert not any(tag in contract._repr_html_() for tag in ("<b>&", "<i>", "<img>", "<u>", "<s>"))


bounds = st.integers(-1000, 1000)
columns = st.one_of(
    st.builds(
        lambda low, high, null: Column("int", null, min(low, high), max(low, high)),
        bounds,
        bounds,
        st.booleans(),
    ),
    st.builds(lambda low, null: Column("float", null, ge=low), st.floats(-1e6, 1e6), st.booleans()),
    st.builds(
        lambda values, null, about: Column("str", null, isin=tuple(values), about=about),
        st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=1, max_size=4),
        st.booleans(),
        st.text(max_size=9),
    ),
    st.builds(lambda length, null: Column("str", null, max_len=length), st.integers(1, 9), st.booleans()),
    st.builds(
        lambda null, role: Column("bool", null, role=role), st.booleans(), st.sampled_from(["input", "key"])
    ),
    st.builds(lambda null: Column("datetime", null, le="2030-01-01"), st.booleans()),
)
contracts = st.builds(
    lambda found, budget: Contract(
        "c", {"x": Column("int")} | {f"c{i}": column for i, column in enumerate(found)}, error_budget=budget
    ),
    st.lists(columns, min_size=1, max_size=6),
    st.floats(0, 1),
)


@given(contracts)
@settings(max_examples=80, deadline=None)
def test_json_round_trip_and_example(contract: Contract) -> None:
    text = json.dumps(contract.to_json(), allow_nan=False)
    assert Contract.from_json(json.loads(text)) == contract
    contract.parse_rows([contract.example()])


values = {
    "carrier": st.sampled_from(["AA", "UA", "ZZ", None, ""]),
    "tail": st.none() | st.text(st.characters(codec="utf-8"), max_size=8),
    "distance": st.none() | st.integers(-3, 5003) | st.just(MAX_INT + 1),
    "seats": st.none() | st.integers(-(2**60), 2**60),
    "wind": st.none() | st.floats(-5, 50) | st.sampled_from([math.inf, -math.inf, -0.0, 5e-324]),
    "night": st.none() | st.booleans(),
    "snow": st.none() | st.booleans(),
    "at": st.none() | st.datetimes(datetime(2012, 12, 1), datetime(2014, 2, 1)),
}
TYPES = {"carrier": pl.String, "tail": pl.String, "distance": pl.Int64, "seats": pl.Int64}
TYPES |= {"wind": pl.Float64, "night": pl.Boolean, "snow": pl.Boolean, "at": pl.Datetime("us")}
SENT = Contract("flights", {name: FLIGHTS.columns[name] for name in ROW})
SENT_SCHEMA = SENT.schema()


@given(st.fixed_dictionaries(values))
@settings(max_examples=150, deadline=None)
def test_request_and_feed_agree_on_every_row(row: dict[str, Any]) -> None:
    contract, schema = SENT, SENT_SCHEMA
    frame = pl.DataFrame([row], schema=TYPES)
    try:
        by_rows = contract.parse_rows([row | {"at": row["at"] and row["at"].isoformat()}])
    except BadRow as error:
        with pytest.raises(SchemaErrors) as caught:
            schema.validate(frame, lazy=True)
        assert error.field in {problem.schema.name for problem in caught.value.schema_errors}
        return
    by_frame = contract.parse_frame(schema.validate(frame, lazy=True))
    assert by_rows.inputs == by_frame.inputs
    for name, array in by_rows.items():
        assert array.dtype == by_frame[name].dtype
        same = array.tolist() == by_frame[name].tolist() if array.dtype == object else None
        assert same if same is not None else array.tobytes() == by_frame[name].tobytes()


_LOOKED_AT = Contract(
    "looked at",
    {
        "n": Column("int", ge=0, le=9),
        "x": Column("float", nullable=True, ge=-1, le=1),
        "y": Column("float"),
        "s": Column("str", max_len=3, isin=("a", "bb", "ccc")),
        "b": Column("bool", nullable=True),
    },
    rules=(Rule("small", "n + y < 12", "n and y are large together"),),
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "n": st.sampled_from([0, 3, 9, 10, -1, None, MAX_INT + 1]),
                "x": st.sampled_from([0.0, 1.0, 1.5, None, math.nan, math.inf]),
                "y": st.sampled_from([0.0, 1.0, 7.0, None, math.nan, -math.inf]),
                "s": st.sampled_from(["a", "bb", "ccc", "dddd", "no", None]),
                "b": st.sampled_from([True, False, None]),
            }
        )
        | st.just({"n": 3, "x": None, "y": 1.0, "s": "a", "b": None}),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=60, deadline=None)
def test_one_look_finds_a_batch_clean_exactly_when_pandera_does(rows: list[dict[str, Any]]) -> None:
    kinds = {"n": pl.Int64, "x": pl.Float64, "y": pl.Float64, "s": pl.String, "b": pl.Boolean}
    frame, schema = pl.DataFrame(rows, schema=kinds), _LOOKED_AT.schema()
    try:
        schema.validate(frame, lazy=True)
        clean = True
    except SchemaErrors:
        clean = False
    assert is_clean(_LOOKED_AT, frame) == clean
