"""Jobs in an IPython shell of this process: all of recording and resuming is real, but for the way to the kernel."""

import atexit
import contextlib
import io
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from workbench.base.ledger import Ledger
from workbench.base.records import Run, start
from workbench.jobs import snapshot
from workbench.jobs.planning import Plan
from workbench.jobs.recorder import Earlier, Recorder, read_earlier
from workbench.jobs.resume import _planned


class Shell:
    "Runs notebooks cell by cell as the engine does, each in a shell of its own."

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ledger, self.patch = ledger, monkeypatch
        self.path = Path("job.ipynb")
        self.path.write_text("{}")

    @contextlib.contextmanager
    def _shell(self) -> Iterator[Any]:
        quiet = Config({"HistoryManager": {"enabled": False}, "InteractiveShell": {"warn_venv": False}})
        module = SimpleNamespace(__name__="__main__", __dict__={})
        random.seed()  # as in a kernel of its own: what an earlier notebook left could be what this one's seed gives
        with self.patch.context() as patch:
            patch.setitem(
                sys.modules, "__main__", module
            )  # the shell puts itself there too: ours is put back
            shell = InteractiveShell(config=quiet, user_module=module)  # type: ignore[arg-type]
            atexit.unregister(shell.atexit_operations)  # hundreds of shells would end slowly together
            sys.modules["__main__"] = shell.user_module
            patch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
            try:
                yield shell
            finally:
                snapshot._state = None

    def run(self, *sources: str, earlier: Run | None = None) -> "Done":
        "Run these cells, or what is left of an `earlier` run; the first cell has the parameters."
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        cells[0].metadata["tags"] = ["parameters"]
        book = nbformat.v4.new_notebook(cells=cells)
        found = self._earlier(earlier, book) if earlier else None
        plans = [found.plan] if found and found.plan else []
        with start("job", "job", ledger=self.ledger) as run, self._shell() as shell:
            watch = Recorder(run, book, self.path, {}, found)
            ask: Callable[[str, float], str] = lambda text, _: eval(text)  # noqa: E731
            ran = []
            for number, cell in enumerate(book.cells):
                if watch.before(ask, cell, number):
                    continue
                ran.append(number + 1)
                failed = not _execute(shell, cell)
                watch.after(ask, cell, number, 1.0, failed)
                if failed:
                    break
            watch.close(False)
            names = snapshot._users(shell.user_ns)
        return Done(
            run, ran, names, ["".join(o.text for o in cell.outputs) for cell in book.cells], plans, watch
        )

    def _earlier(self, run: Run, book: Any) -> Earlier:
        found = read_earlier(run)
        _planned(found, book, say=lambda plan: None)
        return found


def _execute(shell: Any, cell: Any) -> bool:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        shell.showtraceback = lambda *args, **kwargs: None
        done = shell.run_cell(cell.source, store_history=True)
    cell.execution_count = shell.execution_count - 1
    if out.getvalue():
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=out.getvalue())]
    return bool(done.success)


class Done:
    "What a run left."

    def __init__(
        self,
        run: Run,
        ran: list[int],
        names: dict[str, Any],
        outputs: list[str],
        plans: list[Plan],
        watch: Recorder,
    ) -> None:
        self.run, self.ran, self.names, self.outputs, self.watch = run, ran, names, outputs, watch
        self.said = str(plans[0]) if plans else ""

    def last(self) -> list[dict[str, Any]]:
        "Its records."
        return read_earlier(self.run).records
