"""One notebook, four lives: lab, package, job, service.

A data scientist writes a notebook in JupyterLab. The *same* notebook

1. **lab**: runs interactively, with one live panel per long call; `workers=2` trains on Ray;
2. **package**: exports (nbdev) the tested module that services import;
3. **job**: runs under Papermill with typed, validated parameters into a folder of its own;
4. **service**: the model it trained is gated, promoted, served over HTTP and monitored.

One *run record* ties the four together: who ran what code, on which data, in which environment, at what cost, and what came out.

Modules:

- `workbench.base.errors`: One tree; every message says what happened, the value, and what to do.
- `workbench.base.events`: One line an event, with the run it belongs to.
- `workbench.base.html`: What every noun looks like in a notebook, escaped.
- `workbench.base.identity`: Which code, on which data, in which environment, with which parameters and seed.
- `workbench.base.ledger`: The one file that knows what happened.
- `workbench.base.mirror`: Runs appear in MLflow, and a run never waits for it.
- `workbench.base.progress`: Long work shows where it is, when it will end, and stops when asked.
- `workbench.base.records`: Every execution is a Run: who ran what, on which data, at what cost, and what came out.
- `workbench.base.redact`: A secret that this process knows is taken out of whatever it writes.
- `workbench.base.settings`: The laptop, the cluster and production differ in one file, not in the notebook.
- `workbench.base.store`: Every file appears whole or not at all, and stays inside its folder.
- `workbench.cli.cli`: The same verbs in a terminal.
- `workbench.cli.client`: A service in a process of its own, asked over real HTTP.
- `workbench.cli.demo`: Research, package, job, service: one real problem, carried all the way through.
- `workbench.cli.doctor`: What is wrong with this machine, and the command that mends it.
- `workbench.cli.kernels`: `workbench kernels start`: jobs begin at once from here on.
- `workbench.cli.main`: `workbench run` asks a warm process first, and needs nothing but the standard library for it.
- `workbench.cli.report`: The same page with pictures, in one file that needs nothing else.
- `workbench.cli.schedule`: The scheduler in a terminal: start, stop, status, list, next, pause, resume, backfill, run, export.
- `workbench.data.column`: One column: its type, its limits, its role; a value is read strictly, from a request or from a feed.
- `workbench.data.contract`: What a row must be: one statement, read by the feed, the trainer and the service.
- `workbench.data.drift`: How far today's rows are from the rows a model was trained on, column by column.
- `workbench.data.feed`: Where data comes from, plus what it must be: checked before it is used, refused rows kept with their reasons.
- `workbench.data.recipe`: How a row becomes numbers: fitted once, shipped with the model, the same bits everywhere.
- `workbench.data.rule`: A statement about a row, in SQL: the same one refuses a row of a feed and a row of a request.
- `workbench.data.source`: One file, read in batches, and refused when it is not what was written.
- `workbench.flights.features`: Will this New York flight arrive more than 15 minutes late? Asked at its *scheduled* departure.
- `workbench.jobs.alerts`: Whoever has to know is told what happened, in which cell, with its last lines; and where it is sent is never written down.
- `workbench.jobs.attempt`: The process that a scheduled run is: it begins only if it is its turn, says that it is alive, and writes its own end.
- `workbench.jobs.control`: What the scheduler is doing, what comes next, and how a person steps in.
- `workbench.jobs.dues`: Each due time is claimed once; an interrupted run is shown and retried under the same key; nothing due is silently missed.
- `workbench.jobs.engine`: Papermill's executor, with true statuses, whole files, capped outputs and an end that is an end.
- `workbench.jobs.exports`: The same file for those who have a scheduler: systemd, cron, Kubernetes, Airflow.
- `workbench.jobs.jobsfile`: `jobs.toml` says which notebook is due when, and a mistake in it is found before anything is due.
- `workbench.jobs.keeper`: A kernel, and whatever it started, ends when its job ends.
- `workbench.jobs.kernels`: A job starts in a tenth of a second, or says why not.
- `workbench.jobs.kinds`: What a parameter may be, read from its annotation's syntax and never evaluated.
- `workbench.jobs.lead`: Several schedulers may run; one leads, and one that has lost the lead cannot write.
- `workbench.jobs.meter`: What each cell took: seconds, and memory at its highest.
- `workbench.jobs.newdata`: A job is due when the files it reads are other files than before, and have stopped changing.
- `workbench.jobs.notebook`: A job notebook has typed parameters, checked before anything starts.
- `workbench.jobs.outcome`: A notebook says what came out of it; the record of its run keeps it.
- `workbench.jobs.pipeline`: Several notebooks, ordered by what they read and write; what is unchanged is not run again.
- `workbench.jobs.report`: An executed notebook as one HTML file that anyone can open: nothing in it runs, nothing is fetched.
- `workbench.jobs.runner`: One call runs a notebook as a job: checked before, whole afterwards, and nothing left behind.
- `workbench.jobs.schedule`: What is due, what is late, what is skipped and why: decisions, with no clock, process or file in them.
- `workbench.jobs.scheduler`: Each due time is claimed once; an interrupted run is shown and retried under the same key; nothing due is silently missed.
- `workbench.jobs.secret`: A notebook is given where a secret is, never the secret; what it prints does not hold it.
- `workbench.jobs.waiting`: A forked process that is ready, and becomes a kernel or a command when its connection comes.
- `workbench.jobs.zygote`: A process that has imported what jobs import, and forks one ready process per request.
- `workbench.lab.panels`: One panel a call: where it is, when it ends, how it goes, and a Stop that stops.
- `workbench.models.bundle`: A model on disk is data, all of it checked: weights, how to build it, what goes in, how well it does, where it came from.
- `workbench.models.linear`: The smallest model that may win: a logistic regression that answers in numpy alone.
- `workbench.models.predictor`: One row, a thousand rows, another process: the same bits.
- `workbench.models.probe`: A bundle remembers a few answers, so code that changed under it is noticed before it answers anybody.
- `workbench.models.shelf`: Every version of every model, and the names that point at them.
- `workbench.release.evidence`: What a bundle does, measured on the bundle: how well, for whom, how fast, how large, and whether the service agrees with the batch.
- `workbench.release.gates`: A measurement with a limit and a reason; a verdict is what they say together.
- `workbench.release.registry`: Promotion is a decision with evidence: refused when a gate is not passed, taken back in one call.
- `workbench.serve.app`: The engine on HTTP: the contract is the schema, every refusal names its field, every answer is kept.
- `workbench.serve.batch`: Every row of a feed, scored by the same engine that answers online.
- `workbench.serve.body`: From the bytes of a request to the bytes of its answer, with nothing of HTTP in it.
- `workbench.serve.engine`: A bundle that answers: one row or many, in any process, with the same bits.
- `workbench.serve.guard`: Who gets in, with how much, for how long; and every refusal says why, in JSON.
- `workbench.serve.requestlog`: What was asked, what was answered, by which version: kept as Parquet without slowing an answer.
- `workbench.serve.wire`: A connection cannot take more time or memory than it was given, before any route has seen it.
- `workbench.train.baseline`: The smallest model that may win: a logistic regression on the same features as the net.
- `workbench.train.fit`: One call from two feeds to a trained net: here, or on Ray Train with `workers=`.
- `workbench.train.loop`: A plain PyTorch loop: fast on two cores, the same bits for the same seed, stoppable at every batch.
- `workbench.train.metrics`: How good the probabilities are, on the whole and slice by slice.
- `workbench.train.result`: What a fit gives: weights, how to build them, what was measured, and the run it all came from.
- `workbench.train.rows`: Two feeds become four arrays, once, the same for a baseline and a net.
- `workbench.train.scale`: The same loop on Ray Train: N workers, one model, nothing left behind."""

