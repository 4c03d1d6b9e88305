"""Parameters are checked before anything starts."""

import json
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from enum import Enum
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.base.errors import BadInput, BadParameter, NotFound
from workbench.jobs.notebook import check, injected, parameters

CELL = """from datetime import date, datetime
from typing import Literal, Optional
import datetime as dt
n: int = 5  # how many
lr = 0.5
name = "a # b"
deep: bool = False
names: list[str] = ["x"]
sizes: dict[str, int] = {}
mode: Literal["a", "b", 3] = "a"
limit: Optional[int] = None
other: "int | None" = None
day: date = date(2013, 1, 1)
at: dt.datetime = dt.datetime(2013, 1, 1, 12)
free = None
pair: tuple[int, str] = (
    1,
    "a",
)  # two of them
"""


def test_parameters_are_read_in_order_with_type_default_and_help(write) -> None:
    found = {p.name: p for p in parameters(write(CELL))}
    assert list(found) == "n lr name deep names sizes mode limit other day at free pair".split()
    assert (found["n"].annotation, found["n"].default, found["n"].about) == ("int", 5, "how many")
    assert (found["name"].default, found["name"].about) == ("a # b", "")
    assert found["day"].default == date(2013, 1, 1) and found["at"].default == datetime(2013, 1, 1, 12)
    assert found["pair"].about == "two of them"


ACCEPTED = [
    ("n", "7", 7), ("n", 3.0, 3), ("lr", "1e-3", 1e-3), ("lr", 1, 1.0), ("name", "5", "5"), ("name", "", ""),
    ("deep", "true", True), ("deep", "0", False), ("names", '["a","b"]', ["a", "b"]), ("names", [], []),
    ("sizes", '{"a": 1}', {"a": 1}), ("mode", "b", "b"), ("mode", "3", 3), ("limit", "null", None),
    ("limit", "4", 4), ("limit", None, None), ("other", "4", 4), ("day", "2014-02-28", date(2014, 2, 28)),
    ("day", "20140228", date(2014, 2, 28)), ("day", date(2014, 1, 2), date(2014, 1, 2)),
    ("at", "2014-02-28T10:00:00", datetime(2014, 2, 28, 10)), ("free", "x", "x"), ("free", {"a": 1}, {"a": 1}),
    ("pair", '[1, "b"]', (1, "b")),
]  # fmt: skip
REFUSED = [
    ("n", "five"), ("n", "5.5"), ("n", 5.5), ("n", True), ("n", None), ("n", ""), ("n", [5]), ("lr", True),
    ("lr", "x"), ("name", 5), ("deep", "maybe"), ("deep", 2), ("names", "a,b"), ("names", [1]),
    ("sizes", '{"a": "x"}'), ("sizes", {"a": True}), ("mode", "c"), ("limit", "x"), ("day", "2014-02-30"),
    ("day", 86400), ("day", datetime(2014, 1, 1, 5)), ("at", 5), ("pair", "[1]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "typed"), ACCEPTED)
def test_a_value_that_can_only_mean_one_thing_is_accepted(write, name: str, value: Any, typed: Any) -> None:
    got = check(write(CELL), {name: value})[name]
    assert got == typed and type(got) is type(typed)


NONE = """from typing import Literal, Optional, Any
may: str | None = "linux"
opt: Optional[int] = 3
low: Annotated[int | None, Ge(1)] = 2
one: Literal["a"] | None = "a"
text: str = "x"
any_: Any = 1
num: int = 1
names: list[str] = []"""


@pytest.mark.parametrize("word", ["None", "null"])
def test_none_is_a_word_where_the_type_allows_it(write, word: str) -> None:
    names = ("may", "opt", "low", "one", "any_")
    assert check(write(NONE), dict.fromkeys(names, word)) == dict.fromkeys(names)
    assert check(write(NONE), {"text": word, "names": [word]}) == {"text": word, "names": [word]}
    with pytest.raises(BadParameter, match="num"):
        check(write(NONE), {"num": word})


@pytest.mark.parametrize("text", ["none", "NULL", "", " None", "nullable"])
def test_other_words_are_the_text_that_they_are(write, text: str) -> None:
    assert check(write(NONE), {"may": text}) == {"may": text}


NESTED = """from typing import Literal
xs: list[int] = [7]
d: dict[str, int] = {}
deep: dict[str, list[int]] = {}
keyed: dict[int, int] = {}
pair: tuple[int, str] = (1, "a")
either: list[int] | dict[str, int] = []
few: Annotated[list[int], MinLen(3)] = [1, 2, 3]
days: list[date] = []
n: int = 1"""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("xs", '[1,"a"]', "xs[1] = 'a': Input should be a valid integer"),
        ("xs", [1, "a"], "xs[1] = 'a': Input should be a valid integer"),
        ("d", '{"b": 1, "a": "x"}', "d['a'] = 'x': Input should be a valid integer"),
        ("deep", '{"a": [1, {}]}', "deep['a'][1] = {}: Input should be a valid integer"),
        ("keyed", '{"a": 1}', "the key 'a': Input should be a valid integer"),
        ("pair", "[1]", "pair[1]: Field required"),
        ("either", '[1, "a"]', "either[1] = 'a': Input should be a valid integer"),
        ("either", '{"list[int]": "a"}', "either['list[int]'] = 'a': Input should be a valid integer"),
        ("few", "[1]", "List should have at least 3 items"),
        ("days", '["2026-13-01"]', "days[0] = '2026-13-01': Value error, month must be in 1..12"),
        ("xs", json.dumps(["a" * 200]), "xs[0] = '" + "a" * 76 + "...: Input should be"),
    ],
)
def test_the_element_that_does_not_fit_is_named(write, name: str, value: Any, said: str) -> None:
    with pytest.raises(BadParameter) as caught:
        check(write(NESTED), {name: value})
    assert caught.value.what.partition(" is not ")[2].partition(": ")[2].startswith(said)
    assert "give JSON" not in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("xs", "1,2", "give JSON, such as xs='[1, 2]'; its default is [7]"),
        ("xs", "", "give JSON, such as xs='[1, 2]'"),
        ("xs", '{"a": 1}', "give JSON, such as xs='[1, 2]'"),
        ("xs", "5", "give JSON, such as xs='[1, 2]'"),
        ("d", "{'a':1}", "give JSON, such as d='{\"a\": 1}'"),
        ("deep", "a", "give JSON, such as deep='{\"a\": [1, 2]}'"),
        ("pair", "1,a", "give JSON, such as pair='[1, \"a\"]'"),
        ("either", "1,2", "give JSON, such as either='[1, 2]'"),
        ("few", "1,2", "give JSON, such as few='[...]'"),
        ("days", "2026-01-01", "give JSON, such as days='[\"2026-01-31\"]'"),
        ("n", "x", "its default is 1"),
        ("n", "[1]", "its default is 1"),
    ],
)
def test_text_that_is_no_list_or_table_is_told_how_one_is_given(
    write, name: str, value: str, hint: str
) -> None:
    with pytest.raises(BadParameter) as caught:
        check(write(NESTED), {name: value})
    assert caught.value.hint.startswith(hint)


