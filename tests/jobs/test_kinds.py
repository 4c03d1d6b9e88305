"""Types, bounds, choices and defaults, read from the parameters cell without running any of it."""

import enum
from datetime import date
from typing import Any

import pytest

from workbench.base.errors import BadParameter
from workbench.jobs.notebook import as_json, check, completed, injected, parameters

CELL = """import enum
from datetime import date
from enum import Enum, IntEnum, StrEnum, auto
from typing import Annotated, Literal, Optional
import annotated_types as at
from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen, MultipleOf
from pydantic import Field, PositiveInt

class Speed(Enum):
    "How fast."
    FAST = "quick"
    SLOW = 2
    NONE = None

class Size(str, Enum):
    BIG = "big"
    SMALL = "small"

class Level(IntEnum):
    LOW = 1
    HIGH = 2

class Colour(enum.StrEnum):
    RED = auto()
    BLUE = auto()

Year = Annotated[int, Ge(2000), Le(2100)]
Mode = Literal["a", "b"]
year: Year = 2013  # which year
rate: Annotated[float, Field(gt=0, le=1, description="the rate")] = 0.5
half: Annotated[Optional[int], at.Interval(ge=0, lt=10)] = None
even: Annotated[int, MultipleOf(2), "an even number"] = 2
names: Annotated[list[str], Len(1, 3)] = ["x"]
code: Annotated[str, Field(pattern="^[A-Z]{2}$", max_length=2)] = "AA"
day: Annotated[date, Ge(date(2013, 1, 1))] = date(2013, 5, 1)
mode: Mode = "a"
maybe: Year | None = None
speed: Speed = Speed.FAST
size: Size = Size("big")
level: Level = Level.LOW
colour: Optional[Colour] = None
colours: list[Colour] = []
bare = Size.SMALL
one: Literal[1, 2] = 1
"""

ACCEPTED = [
    ("year", "2014", 2014), ("rate", "1e-1", 0.1), ("half", "9", 9), ("half", "null", None), ("half", "None", None),
    ("even", 4, 4), ("names", '["a"]', ["a"]), ("code", "QX", "QX"), ("day", "2014-02-28", date(2014, 2, 28)),
    ("mode", "b", "b"), ("maybe", 2001, 2001), ("speed", "quick", "quick"), ("speed", "FAST", "quick"),
    ("speed", "2", 2), ("speed", "SLOW", 2), ("size", "small", "small"), ("size", "BIG", "big"), ("level", "2", 2),
    ("level", "HIGH", 2), ("colour", "red", "red"), ("colour", "BLUE", "blue"), ("colour", "None", None),
    ("colours", '["red"]', ["red"]), ("bare", "big", "big"), ("one", "2", 2),
]  # fmt: skip
REFUSED = [
    ("year", 1999, "greater than or equal to 2000"), ("year", "2101", "less than or equal to 2100"),
    ("year", True, "a bool is not a number"), ("rate", 0, "greater than 0"), ("half", 10, "less than 10"),
    ("even", 3, "multiple of 2"), ("names", [], "at least 1 item"), ("names", list("abcd"), "at most 3 items"),
    ("code", "abc", "pattern"), ("day", "2012-12-31", "greater than or equal to"), ("mode", "c", "'a' or 'b'"),
    ("maybe", 1, "greater than"), ("speed", "fast", "'quick'"), ("size", "big ", "'big' or 'small'"),
    ("level", 3, "1 or 2"), ("colour", "green", "'red' or 'blue'"), ("one", 3, "1 or 2"), ("one", True, "1 or 2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "plain"), ACCEPTED)
def test_accepted_and_the_same_when_the_notebook_runs(write, name: str, value: Any, plain: Any) -> None:
    given = check(write(CELL), {name: value})
    assert as_json(given) == {name: plain} or given[name] == plain
    space: dict[str, Any] = {}
    exec(CELL + "\n" + injected(CELL, given), space)
    found = space[name]
    assert (found.value if isinstance(found, enum.Enum) else found) == plain or found == [space["Colour"].RED]
    if isinstance(found, enum.Enum):
        assert type(found) is space[type(found).__name__]


@pytest.mark.parametrize(("name", "value", "said"), REFUSED)
def test_refused_with_the_bound(write, name: str, value: Any, said: str) -> None:
    with pytest.raises(BadParameter, match=said) as caught:
        check(write(CELL), {name: value})
    assert f"parameter {name} = {value!r}" in caught.value.what


def test_a_choice_of_the_callers_own_class_is_taken_by_its_value(write) -> None:
    class Mine(enum.Enum):
        A = "small"

    assert as_json(check(write(CELL), {"size": Mine.A})) == {"size": "small"}


def test_help_comes_from_the_comment_the_field_or_the_remark(write) -> None:
    found = {p.name: p for p in parameters(write(CELL))}
    said = [found[name].about for name in ("year", "rate", "even", "names")]
    assert said == ["which year", "the rate", "an even number", ""]
    assert "Year" not in found and "Mode" not in found and found["bare"].annotation == "Size"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("n: Annotated[int, open('touched', 'w')] = 1", "which a job cannot be given"),
        ("n: Annotated[int, Field(default_factory=print)] = 1", "which a job cannot be given"),
        ("n: Annotated[int, Ge(len('x'))] = 1", "which a job cannot be given"),
        ("class A(Enum):\n    X = open('touched', 'w')\nn: A = A.X", "type A, which"),
        ("from elsewhere import A\nn: A = A.X", "type A, which.*"),
        ("n: int = 'five'", "as written: parameter n = 'five' is not int"),
        ("n: Annotated[int, Ge(5)] = 3", "as written: parameter n = 3"),
        ("n: Literal['a'] = 'b'", "as written: parameter n = 'b'"),
        ("n: int", "needs the parameter n: int"),
        ("n: Annotated[int, Gt('x')] = 1", "as written: parameter n = 1 is not"),
        ("n: Annotated[str, Field(pattern='(')] = 'x'", "which a job cannot be given"),
    ],
)
def test_what_is_wrong_in_the_cell_is_said_and_not_run(write, project, cell: str, said: str) -> None:
    with pytest.raises(BadParameter, match=said):
        check(write(cell), {})
    assert not (project / "touched").exists()


def test_a_required_value_is_in_the_cell_so_what_is_computed_can_be(write) -> None:
    cell = 'é = "ö"; day: date  # when\nn: int\nm: int = n + 1\nnext_ = day.replace(year=n)'
    given = check(write(cell), {"day": "2014-02-28", "n": "2015"})
    done = completed(cell, given)
    space: dict[str, Any] = {"date": date}
    exec(done, space)
    assert (space["m"], space["next_"]) == (2016, date(2015, 2, 28))
    assert "n: int = 2015\n" in done and "# when" in done
    with pytest.raises(BadParameter, match="needs the parameter day: date.*\n.*-p day=.* \\(when\\)"):
        check(write(cell), {"n": 1})
    asked = parameters(write(cell))[2]
    assert (str(asked), asked.required) == ("n: int", True)
