"""An engine answers strictly, alike in any split, or says why not."""

import asyncio
import math
from typing import Any

import pytest
from conftest import GOOD
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.base.errors import BadRow, NotFound, WorkbenchError
from workbench.base.ledger import Ledger
from workbench.serve.engine import Engine

SHARED = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
ROW = st.fixed_dictionaries(
    {
        "carrier": st.text(max_size=8),
        "distance": st.floats(0, 6000),
        "seats": st.integers(1, 900),
        "wet": st.booleans(),
        "wind": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "at": st.datetimes().map(lambda moment: moment.isoformat()),
    }
)


@SHARED
@given(rows=st.lists(ROW, min_size=1, max_size=70))
def test_every_accepted_row_gets_one_probability_whatever_comes_with_it(engine: Engine, rows: list) -> None:
    whole = engine.scores(rows)
    assert all(math.isfinite(score) and 0 <= score <= 1 for score in whole)
    assert whole == [engine.scores([row])[0] for row in rows]


@pytest.mark.parametrize("rows", [[], (), None, 5, "row", iter([GOOD])])
def test_what_is_no_list_of_rows_is_said(engine: Engine, rows: Any) -> None:
    with pytest.raises(BadRow, match="no rows: .*"):
        engine.predict(rows)

    async def ask() -> None:
        async with engine:
            await engine.predict(rows)

    with pytest.raises(BadRow, match="no rows: .*"):
        asyncio.run(ask())


def test_the_key_comes_back_and_never_hides_the_answer(engine: Engine) -> None:
    answer = engine.predict({**GOOD, "flight": "AA 10"})
    assert (
        answer["flight"] == "AA 10" and answer["version"] == 1 and answer["run"] == "20260101-120000-abcdef"
    )
    assert engine.predict([GOOD, GOOD])[0] == engine.predict(GOOD)


def test_a_score_that_is_no_number_is_the_models_fault(moody: Engine) -> None:
    assert moody.predict(GOOD)["prediction"] == 0.5
    moody.contract.columns["distance"].__dict__["le"] = None  # let a row through that the model cannot do
    with pytest.raises(WorkbenchError, match=r"moody/1 gave nan for row 1") as caught:
        moody.predict([GOOD, {**GOOD, "distance": 1e9}])
    assert not isinstance(caught.value, BadRow)


def test_what_is_not_on_the_shelf_is_named(engine: Engine, ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="fligths"):
        Engine("fligths", ledger)
    assert Engine("flights/1", ledger).predict(GOOD) == engine.predict(GOOD)
    assert "flights/1" in str(engine) and "<script" not in engine._repr_html_()
