"""A local double of the Hugging Face Hub for the real huggingface_hub client.

It has two origins: the Hub on 127.0.0.1, and the storage of large files on localhost, whose addresses are signed and
which must never receive a token. hub_git.py holds its data, hub_answers.py its responses, hub_faults.py its failures;
hub_client.py connects a client. It is modeled on what the real client sends and expects.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import hub_answers
from hub_calls import Answer
from hub_git import ATTRIBUTES, Blob, Refusal, Repo, User

if TYPE_CHECKING:
    from hub_faults import Chaos

__all__ = ["TOKEN", "Answer", "Blob", "Exchange", "Fault", "HubDouble", "Refusal", "Repo", "Request", "User", "serving"]

TOKEN = "hf_sekretsekretsekret"


@dataclass
class Request:
    """A client's request; header names are in lower case, ``body`` is the part that was read."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    origin: str  # "hub" or "cdn"
    body: bytes = b""

    def like(self, method: str, pattern: str) -> bool:
        return re.fullmatch(method, self.method) is not None and re.search(pattern, self.path) is not None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Exchange:
    """A request and its response.

    A fault either changes ``answer``, which executes the request on first access, or ends the exchange with
    :meth:`send` or :meth:`cut`. The answer is sent if no fault ended the exchange.
    """

    def __init__(self, handler: _Handler, request: Request) -> None:
        self.hub = handler.server.hub
        self.request = request
        self.ended = False
        self._handler = handler
        self._answer: Answer | None = None
        self._was_read = False

    @property
    def answer(self) -> Answer:
        if self._answer is None:
            self.read()
            self._answer = hub_answers.answer(self.hub, self.request)
            self.hub._hook("after", self)
        return self._answer

    @answer.setter
    def answer(self, answer: Answer) -> None:
        self.read()  # otherwise the rest would be parsed as the next request
        self._answer = answer

    def read(self, count: int | None = None) -> None:
        """Read the request's body, or ``count`` bytes of it."""
        if not self._was_read:
            self._was_read = True
            self.request.body = self._handler.body(count)

    def send(self, count: int | None = None, *, keep: bool = False) -> None:
        """Send the answer, or ``count`` bytes of its body; close the connection unless it is kept alive."""
        answer = self.answer
        self.ended = True
        handler = self._handler
        handler.send_response(answer.status)
        length = 0 if answer.status == 304 else len(answer.body)
        for name, value in {"Content-Length": str(length), **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if self.request.method != "HEAD":
            handler.wfile.write(answer.body[:count])
        handler.wfile.flush()
        if count is not None and not keep:
            handler.close_connection = True

    def cut(self, *, hard: bool = True) -> None:
        """End the connection: by RST, or by FIN as after a complete response."""
        self.ended = True
        self._handler.close_connection = True
        if hard:
            _reset(self._handler.connection)


Fault = Callable[[Exchange], None]
Hook = Callable[[Request], object]


@dataclass
class _Planted:
    method: str
    pattern: str
    act: Callable[[Any], object]
    times: int | None
    when: str = ""

    def takes(self, request: Request) -> bool:
        """Whether the fault applies to the request; if so, one use is consumed."""
        if self.times == 0 or not request.like(self.method, self.pattern):
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class HubDouble:
    """The double. Tests may read and change its data at any time, under ``lock`` if several accesses must be atomic."""

    TOKEN = TOKEN

    users: dict[str, User] = field(default_factory=lambda: {TOKEN: User("alice", ("org", "amoudgl"))})
    repos: dict[str, Repo] = field(default_factory=dict)
    store: dict[str, bytes] = field(default_factory=dict)  # large files by sha256
    log: list[Request] = field(default_factory=list)
    sleeps: list[float] = field(default_factory=list)  # pauses that a client in this process requested
    leaks: list[Request] = field(default_factory=list)  # requests that sent a token to the storage
    errors: list[BaseException] = field(default_factory=list)  # errors in the double or in a test's hook
    chaos: Chaos | None = None
    lock: Any = field(default_factory=threading.RLock)
    closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._planted: list[_Planted] = []
        self._hooks: list[_Planted] = []
        self._servers = {origin: _Server(self, origin) for origin in ("hub", "cdn")}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers['hub'].port}"

    @property
    def cdn_url(self) -> str:
        return f"http://localhost:{self._servers['cdn'].port}"

    def create(
        self, name: str, files: Mapping[str, bytes] | None = None, *, private: bool = False, gated: bool = False
    ) -> Repo:
        """A repository with a first commit of ``files``, or of what the Hub puts into a new one."""
        with self.lock:
            repo = Repo(name, self.lock, private, gated, store=self.store)
            repo.commit({".gitattributes": ATTRIBUTES} if files is None else files, title="initial commit")
            self.repos[name] = repo
            return repo

    def requests(self, method: str, pattern: str) -> list[Request]:
        """The requests so far whose method and path match these regular expressions."""
        return [request for request in list(self.log) if request.like(method, pattern)]

    def plant(self, method: str, pattern: str, *faults: Fault, times: int = 1) -> None:
        """Make matching requests fail: each fault ``times`` times, one after the other."""
        with self.lock:
            self._planted += [_Planted(method, pattern, fault, times) for fault in faults]

    def on(self, method: str, pattern: str, hook: Hook, *, when: str = "before", times: int | None = None) -> None:
        """Call ``hook`` before matching requests, or after they are executed and before the response."""
        assert when in ("before", "after")
        with self.lock:
            self._hooks.append(_Planted(method, pattern, hook, times, when))

    @contextmanager
    def offline(self, *origins: str) -> Iterator[None]:
        """Refuse connections to these origins, by default to both."""
        servers = [self._servers[origin] for origin in origins or ("hub", "cdn")]
        for server in servers:
            server.stop()
        try:
            yield
        finally:
            for server in servers:
                server.start()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Environment for a process that uses this Hub and keeps its caches in ``home``."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        return {**inherited, **ours, **more}

    def handle(self, exchange: Exchange) -> None:
        """Handle one request."""
        request = exchange.request
        with self.lock:
            self.log.append(request)
            if request.origin == "cdn" and "authorization" in request.headers:
                self.leaks.append(request)
        self._hook("before", exchange)
        with self.lock:
            fault = next((each.act for each in self._planted if each.takes(request)), None)
            if fault is None and self.chaos is not None:
                fault = self.chaos.strike(request)
        if fault is not None:
            fault(exchange)
        if not exchange.ended:
            exchange.send()

    def _hook(self, when: str, exchange: Exchange) -> None:
        with self.lock:
            called = [hook for hook in self._hooks if hook.when == when and hook.takes(exchange.request)]
        for hook in called:  # not under the lock: a hook may send requests
            hook.act(exchange.request)


