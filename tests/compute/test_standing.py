"""A Ray that stays: joined in a moment, on loopback only, its files private; it outlives kernels and leaves nothing."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.base.errors import BadInput, BadSetting, Unavailable
from workbench.base.settings import Settings
from workbench.base.store import Store
from workbench.compute import standing
from workbench.compute.cloud import config, kuberay_values, ray_yaml, workers
from workbench.compute.cluster import here_stands
from workbench.compute.resources import cgroup_cpus, cgroup_memory_mb, open_ports, resources, visible

_BEGIN = """
import time
from workbench.compute.remote import Needs, send
def work(n):
    for i in range(5):
        print("step", i); time.sleep(0.5)
    return n * 2
print(send(work, [21], Needs(), name="work", one=True).run, flush=True)
time.sleep(60)
"""
_AGAIN = """
import sys
from workbench.compute import session
from workbench.compute.remote import attach
session.cluster()
session.disconnect()
print("again", session.cluster().took_s)
print(attach(sys.argv[1]))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_it_stands_is_joined_and_keeps_the_work_of_a_killed_kernel(project: Path, store: Store) -> None:
    try:
        first = standing.up()
        assert first.ray and str(standing.up().ray) == str(first.ray)
        assert stat.S_IMODE(store.path("cluster.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(first.ray.folder).parent.stat().st_mode) == 0o700
        mine = [one for one in open_ports() if str(one.port) == first.ray.address.rpartition(":")[2]]
        assert mine and all(one.loopback for one in mine)
        with subprocess.Popen([sys.executable, "-c", _BEGIN], stdout=subprocess.PIPE, text=True) as kernel:
            assert kernel.stdout
            run = kernel.stdout.readline().strip()
            time.sleep(1)
            kernel.send_signal(signal.SIGKILL)
        done = subprocess.run(
            [sys.executable, "-c", _AGAIN, run], capture_output=True, text=True, timeout=120
        )
        lines = done.stdout.splitlines()
        assert lines[-1] == "42" and [f"step {i}" for i in range(5)] == lines[1:-1], done.stderr[-2000:]
        assert float(lines[0].split()[1]) < 2  # 0.02 s on a quiet machine
    finally:
        standing.down(store)
    assert here_stands(store) is None and not Path(first.ray.folder).exists()


def test_a_note_of_another_process_is_not_believed(store: Store) -> None:
    note = {
        "address": "127.0.0.1:1",
        "dashboard": "",
        "pid": os.getpid(),
        "pid_started": 1.0,
        "cpus": 1,
        "folder": "",
        "started_at": 0.0,
    }
    store.path("cluster.json").write_text(json.dumps(note))
    assert here_stands(store) is None
    store.path("cluster.json").write_text("{half")
    assert here_stands(store) is None and not standing.status(store).up


def test_the_tightest_limit_counts(tmp_path: Path) -> None:
    pod = tmp_path / "a/b"
    pod.mkdir(parents=True)
    (tmp_path / "self").write_text("0::/a/b\n")
    (pod / "cpu.max").write_text("max 100000")
    (tmp_path / "a/cpu.max").write_text("150000 100000")
    (pod / "memory.max").write_text("2000000000")
    (tmp_path / "a/memory.max").write_text("max")
    assert cgroup_cpus(tmp_path, tmp_path / "self") == 1.5
    assert cgroup_memory_mb(tmp_path, tmp_path / "self") == 2000


def test_the_first_version_of_cgroups(tmp_path: Path) -> None:
    (tmp_path / "cpu/docker").mkdir(parents=True)
    (tmp_path / "memory/docker").mkdir(parents=True)
    (tmp_path / "self").write_text("4:cpu:/docker\n5:memory:/docker\n")
    (tmp_path / "cpu/docker/cpu.cfs_quota_us").write_text("50000")
    (tmp_path / "cpu/docker/cpu.cfs_period_us").write_text("100000")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1")
    (tmp_path / "memory/docker/memory.limit_in_bytes").write_text("9223372036854771712")
    assert cgroup_cpus(tmp_path, tmp_path / "self") == 0.5
    assert cgroup_memory_mb(tmp_path, tmp_path / "self") is None


@pytest.mark.parametrize(
    ("wanted", "count"), [(None, 2), ("1", 1), ("", 0), ("GPU-a", 1), ("0,1", 2), ("7", 0)]
)
def test_hidden_devices_do_not_count(wanted: str | None, count: int) -> None:
    said = "0, GPU-a1, NVIDIA H100, 81559\n1, GPU-b2, NVIDIA H100, 81559\nnonsense"
    assert len(visible(said, wanted)) == count


def test_this_machine_has_something() -> None:
    found = resources()
    assert 0 < found.cpus <= (os.cpu_count() or 1) and found.memory_mb > 100


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
@pytest.mark.parametrize("spot", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_rays_own_schema_takes_the_yaml(provider: str, spot: bool) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    made = ray_yaml(Settings(cluster_provider=provider, cluster_spot=spot, cluster_gpus=1))
    validate_config(prepare_config(made))
    assert spot == ("spot" in json.dumps(made).lower() or "preemptible" in json.dumps(made))
    assert "spot" not in json.dumps(made["available_node_types"]["head"]).lower()


def test_kuberay_gets_size_bounds_and_a_token_by_reference() -> None:
    made = kuberay_values(Settings(cluster_workers="1:9", cluster_gpus=2, cluster_memory_gb=64))
    assert (made["worker"]["minReplicas"], made["worker"]["maxReplicas"]) == (1, 9)
    assert made["worker"]["resources"]["limits"] == {"cpu": "8", "memory": "64G", "nvidia.com/gpu": "2"}
    assert "secretKeyRef" in json.dumps(made) and config(Settings()).startswith("# kubectl create secret")
    with pytest.raises(BadSetting, match="4:1"):
        workers(Settings(cluster_workers="4:1"))


@pytest.mark.parametrize(
    ("cpus", "kind", "said"), [(-2, BadInput, "cpus = -2"), (99_999, Unavailable, "99999")]
)
def test_cores_that_cannot_be_are_refused_before_anything_starts(
    store: Store, cpus: int, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        standing.up(cpus, store)
    assert not store.path("cluster.log").exists()
