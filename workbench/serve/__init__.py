"""How a model answers.

`workbench.serve` is this package and, called, the public verb: Python binds a package's name in its parent when any
of its modules is imported, so the two must be one object.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.base.ledger import Ledger
    from workbench.base.records import Run
    from workbench.serve.replica import Scale


class _Verb(ModuleType):
    "A package that can be called."

    def __call__(
        self,
        ref: str,  # "flights@champion", "flights/3" or, here, a folder
        *more: str,  # further models, each under its name
        on: str = "here",  # "here": in this process; "ray": on the profile's cluster
        replicas: int | tuple[int, int] = 1,
        scale: "Scale | None" = None,
        memory_mb: float = 0.0,
        host: str | None = None,
        port: int | None = None,
        hosts: frozenset[str] = frozenset(),
        ledger: "Ledger | None" = None,
    ) -> "Run":
        "Serve until SIGTERM or Ctrl-C; host and port are the profile's when not given."
        from workbench.serve.replicas import serve

        how = {"on": on, "replicas": replicas, "scale": scale, "memory_mb": memory_mb}
        return serve(ref, *more, host=host, port=port, hosts=hosts, ledger=ledger, **how)


sys.modules[__name__].__class__ = _Verb
