"""Notebooks as jobs. `workbench.jobs.result` is the function that a notebook says its result with."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "result":
        from workbench.jobs.outcome import result

        return result
    raise AttributeError(f"module 'workbench.jobs' has no attribute '{name}'")
