"""A model as one file, as it is typed."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import toy

from workbench.models.shelf import Shelf

COMMAND = [sys.executable, "-c", "from workbench.cli.cli import main; main()", "edge", "pack"]


@pytest.mark.slow  # three processes that load an exporter
def test_the_version_of_its_place_is_packed(project: Path) -> None:
    shelf = Shelf()
    shelf.add("delays", **toy.linear_parts())
    bundle = shelf.add("delays", **toy.linear_parts(2.0))
    shelf.set_alias("delays", "champion", 1)
    shelf.set_alias("delays", "edge", 2)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*COMMAND, "delays", "--json"], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model"] == "delays/2" and found["file"] == str(project / "delays-2.zip")
    assert found["verified"]["largest_difference"] <= 1e-7
    meta = json.loads(zipfile.ZipFile(project / "delays-2.zip").read("edge.json"))
    assert (meta["digest"], meta["ref"]) == (bundle.digest, "delays/2")
    check = [*COMMAND[:-1], "check", "delays-2.zip", "--json"]
    done = subprocess.run(check, capture_output=True, text=True, env=env, timeout=300)
    assert json.loads(done.stdout)["signed"].startswith("hmac-sha256 "), done.stderr
    gone = subprocess.run([*COMMAND, "delys"], capture_output=True, text=True, env=env, timeout=300)
    assert gone.returncode == 3 and "did you mean 'delays'?" in gone.stderr