def test_nothing_of_a_list_of_secrets_is_repeated(write) -> None:
    source = "keys: list[Secret] = []"
    for value in ('["env:A", "hunter2"]', "hunter2", ["hunter2"], '{"hunter2": 1}'):
        with pytest.raises(BadParameter) as caught:
            check(write(source), {"keys": value})
        assert "hunter2" not in str(caught.value)
    assert "such as keys='[\"env:NAME\"]'" in caught.value.hint


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_another_type_is_refused_with_name_value_and_type(write, name: str, value: Any) -> None:
    with pytest.raises(BadParameter) as caught:
        check(write(CELL), {name: value})
    assert f"parameter {name} = {value!r} is not " in caught.value.what and "default" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["a-b", "a = print(1); b", "", "1a", "class", "a\nb", "a b", "n ", "__import__('os')"]
)
def test_a_name_that_is_no_identifier_is_refused(write, name: str) -> None:
    with pytest.raises(BadParameter, match="is not a parameter name"):
        check(write(CELL), {name: 1})


def test_unknown_computed_and_untagged_names(write) -> None:
    path = write("year: int = 2013\nfirst = year * 10\nfirst_named: int = year * 10")
    with pytest.raises(BadParameter, match="did you mean 'year'"):
        check(path, {"yaer": 1})
    with pytest.raises(BadParameter, match="computes first from"):
        check(path, {"first": 1})
    assert check(path, {"first_named": 1}) == {"first_named": 1}
    untagged = write("n = 1", name="untagged.ipynb", tagged=0)
    assert check(untagged, {}) == {} and parameters(untagged) == []
    with pytest.raises(BadParameter, match="no cell tagged 'parameters'"):
        check(untagged, {"n": 2})


@pytest.mark.parametrize(
    ("sources", "tagged", "said"),
    [
        (["n = 1", "n = 2"], 2, "2 cells are tagged"),
        (["n = 1\n%matplotlib inline"], 1, "not plain Python, line 2"),
        (["n: Path = 1"], 1, "type Path"),
        (["n: print('ran') = 1"], 1, "which a job cannot be given"),
        (["n: list[__import__('os')] = 1"], 1, "which a job cannot be given"),
        (["n = b'x'"], 1, "type bytes"),
    ],
)
def test_a_bad_parameters_cell_is_said(write, capsys, sources: list[str], tagged: int, said: str) -> None:
    with pytest.raises(BadParameter, match=said):
        check(write(*sources, tagged=tagged), {})
    assert capsys.readouterr().out == ""


