"""A secret is in the kernel and nowhere else: not in a file of the run, the ledger, a message or a process list."""

import base64
import copy
import pickle
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from workbench.base import redact
from workbench.base.errors import BadParameter, JobFailed, MissingExtra, NotFound
from workbench.base.records import Ledger, runs
from workbench.jobs.notebook import check, injected, parameters
from workbench.jobs.runner import run
from workbench.jobs.secret import Secret, present

VALUE = "s3cr3t/Tok+en=42&<Ä>"
SPELLED = [
    VALUE,
    quote(VALUE, safe=""),
    base64.b64encode(VALUE.encode()).decode(),
    ascii(VALUE)[1:-1],
    VALUE[:15],
]


@pytest.fixture(autouse=True)
def nothing_known():
    yield
    redact.forget()


def everything(folder: Path) -> bytes:
    "All that a store holds, the ledger's log included."
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


PRINTS = """import base64, json, logging, os, subprocess, sys, threading, time
from urllib.parse import quote
from IPython.display import HTML, JSON, display, update_display
value = token.reveal()
print("plain", value, repr(value), ascii(value), json.dumps(value))
print("b64", base64.b64encode(b"user:" + value.encode()).decode(), quote(value, safe=""), value.encode().hex())
print("err", value, file=sys.stderr)
logging.getLogger("x").warning("log %s", value)
get_ipython().kernel.log.error("kernel log %s", value)
print("env", dict(os.environ))
display(HTML(f"<b title='{value}'>{value}</b>"), JSON({"rows": [value, {value: 1}]}))
handle = display(1, display_id=True)
handle.update(f"updated {value}")
subprocess.run(["printenv", "API_TOKEN"])
os.write(1, f"raw {value}\\n".encode())
print("token is", token)
value"""
SPLIT = """for piece in ("split ", value[:7], value[7:], " end"):
    sys.stdout.write(piece)
    sys.stdout.flush()
    time.sleep(0.05)
for letter in value:
    sys.stderr.write(letter)
    sys.stderr.flush()
print()
sys.stdout.write("kept: " + value[:9])"""
CHILDREN = """import multiprocessing
def say(value):
    print("forked", value, flush=True)
for kind in ("fork",):
    child = multiprocessing.get_context(kind).Process(target=say, args=(value,))
    child.start()
    child.join()
thread = threading.Thread(target=print, args=("thread", value))
thread.start()
thread.join()
with open("/proc/self/cmdline") as file:
    print("cmdline", value in file.read())
from workbench.jobs import result
result(got=len(value), said=value)
from workbench.base.records import start
with start("check", "inner") as inner:
    inner.metrics["said"] = value
try:
    with start("check", "bad"):
        raise KeyError(value)
except KeyError:
    pass"""


