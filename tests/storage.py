"""A web server and an S3-compatible store on loopback, with the faults that real ones have."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

KEY = "workbench-test"


class Storage(ThreadingHTTPServer):
    "Objects by path, /bucket/key, answered as S3 does; plain GET and HEAD work for any web client."

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.faults: list[tuple[str, str]] = []  # (kind, end of the key): each strikes once
        self.asked: list[tuple[str, str]] = []  # (method, path) of every request
        self.closing = threading.Event()

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def s3(self, key: str) -> str:
        "The URL of a key for pyarrow and for us."
        return f"s3://{key}?scheme=http&endpoint_override=127.0.0.1:{self.server_port}&region=us-east-1"

    def fault(self, ending: str) -> str:
        "The next fault for a key, used up by asking."
        for at, (kind, end) in enumerate(self.faults):
            if ending.endswith(end):
                self.faults.pop(at)
                return kind
        return ""

    def handle_error(self, request: object, client_address: object) -> None:
        "A client that hung up is part of the game."


class _Handler(BaseHTTPRequestHandler):
    server: Storage
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, code: int, name: str) -> None:
        body = f'<?xml version="1.0"?><Error><Code>{name}</Code><Message>{name}</Message></Error>'.encode()
        self._answer(code, body, Content_Type="application/xml")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        key, query = unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)
        self.server.asked.append((self.command, key))
        signed = self.headers.get("Authorization", "")
        if signed and f"Credential={KEY}/" not in signed:
            return self._error(403, "InvalidAccessKeyId")
        if "list-type" in query:
            return self._list(key.rstrip("/"), query)
        if key not in self.server.objects:
            return self._error(404, "NoSuchKey")
        self._object(key)

    def _object(self, key: str) -> None:
        data = self.server.objects[key]
        etag, code, more = f'"{hashlib.md5(data).hexdigest()}"', 200, {}
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            first, _, last = asked[6:].partition("-")
            begin = int(first) if first else max(0, len(data) - int(last))
            end = min(int(last), len(data) - 1) if first and last else len(data) - 1
            if begin >= len(data):
                return self._error(416, "InvalidRange")
            more["Content_Range"] = f"bytes {begin}-{end}/{len(data)}"
            data, code = data[begin : end + 1], 206
        kind = self.server.fault(key) if self.command == "GET" else ""
        more |= {"ETag": etag, "Last_Modified": formatdate(0, usegmt=True), "Accept_Ranges": "bytes"}
        self._struck(kind, code, data, more) if kind else self._answer(code, data, **more)

    def _struck(self, kind: str, code: int, data: bytes, headers: dict[str, str]) -> None:
        "An answer with a fault: error, stall (silence), cut (half of it), slow (a byte now and then)."
        if kind == "error":
            return self._error(503, "SlowDown")
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.close_connection = True
        if kind == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        elif kind == "stall":
            self.server.closing.wait(30)
        for byte in data if kind == "slow" else b"":
            if self.server.closing.wait(0.05):
                break
            self.wfile.write(bytes([byte]))

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        after = query.get("start-after", query.get("continuation-token", [""]))[0]
        keys, folders = [], dict[str, None]()
        for path in sorted(self.server.objects):
            key = path.removeprefix(f"{bucket}/")
            if path.startswith(f"{bucket}/") and key.startswith(prefix) and key > after:
                head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                folders.setdefault(prefix + head + delimiter) if found else keys.append(key)
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{hashlib.md5(self.server.objects[f'{bucket}/{key}']).hexdigest()}&quot;</ETag>"
            f"<Size>{len(self.server.objects[f'{bucket}/{key}'])}</Size></Contents>"
            for key in keys
        )
        rows += "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders)
        head = f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(keys) + len(folders)}</KeyCount>"
        body = f"<ListBucketResult>{head}<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        self._answer(200, f'<?xml version="1.0"?>{body}'.encode(), Content_Type="application/xml")

    def do_PUT(self) -> None:
        key = unquote(urlsplit(self.path).path).lstrip("/")
        self.server.objects[key] = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(200, ETag=f'"{hashlib.md5(self.server.objects[key]).hexdigest()}"')


@contextmanager
def storage() -> Iterator[Storage]:
    "A running store."
    server = Storage()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
        time.sleep(0)
