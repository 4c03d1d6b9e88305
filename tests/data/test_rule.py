"""A rule about inputs holds for a request as for a feed; others are not asked of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.base.errors import BadFeed, BadInput, BadRow, FeedRefused, NotFound, WorkbenchError
from workbench.base.records import Ledger
from workbench.data.contract import Column, Contract, Rule
from workbench.data.feed import Feed
from workbench.data.source import write_parquet

RULES = (
    Rule("bigger", "area > radius", "the area is the larger"),
    Rule("long", "name like 'A%'", "names begin with A"),
    Rule("landed", "area > radius and delay is not null", "it never landed"),
    Rule("known", "id <> 'x'", "nobody"),
    Rule("elsewhere", "area > 0 and other > 0", "it reads what no request carries"),
)
COLUMNS = {
    "id": Column("str", role="key"),
    "area": Column("float", nullable=True),
    "radius": Column("int"),
    "name": Column("str"),
    "delay": Column("float", role="outcome", nullable=True),
}
CONTRACT = Contract("cells", COLUMNS, RULES)
ROW = {"area": 2.0, "radius": 1, "name": "Ada"}


def test_a_request_row_that_breaks_a_rule_is_refused() -> None:
    CONTRACT.parse_rows([ROW, ROW | {"id": "x"}][:1])
    with pytest.raises(BadRow, match=r"row 1: the area is the larger \(area=0.5, radius=1\)") as caught:
        CONTRACT.parse_rows([ROW, ROW | {"area": 0.5}, ROW | {"name": "Bob"}])
    assert (caught.value.field, caught.value.row) == ("", 1) and "bigger" in caught.value.hint
    with pytest.raises(BadRow, match="names begin with A") as caught:
        CONTRACT.parse_rows([ROW | {"name": "Bob"}])
    assert caught.value.field == "name"


def test_null_counts_as_refused_as_in_a_feed() -> None:
    with pytest.raises(BadRow, match="area=null"):
        CONTRACT.parse_rows([ROW | {"area": None}])


@given(st.none() | st.floats(-3, 3), st.integers(-3, 3), st.sampled_from(["Ada", "Bob", ""]))
@settings(max_examples=60, deadline=None)
def test_request_and_feed_agree(area: float | None, radius: int, name: str) -> None:
    rules = (*RULES[:2], Rule("ratio", "area / radius < 2 or name = ''", "too steep"))
    contract = Contract("cells", {key: COLUMNS[key] for key in ROW}, rules)
    row = {"area": area, "radius": radius, "name": name}
    types = {"area": pl.Float64, "radius": pl.Int64, "name": pl.String}
    frame = pl.DataFrame([row], schema=types)
    good = all(frame.select(pl.sql_expr(r.sql).fill_null(False)).item() for r in rules)
    try:
        contract.parse_rows([row])
        assert good
    except BadRow:
        assert not good


def test_a_feed_refuses_the_same_row(project: Path, ledger: Ledger) -> None:
    contract = Contract("cells", {key: COLUMNS[key] for key in ROW}, RULES[:1])
    write_parquet(project / "cells.parquet", pl.DataFrame([ROW, ROW | {"area": 0.5}]))
    with pytest.raises(FeedRefused, match="the area is the larger"):
        Feed("cells.parquet", contract).check(ledger)


def is_luhn(number: pl.Series) -> list[bool]:
    "What SQL cannot say: the last digit proves the others."
    return [
        sum(map(int, text[-1::-2] + "".join(str(2 * int(d)) for d in text[-2::-2]))) % 10 == 0
        for text in number
    ]


def is_short(rows: pl.Series, other: pl.Series) -> pl.Series:
    return (rows > 0).head(1)


def test_a_function_of_the_project_is_a_rule_of_feeds_and_requests(project: Path, ledger: Ledger) -> None:
    columns = {"number": Column("str"), "n": Column("int")}
    rules = (Rule("luhn", f"{__name__}:is_luhn(number)", "the check digit is wrong"),)
    contract = Contract("cards", columns, rules, error_budget=0.5)
    write_parquet(
        project / "cards.parquet",
        pl.DataFrame({"number": ["79927398713", "79927398710", "18"], "n": [1, 2, 3]}),
    )
    report = Feed("cards.parquet", contract).check(ledger)
    assert report.refused == 1 and report.rules[0]["sample"] == "row 1: number=79927398710"
    assert Contract.from_json(contract.to_json()) == contract
    contract.parse_rows([{"number": "18", "n": 3}])
    with pytest.raises(BadRow, match="row 1: the check digit is wrong"):
        contract.parse_rows([{"number": "18", "n": 3}, {"number": "17", "n": 3}])


def test_a_function_that_is_not_there_or_answers_amiss_is_said(project: Path, ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="has no 'is_odd'"):
        Rule("r", f"{__name__}:is_odd(n)", "why")
    with pytest.raises(BadInput, match="names no column"):
        Rule("r", f"{__name__}:is_luhn()", "why")
    write_parquet(project / "n.parquet", pl.DataFrame({"n": [1, 2], "m": [1, 2]}))
    columns = {"n": Column("int"), "m": Column("int")}
    feed = Feed("n.parquet", Contract("n", columns, (Rule("r", f"{__name__}:is_short(n, m)", "why"),)))
    with pytest.raises(WorkbenchError, match="gave 1 values of type Boolean for 2 rows"):
        feed.check(ledger)
    with pytest.raises(BadFeed, match="no column 'k'"):
        Feed("n.parquet", Contract("n", columns, (Rule("r", f"{__name__}:is_luhn(k)", "why"),)))


LIGHT = """
import sys
{hide}
from workbench.base.errors import MissingExtra
from workbench.data.contract import Contract
contract = Contract.from_json({data!r})
try:
    contract.parse_rows([{row!r}])
    print("ran")
