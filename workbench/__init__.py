"""One notebook, four lives: lab, package, job, service.

Modules:

- `workbench.base.errors`: One tree; every message says what happened, the value, and what to do.
- `workbench.base.events`: One line an event, with the run it belongs to.
- `workbench.base.html`: What every noun looks like in a notebook, escaped.
- `workbench.base.identity`: Which code, on which data, in which environment, with which parameters and seed.
- `workbench.base.progress`: Long work shows where it is, when it will end, and stops when asked.
- `workbench.base.records`: Every execution is a Run: who ran what, on which data, at what cost, and what came out.
- `workbench.base.settings`: The laptop, the cluster and production differ in one file, not in the notebook.
- `workbench.base.store`: Every file appears whole or not at all, and stays inside its folder."""
