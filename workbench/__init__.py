"""One notebook, four lives: lab, package, job, service.

Modules:

- `workbench.base.errors`: One tree; every message says what happened, the value, and what to do.
- `workbench.base.events`: One line an event, with the run it belongs to.
- `workbench.base.html`: What every noun looks like in a notebook, escaped.
- `workbench.base.identity`: Which code, on which data, in which environment, with which parameters and seed.
- `workbench.base.ledger`: The one file that knows what happened.
- `workbench.base.mirror`: Runs appear in MLflow, and a run never waits for it.
- `workbench.base.progress`: Long work shows where it is, when it will end, and stops when asked.
- `workbench.base.records`: Every execution is a Run: who ran what, on which data, at what cost, and what came out.
- `workbench.base.settings`: The laptop, the cluster and production differ in one file, not in the notebook.
- `workbench.base.store`: Every file appears whole or not at all, and stays inside its folder.
- `workbench.data.contract`: What a row must be: one statement, read by the feed, the trainer and the service.
- `workbench.data.recipe`: How a row becomes numbers: fitted once, shipped with the model, the same bits everywhere.
- `workbench.data.source`: One file, read in batches, and refused when it is not what was written.
- `workbench.jobs.notebook`: A job notebook has typed parameters, checked before anything starts.
- `workbench.jobs.outcome`: A notebook says what came out of it; the record of its run keeps it.
- `workbench.lab.panels`: One panel a call: where it is, when it ends, how it goes, and a Stop that stops.
- `workbench.models.bundle`: A model on disk is data, all of it checked: weights, how to build it, what goes in, how well it does, where it came from.
- `workbench.models.linear`: The smallest model that may win: a logistic regression that answers in numpy alone.
- `workbench.models.predictor`: One row, a thousand rows, another process: the same bits.
- `workbench.models.shelf`: Every version of every model, and the names that point at them.
- `workbench.serve.app`: The engine on HTTP: the contract is the schema, every refusal names its field, every answer is kept.
- `workbench.serve.batch`: Every row of a feed, scored by the same engine that answers online.
- `workbench.serve.engine`: A bundle that answers: one row or many, in any process, with the same bits.
- `workbench.serve.guard`: Who gets in, with how much, for how long; and every refusal says why, in JSON.
- `workbench.serve.requestlog`: What was asked, what was answered, by which version: kept as Parquet without slowing an answer.
- `workbench.serve.wire`: A connection cannot take more time or memory than it was given, before any route has seen it.
- `workbench.train.loop`: A plain PyTorch loop: fast on two cores, the same bits for the same seed, stoppable at every batch.
- `workbench.train.metrics`: How good the probabilities are, on the whole and slice by slice.
- `workbench.train.result`: What a fit gives: weights, how to build them, what was measured, and the run it all came from."""

import importlib
from typing import TYPE_CHECKING, Any

from workbench.base.progress import register as _register

if TYPE_CHECKING:
    from workbench.base.progress import track
    from workbench.base.records import Run, runs
    from workbench.base.settings import project_path
    from workbench.data.contract import Column, Contract, Rule
    from workbench.data.drift import drift
    from workbench.data.feed import Feed, write_parquet
    from workbench.data.recipe import Recipe
    from workbench.jobs.result import result
    from workbench.jobs.runner import run
    from workbench.models.bundle import Bundle
    from workbench.models.shelf import Shelf, load
    from workbench.release.evidence import measure
    from workbench.release.gates import Gate, default_gates, judge, right_size
    from workbench.release.registry import champion, promote, rollback
    from workbench.serve.app import serve
    from workbench.serve.batch import predict
    from workbench.serve.engine import Engine
    from workbench.train.baseline import fit_baseline
    from workbench.train.fit import fit

# Where each public name lives; it is imported on first use, so that `import workbench` costs nothing heavy.
_HOME = {
    "Bundle": "models.bundle",
    "Column": "data.contract",
    "Contract": "data.contract",
    "Engine": "serve.engine",
    "Feed": "data.feed",
    "Gate": "release.gates",
    "Recipe": "data.recipe",
    "Rule": "data.contract",
    "Run": "base.records",
    "Shelf": "models.shelf",
    "champion": "release.registry",
    "default_gates": "release.gates",
    "drift": "data.drift",
    "fit": "train.fit",
    "fit_baseline": "train.baseline",
    "judge": "release.gates",
    "load": "models.shelf",
    "measure": "release.evidence",
    "predict": "serve.batch",
    "project_path": "base.settings",
    "promote": "release.registry",
    "result": "jobs.result",
    "right_size": "release.gates",
    "rollback": "release.registry",
    "run": "jobs.runner",
    "runs": "base.records",
    "serve": "serve.app",
    "track": "base.progress",
    "write_parquet": "data.feed",
}

__version__ = "0.1.0"
__all__ = sorted([*_HOME, "__version__"])  # pyright: ignore

_register("notebook", "workbench.lab.panels:Panel")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"workbench.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
