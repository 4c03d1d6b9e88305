"""Trials are tried, pruned, paid for, recorded and never lost; here and on a Ray."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rays import free

from workbench.base.errors import BadInput, Unavailable
from workbench.base.records import Ledger, find, runs
from workbench.train.fit import fit
from workbench.train.found import front
from workbench.train.search import search
from workbench.train.space import distributions
from workbench.train.study import open_study
from workbench.train.trial import Trial

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's and optuna's own
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LINE = {"x": (0.0, 1.0)}


def hill(x: float) -> float:
    return -((x - 0.3) ** 2)


@pytest.mark.parametrize(
    "space",
    [
        {}, [("x", (0, 1))], {"x": (1, 0)}, {"x": (0, 0)}, {"x": (0.0, 1.0, "log")}, {"x": (0.0, 1.0, "lin")}, {"x": (0, float("inf"))},
        {"x": (True, 3)}, {"x": 1}, {"x": []}, {"x": [1, 1]}, {"x": [[1]]}, {"not a name": (0, 1)}, {3: (0, 1)}, {"x": ("a", "b")},
    ],
)  # fmt: skip
def test_a_space_that_means_nothing_is_refused(space: Any) -> None:
    with pytest.raises(BadInput):
        distributions(space)


def test_a_range_is_what_it_says() -> None:
    found = distributions({"n": (1, 8), "x": (0, 1.0), "lr": (1e-4, 1e-1, "log"), "kind": ["a", None]})
    assert [type(one).__name__ for one in found.values()] == [
        "IntDistribution", "FloatDistribution", "FloatDistribution", "CategoricalDistribution",
    ]  # fmt: skip
    assert (found["lr"].log, found["x"].log, found["n"].high) == (True, False, 8)


def test_the_best_trial_is_a_run_and_its_parent_is_the_search(ledger: Ledger) -> None:
    found = search(hill, LINE, name="hill", goals={"height": "max"}, trials=8, seed=3, ledger=ledger)
    values = [row["metrics"]["height"] for row in found.trials]
    assert found.best["metrics"]["height"] == max(values) > -0.1
    best = find(found.best["run"], ledger)
    assert (best.kind, best.status, best.parents) == ("trial", "succeeded", [found.run.id])
    assert best.params["x"] == found.best["params"]["x"] and best.metrics["height"] == max(values)
    run = find(found.run.id, ledger)
    assert run.metrics["best_run"] == best.id and run.metrics["height"] == max(values)
    assert len(runs(ledger, kind="trial", parent=found.run.id)) == 8
    other = search(hill, LINE, name="twin", goals={"height": "max"}, trials=8, seed=3, ledger=ledger)
    assert [row["params"] for row in other.trials] == [row["params"] for row in found.trials]
    least = search(hill, LINE, name="low", goals={"height": "min"}, trials=3, ledger=ledger)
    assert least.best["metrics"]["height"] == min(row["metrics"]["height"] for row in least.trials)


def test_a_pruned_trial_goes_no_further(ledger: Ledger) -> None:
    steps: dict[int, list[int]] = {}

    def slow(trial: Trial, x: float) -> float:
        for step in range(5):
            steps.setdefault(trial.number, []).append(step)
            trial.report(step, -x)
        return -x

    found = search(slow, LINE, name="slow", trials=10, ledger=ledger)
    pruned = [row for row in found.trials if row["state"] == "pruned"]
    assert pruned and all(len(steps[row["trial"]]) < 5 for row in pruned)
    assert all(len(steps[row["trial"]]) == 5 for row in found.complete)
    run = find(pruned[0]["run"], ledger)
    assert (run.status, run.cause) == ("killed", "pruned")
    assert run.curve("auc") == [(step, -run.params["x"]) for step in steps[pruned[0]["trial"]]]
    assert not any(
        row["state"] == "pruned"
        for row in search(slow, LINE, name="all", prune="none", trials=6, ledger=ledger).trials
    )


def test_an_interrupted_trial_is_tried_again_first(ledger: Ledger) -> None:
    tried: list[float] = []

    def hurt(x: float) -> float:
        tried.append(x)
        if len(tried) == 4:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        search(hurt, LINE, name="hurt", trials=6, ledger=ledger)
    assert [run.status for run in runs(ledger, kind="trial")] == ["killed", *["succeeded"] * 3]
    found = search(hurt, LINE, name="hurt", trials=6, ledger=ledger)
    assert tried[4] == tried[3] and len(tried) == 7
    assert [row["params"]["x"] for row in found.trials] == [*tried[:3], *tried[4:]]
    assert search(hurt, LINE, name="hurt", trials=6, ledger=ledger).trials == found.trials and len(tried) == 7
    assert len(search(hurt, LINE, name="hurt", trials=2, fresh=True, ledger=ledger).trials) == 2


def test_a_budget_ends_the_trial_that_would_overrun(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(trial: Trial, x: float) -> float:
        for step in range(9999 if trial.number else 0):
            time.sleep(0.02)
            trial.report(step, x)
        return x

    begun = time.monotonic()
    found = search(endless, LINE, name="time", prune="none", budget_s=1.2, ledger=ledger)
    assert 1.2 <= time.monotonic() - begun < 5 and found.spent == "budget_s = 1.2" and len(found.trials) == 1
    assert [run.cause for run in runs(ledger, kind="trial")] == ["budget", ""]
    monkeypatch.setenv("WORKBENCH_CPU_USD_PER_H", "3600")  # a dollar a second
    found = search(endless, LINE, name="money", prune="none", budget_usd=1.2, ledger=ledger)
    assert found.spent == "budget_usd = 1.2" and len(found.trials) == 1
    costs = [run.cost["usd"] for run in runs(ledger, kind="trial")[:2]]
    assert 1.2 <= sum(costs) < 4
    assert not search(endless, LINE, name="money", prune="none", budget_usd=1.2, ledger=ledger).trials[1:]
    assert len(runs(ledger, kind="trial")) == 4  # what is spent stays spent: no trial was begun


def test_a_trial_that_raises_is_left_behind_and_three_in_a_row_end_it(ledger: Ledger) -> None:
    def shaky(trial: Trial, x: float) -> float:
        if trial.number in (1, 4, 5, 6):
            raise OSError(f"disk {trial.number}")
        return x

    found = search(shaky, LINE, name="shaky", trials=4, ledger=ledger)
    assert [row["state"] for row in found.trials] == ["complete", "fail", "complete", "complete"]
    with pytest.raises(OSError, match="disk 6") as caught:
        search(shaky, LINE, name="shaky", trials=20, ledger=ledger)
    assert "3 trials in a row" in caught.value.__notes__[-1]
    with pytest.raises(BadInput, match="auc = nan"):
        search(lambda x: float("nan"), LINE, name="nan", ledger=ledger)
    few = search(lambda x: 1 / 0, LINE, name="few", trials=2, ledger=ledger)
    assert str(few) == "Search few: 2 fail; the last failed with ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"space": {"y": (0, 1)}}, "cannot take"), ({"objective": 3}, "objective is"), ({"goals": {"a": "up"}}, "goal 'a'"), ({"goals": 3}, "goals is"),
        ({"trials": 0}, "trials is 0"), ({"trials": 1.5}, "trials is"), ({"workers": -1}, "workers"), ({"budget_s": 0}, "budget_s"),
        ({"budget_usd": "1"}, "budget_usd"), ({"prune": "hard"}, "prune"), ({"name": "a/b"}, "name"), ({"seed": "x"}, "seed"), ({"seed": -1}, "seed is -1"), ({"cpus": -1}, "cpus"), ({"cpus": "x"}, "cpus is 'x'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_any_trial(ledger: Ledger, wrong: dict[str, Any], said: str) -> None:
    tried: list[float] = []
    how: dict[str, Any] = {"objective": lambda x: tried.append(x), "space": LINE, "name": "wrong"} | wrong
    with pytest.raises(BadInput, match=said):
        search(how.pop("objective"), how.pop("space"), **how, ledger=ledger)
    assert not tried and not runs(ledger)


def test_old_values_are_not_compared_with_another_objective_s(ledger: Ledger) -> None:
    search(hill, LINE, name="hill", trials=2, ledger=ledger)
    for wrong in ((hill, {"x": (0.0, 2.0)}), (lambda x: x, LINE)):
        with pytest.raises(BadInput, match="search 'hill' was made with"):
            search(*wrong, name="hill", trials=3, ledger=ledger)
    long = {"depth": (1, 9), "x": (0.0, 1.0)}
    search(lambda depth, x: x, long, name="long", trials=1, ledger=ledger)
    with pytest.raises(BadInput, match="'high': 1.0.* now it is .*'high': 2.0") as caught:
        search(lambda depth, x: x, long | {"x": (0.0, 2.0)}, name="long", trials=2, ledger=ledger)
    assert "depth" not in str(caught.value)
    with open_study("busy", distributions(LINE), {"auc": "max"}, "", ledger=ledger):
        with pytest.raises(Unavailable, match="another process is at"):
            search(hill, LINE, name="busy", ledger=ledger)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8))
@settings(max_examples=80, deadline=None)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    kept = front([{"a": a, "b": b} for a, b in points], {"a": "max", "b": "min"})
    beats = lambda p, q: p[0] >= q[0] and p[1] <= q[1] and p != q  # noqa: E731
    assert kept == [i for i, q in enumerate(points) if not any(beats(p, q) for p in points)]


def test_goals_are_traded_off_and_drawn(ledger: Ledger) -> None:
    def both(x: float, n: int) -> dict[str, float]:
        return {"auc": x, "latency_ms": x * 2 + n}

    goals = {"auc": "max", "latency_ms": "min"}
    found = search(both, {"x": (0.0, 1.0), "n": (1, 3)}, name="both", goals=goals, trials=15, ledger=ledger)
    numbers = [row["metrics"] for row in found.pareto()]
    assert len(numbers) > 1
    assert sorted(numbers, key=lambda m: m["auc"]) == sorted(numbers, key=lambda m: m["latency_ms"])
    assert abs(sum(found.importance.values()) - 1) < 1e-6 and set(found.importance) == {"x", "n"}
    shown = found._repr_html_()
    assert "<svg" in shown and str(found.best["trial"]) in shown
    assert [place.get_xlabel() for place in found.plot().axes] == ["", "latency_ms", "usd"]
    assert [row["trial"] for row in found.pareto(auc="max")] == [found.best["trial"]]


def test_a_fit_is_an_answer_and_hears_that_it_is_pruned(world: SimpleNamespace, ledger: Ledger) -> None:
    def net(trial: Trial, lr: float) -> Any:
        given = {
            "recipe": recipe,
            "valid": world.valid,
            "name": "net",
            "epochs": 3,
            "batch_size": 256,
            "ledger": ledger,
        }
        model = world.module.WindNet(recipe.n_dense, recipe.sizes)
        return fit(
            model, world.train, lr=lr, on_epoch=lambda row: trial.report(row["epoch"], row["auc"]), **given
        )

    recipe = world.recipe.fit(world.train.columns())
    found = search(net, {"lr": (1e-6, 1e-1, "log")}, name="net", trials=8, seed=1, ledger=ledger)
    inside = {run.parents[0]: run for run in runs(ledger, kind="fit", limit=50)}
    best, pruned = inside[found.best["run"]], [row for row in found.trials if row["state"] == "pruned"]
    assert best.metrics["auc"] == found.best["metrics"]["auc"] and found.best["metrics"]["latency_ms"] > 0
    assert pruned and inside[pruned[0]["run"]].cause == "pruned"
    assert len(inside[pruned[0]["run"]].curve("auc")) < 3


DRIVER = """
import sys, time
from workbench.train.search import search

