"""A local HTTP server that serves files correctly or fails in one of many ways.

:class:`Files` serves plain files like a bucket. Faults are planted per path; each is used once unless planted for more
requests. The Hub has a separate double, in hub_double.py.
"""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Fault = Callable[["Handler", bytes], None]


class Files(ThreadingHTTPServer):
    """The server: ``files`` and ``faults`` by path; ``log`` holds every request as (method, path, headers)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.log: list[tuple[str, str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def plant(self, path: str, *faults: Fault, times: int = 1) -> None:
        self.faults[path] += [*faults] * times

    def gets(self, path: str) -> list[dict[str, str]]:
        """The headers of every GET of ``path``."""
        return [headers for method, requested, headers in self.log if method == "GET" and requested == path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect; tests do that on purpose."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Files  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.log.append((self.command, path, dict(self.headers)))
        data = self.server.files.get(path)
        if self.command == "GET" and self.server.faults[path]:
            self.server.faults[path].pop(0)(self, data or b"")
        elif data is None:
            self.answer(404, b"no such file")
        else:
            self.file(data)

    def file(self, data: bytes) -> None:
        """The correct response: the whole file, or the requested range if ``If-Range`` still matches."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", etag(data)) == etag(data)
        if match and same and int(match[1]) >= len(data):
            self.answer(416, b"")
        elif match and same:
            start = int(match[1])
            content_range = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(206, data[start:], {"ETag": etag(data), "Content-Range": content_range})
        else:
            self.answer(200, data, {"ETag": etag(data)})

    def answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()}"'


@contextmanager
def serving() -> Iterator[Files]:
    """Run a server for the block."""
    server = Files()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- faults ------------------------------------------------------------------------------------------------------


def status(code: int, **headers: str) -> Fault:
    """An error status; ``Retry_After`` stands for ``Retry-After``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, data: handler.answer(code, b"no", named)


def redirect(target: str, code: int = 302) -> Fault:
    return lambda handler, data: handler.answer(code, b"", {"Location": target})


def truncated(count: int) -> Fault:
    """Send ``count`` of the announced bytes, then close the connection."""

    def fault(handler: Handler, data: bytes) -> None:
        handler.answer(200, data[:count], {"ETag": etag(data)}, length=len(data))
        handler.close_connection = True

    return fault


def reset(count: int) -> Fault:
    """Send ``count`` of the announced bytes, then RST."""

    def fault(handler: Handler, data: bytes) -> None:
        handler.answer(200, data[:count], {"ETag": etag(data)}, length=len(data))
        time.sleep(0.1)  # give the client time to read: RST discards unread bytes
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
        handler.close_connection = True

    return fault


def body(other: bytes, **headers: str) -> Fault:
    """200 with another body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, data: handler.answer(200, other, {"ETag": etag(other), **named})


def range_ignored(handler: Handler, data: bytes) -> None:
    """Send the whole file even if a range was requested."""
    handler.answer(200, data, {"ETag": etag(data)})


def if_range_ignored(handler: Handler, data: bytes) -> None:
    """Send the rest of another version of the file."""
    start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    content_range = f"bytes {start}-{len(data) - 1}/{len(data)}"
    handler.answer(206, data[start:], {"ETag": etag(data), "Content-Range": content_range})


def silent(seconds: float, count: int = 0) -> Fault:
    """Send ``count`` bytes, then nothing for ``seconds``."""

    def fault(handler: Handler, data: bytes) -> None:
        handler.answer(200, data[:count], {"ETag": etag(data)}, length=len(data))
        handler.wfile.flush()
        time.sleep(seconds)
        handler.close_connection = True

    return fault


def dripping(seconds: float) -> Fault:
    """Send one byte at a time, with pauses."""

    def fault(handler: Handler, data: bytes) -> None:
        handler.answer(200, b"", {"ETag": etag(data)}, length=len(data))
        end = time.monotonic() + seconds
        for i in range(len(data)):
            if time.monotonic() > end:
                break
            handler.wfile.write(data[i : i + 1])
            time.sleep(0.05)
        handler.close_connection = True

    return fault


def chunked(total: int, *, ended: bool = True) -> Fault:
    """Send ``total`` zero bytes in chunks without a length; the last chunk is missing unless ``ended``."""

    def fault(handler: Handler, data: bytes) -> None:
        handler.answer(200, b"", {"Transfer-Encoding": "chunked"}, length=-1)
        for start in range(0, total, 4096):
            piece = bytes(min(4096, total - start))
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if ended:
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    return fault


def no_length(handler: Handler, data: bytes) -> None:
    """Send a body that ends with the connection, as in HTTP/1.0."""
    handler.answer(200, data, length=-1)
    handler.close_connection = True


def slowly(seconds: float, pieces: int = 20) -> Fault:
    """Send the whole file slowly, even if a range was requested."""

    def fault(handler: Handler, data: bytes) -> None:
        handler.answer(200, b"", {"ETag": etag(data)}, length=len(data))
        step = -(-len(data) // pieces)
        for start in range(0, len(data), step):
            handler.wfile.write(data[start : start + step])
            handler.wfile.flush()
            time.sleep(seconds / pieces)

    return fault
