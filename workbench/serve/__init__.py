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


class _Verb(ModuleType):
    "A package that can be called."

    def __call__(
        self,
        ref: str,  # "flights@champion", "flights/3" or a folder
        *,
        host: str | None = None,
        port: int | None = None,
        hosts: frozenset[str] = frozenset(),
        ledger: "Ledger | None" = None,
    ) -> "Run":
        "Serve until SIGTERM or Ctrl-C; host and port are the profile's when not given."
        from workbench.serve.app import serve

        return serve(ref, host=host, port=port, hosts=hosts, ledger=ledger)


sys.modules[__name__].__class__ = _Verb
