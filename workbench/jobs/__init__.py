"""Notebooks as jobs. `workbench.jobs.result` is the function that a notebook says its result with."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workbench.jobs.outcome import result as result


def __getattr__(name: str) -> object:
    if name == "result":
        from workbench.jobs.outcome import result

        return result
    raise AttributeError(f"module 'workbench.jobs' has no attribute '{name}'")
