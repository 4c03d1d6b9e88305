"""The main job, done once in a project of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from house import ROOT, train_less

COMMAND = [sys.executable, "-c", "from workbench.cli.cli import main; main()"]


def environment(project: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WORKBENCH_")}
    return {**clean, "WORKBENCH_STORE": str(project / ".workbench"), "WORKBENCH_TRACK": "false"}


def checkout(folder: Path) -> Path:
    "A project with the worked example's notebooks and nothing else; `scripts/demo` trains on all months."
    shutil.copytree(ROOT / "notebooks/flights", folder / "notebooks/flights")
    train_less(folder / "notebooks/flights")
    shutil.copy(ROOT / "settings.ini", folder)
    return folder


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    "The project, and the page that the command prints."
    project = checkout(tmp_path_factory.mktemp("demo"))
    command = [*COMMAND, "demo", "--json"]
    ran = subprocess.run(command, cwd=project, env=environment(project), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return project, json.loads(ran.stdout[ran.stdout.index("{\n") :])
