"""Batch scores: the service's answers, each row once whatever happens, and never over anything else."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import toy
from rays import free

from workbench.base import records
from workbench.base.errors import BadFeed, BadInput, FeedRefused
from workbench.base.ledger import Ledger
from workbench.base.store import Store
from workbench.data.column import Column
from workbench.data.contract import Contract
from workbench.data.feed import Feed, write_parquet
from workbench.data.recipe import Recipe
from workbench.models.bundle import Bundle
from workbench.models.linear import LinearScorer
from workbench.models.shelf import Shelf
from workbench.serve.batch import predict
from workbench.serve.engine import Engine
from workbench.serve.kept import Kept


@pytest.fixture
def delays(ledger: Ledger) -> Bundle:
    return Shelf(ledger).add("delays", **toy.linear_parts())


@pytest.fixture
def source(project: Path) -> Path:
    columns = toy.columns(300, seed=5)
    frame = pl.DataFrame({name: list(values) for name, values in columns.items()}, strict=False)
    return write_parquet(project / "delays.parquet", frame.fill_nan(None))


def test_it_answers_what_the_engine_answers(delays: Bundle, source: Path, ledger: Ledger) -> None:
    scores = predict("delays/1", source, to="scores.parquet", ledger=ledger)
    rows = Feed(source, toy.CONTRACT, outcomes=False).rows().select(delays.contract.inputs).to_dicts()
    online = [answer["prediction"] for answer in Engine(delays).predict(rows)]
    assert pl.read_parquet(scores.path)["prediction"].to_list() == online and len(online) == scores.rows


def test_a_feed_keeps_its_filter_and_takes_one_more(delays: Bundle, source: Path, ledger: Ledger) -> None:
    name = next(
        n for n, c in toy.CONTRACT.columns.items() if c.dtype in ("int", "float") and c.role == "input"
    )
    middle = pl.read_parquet(source)[name].median()
    feed = Feed(source, toy.CONTRACT, where=f"{name} <= {middle}")
    whole = predict(delays, feed, to="a.parquet", ledger=ledger).rows
    less = predict(delays, feed, where=f"{name} < {middle / 2}", to="b.parquet", ledger=ledger).rows
    assert 0 < less < whole < 300


def test_scores_never_replace_what_is_no_scores(
    delays: Bundle, source: Path, project: Path, ledger: Ledger
) -> None:
    before = source.read_bytes()
    other = write_parquet(project / "other.parquet", pl.DataFrame({"a": [1]}))
    (project / "folder.parquet").mkdir()
    for to, said in (
        (source, "the feed itself"),
        (other, "holds no scores"),
        ("folder.parquet", "holds no scores"),
        ("x.csv", "no Parquet file"),
        ("", "no Parquet file"),
        ("/proc/nope/x.parquet", "cannot be written"),
    ):
        with pytest.raises(BadInput, match=said):
            predict("delays/1", source, to=to, ledger=ledger)
    assert source.read_bytes() == before
    for _ in range(2):
        predict("delays/1", source, to="scores.parquet", ledger=ledger)


# ---------------------------------------------------------------- a folder of scores

FEATURES = """
import time

NAP_S = {nap_s}

def features(rows):
    time.sleep(NAP_S)
    return {{"wind": rows["wind"]}}

def late(rows):
    return rows["delay"] > 15
