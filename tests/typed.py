"""The command as a user types it, forked from a process that has imported it: same words, streams and exit codes, in a tenth of the time."""

import atexit
import functools
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

IMPORTED = ("workbench.cli.cli", "workbench.data.contract", "workbench.models.shelf", "workbench.serve.app", "polars", "pandera.polars", "torch")  # fmt: skip


@functools.cache
def _server() -> socket.socket:
    "The line to the process that forks; it ends when this one does."
    ours, its = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, __file__, str(its.fileno())], pass_fds=[its.fileno()], cwd="/"
    )
    its.close()
    atexit.register(lambda: (ours.close(), process.wait(10)))
    return ours


def typed(*args: str, cwd: Path | None = None, env: dict[str, str] | None = None, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:  # fmt: skip
    "What `workbench ARGS` printed, and its exit code."
    line, asked = _server(), {"args": args, "cwd": str(cwd or Path.cwd()), "env": env or dict(os.environ)}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        data = json.dumps(asked).encode()
        socket.send_fds(line, [len(data).to_bytes(4, "big")], [out.fileno(), err.fileno()])
        line.sendall(data)
        line.settimeout(timeout_s)
        try:
            code = int.from_bytes(line.recv(4), "big", signed=True)
        except TimeoutError:  # its answer, should it come, is nobody else's
            line.close()
            _server.cache_clear()
            raise
        out.seek(0), err.seek(0)
        return subprocess.CompletedProcess(["workbench", *args], code, out.read().decode(), err.read().decode())  # fmt: skip


def _child(asked: dict, files: list[int]) -> int:
    "Be the command."
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.path[:0] = ["", *asked["env"].get("PYTHONPATH", "").split(os.pathsep)]
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
    sys.argv = ["workbench", *asked["args"]]
    try:
        importlib.import_module("workbench.cli.cli").main()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush(), sys.stderr.flush()


def _serve(line: socket.socket) -> None:
    "One command at a time, until the other end has gone."
    while True:
        head, files, _, _ = socket.recv_fds(line, 4, 2)
        if len(head) < 4:
            return
        data = b""
        while len(data) < int.from_bytes(head, "big"):
            data += line.recv(1 << 20)
        if (pid := os.fork()) == 0:
            line.close()
            os._exit(_child(json.loads(data), files))
        for file in files:
            os.close(file)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        line.sendall(code.to_bytes(4, "big", signed=True))


if __name__ == "__main__":
    sys.path.pop(0)  # this folder is no user's
    for module in IMPORTED:
        importlib.import_module(module)
    importlib.import_module("workbench.cli.cli").command()
    _serve(socket.socket(fileno=int(sys.argv[1])))