BOOKS = {
    "text": "hello", "json": "{}", "list": "[]", "cells": '{"cells": 3, "nbformat": 4}', "empty": "",
    "v3": '{"cells": [], "worksheets": [], "nbformat": 3}', "none": '{"cells": [], "metadata": {}, "nbformat": 4}',
    "r": json.dumps({"cells": [{"cell_type": "code", "source": "", "metadata": {}}], "nbformat": 4,
                     "metadata": {"kernelspec": {"language": "R"}}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOOKS)
def test_a_file_that_is_no_python_notebook_is_refused(project: Path, kind: str) -> None:
    (project / "job.ipynb").write_text(BOOKS[kind])
    with pytest.raises(BadInput, match="job.ipynb"):
        check("job.ipynb", {})


def test_a_missing_notebook_suggests_its_neighbour(write, project: Path) -> None:
    write("n = 1", name="score.ipynb")
    with pytest.raises(NotFound, match="did you mean 'score.ipynb'"):
        check("scroe.ipynb", {})
    (project / "folder.ipynb").mkdir()
    with pytest.raises(NotFound):
        check("folder.ipynb", {})
    with pytest.raises(NotFound):
        check("no/such/folder/a.ipynb", {})


def test_what_is_computed_follows_and_the_rest_is_not_repeated(write) -> None:
    source = "import math\nprint('once')\na = 1\nb = a + 1\nc = b * 2\nd = 5\nif c:\n    e = c\nf = d"
    lines = injected(source, {"a": 10})
    assert lines == "# Parameters\na = 10\nb = a + 1\nc = b * 2\nif c:\n    e = c"
    space: dict[str, Any] = {}
    exec(source + "\n" + lines, space)
    assert (space["b"], space["c"], space["e"], space["f"]) == (11, 22, 22, 5)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.dates()
    | st.datetimes(
        timezones=st.none() | st.timezones() | st.just(timezone(timedelta(hours=-3), "datetime.x"))
    )
    | st.times()
    | st.timedeltas()
)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(value=values)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_value_arrives_as_it_was_given(value: Any) -> None:
    space: dict[str, Any] = {"datetime": datetime, "date": None, "zoneinfo": None}
    exec(injected("x = 0", {"x": value}), space)
    assert space["x"] == value and type(space["x"]) is type(value)


class _Odd(tzinfo):
    "A zone of a library that is not in the notebook."

    def utcoffset(self, dt: datetime | None) -> timedelta:
        return timedelta(hours=5, minutes=45)


DATED = """from datetime import datetime
when: datetime = datetime(2026, 1, 1)
days: dict[str, datetime] = {}
all_: list[datetime] = []
free = None"""


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("when", "2026-01-01T00:00:00Z", datetime(2026, 1, 1, tzinfo=UTC)),
        ("when", "2026-01-01T00:00:00-03:30", datetime(2026, 1, 1, 3, 30, tzinfo=UTC)),
        ("when", datetime(2026, 7, 1, tzinfo=ZoneInfo("Asia/Tokyo")), datetime(2026, 7, 1, tzinfo=ZoneInfo("Asia/Tokyo"))),
        ("when", datetime(2026, 7, 1, tzinfo=_Odd()), datetime(2026, 7, 1, tzinfo=_Odd())),
        ("days", '{"a": "2026-01-01T00:00:00Z"}', {"a": datetime(2026, 1, 1, tzinfo=UTC)}),
        ("all_", '["2026-01-01T00:00:00+01:00"]', [datetime(2025, 12, 31, 23, tzinfo=UTC)]),
        ("free", [timedelta(days=1), {1, 2}, set()], [timedelta(days=1), {1, 2}, set()]),
    ],
)  # fmt: skip
def test_a_moment_arrives_whatever_names_the_notebook_has(write, name: str, given: Any, found: Any) -> None:
    space: dict[str, Any] = {}
    exec(DATED + "\n" + injected(DATED, check(write(DATED), {name: given})), space)
    assert space[name] == found
    if isinstance(given, datetime) and isinstance(given.tzinfo, ZoneInfo):
        assert space[name].tzinfo is given.tzinfo


def test_a_number_of_another_library_arrives_as_a_number(write) -> None:
    numpy = pytest.importorskip("numpy")
    space: dict[str, Any] = {}
    exec(injected("free = None", check(write("free = None"), {"free": [numpy.float64(0.5)]})), space)
    assert space["free"] == [0.5] and type(space["free"][0]) is float


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize("value", [Path("x"), [Colour.RED], {"a": object()}])
def test_a_value_that_has_no_literal_is_refused(write, value: Any) -> None:
    with pytest.raises(BadParameter, match="a job cannot be given a (PosixPath|Colour|object)"):
        check(write("free = None"), {"free": value})
