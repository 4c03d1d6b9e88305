"""Every test has its own project folder and store."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.base.records import Ledger
from workbench.base.store import Store


@pytest.fixture(autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in [name for name in os.environ if name.startswith("WORKBENCH_")]:
        monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp("project")
    (folder / "settings.ini").write_text("[laptop]\n[production]\nlog_format = json\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WORKBENCH_STORE", str(folder / ".workbench"))
    monkeypatch.setenv("WORKBENCH_DISPLAY", "quiet")
    monkeypatch.setenv("WORKBENCH_TRACK", "false")
    yield folder


@pytest.fixture
def store(project: Path) -> Store:
    return Store()


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store)