def test_nothing_of_it_is_on_disk_after_a_run(write, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat

    monkeypatch.setenv("API_TOKEN", VALUE)
    path = write("from workbench.jobs.secret import Secret\ntoken: Secret  # of the API", PRINTS, SPLIT, CHILDREN,
                 "raise ValueError(f'refused {value}')")  # fmt: skip
    with pytest.raises(JobFailed) as caught:
        run(path, {"token": "env:API_TOKEN"}, ledger=ledger)
    job = runs(ledger, kind="job")[0]
    held = everything(ledger.store.root) + str(caught.value).encode()
    for spelled in SPELLED:
        assert spelled.encode() not in held, spelled
    assert job.params == {"token": "env:API_TOKEN"} and "refused [secret env:API_TOKEN]" in job.error
    assert job.metrics == {"got": len(VALUE), "said": "[secret env:API_TOKEN]"}
    said = {r.name: (r.metrics, r.error) for r in runs(ledger, kind="check")}
    assert said["inner"][0] == {"said": "[secret env:API_TOKEN]"} and "[secret" in said["bad"][1]
    book = nbformat.read(job.folder / "notebook.ipynb", 4)
    assert [c.metadata.papermill.status for c in book.cells] == ["completed"] * 5 + ["failed"]
    streams = [
        {
            name: "".join(o.text for o in cell.outputs if o.get("name") == name)
            for name in ("stdout", "stderr")
        }
        for cell in book.cells
    ]
    mark = "[secret env:API_TOKEN]"
    assert f"plain {mark} '{mark}'" in streams[2]["stdout"] and f"err {mark}" in streams[2]["stderr"]
    assert (
        f"raw {mark}" in streams[2]["stdout"] and "token is Secret('env:API_TOKEN')" in streams[2]["stdout"]
    )
    assert streams[3] == {"stdout": f"split {mark} end\nkept: {VALUE[:9]}", "stderr": mark}
    assert f"forked {mark}" in streams[4]["stdout"] and f"thread {mark}" in streams[4]["stdout"]
    assert "cmdline False" in streams[4]["stdout"]
    rich = [str(o.data) for o in book.cells[2].outputs if "data" in o]
    assert len(rich) == 4 and all(mark in data for data in rich)
    assert f"kernel log {mark}" in (job.folder / "kernel.log").read_text()


def test_it_comes_from_a_file_of_the_project_and_follows_the_default(
    write, ledger: Ledger, project: Path
) -> None:
    (project / "token.txt").write_text("file-value-77\n")
    cell = "from workbench.jobs.secret import Secret\ntoken: Secret = Secret('env:NOT_SET')\nauth = token"
    body = "from workbench.jobs import result\nresult(n=len(auth.reveal()))\nprint(token.reveal())"
    job = run(write(cell, body, name="deep/job.ipynb"), {"token": "file:token.txt"}, ledger=ledger)
    assert job.metrics == {"n": 13} and job.params == {"token": "file:token.txt"}
    assert b"file-value-77" not in everything(ledger.store.root)


PLAIN = "hunter2-plain"


@pytest.mark.parametrize("value", [PLAIN, f"env:{PLAIN}!", "env:", "file:", 5, None, [PLAIN], f'"{PLAIN}"'])
def test_plain_text_is_refused_before_the_start_and_not_repeated(write, ledger: Ledger, value) -> None:
    path = write("from workbench import Secret\ntoken: Secret", "1")
    with pytest.raises(BadParameter, match="not shown") as caught:
        run(path, {"token": value}, ledger=ledger)
    assert PLAIN not in str(caught.value) and PLAIN not in repr(caught.value.__context__)
    assert runs(ledger) == []


@pytest.mark.parametrize(
    "cell",
    [
        f"token: Secret = '{PLAIN}'",
        "token: Secret = 'env:API'",
        f"token: Secret = Secret('{PLAIN}')",
        f"token: Optional[Secret] = '{PLAIN}'",
    ],
)
def test_a_default_that_is_no_reference_is_refused_and_not_repeated(write, cell: str) -> None:
    with pytest.raises(BadParameter, match="not shown") as caught:
        parameters(write(cell))
    assert PLAIN not in str(caught.value)


def test_what_is_not_there_is_said_before_the_start(write, ledger: Ledger) -> None:
    path = write("token: Secret", "1")
    for given, said in (("env:NOT_SET", "export NOT_SET="), ("file:absent", "no file that you may read")):
        with pytest.raises(NotFound, match=said):
            run(path, {"token": given}, ledger=ledger)
    assert runs(ledger) == []


def test_keyring_is_asked_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(MissingExtra, match="keyring"):
        present("keyring:service/me")


def test_a_machine_without_a_keyring_is_said_in_a_line() -> None:
    code = """import keyring, keyring.backends.fail
from workbench.base.errors import NotFound
from workbench.jobs.secret import Secret
keyring.set_keyring(keyring.backends.fail.Keyring())
try:
    Secret("keyring:warehouse/me").reveal()
except NotFound as error:
    print(error)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("secret 'keyring:warehouse/me': No recommended"), done.stderr


def test_a_keyring_gives_what_it_holds_and_what_it_lacks_is_said() -> None:
    code = """import keyring, keyring.backend, sys
class Held(keyring.backend.KeyringBackend):
    priority = 1
    def get_password(self, service, name):
        return {("warehouse", "me"): "s3cret"}.get((service, name))
    def set_password(self, service, name, password):
        raise NotImplementedError
from workbench.base.errors import NotFound
from workbench.jobs.secret import Secret, present
keyring.set_keyring(Held())
print(Secret("keyring:warehouse/me").reveal())
try:
    Secret("keyring:warehouse/you").reveal()
except NotFound as error:
    print(error)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("s3cret\n") and "keyring:warehouse/you" in done.stdout, done.stderr


def test_a_secret_is_its_reference_wherever_it_is_written(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", VALUE)
    token = Secret("env:API_TOKEN")
    assert token.reveal() == VALUE
    for shown in (repr(token), str(token), f"{token}", repr([token]), str(pickle.dumps(token))):
        assert "env:API_TOKEN" in shown and VALUE not in shown
    assert pickle.loads(pickle.dumps(token)) == token == copy.deepcopy(token) and hash(token) == hash(
        copy.copy(token)
    )
    cell = "token: Secret = Secret('env:API_TOKEN')\nother: Secret | None = None\nmany: list[Secret] = []"
    given = check(write(cell), {"token": token, "other": "file:/x", "many": ["env:A", "env:B"]})
    assert injected(cell, given).splitlines() == [
        "# Parameters",
        "from workbench.jobs.secret import Secret as _Secret",
        "token = _Secret('env:API_TOKEN')",
        "other = _Secret('file:/x')",
        "many = [_Secret('env:A'), _Secret('env:B')]",
    ]
    assert str(parameters(write(cell))[0]) == "token: Secret = Secret('env:API_TOKEN')"


def test_the_runner_never_reads_it(write, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", VALUE)
    job = run(
        write("from workbench.jobs.secret import Secret\ntoken: Secret"),
        {"token": "env:API_TOKEN"},
        ledger=ledger,
    )
    assert job.status == "succeeded" and redact.redact(VALUE) == VALUE


def test_it_is_light() -> None:
    code = "import sys, workbench.jobs.secret; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert not loaded & {"IPython", "nbformat", "papermill", "numpy", "keyring"}