@contextmanager
def serving() -> Iterator[HubDouble]:
    """Run a double for the block; fail if a token reached the storage or a request was not supported."""
    hub = HubDouble()
    for server in hub._servers.values():
        server.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        for server in hub._servers.values():
            server.stop(for_good=True)
    assert not hub.leaks, f"A token went to the storage: {[*map(str, hub.leaks)]}"
    if hub.errors:
        raise hub.errors[0]


class _Server(ThreadingHTTPServer):
    """One origin. While stopped, it keeps its port, so no other process gets it and connections are refused."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: HubDouble, origin: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.server_bind()
        self.hub = hub
        self.origin = origin
        self.port = self.server_address[1]
        self._connections: set[socket.socket] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self.server_activate()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def stop(self, *, for_good: bool = False) -> None:
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
            self._thread = None
        self.server_close()
        with self.hub.lock:
            connections = list(self._connections)
        for connection in connections:
            _shut(connection)
        if not for_good:
            self.socket = socket.socket(self.address_family, self.socket_type)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(("127.0.0.1", self.port))

    def server_bind(self) -> None:
        """Skip the slow lookup of this machine's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.hub.lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.hub.lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect; anything else is an error that is reported when serving ends."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            self.hub.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # send head and body of an answer together
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def _any(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, parts.path, query, headers, self.server.origin)
        self.server.hub.handle(Exchange(self, request))

    do_HEAD = do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _any

    def body(self, count: int | None) -> bytes:
        """The request's body, or ``count`` bytes of it.

        Raises:
            ConnectionError: the client disconnected before the end, so the request must not be executed.
        """
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while count is None or len(body) < count:
                size = int(self.rfile.readline() or b"-1", 16)
                piece = self.rfile.read(max(size, 0))
                if size < 0 or len(piece) < size or not self.rfile.readline():
                    raise ConnectionError("The client went away.")
                if not size:
                    break
                body += piece
            return body[:count]
        announced = int(self.headers.get("Content-Length", 0))
        length = announced if count is None else min(count, announced)
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError("The client went away.")
        return body


def _reset(connection: socket.socket) -> None:
    """End a connection by RST when the handler returns; closing it here prevents an earlier FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        """The client disconnected already."""
