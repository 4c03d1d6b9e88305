"""What is written for others to run: it parses, holds no secret, and its command serves."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import free_port
from typer.testing import CliRunner

from workbench.base.errors import BadInput
from workbench.cli.cli import app
from workbench.models.bundle import Bundle
from workbench.serve.deploy import Service, compose, deploy, kubernetes, systemd


@pytest.fixture
def service(project: Path) -> Service:
    (project / "a $HOME 50%").mkdir()
    token = project / "token file"
    token.write_text("the-secret-itself-0123456789")
    return Service("flights@champion", project, project / "a $HOME 50%", token, port=9000)


def test_compose_publishes_on_loopback_with_limits_and_a_probe(service: Service) -> None:
    found = yaml.safe_load(compose(service))["services"]["workbench-flights"]
    assert found["command"][:3] == ["workbench", "serve", "flights@champion"]
    assert found["ports"] == ["127.0.0.1:9000:9000"]
    assert found["deploy"]["resources"]["limits"] == {"memory": "2048M", "cpus": "1"}
    assert "9000/readyz" in found["healthcheck"]["test"][-1] and found["read_only"] is True
    assert found["environment"]["WORKBENCH_SERVE_TOKEN"] == "file:/run/secrets/token"
    assert found["volumes"][1]["source"] == str(service.store).replace("$", "$$")


def test_kubernetes_takes_over_when_ready_and_names_its_secret(service: Service) -> None:
    claim, deployment, front = yaml.safe_load_all(kubernetes(service))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness")} == {"/readyz"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": 9000}
    secret = next(one for one in container["env"] if one["name"] == "SERVE_TOKEN")["valueFrom"]
    assert secret == {"secretKeyRef": {"name": "workbench-flights", "key": "token"}}
    assert front["spec"]["type"] == "ClusterIP" and container["resources"]["limits"]["memory"] == "2048Mi"
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_no_file_holds_the_secret_or_overwrites_a_hand_written_one(service: Service, tmp_path: Path) -> None:
    for kind in ("compose", "kubernetes", "systemd"):
        path = deploy(service, kind, tmp_path)
        assert "the-secret-itself" not in path.read_text()
        assert deploy(service, kind, tmp_path) == path
        path.write_text("mine")
        with pytest.raises(BadInput, match="not written by workbench"):
            deploy(service, kind, tmp_path)
    with pytest.raises(BadInput, match="nomad"):
        deploy(service, "nomad", tmp_path)


@pytest.mark.parametrize("ref", ["a\nUser=root", "a b", "$(id)", "../x", "", 'a"b'])
def test_a_name_cannot_become_another_line(ref: str) -> None:
    with pytest.raises(BadInput, match="model"):
        Service(ref, Path("/p"), Path("/s"), Path("/t"))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_finds_nothing_wrong_with_the_unit(service: Service, tmp_path: Path) -> None:
    path = deploy(service, "systemd", tmp_path)
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    said = [line for line in (done.stdout + done.stderr).splitlines() if path.name in line]
    assert not said and "CPUQuota=100%" in path.read_text()


def _until_ready(process: subprocess.Popen, port: int) -> Any:
    for line in process.stderr:
        if '"ready"' in line or "ready" in line:
            return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=20))
    raise AssertionError("it ended")


def test_the_command_of_the_unit_serves_and_drains(bundle: Bundle, project: Path, module: Path) -> None:
    port = free_port()
    done = CliRunner().invoke(app, ["deploy", "flights/1", "--to", "systemd", "--port", str(port)])
    assert done.exit_code == 0, done.output
    unit = Path(done.output.strip()).read_text()
    lines = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and line[0] != "#")
    command = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(lines["ExecStart"])]
    given = Path(lines["LoadCredential"].partition(":")[2])
    assert given.stat().st_mode & 0o777 == 0o600
    words = shlex.split(lines["Environment"].replace("%d/token", shlex.quote(str(given))))
    environment = os.environ | dict(word.split("=", 1) for word in words) | {"PYTHONPATH": str(module)}
    process = subprocess.Popen(
        command, cwd=lines["WorkingDirectory"], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert _until_ready(process, port) == {"status": "ready"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_model_that_is_not_there_is_said_before_anything_is_written(project: Path) -> None:
    done = CliRunner().invoke(app, ["deploy", "nobody@champion", "--to", "compose"])
    assert done.exit_code != 0 and not (project / "compose.yaml").exists()


def test_a_unit_runs_with_limits_and_may_write_to_its_store_only(service: Service) -> None:
    text = systemd(service)
    assert "ProtectSystem=strict" in text and "MemoryMax=2048M" in text and "--host" in text
    assert f'ReadWritePaths="{str(service.store).replace("%", "%%")}"' in text