"""
WINDY = Contract(
    "windy",
    {
        "flight": Column("int", role="key"),
        "wind": Column("float", ge=0, le=200),
        "delay": Column("float", role="outcome"),
    },
    error_budget=0.2,
)


def write_day(project: Path, day: int, rows: int = 40, busted: int = 1) -> Path:
    "A file of flights, some of them with a wind that no instrument can have measured."
    wind = np.random.default_rng(day).uniform(0, 60, rows)
    wind[:busted] = 999.0
    flights = pl.DataFrame({"flight": np.arange(rows) + day * 1000, "wind": wind})
    return write_parquet(project / "days" / f"{day:03d}.parquet", flights)


def add_windy(project: Path, slope: float = 2.0, nap_s: float = 0.0) -> Bundle:
    (project / "windy_batch.py").write_text(FEATURES.format(nap_s=nap_s))
    recipe = Recipe("windy_batch:features", "windy_batch:late", ("wind",), ())
    recipe = recipe.fit(WINDY.parse_rows([{"wind": 5.0}, {"wind": 40.0}]))
    scorer = LinearScorer(1, [])
    weights = {**scorer.weights(), "dense": np.array([slope])}
    model = {"model": "workbench.models.linear:LinearScorer", "config": scorer.config, "framework": "numpy"}
    return Shelf(Ledger()).add("windy", **model, weights=weights, contract=WINDY, recipe=recipe)


@pytest.fixture
def windy(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    monkeypatch.syspath_prepend(str(project))
    sys.modules.pop("windy_batch", None)
    for day in range(4):
        write_day(project, day)
    yield add_windy(project)
    sys.modules.pop("windy_batch", None)  # its file is edited: what runs after must not send the old code


def published(folder: Path) -> pl.DataFrame:
    "What a reader of the folder sees, and that the listing agrees."
    listing = json.loads((folder / "_scores.json").read_text())
    files = sorted(folder.glob("*.parquet"))
    assert [one["file"] for one in listing["parts"]] == [file.name for file in files]
    return pl.concat([pl.read_parquet(file) for file in files])


def expected(project: Path, bundle: Bundle) -> pl.DataFrame:
    rows = Feed(project / "days", bundle.contract, outcomes=False).rows()
    answers = Engine(bundle).predict(rows.select(bundle.contract.inputs).to_dicts())
    scores = pl.Series("prediction", [one["prediction"] for one in answers], dtype=pl.Float32)
    return rows.select("flight").with_columns(scores, model=pl.lit(bundle.ref))


def test_a_folder_holds_each_row_once_and_is_a_feed(windy: Bundle, project: Path) -> None:
    scores = predict(windy, "days", to="scores")
    assert (scores.rows, scores.refused, scores.kept_rows) == (156, 4, 0)
    assert f"4 refused, see: workbench quarantine show {scores.run}" in str(scores)
    assert published(project / "scores").equals(expected(project, windy))
    found = Contract(
        "scores", {"flight": Column("int"), "prediction": Column("float"), "model": Column("str")}
    )
    assert Feed("scores", found).check().accepted == 156
    refused = pl.read_parquet(scores.quarantine)
    assert refused["run"].unique().to_list() == [scores.run] and refused.height == 4


def test_an_unchanged_feed_costs_lookups_and_touches_nothing(windy: Bundle, project: Path) -> None:
    predict(windy, "days", to="scores")
    before = {path: path.stat().st_mtime_ns for path in (project / "scores").iterdir()}
    again = predict(windy, "days", to="scores")
    assert (again.rows, again.kept_rows, again.refused) == (156, 156, 4)
    same = [path for path in before if path.suffix == ".parquet" or path.name == "_scores.json"]
    assert len(same) > 1 and {path: path.stat().st_mtime_ns for path in same} == {p: before[p] for p in same}
    assert pl.read_parquet(again.quarantine)["run"].unique().to_list() == [again.run]
    assert predict(windy, "days", to="scores", again=True).kept_rows == 0
    assert records.find(again.run).metrics["kept_rows"] == 156


def test_a_feed_that_grew_scores_what_was_added(windy: Bundle, project: Path) -> None:
    predict(windy, "days", to="scores")
    names = {path.name for path in (project / "scores").glob("*.parquet")}
    write_day(project, 7, rows=30)
    grown = predict(windy, "days", to="scores")
    assert (grown.rows, grown.kept_rows) == (156 + 29, 156)
    assert names < {path.name for path in (project / "scores").glob("*.parquet")}
    (project / "days" / "001.parquet").unlink()
    (project / "days" / "001.parquet.manifest.json").unlink()
    less = predict(windy, "days", to="scores")
    assert (less.rows, less.kept_rows) == (156 + 29 - 39, 156 + 29 - 39)
    assert published(project / "scores").equals(expected(project, windy))


def test_another_version_or_other_code_scores_all_of_it_again(windy: Bundle, project: Path) -> None:
    predict(windy, "days", to="scores")
    other = add_windy(project, slope=1.0)
    assert predict(other, "days", to="scores").kept_rows == 0
    assert published(project / "scores")["model"].unique().to_list() == ["windy/2"]
    with (project / "windy_batch.py").open("a") as file:
        file.write("\n# edited\n")
    assert predict(other, "days", to="scores").kept_rows == 0


def test_damaged_scores_are_made_again(windy: Bundle, project: Path) -> None:
    predict(windy, "days", to="scores")
    whole = published(project / "scores")
    for path in [*(project / "scores").glob("part-00001*.parquet")]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))  # a hard link: what is kept is damaged too
    mended = predict(windy, "days", to="scores")
    assert mended.kept_rows == 156 - 39 and published(project / "scores").equals(whole)


def test_past_the_budget_nothing_is_published(windy: Bundle, project: Path) -> None:
    write_day(project, 8, rows=100, busted=90)
    with pytest.raises(FeedRefused, match="94 of 260 rows refused") as error:
        predict(windy, "days", to="scores")
    assert not (project / "scores").exists() and "wind is above 200" in error.value.hint
    assert pl.read_parquet(next((project / ".workbench" / "quarantine").glob("*.parquet"))).height == 94
    (project / "days" / "008.parquet").unlink()
    (project / "days" / "008.parquet.manifest.json").unlink()
    assert predict(windy, "days", to="scores").kept_rows == 156


def test_a_folder_of_something_else_is_left_alone(windy: Bundle, project: Path) -> None:
    (project / "mine").mkdir()
    (project / "mine" / "notes.txt").write_text("mine")
    for to, said in (("mine", "holds no scores"), ("days", "the feed itself"), (".", "the feed itself")):
        with pytest.raises(BadInput, match=said):
            predict(windy, "days", to=to)
    with pytest.raises(BadFeed, match="keeps no row"):
        predict(windy, "days", to="scores", where="flight < 0")


def test_one_file_holds_the_same_and_is_left_alone_when_it_does(windy: Bundle, project: Path) -> None:
    predict(windy, "days", to="all.parquet")
    assert pl.read_parquet("all.parquet").equals(expected(project, windy))
    before = Path("all.parquet").stat().st_mtime_ns
    assert predict(windy, "days", to="all.parquet").kept_rows == 156
    assert Path("all.parquet").stat().st_mtime_ns == before


def test_what_is_kept_has_an_end(windy: Bundle, project: Path) -> None:
    predict(windy, "days", to="scores")
    kept = Kept(Store(), "windy")
    assert kept.prune(limit_gb=1) == 0
    assert kept.prune(limit_gb=0) == 8  # four of scores, four of refused rows
    assert published(project / "scores").height == 156
    assert predict(windy, "days", to="scores").kept_rows == 0


# ---------------------------------------------------------------- kills

CAMPAIGNS = """
import os, sys
import pandera.polars
from workbench.serve.batch import predict

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        print("kept", predict("windy/1", "days", to="scores").kept_rows, flush=True)
        os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("gone", flush=True)