except MissingExtra as error:
    print(error.hint)
"""


@pytest.mark.parametrize(
    ("rules", "says"), [(RULES[:1], "workbench[data]"), (RULES[3:4], "ran"), ((), "ran")]
)
def test_without_polars_only_a_rule_about_inputs_needs_it(rules: tuple[Rule, ...], says: str) -> None:
    data = Contract("cells", COLUMNS, rules).to_json()
    program = LIGHT.format(hide="sys.modules['polars'] = None", data=data, row=ROW)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert says in done.stdout


@pytest.mark.parametrize("sql", ["month <", "(a > 1", "select 1", "a > 1; drop table x"])
def test_sql_that_cannot_be_read_is_refused_where_it_is_written(sql: str) -> None:
    with pytest.raises(BadInput, match="rule 'r'"):
        Rule("r", sql, "why")


@pytest.mark.parametrize(
    "parts", [("", "a > 1", "w"), (3, "a > 1", "w"), ("r", None, "w"), ("r", "a > 1", " ")]
)
def test_a_rule_has_three_texts(parts: tuple[Any, Any, Any]) -> None:
    with pytest.raises(BadInput):
        Rule(*parts)


EXAMPLES = [
    {"a": Column("float"), "b": Column("float")},
    {"a": Column("int", ge=0, le=9), "b": Column("int", ge=5)},
    {"a": Column("float", le=-4), "b": Column("float", nullable=True)},
]


@pytest.mark.parametrize("columns", EXAMPLES)
@pytest.mark.parametrize("sql", ["a > b", "a = b or a + b = 10", "a is not null and b <= 7 and a < b + 2"])
def test_an_example_keeps_the_rules(columns: dict[str, Column], sql: str) -> None:
    contract = Contract("c", columns, (Rule("r", sql, "why"),))
    contract.parse_rows([contract.example()])


def test_an_example_that_is_hard_to_find_can_be_given() -> None:
    rule = Rule("r", "a * b = 391 and a > 1 and b > 1", "no such product")
    columns = {"a": Column("int"), "b": Column("int")}
    with pytest.raises(BadInput, match="no example row of contract 'c'"):
        Contract("c", columns, (rule,)).example()
    given_ones = {"a": Column("int", example=17), "b": Column("int", example=23)}
    contract = Contract("c", given_ones, (rule,))
    assert contract.example() == {"a": 17, "b": 23}
    assert Contract.from_json(contract.to_json()) == contract
    with pytest.raises(BadInput, match="above 5"):
        Column("int", le=5, example=6)
