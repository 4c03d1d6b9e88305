"""A Ray is joined or started, and ours leaves nothing behind."""

import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from workbench.base.errors import Unavailable
from workbench.compute.cluster import PER_CORE, WORKER_MB, connect, end, secure_token, started_in
from workbench.compute.resources import resources


def test_the_token_is_ours_alone_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    folder.mkdir(mode=0o755)
    (folder / "auth_token").write_text("a" * 64)
    (folder / "auth_token").chmod(0o644)
    path = secure_token(folder)
    assert path.read_text() == "a" * 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [p.name for p in folder.iterdir()] == ["auth_token"]


def test_those_that_start_together_share_one_token(tmp_path: Path) -> None:
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append(secure_token(tmp_path / "r").read_text()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and len(set(seen)) == 1 and len(seen[0]) == 64


def test_a_family_is_found_through_its_children_and_ended(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)']) # {tmp_path}/"
    with subprocess.Popen([sys.executable, "-c", code]) as child, subprocess.Popen(["sleep", "60"]) as other:
        while len(family := started_in(tmp_path)) < 2:
            time.sleep(0.02)
        assert child.pid in family and other.pid not in family
        assert end(family) == 2 and not started_in(tmp_path)
        assert end({child.pid: "another start time"}) == 0
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nothing_answers_is_said_at_once(form: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = form.format(closed.getsockname()[1])
        with (
            pytest.raises(Unavailable, match="no Ray answers at ray_address") as caught,
            connect(address=address),
        ):
            pass
    assert address in caught.value.what and "ray start --head" in caught.value.hint


def test_more_workers_than_the_machine_bears_are_refused_before_a_process_starts() -> None:
    here = resources()
    most = max(int(here.cpus), int(min(PER_CORE * here.cpus, here.memory_mb / WORKER_MB)))
    with pytest.raises(Unavailable, match=f"a Ray for {most + 1} workers, on a machine with") as refused:
        with connect(address="local", cpus=most + 1):
            pass
    assert f"ask for {most} at most" in str(refused.value)