"""


@pytest.fixture
def campaigns(project: Path) -> Iterator[subprocess.Popen]:
    "A process that begins a campaign, in a process of its own, for each line it is given."
    environment = os.environ | {"PYTHONPATH": str(project)}
    process = subprocess.Popen(
        [sys.executable, "-c", CAMPAIGNS], cwd=project, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    yield process
    process.communicate()


def begin(campaigns: subprocess.Popen) -> int:
    campaigns.stdin.write("go\n")
    campaigns.stdin.flush()
    return int(campaigns.stdout.readline())


def kept_files(project: Path) -> int:
    return len(list((project / ".workbench" / "scores").rglob("*.parquet")))


def killed_and_resumed(campaigns: subprocess.Popen, project: Path, kills: int) -> int:
    "Kill campaigns at random points, each after it kept something, until one ends by itself; what that one found."
    rng = random.Random(kills)
    for _ in range(kills):
        wanted = kept_files(project) + rng.randint(1, 5)
        pid = begin(campaigns)
        while kept_files(project) < wanted and Path(f"/proc/{pid}/task").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        while campaigns.stdout.readline() != "gone\n":
            pass
        if (project / "scores" / "_scores.json").exists():
            published(project / "scores")
    begin(campaigns)
    return int(campaigns.stdout.readline().split()[1])


def _killed(campaigns: subprocess.Popen, project: Path, days: int, kills: int) -> None:
    sys.modules.pop("windy_batch", None)
    bundle = add_windy(project, nap_s=0.05)
    for day in range(days):
        write_day(project, day, busted=int(day < 2))
    assert killed_and_resumed(campaigns, project, kills) > 0
    found = published(project / "scores")
    assert found.equals(expected(project, bundle))
    assert found["flight"].n_unique() == found.height == days * 40 - 2
    assert not [*(project / "scores").glob("*.part"), *(project / "scores").glob(".*.part")]


def test_three_kills_cost_no_row_and_double_none(
    campaigns: subprocess.Popen, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(project))
    _killed(campaigns, project, days=20, kills=3)


@pytest.mark.slow
def test_twenty_kills_cost_no_row_and_double_none(
    campaigns: subprocess.Popen, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(project))
    _killed(campaigns, project, days=120, kills=20)


# ---------------------------------------------------------------- on Ray


@pytest.mark.ray
def test_workers_of_a_ray_give_the_same_bits_and_may_die(
    there: Any, windy: Bundle, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from workbench.serve import scorers

    monkeypatch.setattr(scorers, "KEEP_S", 1.0)
    (project / "windy_batch.py").write_text(FEATURES.format(nap_s=0.2))
    handed_out, seen = scorers._handed_out, []

    def killing(actors: list, order: object, left: list) -> object:
        for scored in handed_out(actors, order, left):
            if not seen:
                ray.kill(actors[0])
            seen.append(scored.unit.key)
            yield scored

    scorers._handed_out = killing
    try:
        scores = predict(windy, "days", to="scores", workers=2)
    finally:
        scorers._handed_out = handed_out
    assert scores.rows == 156 and len(seen) == len(set(seen)) == 4
    (project / "windy_batch.py").write_text(FEATURES.format(nap_s=0))
    assert published(project / "scores").equals(expected(project, windy))
    assert records.find(scores.run).cost["cpu_s"] > 0
    free(ray)  # idle workers give their cores back
