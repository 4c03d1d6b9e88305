"""A row set holds exactly the rows that were added, in a bit a row at most."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.data.rowset import RowSet

ROWS = st.sets(st.integers(0, 400), max_size=200)


@settings(max_examples=150, deadline=None)
@given(ROWS, ROWS, st.integers(0, 420), st.integers(0, 100), st.integers(1, 60))
def test_it_is_the_set_of_its_rows(
    rows: set[int], others: set[int], start: int, size: int, batch: int
) -> None:
    def made(numbers: set[int]) -> RowSet:
        found = RowSet()
        for at in range(0, 401, batch):
            found.add(np.array(sorted(n for n in numbers if at <= n < at + batch), np.int64))
        return found

    one, two = made(rows), made(others)
    assert len(one) == len(rows)
    assert set(np.flatnonzero(one.mask(start, size)) + start) == {
        n for n in rows if start <= n < start + size
    }
    asked = np.array(sorted(others), np.int64)
    assert one.has(asked).tolist() == [n in rows for n in sorted(others)]
    assert one.shared(two) == two.shared(one) == len(rows & others)
    again = RowSet.from_json(json.loads(json.dumps(one.to_json())))
    assert len(again) == len(rows) and again.has(asked).tolist() == one.has(asked).tolist()


def test_what_is_whole_costs_nothing() -> None:
    found = RowSet()
    for at in range(0, 34_000_000, 131_072):
        found.add(np.arange(at, min(at + 131_072, 34_000_000)))
    assert found.nbytes < 100 and len(found) == 34_000_000
    sparse = RowSet().add(np.flatnonzero(np.arange(1_000_000) % 10 != 3))
    assert sparse.nbytes < 130_000 and not sparse.mask(3, 1)[0] and sparse.mask(4, 9).all()
