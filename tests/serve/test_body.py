"""Any bytes give an answer or a 422 that names what is wrong; never anything else."""

import json
import math
from typing import Any

import pytest
from conftest import CONTRACT, GOOD
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.serve.body import openapi, respond
from workbench.serve.engine import Engine
from workbench.serve.guard import Limits, Refusal

SHARED = settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def row(**changed: Any) -> bytes:
    return json.dumps({"row": {**GOOD, **changed}}).encode()


def refused(engine: Engine, body: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        respond(engine, body, 3)
    assert caught.value.status == 422 and json.loads(caught.value.body("r"))
    return caught.value


def with_number(text: str) -> bytes:
    return row(distance=0.125).replace(b"0.125", text.encode())


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400, '"1.5"', "true"]
)
@pytest.mark.parametrize("more", ["null", "[]", "{}", "-1", "6001", "[1.5]"])
def test_what_is_no_number_names_its_field(engine: Engine, text: str, more: str) -> None:
    for value in (text, more):
        assert refused(engine, with_number(value)).loc == ("body", "row", "distance")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "not_json"),
        (b" ", "not_json"),
        (b"\xff\xfe", "not_utf8"),
        (b'{"row": "\xe9"}', "not_utf8"),
        ('{"row": {}}'.encode("utf-16"), "not_utf8"),
        ("\ufeff{}".encode(), "not_json"),
        (b"null", "wrong_form"),
        (b"[]", "wrong_form"),
        (b"{}", "wrong_form"),
        (b'{"row": {}, "rows": []}', "wrong_form"),
        (b'{"row": {}, "debug": 1}', "wrong_form"),
        (b'{"rows": []}', "wrong_form"),
        (b'{"rows": {}}', "wrong_form"),
        (b'{"rows": [1, 2, 3, 4]}', "wrong_form"),
        (b'{"row": 1, "row": 2}', "duplicate_name"),
        (b'{"row": 1' + b"0" * 5000 + b"}", "number_too_long"),
        (b"[" * 10_000 + b"]" * 10_000, "too_deep"),
        (b'{"row":' * 10_000 + b"1" + b"}" * 10_000, "too_deep"),
        (b'{"row": []}', "bad_row"),
        (b'{"row": null}', "bad_row"),
        (b'{"row": {}}', "bad_row"),
        (row(carrier="\ud800"), "bad_row"),
        (row(carrier="123456789"), "bad_row"),
        (row(seats=3.0), "bad_row"),
        (row(seats=2**60), "bad_row"),
        (row(wet=1), "bad_row"),
        (row(at="yesterday"), "bad_row"),
        (row(at=0), "bad_row"),
        (row(late=True), "bad_row"),
        (row(distnace=1), "bad_row"),
    ],
)
def test_each_fault_has_its_kind(engine: Engine, body: bytes, kind: str) -> None:
    found = refused(engine, body)
    assert found.kind == kind and found.message and found.loc[0] == "body"


def test_the_row_of_many_is_named(engine: Engine) -> None:
    body = json.dumps({"rows": [GOOD, {**GOOD, "seats": True}, GOOD]}).encode()
    assert refused(engine, body).loc == ("body", "rows", 1, "seats")
    assert refused(engine, b'{"rows": [3]}').loc == ("body", "rows", 0)


@SHARED
@given(
    body=st.binary()
    | JSON.map(lambda v: json.dumps(v).encode())
    | JSON.map(lambda v: json.dumps({"row": v}).encode())
)
def test_any_bytes(engine: Engine, body: bytes) -> None:
    refused(engine, body)


@SHARED
@given(name=st.sampled_from([*CONTRACT.columns, "other"]), value=JSON)
def test_any_value_in_any_field(engine: Engine, name: str, value: Any) -> None:
    try:
        answer = respond(engine, row(**{name: value}), 3)
    except Refusal as refusal:
        assert refusal.status == 422 and refusal.loc[:2] == ("body", "row") and refusal.loc[2] == name[:60]
        assert json.loads(refusal.body("r"))
    else:
        found = json.loads(answer.body, parse_constant=pytest.fail)
        assert math.isfinite(found["prediction"]) and answer.body.isascii()


def test_the_description_holds_the_contract_and_a_row_that_works(engine: Engine) -> None:
    found = json.loads(json.dumps(openapi(engine, Limits()), allow_nan=False))
    schema = found["components"]["schemas"]["Row"]
    assert set(schema["properties"]) == set(CONTRACT.columns) - {"late"}
    assert schema["additionalProperties"] is False and "flight" not in schema["required"]
    example = found["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert respond(engine, json.dumps(example).encode(), 3).scores
    names = {name for path in found["paths"].values() for verb in path.values() for name in verb["responses"]}
    assert {"200", "401", "403", "413", "422", "503"} <= names
