"""A prediction computed in a real browser is the bundle's; onnxruntime-web comes from npm and is served from here."""

import functools
import json
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import toy

from workbench.models import bundle as bundles
from workbench.models import edge

pytestmark = [pytest.mark.browser, pytest.mark.slow]


class Quiet(SimpleHTTPRequestHandler):
    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def ort_web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The `dist` folder of onnxruntime-web."
    folder = tmp_path_factory.mktemp("npm")
    if not shutil.which("npm"):
        pytest.skip("npm is missing")
    command = [
        "npm",
        "install",
        "--prefix",
        str(folder),
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "onnxruntime-web",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"onnxruntime-web cannot be installed: {done.stderr[-200:]}")
    return folder / "node_modules/onnxruntime-web/dist"


@pytest.fixture(params=["linear_parts", "net_parts", "tree_parts"])
def site(
    request: pytest.FixtureRequest, tmp_path: Path, ort_web: Path
) -> Iterator[tuple[bundles.Bundle, Path, str]]:
    bundle = bundles.save(tmp_path / "bundle", **getattr(toy, request.param)())
    folder = tmp_path / "site"
    zipfile.ZipFile(edge.pack(bundle, tmp_path / "delays.zip").path).extractall(folder)
    (folder / "ort").symlink_to(ort_web)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield bundle, folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def state(page: Any) -> str:
    page.wait_for_function("!/^loading/.test(document.getElementById('state').textContent)")
    return page.locator("#state").inner_text()


def test_the_browser_computes_the_bundle_s_prediction(
    site: tuple[bundles.Bundle, Path, str], page: Any
) -> None:
    bundle, folder, url = site
    hosts: set[str] = set()
    page.on(
        "request",
        lambda request: hosts.add(request.url.split("/")[2]) if request.url.startswith("http") else None,
    )
    page.goto(url)
    assert state(page).startswith("ready: ")
    for row in ({"rain": 2.5, "wind": None, "carrier": "UA"}, {"rain": 0, "wind": 7.25, "carrier": "nobody"}):
        page.locator("#row").fill(json.dumps(row))
        page.locator("#answer").evaluate("node => { node.textContent = '' }")
        page.locator("#ask").click()
        page.wait_for_function("document.getElementById('answer').textContent")
        want = float(bundle.predictor()(bundle.contract.parse_rows([row]))[0])
        assert abs(float(page.locator("#answer").inner_text()) - want) <= 1e-6
    page.locator("#row").fill(json.dumps({"rain": -1, "wind": None, "carrier": "UA"}))
    page.locator("#ask").click()
    page.wait_for_function("document.getElementById('answer').className === 'bad'")
    assert page.locator("#answer").inner_text() == "'rain' is below 0 or not finite"
    assert hosts == {url.split("/")[2]}


def test_a_browser_that_computes_something_else_answers_nobody(
    site: tuple[bundles.Bundle, Path, str], page: Any
) -> None:
    _, folder, url = site
    meta = json.loads((folder / "edge.json").read_text())
    meta["probes"]["scores"][0] += 0.01
    (folder / "edge.json").write_text(json.dumps(meta))
    page.goto(url)
    assert state(page).startswith("cannot start: a kept score moved by ")
