"""A double of the Hugging Face Hub on this machine, for huggingface_hub itself to talk to.

It has two origins: the Hub on 127.0.0.1, and on localhost the storage of large files, whose addresses are signed and to
which no token may go. What it keeps is in hub_git.py, what it answers in hub_answers.py, how it fails in hub_faults.py;
hub_client.py points a client at it. It is a model of the real Hub, made from what its client sends and expects.
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
    """What a client asked; the names of its ``headers`` are in lower case, and ``body`` is what was read of it."""

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
    """A request and what becomes of it.

    A fault either changes ``answer``, which is made by doing what was asked when it is first looked at, or ends the
    exchange itself, by :meth:`send` or :meth:`cut`. What no fault has ended is sent.
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
        self.read()  # or else what is left of it would be taken for the next request
        self._answer = answer

    def read(self, count: int | None = None) -> None:
        """Read the request's body, or ``count`` bytes of it."""
        if not self._was_read:
            self._was_read = True
            self.request.body = self._handler.body(count)

    def send(self, count: int | None = None, *, keep: bool = False) -> None:
        """Send the answer; or of its body ``count`` bytes, and close the connection unless it is to be kept open."""
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
        """End the connection here: by RST, or by FIN, as if all had been said."""
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
        """Whether this is for the request, which uses it up."""
        if self.times == 0 or not request.like(self.method, self.pattern):
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class HubDouble:
    """The double; what it keeps may be looked at and changed at any time, under ``lock`` if it has to be at once."""

    TOKEN = TOKEN

    users: dict[str, User] = field(default_factory=lambda: {TOKEN: User("alice", ("org", "amoudgl"))})
    repos: dict[str, Repo] = field(default_factory=dict)
    store: dict[str, bytes] = field(default_factory=dict)  # the large files by sha256
    log: list[Request] = field(default_factory=list)
    sleeps: list[float] = field(default_factory=list)  # what a client in this process would have waited
    leaks: list[Request] = field(default_factory=list)  # those that brought a token to the storage
    errors: list[BaseException] = field(default_factory=list)  # what went wrong in the double, or in a test's hook
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
        """A repository with a first commit, of ``files`` or of what the Hub itself puts into a new one."""
        with self.lock:
            repo = Repo(name, self.lock, private, gated, store=self.store)
            repo.commit({".gitattributes": ATTRIBUTES} if files is None else files, title="initial commit")
            self.repos[name] = repo
            return repo

    def requests(self, method: str, pattern: str) -> list[Request]:
        """The requests so far whose method and path are like these regular expressions."""
        return [request for request in list(self.log) if request.like(method, pattern)]

    def plant(self, method: str, pattern: str, *faults: Fault, times: int = 1) -> None:
        """Let requests like these fail: each fault ``times`` times, one after the other."""
        with self.lock:
            self._planted += [_Planted(method, pattern, fault, times) for fault in faults]

    def on(self, method: str, pattern: str, hook: Hook, *, when: str = "before", times: int | None = None) -> None:
        """Call ``hook`` before requests like these, or after what they ask is done and before it is answered."""
        assert when in ("before", "after")
        with self.lock:
            self._hooks.append(_Planted(method, pattern, hook, times, when))

    @contextmanager
    def offline(self, *origins: str) -> Iterator[None]:
        """Refuse connections, to both origins unless they are named."""
        servers = [self._servers[origin] for origin in origins or ("hub", "cdn")]
        for server in servers:
            server.stop()
        try:
            yield
        finally:
            for server in servers:
                server.start()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a process whose Hub this is, and whose caches are in ``home``."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        return {**inherited, **ours, **more}

    def answered(self, exchange: Exchange) -> None:
        """What one request goes through."""
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
        for hook in called:  # not under the lock: a hook may itself send requests
            hook.act(exchange.request)


@contextmanager
def serving() -> Iterator[HubDouble]:
    """A double for the block, which must not bring a token to the storage, and has to be up to all that is asked."""
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
    """One origin. While it is stopped it keeps its port, so that nobody else gets it and connections are refused."""

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
        """Without looking up this machine's name, which may take long."""
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
        """A client that goes away is part of the game; anything else is a mistake, and told when serving ends."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            self.hub.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer's head and body travel together
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Be silent."""

    def _any(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, parts.path, query, headers, self.server.origin)
        self.server.hub.answered(Exchange(self, request))

    do_HEAD = do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _any

    def body(self, count: int | None) -> bytes:
        """The request's body, or ``count`` bytes of it.

        Raises:
            ConnectionError: the client was gone before its end, and what it asked must not be done.
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
    """End a connection by RST, once the handler is through; closed here, it is not ended by FIN before that."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        """It has gone already."""
