"""One notebook, four lives: lab, package, job, service.

A data scientist writes a notebook in JupyterLab. The *same* notebook

1. **lab**: runs interactively, with one live panel per long call; `workers=2` trains on Ray;
2. **package**: exports (nbdev) the tested module that services import;
3. **job**: runs under Papermill with typed, validated parameters into a folder of its own;
4. **service**: the model it trained is gated, promoted, served over HTTP and monitored.

One *run record* ties the four together: who ran what code, on which data, in which environment, at what cost, and what came out.

Modules:

- `workbench.base.audit`: Who decided what, and nobody changes it afterwards unnoticed.
- `workbench.base.bill`: What all of it has cost: by kind and name of run, by model, per 1,000 predictions.
- `workbench.base.displays`: Which displays of progress there are, by name; whoever brings one says where it is.
- `workbench.base.errors`: One tree; every message says what happened, the value, and what to do.
- `workbench.base.events`: One line an event, with the run it belongs to.
- `workbench.base.heart`: A run says that it is alive and what it has cost, so that one that is killed ends where it was last heard of.
- `workbench.base.html`: What every noun looks like in a notebook, escaped.
- `workbench.base.identity`: Which code, on which data, in which environment, with which parameters and seed.
- `workbench.base.ledger`: The one file that knows what happened.
- `workbench.base.mirror`: Runs appear in MLflow, and a run never waits for it.
- `workbench.base.objects`: What is named by an import path, such as `project.features:late`, is found in one place.
- `workbench.base.progress`: Long work shows where it is, when it will end, and stops when asked.
- `workbench.base.records`: Every execution is a Run: who ran what, on which data, at what cost, and what came out.
- `workbench.base.redact`: A secret that this process knows is taken out of whatever it writes.
- `workbench.base.settings`: The laptop, the cluster and production differ in one file, not in the notebook.
- `workbench.base.store`: Every file appears whole or not at all, and stays inside its folder.
- `workbench.cli.approvals`: `workbench approve 7 -m "slices hold"`: a promotion that waits for people is answered, and who said what is kept.
- `workbench.cli.card`: `workbench card flights@champion --to flights.html`: one page about a model, from its bundle and the records.
- `workbench.cli.cli`: The same verbs in a terminal.
- `workbench.cli.client`: A service in a process of its own, asked over real HTTP.
- `workbench.cli.cluster`: `workbench cluster up`: every kernel from here on connects in a moment.
- `workbench.cli.debug`: `workbench debug RUN`: JupyterLab on the kernel of a failed job, with everything in it as it was.
- `workbench.cli.demo`: Research, package, job, service: one real problem, carried all the way through.
- `workbench.cli.deploy`: `workbench deploy flights@champion --to systemd`: a file to look at, and then to use.
- `workbench.cli.doctor`: What is wrong with this machine, and the command that mends it.
- `workbench.cli.edge`: `workbench edge pack NAME`: a model as one file for devices and browsers, verified before it is written.
- `workbench.cli.kernels`: `workbench kernels start`: jobs begin at once from here on.
- `workbench.cli.labels`: `workbench labels audit FEED`: which labels are probably wrong, and a gate that stops a pipeline.
- `workbench.cli.load`: `workbench load NAME --rate 100 --rate 400 --spike 10`: the curve of a service that runs here, and its knee.
- `workbench.cli.main`: `workbench run` asks a warm process first, and needs nothing but the standard library for it.
- `workbench.cli.plan`: `workbench plan 8b --gpus 64`: layout, memory, speed and price of a training on paper.
- `workbench.cli.prune`: `workbench prune flights --keep 5`: which versions nothing needs; with `--delete -m WHY` they go.
- `workbench.cli.quarantine`: `workbench quarantine list|show|replay`: what was refused, why, and back in when it passes.
- `workbench.cli.report`: The same page with pictures, in one file that needs nothing else.
- `workbench.cli.reproduce`: `workbench reproduce RUN`: a job made again from its record, and whether it came to the same.
- `workbench.cli.resume`: `workbench resume RUN`: a job that ended badly goes on at the cell that failed.
- `workbench.cli.schedule`: The scheduler in a terminal: start, stop, status, list, next, pause, resume, backfill, run, export.
- `workbench.cli.serve`: `workbench serve flights@champion --on ray --replicas 1:4`: here or on a cluster, until it is told to stop.
- `workbench.cli.traffic`: `workbench shadow flights 4 --share 0.2`: a version beside the one that answers, while the service runs.
- `workbench.cli.trust`: `workbench trust FOLDER --as flights -m "from the weather team"`: a model that another store signed, taken in.
- `workbench.compute.cell`: A whole cell on the cluster: what it reads goes there, what it assigned comes back, what cannot travel is named.
- `workbench.compute.cloud`: A cluster that grows and shrinks, written from settings.ini: Ray's own YAML, or values for KubeRay's chart.
- `workbench.compute.cluster`: A Ray to work on: one that runs already, or one of our own that leaves nothing behind.
- `workbench.compute.demand`: A service that waits for room on a cluster, and whether somebody else's going would give it that room.
- `workbench.compute.keeper`: The one that stays at the cluster with the work, so that a kernel may go and come back.
- `workbench.compute.plan`: Where, how long, how much: before it runs; and afterwards how wrong that was.
- `workbench.compute.remote`: `@wb.remote` and `wb.map`: one function on the cluster, with the kernel's code, an interrupt that interrupts, and nothing lost.
- `workbench.compute.resources`: What this process may really use: cores, memory, devices; and which doors of ours stand open.
- `workbench.compute.roofline`: On paper: what a model needs on each device, how long a step takes, what it costs; up to 100 billion parameters and 1,000 GPUs.
- `workbench.compute.session`: `wb.cluster()`: one line, and this kernel has the cluster of its profile.
- `workbench.compute.sharding`: Which way to spread a model over how many devices: every layout is tried on paper, the fastest that fits is taken.
- `workbench.compute.shipping`: The code that runs there is the code that runs here; where it cannot be, the file is named.
- `workbench.compute.standing`: A Ray that waits: `workbench cluster up` once, and every kernel connects in a moment.
- `workbench.compute.stop`: An interrupted cell ends what it started on the cluster, also by Ray's own calls.
- `workbench.compute.tls`: Who joins this cluster shows a certificate, and what passes between its processes is read by nobody else.
- `workbench.compute.worker`: What runs at the other end: the code that was sent, item by item, and every word it prints goes back to the cell.
- `workbench.data.agreement`: When several people label the same thing: how far they agree beyond chance, and who stands apart.
- `workbench.data.batching`: From a checked feed to batches: which parts are read, which rows may come out, and what they become.
- `workbench.data.blocks`: Units are read ahead by threads into memory that is used again and again, in the order in which they are needed.
- `workbench.data.cache`: Units as they lie in memory, on disk: later epochs do not decode again.
- `workbench.data.cast`: Raw rows in the contract's types; what does not fit is missing, and marked.
- `workbench.data.check`: Rows against their contract: which are refused, and why.
- `workbench.data.column`: One column: its type, its limits, its role; a value is read strictly, from a request or from a feed.
- `workbench.data.contract`: What a row must be: one statement, read by the feed, the trainer and the service.
- `workbench.data.csv`: The format everyone sends: read strictly, because a reader that repairs short lines gives rows that nobody wrote.
- `workbench.data.decisions`: What people decided about labels: who, when, what; kept in a file that two may write at once, applied by training, taken back in one line.
- `workbench.data.delta`: A table of files with a log that says which of them count: one version of it, read file by file, checked against the log.
- `workbench.data.distance`: How far two columns are apart: over bins (PSI, chi-square) and along the whole curve (KS, Wasserstein).
- `workbench.data.drift`: How far today's rows are from the rows a model was trained on, column by column.
- `workbench.data.duplicates`: Rows that are the same, or nearly, and carry different labels: one of them is wrong.
- `workbench.data.feed`: Where data comes from, plus what it must be: checked before it is used, refused rows kept with their reasons.
- `workbench.data.filesystem`: Where files are: this machine, object storage, HTTP. Reads that stall, break off or crawl are tried again, then named with file and byte.
- `workbench.data.held`: Rows held against a reference that was written when all was well: which columns moved, by more than chance and by enough to matter.
- `workbench.data.images`: A folder of pictures is a feed too: its folders are the labels, and a picture that cannot be decoded is a refused row.
- `workbench.data.infer`: A first contract for rows that nobody has described yet, as Python to paste into a notebook and think about.
- `workbench.data.ipc`: Arrow's own file and stream, read batch by batch.
- `workbench.data.joint`: Can a classifier tell today's rows from the reference? Then something moved, even where no column did by itself.
- `workbench.data.jsonl`: One object a line, types taken as they are written: `"584"` is a text, and no number.
- `workbench.data.labels`: Which labels are probably wrong, between which classes, from whom and since when; before a model learns them.
- `workbench.data.lazy`: Rows that a polars plan makes, as a source: what was joined or put together is carried out when it is read.
- `workbench.data.limits`: How far apart two samples of the *same* rows get by chance; past that is an alarm, and how often it is a false one is known.
- `workbench.data.loader`: Shuffled batches on the device, while the device computes.
- `workbench.data.manifest`: What was written, beside what was written: rows, bytes, sha256, schema. A file that is not what its manifest says is refused.
- `workbench.data.packing`: Columns of a table become rows of arrays, each value copied once.
- `workbench.data.parquet`: The format to publish in: typed, in row groups, and with a checksum in every page that is verified on every read.
- `workbench.data.part`: What every source is, whatever its format: a schema, parts that can be read by themselves, and their rows as Arrow.
- `workbench.data.quarantine`: What was refused, and why; and the way back for rows that the present contract accepts.
- `workbench.data.raydata`: A Ray Dataset as a source: its blocks are the parts, wherever in the cluster they lie.
- `workbench.data.recipe`: How a row becomes numbers: fitted once, shipped with the model, the same bits everywhere.
- `workbench.data.reference`: What rows looked like when all was well: a file of some kilobytes that later rows are held against.
- `workbench.data.replays`: Rows that came back from the quarantine stand for the rows they were: a feed that reads both reads each once.
- `workbench.data.report`: What a check found, to look at and to keep.
- `workbench.data.rowset`: Which rows of a file count, in a bit a row at most, and in nothing where all of them do.
- `workbench.data.rule`: A statement about a row, in SQL: the same one refuses a row of a feed and a row of a request.
- `workbench.data.shuffle`: The order of an epoch is arithmetic: from a seed, without reading a row.
- `workbench.data.sketch`: What a column looked like, in a few kilobytes, however many rows it had; two sketches add up to one.
- `workbench.data.source`: From what a feed is given to what can be read: files, folders, tables, databases; the format by looking at the content.
- `workbench.data.sql`: A table or a query of a database, in parts that are read by themselves.
- `workbench.data.stalls`: Who waits for whom: the share of a loop's time that went into waiting for data, and the stage that is to blame.
- `workbench.data.stream`: The same check and the same rows, part by part on a cluster.
- `workbench.data.tally`: What a check has seen so far: counts, reasons, and which rows count; the rows themselves go by.
- `workbench.data.text`: Lines of a file, plain or packed, each UTF-8 and of a sane length; a bomb is refused before it goes off.
- `workbench.data.watch`: The feed as a whole, told from its batches as they pass: each rule with its value, its limit and a verdict.
- `workbench.data.where`: What a filter says about whole parts: those it provably empties are never read.
- `workbench.data.whole`: What must be true of a feed as a whole: enough rows, fresh, complete, each once, not drifted, balanced.
- `workbench.flights.features`: Will this New York flight arrive more than 15 minutes late? Asked at its *scheduled* departure.
- `workbench.jobs.alerts`: Whoever has to know is told what happened, in which cell, with its last lines; and where it is sent is never written down.
- `workbench.jobs.asked`: What somebody asks for in a dialog, a run now or a schedule, is kept beside what `jobs.toml` says, and is run the same way.
- `workbench.jobs.attempt`: The process that a scheduled run is: it begins only if it is its turn, says that it is alive, and writes its own end.
- `workbench.jobs.beside`: A scheduler for as long as JupyterLab is open: what was asked for there runs, and nothing else begins by itself.
- `workbench.jobs.bytecode`: What was never compiled is compiled once, by a process that ends: a zygote that compiled would be half holes.
- `workbench.jobs.cells`: What each statement of a cell reads, binds, changes and carries along, from its text alone.
- `workbench.jobs.compare`: Whether two runs of a notebook came to the same, and if not, in which metric and which cell.
- `workbench.jobs.control`: What the scheduler is doing, what comes next, and how a person steps in.
- `workbench.jobs.debug`: The notebook that failed, open in JupyterLab, on the kernel it failed in.
- `workbench.jobs.dues`: Each due time is claimed once; an interrupted run is shown and retried under the same key; nothing due is silently missed.
- `workbench.jobs.ending`: Why a notebook ended, in words: which cell, which line, which error, and the cause in two or three words.
- `workbench.jobs.engine`: Papermill's executor, with true statuses, whole files, capped outputs and an end that is an end.
- `workbench.jobs.exports`: The same file for those who have a scheduler: systemd, cron, Kubernetes, Airflow.
- `workbench.jobs.far`: A notebook at work on a Ray cluster: a mailbox between the two sides, the work there, and the process that speaks with Ray here.
- `workbench.jobs.freeze`: An object and all that belongs to it as bytes: arrays and tensors in one place each, tables as Arrow, the rest by cloudpickle; what cannot be kept is refused.
- `workbench.jobs.inputs`: What a run was made of, beside its commit: its notebook, and the files that it names.
- `workbench.jobs.jobsfile`: `jobs.toml` says which notebook is due when, and a mistake in it is found before anything is due.
- `workbench.jobs.keeper`: A kernel, and whatever it started, ends when its job ends.
- `workbench.jobs.kept`: The kernel of a failed job stays for a while, with everything in it, and then it goes.
- `workbench.jobs.kernels`: A job starts in a tenth of a second, or says why not.
- `workbench.jobs.kernelspec`: A warm kernel for everybody who starts kernels: JupyterLab, nbclient, `jupyter execute`, by the name of a kernelspec.
- `workbench.jobs.keys`: The same key, the same work: what a cell's values are known by, found by walking through a notebook as it would run.
- `workbench.jobs.kinds`: What a parameter may be, read from its annotation's syntax and never evaluated.
- `workbench.jobs.lead`: Several schedulers may run; one leads, and one that has lost the lead cannot write.
- `workbench.jobs.line`: The line to a process that is warm already: where it is, whether it would do, and one request. As light as can be.
- `workbench.jobs.live`: JupyterLab's buttons work on a kernel that it did not start.
- `workbench.jobs.meter`: What each cell took: seconds, and memory at its highest.
- `workbench.jobs.newdata`: A job is due when the files it reads are other files than before, and have stopped changing.
- `workbench.jobs.notebook`: A job notebook has typed parameters, checked before anything starts.
- `workbench.jobs.onray`: The same notebook on a cluster, the same record here.
- `workbench.jobs.outcome`: A notebook says what came out of it; the record of its run keeps it.
- `workbench.jobs.outputs`: What a cell may leave in the executed notebook: up to 10 MB, streams in one piece, what went wrong always.
- `workbench.jobs.papermill`: `papermill --engine workbench in.ipynb out.ipynb` is Papermill, in a kernel that is warm already.
- `workbench.jobs.parcel`: What a job takes to another machine, and what it brings back: in one file, checked, and nothing is overwritten.
- `workbench.jobs.pieces`: Names of a notebook that share something, as bytes in files of known formats, checked byte for byte before they are opened.
- `workbench.jobs.pipeline`: Several notebooks, ordered by what they read and write; what is unchanged is not run again.
- `workbench.jobs.planning`: Which cells of a notebook must run again, and why: decided from what was recorded, before anything starts.
- `workbench.jobs.provision`: Where a job's kernel comes from: this interpreter under a keeper, or one that runs already.
- `workbench.jobs.recorder`: Beside a run: after each cell it has the kernel write down what changed, signs it, and in a resumed run it puts back what was kept.
- `workbench.jobs.report`: An executed notebook as one HTML file that anyone can open: nothing in it runs, nothing is fetched.
- `workbench.jobs.reproduce`: A run of a while ago, made again from what was written down, and every difference named.
- `workbench.jobs.reproduction`: What running a run again has shown: what it was made of then and now, and every difference named.
- `workbench.jobs.resume`: A run that ended badly goes on at the cell that failed: what is still true is restored, what is not runs again, and it says which.
- `workbench.jobs.retention`: What the schedule remembers has an end, and nothing that was forgotten can run again.
- `workbench.jobs.runner`: One call runs a notebook as a job: checked before, whole afterwards, and nothing left behind.
- `workbench.jobs.schedule`: What is due, what is late, what is skipped and why: decisions, with no clock, process or file in them.
- `workbench.jobs.scheduler`: Each due time is claimed once; an interrupted run is shown and retried under the same key; nothing due is silently missed.
- `workbench.jobs.secret`: A notebook is given where a secret is, never the secret; what it prints does not hold it.
- `workbench.jobs.snapshot`: In the kernel: what a cell changed is written down while the notebook goes on, and put back in another kernel.
- `workbench.jobs.traces`: What a cell leaves outside its namespace: files it read and wrote, modules it imported, random states, folder and environment.
- `workbench.jobs.waiting`: A forked process that is ready, and becomes a kernel or a command when its connection comes.
- `workbench.jobs.zygote`: A process that has imported what jobs import, and forks one ready process per request.
- `workbench.lab.answers`: What JupyterLab's dialog is told when something was wrong: what, and with the status that fits.
- `workbench.lab.labels`: Everything about labels under one name: audit, gate, panel, decisions, agreement.
- `workbench.lab.launch`: How `workbench lab` starts JupyterLab: on loopback, with a token, its notebook jobs on our scheduler.
- `workbench.lab.magics`: `%%remote`: this cell runs on the cluster, and the next one has what it made.
- `workbench.lab.panels`: One panel a call: where it is, when it ends, how it goes, and a Stop that stops.
- `workbench.lab.relabel`: The doubtful rows one by one, decided with one key each, two people at once.
- `workbench.lab.scheduler`: JupyterLab's "Create Notebook Job" starts our jobs: typed, recorded, tried again when interrupted, never lost.
- `workbench.models.approved`: Where a profile asks for approval, only what people approved goes into service.
- `workbench.models.browser`: The packed model in a web page: the contract is checked, the row encoded and the score computed in the browser; nothing is sent anywhere.
- `workbench.models.bundle`: A model on disk is data, all of it checked: weights, how to build it, what goes in, how well it does, where it came from.
- `workbench.models.edge`: A bundle as one ONNX graph, from the contract's columns to the probability, that counts only once it gives the bundle's answers.
- `workbench.models.encoder`: Sentences in, vectors out: an open model in the Hugging Face layout, read as data.
- `workbench.models.folder`: What may lie in a bundle's folder, and how a file of it is read: plain, listed, as long and with the bytes that were promised.
- `workbench.models.forms`: The forms an open encoder can have in a bundle: as published, in fewer bits, or as a graph.
- `workbench.models.graph`: From the contract's columns to the probability, drawn as one ONNX graph: the project's own features included.
- `workbench.models.linear`: The smallest model that may win: a logistic regression that answers in numpy alone.
- `workbench.models.onnxmodel`: A graph as a bundle's model: its bytes are the weights, and numbers of eight or four bits stand where float32 stood.
- `workbench.models.predictor`: One row, a thousand rows, another process: the same bits.
- `workbench.models.probe`: A bundle remembers a few answers, so code that changed under it is noticed before it answers anybody.
- `workbench.models.reshard`: A checkpoint in other files, or cut for other machines, piece by piece: the whole model is never in memory.
- `workbench.models.runner`: A model on a device: one file, read with numpy and onnxruntime alone; what the contract refuses here it refuses there.
- `workbench.models.shards`: A checkpoint larger than memory is opened in milliseconds, checked to the last byte of its headers, and read only where it is used.
- `workbench.models.shelf`: Every version of every model, and the names that point at them.
- `workbench.models.signature`: A sha256 says that a bundle is whole; a signature says whose it is.
- `workbench.models.smaller`: A trained net with fewer numbers: thin layers, layers of low rank, zeros, half precision, or a smaller net that learned from it.
- `workbench.models.stages`: A net larger than one machine: its layers in a row of processes on a Ray, each with its own share of them, and the answer has the bits of one process.
- `workbench.models.stream`: A net larger than the memory it may use: built without weights, its layers come from disk while the one before computes, and go when there is no room.
- `workbench.models.trees`: What scikit-learn grew is kept as arrays and answers in numpy with scikit-learn's own bits.
- `workbench.release.approval`: A promotion waits for people where the profile asks for it: not the author, not expired, once.
- `workbench.release.card`: One page about a model that a product manager can read: what it is for, how well, for whom, on which rows, what it costs, who said yes.
- `workbench.release.door`: Requests for approval over HTTP: for people whom a proxy has signed in, or who bring their own token.
- `workbench.release.drawn`: Four small pictures of a model in plain SVG: no library, real text, the same words for those who do not see them.
- `workbench.release.encoders`: The same one call for an open encoder: every form of it written, opened again, timed in turn and judged by its vectors; what passes is kept as a child.
- `workbench.release.evidence`: What a bundle does, measured on the bundle: how well, for whom, how fast, how large, and whether the service agrees with the batch.
- `workbench.release.gates`: A measurement with a limit and a reason; a verdict is what they say together.
- `workbench.release.known`: All that is known of a version, put together from its bundle and the records.
- `workbench.release.labelgate`: Before weeks are spent on training: are the labels good enough to learn from?
- `workbench.release.measures`: What a gate can ask of evidence: a name, a pure function, a value and how it was measured.
- `workbench.release.people`: Who may do what; a token is shown once and kept only as its hash.
- `workbench.release.proof`: Beside how well it does: whether it does the same elsewhere, bears the load, may be used, and comes from data that passed.
- `workbench.release.registry`: Promotion is a decision with evidence: refused when a gate is not passed, taken back in one call.
- `workbench.release.resample`: How far a figure would move on other rows of the same kind: a difference that chance makes as well is a tie.
- `workbench.release.retention`: Old versions that answer nobody and that nothing needs are listed, and deleted when somebody says so.
- `workbench.release.slim`: One call, one table: a model made smaller and faster in every way there is, each file measured and judged; what passes is kept as a child.
- `workbench.release.texts`: An open encoder is judged too: may it be used, how large, how fast, the same elsewhere, and how much of full precision is left.
- `workbench.release.told`: The rows of a model card: one function a section, plain data that is shown as a table everywhere.
- `workbench.release.trial`: One smaller version of a model, measured on the file that would ship: how well, for whom, how fast, how large, at what CPU; and all of them in one table.
- `workbench.release.trust`: A model from elsewhere, or of before signatures, is taken in by a person who says why.
- `workbench.serve.app`: The engine on HTTP: the contract is the schema, every refusal names its field, every answer is kept.
- `workbench.serve.autoscale`: How many replicas a service needs: by what callers feel, by what waits, and by what the calendar says.
- `workbench.serve.batch`: Every row of a feed, scored by the same engine that answers online.
- `workbench.serve.body`: From the bytes of a request to the bytes of its answer, with nothing of HTTP in it.
- `workbench.serve.bulk`: Many rows in one request as an Arrow stream: the same rows, the same refusals and the same bits as JSON.
- `workbench.serve.cache`: Answers that were given already: bounded in number and age, keyed by the version and the row.
- `workbench.serve.canary`: A new version answers a few, and is gone before it has hurt many.
- `workbench.serve.checker`: The contract, compiled for one row: what is plainly right is read in a microsecond a column, anything else goes to the contract.
- `workbench.serve.clients`: Who asks, what they may do, and how often.
- `workbench.serve.comparison`: Two models saw the same rows: how often they agree, for whom they do not, and what each costs.
- `workbench.serve.counts`: What an engine counts while it answers: a histogram costs half a microsecond, and a page or Prometheus reads it.
- `workbench.serve.deploy`: The service as a file for those who have systemd, Compose or Kubernetes: limits, probes and the way to the token are in it, the token is not.
- `workbench.serve.desk`: The path of an answer: bytes in, the engine, bytes out, with nothing of a web framework on it.
- `workbench.serve.direct`: One row, plainly right, from a client who may ask: answered without a task, a scope or a second look.
- `workbench.serve.edge`: The door in front of a cluster: token, sizes and the moment of arrival, before Ray's own proxy has queued anything.
- `workbench.serve.engine`: A bundle that answers: one row or many, in any process, with the same bits.
- `workbench.serve.feedback`: What came out, said later, joined to what was predicted: the service's own next training set.
- `workbench.serve.front`: HAProxy as the door of a cluster: Ray's fast way in, with a token and a moment of arrival, and nothing else open.
- `workbench.serve.guard`: Who gets in, with how much, for how long; and every refusal says why, in JSON.
- `workbench.serve.hybrid`: One question, several places that could answer it: who did, and why, is part of the answer.
- `workbench.serve.inference`: The Open Inference Protocol (v2): what KServe's and Triton's clients speak, JSON or binary.
- `workbench.serve.kept`: Scores that were made once are looked up from then on; what is published is made of them, whole.
- `workbench.serve.lane`: One version of a model, loaded, and the queue in front of it: what comes while a batch runs is the next batch.
- `workbench.serve.load`: How a service bears what comes: requests that do not wait for each other, counted from the moment they were due.
- `workbench.serve.many`: Many models in one service and a bounded memory: loaded when they are asked for, let go of when others need the room.
- `workbench.serve.meters`: What a service counted, as Prometheus reads it and as a run keeps it.
- `workbench.serve.mirror`: The process that a challenger runs in: whatever it does there, nobody waits for it.
- `workbench.serve.page`: The service as it is now, on one page: requests, latency, batches, cache, versions.
- `workbench.serve.policy`: How many rows to score at once, and who has to be told at once that it will be too late: a pure object that learns from batches.
- `workbench.serve.refusal`: A request that is not answered, in one form: what, why, where, and when to come back.
- `workbench.serve.replica`: The service in a process of Ray's: what it is told, what it answers, and how many of it there may be.
- `workbench.serve.replicas`: `wb.serve("flights@champion", on="ray")`: the same engine, several times, on a cluster.
- `workbench.serve.requestlog`: What was asked, what was answered, by which version: kept as Parquet without slowing an answer.
- `workbench.serve.routing`: Where a question is best asked: by time, by cost, by what may not leave, by how sure the small model is.
- `workbench.serve.scorers`: Workers of a Ray that score units, stay warm for the next campaign, and may die.
- `workbench.serve.scoring`: A part of a feed on its way to being scores: read, judged, scored, packed; the same here and on a worker.
- `workbench.serve.sequential`: May be looked at after every request: a test that stays honest however often it is read.
- `workbench.serve.shadow`: A challenger sees what the champion is asked, and nobody who asks can tell.
- `workbench.serve.switch`: Many models on HTTP: a path names the model, and everything else is as with one.
- `workbench.serve.trace`: Where a request's time went: waiting, in a batch, computing; as OpenTelemetry spans when a tracer is configured.
- `workbench.serve.traffic`: Who answers and who only watches, decided while the service runs.
- `workbench.serve.wire`: A connection cannot take more time or memory than it was given, before any route has seen it.
- `workbench.serve.witness`: What each process saw of a shadow or a canary, kept in the ledger and added up.
- `workbench.train.baseline`: The smallest model that may win: a logistic regression on the same features as the net.
- `workbench.train.checkpoint`: A training state on disk: whole or absent, a file a rank, no pickle, written while the training goes on.
- `workbench.train.crew`: Workers that stay warm: the first training waits for them, the next one does not.
- `workbench.train.deck`: Rows in memory, dealt like those of a feed: shuffled by a seed, shared among ranks, with a position that a checkpoint keeps.
- `workbench.train.federated`: One model from rows that stay where they are: sites train, what they learned is averaged, little is sent.
- `workbench.train.field`: Trials at work on a cluster: each says how it goes, hears whether to go on, and ends when it is told to.
- `workbench.train.fit`: One call from two feeds to a trained net: here, or on Ray Train with `workers=`.
- `workbench.train.found`: What a search came to: the best, what mattered, and what quality costs in time and money.
- `workbench.train.group`: One attempt of a training: ranks that begin together and end together, watched all the while.
- `workbench.train.guard`: A training that has gone wrong says so at the step where it did, and keeps the last state that was right.
- `workbench.train.labels`: One call: fit on four fifths, ask about the last fifth, five times; then say which labels nobody but the labeller believes.
- `workbench.train.links`: The way to the sites: in this process or an actor each, the same bytes; all of them counted.
- `workbench.train.loop`: A plain PyTorch loop: fast on two cores, the same bits for the same seed, stoppable at every batch.
- `workbench.train.message`: All that passes between a coordinator and a site is bytes that anybody can read: plain JSON and named arrays.
- `workbench.train.metrics`: How good the probabilities are, on the whole and slice by slice.
- `workbench.train.pause`: A fit on Ray Train that saves between two steps, leaves its room to a service, and comes back.
- `workbench.train.privacy`: Noise with its price stated: how much one row can have changed what leaves a site.
- `workbench.train.result`: What a fit gives: weights, how to build them, what was measured, and the run it all came from.
- `workbench.train.robust`: One poisoned site must not decide: what several sites propose becomes one step.
- `workbench.train.rows`: Two feeds become four arrays, once, the same for a baseline and a net.
- `workbench.train.scale`: The same loop on Ray Train: N workers, one model, nothing left behind.
- `workbench.train.scaling`: Your own training loop: here under the debugger, on many workers, through kills and restarts, without another line in it.
- `workbench.train.search`: The best parameters within a budget: every trial recorded, poor ones ended early, and a killed search goes on where it was.
- `workbench.train.shard`: A model larger than one device: built without memory, cut over the ranks, filled block by block.
- `workbench.train.site`: A place whose rows stay there: it is sent weights, trains on its own feed, and answers with the change.
- `workbench.train.space`: What a search may choose from, in three plain forms, and what is wrong with a fourth.
- `workbench.train.speed`: Ways to train faster that have to prove themselves: precision, schedules, compilation.
- `workbench.train.state`: Everything a training needs to go on as if nothing had happened: tensors and plain JSON, nothing else.
- `workbench.train.study`: A search on disk: a driver may be killed at any moment, and every trial that had ended is still there.
- `workbench.train.trial`: What an objective is given, what it may answer, and how it hears that it is not worth going on.
- `workbench.train.work`: What your own loop gets to be distributed and resumable: `prepare`, `batches`, `report`, `checkpoint`.
- `workbench.words.gpt`: One page of PyTorch that is a decoder transformer, and what the paper says of it against what it really takes.
- `workbench.words.text`: The docstrings of the Python that runs: 1.7 million bytes of real English and code, on every machine, without a download."""

