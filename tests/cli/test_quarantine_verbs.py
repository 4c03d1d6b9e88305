"""Check, look at what was refused, replay: the whole way as a user types it."""

import json
import os
from pathlib import Path

import polars as pl
from typed import typed

from workbench.data.feed import write_parquet

CONTRACTS = """
from dataclasses import replace
from workbench import Column, Complete, Contract
strict = Contract("winds", {"wind": Column("float", ge=0, le=40), "month": Column("int")}, error_budget=0.5)
wide = replace(strict, columns=strict.columns | {"wind": Column("float", ge=0, le=60)})
whole = replace(strict, whole=(Complete("month", range(1, 4)),))
"""


def workbench(folder: Path, *args: str, code: int = 0) -> str:
    done = typed(*args, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)})
    assert done.returncode == code, done.stderr
    return done.stdout if not code else done.stderr


def test_a_value_that_commands_the_terminal_is_shown_in_one_line(project: Path) -> None:
    (project / "contracts.py").write_text(
        'from workbench import Column, Contract\nnotes = Contract("notes", {"note": Column("str", max_len=3)}, error_budget=1.0)\n'
    )
    pl.DataFrame({"note": ["\x1b[31mRED\x1b[0m\nnext", "größe", "ok"]}).write_parquet(project / "n.parquet")
    workbench(project, "check", "n.parquet", "--contract", "contracts:notes")
    (listed,) = json.loads(workbench(project, "quarantine", "list", "--json"))
    shown = workbench(project, "quarantine", "show", listed["run"])
    assert "\x1b" not in shown and "\\x1b[31mRED\\x1b[0m\\nnext" in shown and "größe" in shown


def test_from_the_check_to_the_replay(project: Path) -> None:
    (project / "contracts.py").write_text(CONTRACTS)
    for month in (1, 2):
        write_parquet(
            project / f"d/month={month}/x.parquet", pl.DataFrame({"wind": [5.0, 45.0, -1.0, 9.0] * 10})
        )
    code = workbench(project, "check", "d", "--infer")
    assert "contract = Contract(" in code and "Drafted from 80 rows" in code
    text = workbench(
        project, "check", "d", "--contract", "contracts:strict", "--html", "r.html", "--reference", "r.json"
    )
    assert "40 of 80 rows accepted" in text and "█" in text and "<svg" in (project / "r.html").read_text()
    assert json.loads((project / "r.json").read_text())["limits"]["false_alarms"] == 0.05
    (listed,) = json.loads(workbench(project, "quarantine", "list", "--json"))
    assert (listed["rows"], listed["feed"]) == (40, "winds")
    assert "wind is above 40" in workbench(project, "quarantine", "show", listed["run"])
    replay = ("quarantine", "replay", listed["run"], "--contract", "contracts:wide", "--json")
    assert json.loads(workbench(project, *replay))["passed"] == 20
    assert json.loads(workbench(project, *replay))["passed"] == 0
    found = json.loads(workbench(project, "check", "d", "--contract", "contracts:wide", "--json"))
    assert (found["rows"], found["accepted"], found["refused"]) == (80, 60, 20)
    said = workbench(project, "check", "d", "--contract", "contracts:whole", code=4)
    assert "complete: missing: month=3" in said
    assert "--infer alone" in workbench(project, "check", "d", code=2)
    assert "no row in the quarantine" in workbench(project, "quarantine", "show", "nothing", code=3)