import importlib
from typing import TYPE_CHECKING, Any

from workbench.base.errors import MissingExtra as _MissingExtra
from workbench.base.progress import register as _register

if TYPE_CHECKING:
    from workbench.base.progress import track
    from workbench.base.records import Run, runs
    from workbench.base.settings import project_path
    from workbench.data.contract import Column, Contract, Rule
    from workbench.data.drift import drift
    from workbench.data.feed import Feed, write_parquet
    from workbench.data.recipe import Recipe
    from workbench.jobs.outcome import result
    from workbench.jobs.runner import run
    from workbench.jobs.secret import Secret
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
    "Secret": "jobs.secret",
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
    "result": "jobs.outcome",
    "right_size": "release.gates",
    "rollback": "release.registry",
    "run": "jobs.runner",
    "runs": "base.records",
    "serve": "serve.app",
    "track": "base.progress",
    "write_parquet": "data.feed",
}

# The extra that installs what a name's module imports at once.
_EXTRA = {"sklearn": "torch", "torch": "torch", "pyarrow": "data", "polars": "data", "uvicorn": "serve"}

__version__ = "0.1.0"
__all__ = sorted([*_HOME, "__version__"])  # pyright: ignore

_register("notebook", "workbench.lab.panels:Panel")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"workbench.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRA:
            raise
        hint = f"pip install 'workbench[{_EXTRA[library]}]'"
        raise _MissingExtra(f"workbench.{name} needs '{library}', which is not installed", hint) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