def slow(trial, x):
    for step in range(3):
        time.sleep(0.05)
        trial.report(step, x)
    with open("done.txt", "a") as file:
        file.write(f"{trial.number} {x!r}\\n")
    return x

if __name__ == "__main__":
    found = search(slow, {"x": (0.0, 1.0)}, name="kill", prune="none", trials=int(sys.argv[1]), workers=int(sys.argv[2]))
    import json
    print(json.dumps(found.trials))
"""


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=[pytest.mark.ray, pytest.mark.slow])])
def test_a_killed_driver_loses_no_finished_trial(project: Path, workers: int) -> None:
    (project / "driver.py").write_text(textwrap.dedent(DRIVER))
    env = {
        **os.environ,
        "WORKBENCH_RAY_ADDRESS": "local",
        "PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")]),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "driver.py"]
    done = project / "done.txt"
    killed = subprocess.Popen([*command, "500", str(workers)], cwd=project, env=env, start_new_session=True)
    until = time.monotonic() + 90
    while not done.exists() or len(done.read_text().splitlines()) < 6:
        assert killed.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.08)  # into the next trial: right after a line is written none is at work
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    time.sleep(0.5)  # tasks on the cluster end with their driver
    before = len(done.read_text().splitlines())
    again = subprocess.run(
        [*command, str(before + 4), "0"], cwd=project, env=env, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr[-2000:]
    found = json.loads(again.stdout.splitlines()[-1])
    said = dict(line.split() for line in done.read_text().splitlines())
    assert len(found) == before + 4 and all(row["state"] == "complete" for row in found)
    assert all(float(said[str(row["trial"])]) == row["metrics"]["auc"] == row["params"]["x"] for row in found)
    lost = {*map(int, list(said)[:before])} - {row["trial"] for row in found}
    assert len(lost) <= max(1, workers)  # ended, but the driver had not heard of it yet
    assert sum(run.status == "killed" for run in runs(limit=900, kind="trial")) >= 1


@pytest.mark.ray
def test_on_a_cluster_pruning_reaches_the_worker(
    there: Any, ledger: Ledger, tmp_path: Path, capfd: Any
) -> None:
    def slow(trial: Trial, x: float) -> dict[str, float]:
        print("trial", trial.number)
        for step in range(4):
            with (tmp_path / f"{trial.number}.txt").open("a") as file:
                file.write(f"{step}\n")
            trial.report(step, -x)
        return {"auc": -x, "pid": os.getpid()}

    found = search(slow, LINE, name="slow", trials=16, workers=2, ledger=ledger)
    steps = {
        row["trial"]: len((tmp_path / f"{row['trial']}.txt").read_text().split()) for row in found.trials
    }
    pruned = [row["trial"] for row in found.trials if row["state"] == "pruned"]
    assert pruned and all(steps[number] < 4 for number in pruned)
    assert all(steps[row["trial"]] == 4 and row["metrics"]["pid"] != os.getpid() for row in found.complete)
    assert find(found.best["run"], ledger).curve("auc") == [
        (n, found.best["metrics"]["auc"]) for n in range(4)
    ]
    assert capfd.readouterr().out.count("trial ") == 16


@pytest.mark.ray
def test_on_a_cluster_an_interrupt_frees_the_cores(there: Any, ledger: Ledger, tmp_path: Path) -> None:
    import ray

    def deaf(trial: Trial, x: float) -> float:
        (tmp_path / str(trial.number)).touch()
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass

    def press() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.02)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    pressed: list[float] = []
    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        search(deaf, LINE, name="deaf", workers=2, ledger=ledger)
    assert free(ray, pressed[0]) < 4  # about 1 s, and 2 s is the aim; the machine may be busy
    assert {run.status for run in runs(ledger)} == {"killed"}
    with pytest.raises(Unavailable, match="wants GPU 1"):
        search(hill, LINE, name="gpu", workers=1, gpus=1, ledger=ledger)
    with pytest.raises(BadInput, match="cannot travel"):
        lock = threading.Lock()
        search(lambda x: lock.locked() + x, LINE, name="lock", workers=1, ledger=ledger)


@pytest.mark.ray
def test_on_a_cluster_errors_deaths_and_budgets(there: Any, ledger: Ledger) -> None:
    def fatal(trial: Trial, x: float) -> float:
        if trial.number == 1:
            os._exit(1)
        if trial.number == 2:
            raise OSError("disk")
        return x

    found = search(fatal, LINE, name="fatal", trials=5, workers=2, ledger=ledger)
    states = {row["trial"]: row["state"] for row in found.trials}
    assert states == {0: "complete", 1: "fail", 2: "fail", 3: "complete", 4: "complete"}
    causes = {run.params["trial"]: (run.cause, run.error) for run in runs(ledger, kind="trial")}
    assert causes[1][0] == "worker died" and "disk" in causes[2][1]
    begun = time.monotonic()
    found = search(lambda x: time.sleep(60), LINE, name="time", workers=2, budget_s=1.0, ledger=ledger)
    assert time.monotonic() - begun < 8 and found.spent and not found.trials