import importlib
import sys

from workbench.base.errors import MissingExtra as _MissingExtra
from workbench.base.displays import register as _register

TYPE_CHECKING = False  # `typing` itself would take as long to import as the rest of this file

if TYPE_CHECKING:
    from typing import Any
    from workbench.base.progress import track
    from workbench.base.records import Run, runs
    from workbench.base.settings import project_path
    from workbench.compute.plan import plan
    from workbench.compute.remote import attach, map, remote
    from workbench.base.bill import cost
    from workbench.compute.session import cluster
    from workbench.data.contract import Column, Contract, Rule
    from workbench.data import quarantine
    from workbench.data.delta import Delta
    from workbench.data.drift import drift
    from workbench.data.feed import Feed, write_parquet
    from workbench.data.limits import calibrate
    from workbench.data.recipe import Recipe
    from workbench.data.sketch import Profile
    from workbench.data.sql import Sql
    from workbench.data.stalls import stalls
    from workbench.data.whole import Balance, Complete, Drift, Fresh, Unique, Volume
    from workbench.jobs.outcome import result
    from workbench.jobs.onray import run
    from workbench.jobs.resume import resume
    from workbench.jobs.secret import Secret
    from workbench.lab import labels
    from workbench.models.bundle import Bundle
    from workbench.models.shelf import Shelf, load
    from workbench.release.card import card
    from workbench.release.evidence import measure
    from workbench.release.gates import Gate, default_gates, judge, right_size
    from workbench.release.registry import champion, promote, rollback
    from workbench.release.slim import slim
    from workbench.serve.batch import predict
    from workbench.serve.engine import Engine
    from workbench.serve.replicas import serve
    from workbench.train.baseline import baselines, fit_baseline
    from workbench.train.federated import federated
    from workbench.train.fit import fit
    from workbench.train.scaling import scale
    from workbench.train.search import search

