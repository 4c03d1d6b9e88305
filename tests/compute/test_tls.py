"""Ray's channels with certificates of ours: made whole and private, refused by name, and really TLS."""

import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from workbench.base.errors import BadInput, BadSetting, NotFound
from workbench.compute.cluster import head, started_in
from workbench.compute.resources import open_ports
from workbench.compute.tls import FILES, certificates, environment

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


def context(folder: Path, ours: bool = True) -> ssl.SSLContext:
    "As a client of `folder`'s cluster, with its certificate or without."
    found = ssl.create_default_context(cafile=folder / "ca.crt")
    found.set_alpn_protocols(["h2"])
    if ours:
        found.load_cert_chain(folder / "node.crt", folder / "node.key")
    return found


def test_only_the_owner_reads_them_and_they_name_the_machines(tmp_path: Path) -> None:
    folder = certificates(tmp_path / "a" / "tls", hosts=["10.0.0.4", "gpu-1"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.stat().st_mode & 0o777 for path in (folder.parent, folder, *folder.iterdir())] == [0o700] * 2 + [0o600] * 3  # fmt: skip
    mine, root = (x509.load_pem_x509_certificate((folder / n).read_bytes()) for n in ("node.crt", "ca.crt"))
    mine.verify_directly_issued_by(root)
    names = mine.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "gpu-1"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "10.0.0.4"]
    assert (folder / "node.key").read_bytes().count(b"PRIVATE KEY") == 2  # the authority's is nowhere
    before = (folder / "node.crt").read_bytes()
    with pytest.raises(BadInput, match="exists already"):
        certificates(folder)
    assert environment(folder, make=True)["RAY_USE_TLS"] == "1"
    assert (folder / "node.crt").read_bytes() == before


def test_what_would_not_connect_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match=r"no ca\.crt, node\.crt, node\.key"):
        environment(tmp_path / "tls")
    folder = certificates(tmp_path / "tls")
    (folder / "node.key").chmod(0o640)
    with pytest.raises(BadSetting, match="read by others"):
        environment(folder)
    monkeypatch.setattr("workbench.compute.tls.VALID_DAYS", 0)
    with pytest.raises(BadSetting, match="ended on"):
        environment(certificates(tmp_path / "old"))


def answer(port: int, client: ssl.SSLContext) -> bytes:
    "The first bytes an HTTP/2 server says to `client`; none where it hangs up."
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
            with client.wrap_socket(plain, server_hostname="127.0.0.1") as line:
                assert line.version() == "TLSv1.3"
                line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
                return line.recv(9)
    except (ssl.SSLError, ConnectionError):
        return b""


@pytest.mark.ray
def test_every_channel_of_a_ray_asks_for_a_certificate(
    monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    monkeypatch.setenv("WORKBENCH_RAY_TLS", "keys")  # a folder of the project, made at the start
    with head(cpus=2) as found:
        import ray

        assert ray.get(ray.remote(lambda: 41 + 1).remote()) == 42
        family = started_in(Path(ray._private.worker._global_node.get_temp_dir_path()).parent)
        agents = ("Agent", "dashboard", "monitor")  # those speak HTTP, on loopback
        doors = [
            one for one in open_ports() if one.pid in family and not any(a in one.command for a in agents)
        ]
        assert int(found.address.rpartition(":")[2]) in {one.port for one in doors} and len(doors) >= 3
        stranger = certificates(project / "other")
        for door in doors:
            assert answer(door.port, context(project / "keys"))[3:4] == b"\x04", door  # HTTP/2's greeting
            assert answer(door.port, context(project / "keys", ours=False)) == b"", door
            wrong = context(project / "keys", ours=False)
            wrong.load_cert_chain(stranger / "node.crt", stranger / "node.key")
            assert answer(door.port, wrong) == b"", door
