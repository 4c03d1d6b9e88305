"""A Ray that tests share, which run last, and how long its cores stay taken."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from workbench.compute.cluster import head


@pytest.fixture(scope="session")
def there() -> Iterator[Any]:
    with head(cpus=2) as found:
        yield found


def free(ray: Any, since: float | None = None, cpus: float = 2) -> float:
    "Seconds from `since` (now) until so many cores are free."
    begun = time.monotonic() if since is None else since
    while ray.available_resources().get("CPU", 0) < cpus:
        assert time.monotonic() - begun < 30
        time.sleep(0.02)
    return time.monotonic() - begun