# Where the public names live; each is imported on first use, so that `import workbench` costs nothing heavy.
_PUBLIC = {
    "base.bill": "cost",
    "base.progress": "track",
    "base.records": "Run runs",
    "base.settings": "project_path",
    "compute.plan": "plan",
    "compute.remote": "attach map remote",
    "compute.session": "cluster",
    "data.contract": "Column Contract Rule",
    "data.delta": "Delta",
    "data.drift": "drift",
    "data.feed": "Feed write_parquet",
    "data.limits": "calibrate",
    "data.quarantine": "quarantine",
    "data.recipe": "Recipe",
    "data.sketch": "Profile",
    "data.sql": "Sql",
    "data.stalls": "stalls",
    "data.whole": "Balance Complete Drift Fresh Unique Volume",
    "jobs.onray": "run",
    "jobs.outcome": "result",
    "jobs.resume": "resume",
    "jobs.secret": "Secret",
    "lab.labels": "labels",
    "models.bundle": "Bundle",
    "models.shelf": "Shelf load",
    "release.card": "card",
    "release.evidence": "measure",
    "release.gates": "Gate default_gates judge right_size",
    "release.registry": "champion promote rollback",
    "release.slim": "slim",
    "serve.batch": "predict",
    "serve.engine": "Engine",
    "serve.replicas": "serve",
    "train.baseline": "baselines fit_baseline",
    "train.federated": "federated",
    "train.fit": "fit",
    "train.scaling": "scale",
    "train.search": "search",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}

_ROOMS = ("labels", "quarantine")  # public as a whole: wb.labels.audit(...)

# The extra that installs what a name's module imports at once.
_EXTRA = {"sklearn": "torch", "torch": "torch", "pyarrow": "data", "polars": "data", "uvicorn": "serve"}

__version__ = "0.1.0"
__all__ = sorted([*_HOME, "__version__"])  # pyright: ignore

_register("notebook", "workbench.lab.panels:Panel")


def load_ipython_extension(shell: "Any") -> None:
    "What `%load_ext workbench` does: `%%remote`, and interrupts that reach the cluster."
    importlib.import_module("workbench.lab.magics").load_ipython_extension(shell)


if "ipykernel" in sys.modules and (_shell := sys.modules["IPython"].get_ipython()):
    load_ipython_extension(_shell)


def __getattr__(name: str) -> "Any":
    if name not in _HOME:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"workbench.{_HOME[name]}")
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRA:
            raise
        hint = f"pip install 'workbench[{_EXTRA[library]}]'"
        raise _MissingExtra(f"workbench.{name} needs '{library}', which is not installed", hint) from None
    return globals().setdefault(name, module if name in _ROOMS else getattr(module, name))


def __dir__() -> list[str]:
    return __all__
