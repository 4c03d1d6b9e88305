"""Every test has its own project folder and store."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.base.records import Ledger
from workbench.base.store import Store

TAKE_TURNS = ("ray", "browser")  # tests that want the whole machine
FIRST = (
    "ray",
    "browser",
    "test_job_faults",
    "test_demo",
    "test_scheduler_faults",
    "test_cli",
    "test_pipeline",
)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "For several workers: a file stays with one, for it shares what it starts; long groups come first."
    groups = {item: next(filter(item.get_closest_marker, TAKE_TURNS), item.path.stem) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    place = {group: number for number, group in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(groups[item], len(FIRST)))


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
