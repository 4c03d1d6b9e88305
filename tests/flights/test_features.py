"""The worked example lets nothing through that is not known at the scheduled departure."""

import numpy as np
import polars as pl
import pytest
import torch

from workbench.base.errors import BadRow
from workbench.data.contract import Columns
from workbench.data.recipe import Recipe
from workbench.flights.features import (
    CATEGORICAL,
    NUMERIC,
    DelayNet,
    FlightContract,
    WeatherContract,
    _weekday,
    features,
    late,
)

OUTCOMES = ("dep_time", "dep_delay", "arr_time", "air_time", "arr_delay")
ROW = {
    "year": 2013, "month": 12, "day": 24, "sched_dep_time": 1730, "sched_arr_time": 2015, "carrier": "UA",
    "origin": "EWR", "dest": "ORD", "distance": 719.0, "temp": 30.0, "dewp": 20.0, "humid": 60.0, "wind_dir": 270.0,
    "wind_speed": 12.0, "wind_gust": None, "precip": 0.0, "pressure": 1012.0, "visib": 10.0,
}  # fmt: skip


def frame(rows: int = 200) -> pl.DataFrame:
    rng = np.random.default_rng(3)
    made = pl.DataFrame([ROW] * rows)
    return made.with_columns(
        pl.Series("sched_dep_time", rng.integers(0, 24, rows) * 100 + rng.integers(0, 60, rows)),
        pl.Series("temp", rng.normal(55, 18, rows)),
        pl.Series("carrier", rng.choice(["UA", "B6", "EV"], rows)),
        pl.Series("wind_gust", np.where(rng.random(rows) < 0.7, np.nan, 25.0)).fill_nan(None),
        *(pl.Series(name, rng.integers(-20, 200, rows)) for name in OUTCOMES),
        pl.Series("flight", rng.integers(1, 5000, rows)),
        pl.lit("2013-12-24T22:00:00Z").alias("time_hour"),
    )


def recipe(columns: Columns) -> Recipe:
    places = ("workbench.flights.features:features", "workbench.flights.features:late")
    return Recipe(*places, NUMERIC, CATEGORICAL).fit(columns)


def test_outcomes_are_declared_and_are_no_inputs() -> None:
    assert set(FlightContract.of("outcome")) == set(OUTCOMES)
    assert set(FlightContract.inputs).isdisjoint(OUTCOMES)


def test_features_need_nothing_but_the_inputs() -> None:
    columns = FlightContract.parse_frame(frame())
    inputs = {name: columns[name] for name in FlightContract.inputs}
    assert set(features(inputs)) == {*NUMERIC, *CATEGORICAL}


@pytest.mark.parametrize("name", OUTCOMES)
def test_an_outcome_never_changes_what_the_model_sees(name: str) -> None:
    whole = frame()
    fitted = recipe(FlightContract.parse_frame(whole))
    seen = fitted.encode(FlightContract.parse_frame(whole))
    poisoned = FlightContract.parse_frame(whole.with_columns(pl.col(name) * 1000 + 7))
    assert seen.tobytes() == fitted.encode(poisoned).tobytes()
    assert fitted.to_json() == recipe(poisoned).to_json()


def test_a_request_that_carries_an_outcome_is_refused() -> None:
    FlightContract.parse_rows([ROW])
    for name in OUTCOMES:
        with pytest.raises(BadRow) as caught:
            FlightContract.parse_rows([{**ROW, name: 5}])
        assert caught.value.field == name


def test_late_means_more_than_fifteen_minutes() -> None:
    assert late({"arr_delay": np.array([-5.0, 15.0, 16.0, 300.0])}).tolist() == [0, 0, 1, 1]


def test_known_dates_and_times() -> None:
    found = features(FlightContract.parse_rows([ROW]))
    assert (found["weekday"][0], found["hour"][0], found["block_min"][0]) == (1, 17, 165)  # a Tuesday
    midnight = features(FlightContract.parse_rows([{**ROW, "sched_dep_time": 2330, "sched_arr_time": 30}]))
    assert midnight["block_min"][0] == 60
    west = features(FlightContract.parse_rows([ROW]))
    assert west["wind_y"][0] == pytest.approx(-12) and west["wind_x"][0] == pytest.approx(0, abs=1e-9)


def test_every_day_of_a_century_has_its_weekday() -> None:
    days = np.arange("2000-01-01", "2101-01-01", dtype="datetime64[D]")
    months = days.astype("datetime64[M]")
    year, month = days.astype("datetime64[Y]").astype(np.int64) + 1970, months.astype(np.int64) % 12 + 1
    found = _weekday(year, month, (days - months).astype(np.int64) + 1)
    assert np.array_equal(found, (days.astype(np.int64) + 3) % 7)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    columns = FlightContract.parse_frame(frame())
    fitted = recipe(columns)
    whole = fitted.encode(columns)
    for place in (0, 1, 77, 199):
        one = Columns({k: v[place : place + 1] for k, v in columns.items()}, columns.inputs)
        assert fitted.encode(one).tobytes() == whole[place : place + 1].tobytes()


def test_the_impossible_wind_is_refused() -> None:
    observed = {name: ROW[name] for name in WeatherContract.inputs}
    WeatherContract.parse_rows([observed])
    with pytest.raises(BadRow, match="wind_speed"):
        WeatherContract.parse_rows([{**observed, "wind_speed": 1048.36058}])


def test_the_net_rebuilds_from_its_config() -> None:
    torch.manual_seed(0)
    net = DelayNet(4, [3, 5]).eval()
    again = DelayNet(**net.config).eval()
    again.load_state_dict(net.state_dict())
    x = torch.tensor([[0.1, 0.2, 0.3, 0.4, 2, 4], [0, 0, 0, 0, 0, 0]])
    assert net(x).shape == (2,) and torch.equal(net(x), again(x))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"month": 2, "day": 30}, "no such day"),
        ({"month": 2, "day": 29}, "no such day"),
        ({"month": 4, "day": 31}, "no such day"),
        ({"year": 2100, "month": 2, "day": 29}, "no such day"),
        ({"sched_dep_time": 1299}, "over 59 minutes"),
        ({"sched_arr_time": 2360}, "over 59 minutes"),
    ],
)
def test_a_day_or_a_clock_that_is_not_there_is_refused(changed: dict[str, int], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        FlightContract.parse_rows([ROW, ROW | changed])


def test_days_that_are_there_pass() -> None:
    for day in (
        {"year": 2012, "month": 2, "day": 29},
        {"year": 2000, "month": 2, "day": 29},
        {"month": 12, "day": 31},
    ):
        FlightContract.parse_rows([ROW | day | {"sched_arr_time": 2400}])
    FlightContract.parse_rows([FlightContract.example()])
