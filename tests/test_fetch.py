"""Fetching over HTTP from a local server that fails in every way that a server can."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import fault_server
import pytest
from fault_server import Fault, Files
from fetching import DATA, OTHER, PATH, SHA256, impatient, leftovers, pinned

from pylo_zoo import fetch as library
from pylo_zoo.fetch import (
    Access,
    FetchError,
    Forbidden,
    NotFound,
    Unavailable,
    fetch,
    lockfile,
    progress,
)
from pylo_zoo.fetch.errors import Transient
from pylo_zoo.fetch.retry import retrying

# --- successful downloads ----------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(server: Files, access: Access, zoo_home: Path) -> None:
    path = pinned(server, access)
    assert path == zoo_home / "sources" / SHA256 / "theta.state"
    assert path.read_bytes() == DATA
    assert pinned(server, access) == path
    assert len(server.log) == 1
    assert leftovers(zoo_home) == []


def test_a_bucket_by_its_public_address(server: Files, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.parse("gs://dir/a b/params").url == "https://storage.googleapis.com/dir/a%20b/params"
    monkeypatch.setenv("PYLO_ZOO_GCS_ENDPOINT", server.url + "/")
    assert fetch("gs://dir/theta.state", sha256=SHA256, access=access).read_bytes() == DATA


def test_a_local_path_is_verified_and_copied(tmp_path: Path, zoo_home: Path) -> None:
    path = tmp_path / "mine.state"
    path.write_bytes(DATA)
    assert fetch(str(path), sha256=SHA256).read_bytes() == DATA
    path.write_bytes(OTHER)
    with pytest.raises(FetchError, match="sha256"):
        fetch(str(path), sha256="0" * 64)
    with pytest.raises(FetchError, match="cannot be read"):
        fetch(str(tmp_path / "absent"))
    assert leftovers(zoo_home) == []


def test_redirects_on_this_machine_are_followed(server: Files, access: Access) -> None:
    server.plant("/old", fault_server.redirect(PATH))
    assert fetch(f"{server.url}/old", sha256=SHA256, access=access).read_bytes() == DATA


def test_chunks_without_a_length(server: Files, access: Access) -> None:
    zeros = bytes(10_000)
    server.plant("/zeros", fault_server.chunked(10_000))
    assert fetch(f"{server.url}/zeros", access=access).read_bytes() == zeros


# --- successful retries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "requests", "resumed"),
    [
        ([fault_server.status(500)] * 4, 5, False),
        ([fault_server.status(503), fault_server.status(429), fault_server.status(408)], 4, False),
        ([fault_server.reset(50_000)], 2, True),
        ([fault_server.truncated(50_000)], 2, True),
        ([fault_server.truncated(0)], 2, False),
        ([fault_server.truncated(50_000), fault_server.range_ignored], 2, True),
        ([fault_server.truncated(50_000), fault_server.status(416)], 3, True),
    ],
    ids=["500s", "busy", "reset", "truncated", "empty", "range ignored", "range refused"],
)
def test_a_retry_succeeds(
    faults: list[Fault],
    requests: int,
    resumed: bool,
    server: Files,
    access: Access,
    sleeps: list[float],
    zoo_home: Path,
) -> None:
    server.plant(PATH, *faults)
    assert pinned(server, access).read_bytes() == DATA
    gets = server.gets(PATH)
    assert len(gets) == requests
    assert len(sleeps) == requests - 1
    assert all(0.25 * 2**i <= pause <= 0.5 * 2**i for i, pause in enumerate(sleeps))
    assert ("Range" in gets[1]) == resumed
    if resumed:
        assert int(gets[1]["Range"][len("bytes=") : -1]) in range(1, 50_001)
        assert gets[1]["If-Range"] == fault_server.etag(DATA)
    assert leftovers(zoo_home) == []


@pytest.mark.parametrize("fault", [fault_server.silent(1.0, 1000), fault_server.dripping(1.0)])
def test_a_body_that_stops_or_drips_times_out(fault: Fault, server: Files, access: Access) -> None:
    server.plant(PATH, fault)
    assert pinned(server, impatient(access)).read_bytes() == DATA
    assert len(server.gets(PATH)) == 2


@pytest.mark.parametrize("knows_if_range", [True, False])
def test_a_file_that_changes_between_attempts_is_downloaded_from_the_start(
    knows_if_range: bool, server: Files, access: Access
) -> None:
    def change(handler: fault_server.Handler, data: bytes) -> None:
        fault_server.truncated(50_000)(handler, OTHER)

    server.plant(PATH, change, *([] if knows_if_range else [fault_server.if_range_ignored]))
    assert fetch(server.url + PATH, access=access).read_bytes() == DATA
    assert len(server.gets(PATH)) == (2 if knows_if_range else 3)


def test_retry_after_is_honored(server: Files, access: Access, sleeps: list[float]) -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=40), usegmt=True)
    server.plant(PATH, fault_server.status(429, Retry_After="7"), fault_server.status(503, Retry_After=date))
    server.plant(PATH, fault_server.status(503, Retry_After="soon"))
    assert pinned(server, access).read_bytes() == DATA
    assert sleeps[0] == 7
    assert 30 < sleeps[1] <= 40
    assert sleeps[2] <= 2


# --- failures ----------------------------------------------------------------------------------------------------


def test_a_long_retry_after_is_not_honored(server: Files, access: Access, sleeps: list[float]) -> None:
    server.plant(PATH, fault_server.status(429, Retry_After="3600"))
    with pytest.raises(Unavailable, match="answered 429 and requests a wait of 3,600 seconds"):
        pinned(server, access)
    assert sleeps == []


def test_a_server_that_keeps_failing(server: Files, access: Access) -> None:
    server.plant(PATH, fault_server.status(503), times=9)
    with pytest.raises(Unavailable, match="answered 503, 5 times") as caught:
        pinned(server, access)
    assert caught.value.hint.startswith("Download by hand http")
    assert len(server.log) == 5


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (fault_server.status(404), NotFound, "does not exist"),
        (fault_server.status(410), NotFound, "does not exist"),
        (fault_server.status(403), Forbidden, "access denied"),
        (fault_server.status(418), FetchError, "answered 418"),
        (fault_server.body(DATA + b"x"), FetchError, "has 200,001 bytes, not 200,000"),
        (fault_server.body(OTHER), FetchError, f"sha256 {hashlib.sha256(OTHER).hexdigest()}, not {SHA256}"),
        (fault_server.body(DATA, Content_Encoding="gzip"), FetchError, "the Content-Encoding 'gzip'"),
        (fault_server.redirect("http://192.0.2.1/theta.state?sekret"), FetchError, "http:// is not encrypted"),
        (fault_server.redirect("file:///etc/passwd"), FetchError, "not a valid address"),
        (fault_server.redirect("https://u:sekret@192.0.2.1/theta.state"), FetchError, "contains a user name, password"),
        (fault_server.chunked(300_000), FetchError, "larger than 200,000 bytes"),
    ],
)
def test_errors_without_a_retry(
    fault: Fault, kind: type[FetchError], message: str, server: Files, access: Access, zoo_home: Path
) -> None:
    server.plant(PATH, fault)
    with pytest.raises(kind, match=message) as caught:
        pinned(server, access)
    assert type(caught.value) is kind
    assert "sekret" not in str(caught.value)
    assert len(server.log) == 1
    assert leftovers(zoo_home) == []
    assert pinned(server, access).read_bytes() == DATA, "the next run succeeds"


def test_a_redirect_loop(server: Files, access: Access) -> None:
    server.plant(PATH, fault_server.redirect(PATH), times=99)
    with pytest.raises(FetchError, match="redirects more than 5 times"):
        pinned(server, access)
    assert len(server.log) == 6


def test_from_https_to_http_is_refused_even_on_this_machine(monkeypatch: pytest.MonkeyPatch, access: Access) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("pylo_zoo.fetch.http._answer", lambda *arguments: "http://127.0.0.1/x?sekret")
    with pytest.raises(FetchError, match=r"redirects to http://127.0.0.1/x, which is not encrypted"):
        fetch("https://example.org/x", access=access)


def test_an_endless_body_is_cut_off(server: Files, access: Access, zoo_home: Path) -> None:
    server.plant("/endless", fault_server.chunked(1 << 24))
    with pytest.raises(FetchError, match="larger than 100,000 bytes"):
        fetch(f"{server.url}/endless", limit=100_000, access=access)
    server.files["/large"] = bytes(200_000)
    with pytest.raises(FetchError, match="200,000 bytes, more than 100,000"):
        fetch(f"{server.url}/large", limit=100_000, access=access)
    assert leftovers(zoo_home) == []


def test_a_body_without_a_length_or_an_end(server: Files, access: Access) -> None:
    server.plant(PATH, fault_server.no_length)
    with pytest.raises(FetchError, match="does not send the file's length"):
        fetch(server.url + PATH, access=access)
    server.plant(PATH, fault_server.no_length)
    assert pinned(server, access).read_bytes() == DATA


def test_an_empty_file_is_refused(server: Files, access: Access, zoo_home: Path) -> None:
    server.files["/empty"] = b""
    with pytest.raises(FetchError, match="is empty"):
        fetch(f"{server.url}/empty", access=access)
    assert leftovers(zoo_home) == []


def test_a_chunked_body_that_breaks_off(server: Files, access: Access) -> None:
    server.plant("/zeros", fault_server.chunked(5000, ended=False), fault_server.chunked(10_000))
    assert fetch(f"{server.url}/zeros", access=access).read_bytes() == bytes(10_000)


def test_an_unreachable_server(access: Access, sleeps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/theta.state"
        with pytest.raises(Unavailable, match=r"cannot be reached \(Connection refused\), 3 times"):
            fetch(url, access=access)
    assert len(sleeps) == 2


def test_a_slow_unreachable_server_is_not_retried(access: Access) -> None:
    patience = dataclasses.replace(access.policy, patience=0.0)

    def unreachable() -> None:
        time.sleep(0.01)
        raise Transient("is not there", unreachable=True)

    with pytest.raises(Unavailable, match="the file is not there, once"):
        retrying(unreachable, "the file", patience)


def test_no_network(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: object, **keywords: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        Unavailable, match=r"^storage\.googleapis\.com did not resolve in \d attempts?, so gs://bucket/params could not"
    ) as caught:
        fetch("gs://bucket/params", access=access)
    for way in ("https://storage.googleapis.com/bucket/params", "--source"):
        assert way in caught.value.hint


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_uses_only_the_cache(how: str, server: Files, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = dataclasses.replace(access, offline=how == "argument")
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "on")
    with pytest.raises(Unavailable, match="offline mode is on"):
        pinned(server, offline)
    assert server.log == []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    path = pinned(server, access)
    assert pinned(server, offline) == path


# --- addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "http://example.org/x",
        "ftp://example.org/x",
        "package://x/y",
        "https://user:pass@example.org/x",
        "https://example.org/x#part",
        "https://",
        "https://exa mple.org/x",
        "https://example.org:port/x",
        "https://[::1/x",
        "gs://bucket",
        "gs://bucket/../x",
        "gs://bucket//x",
        "gs://bucket/a\\b",
        "gs://bucket/%2e%2e/x",
        "gs://bucket/x?y",
        "gs://bucket/\x1b[31mx",
        "hf://org/repo",
        "hf://org/repo/../x",
        "hf://org/repo@v1/x@v2",
        "hf://org/repo/x@",
        "hf://org/repo/x@a/b",
        "hf://org/repo@/x",
    ],
)
def test_an_invalid_address(uri: str) -> None:
    with pytest.raises(FetchError) as caught:
        fetch(uri)
    assert "pass@" not in str(caught.value)


def test_revisions_of_the_hub() -> None:
    for uri in ("hf://org/repo@v1/sub/x.state", "hf://org/repo/sub/x.state@v1"):
        where = library.parse(uri)
        assert (where.repo, where.revision, where.file, where.name) == ("org/repo", "v1", "sub/x.state", "x.state")
    assert library.parse("hf://org/repo/x").url == "https://huggingface.co/org/repo/resolve/main/x"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/%2e%2e", "file"),
        ("/a/..%2f..%2fetc%2fpasswd", "passwd"),
        ("/a/.hidden", "hidden"),
        ("/a/-rf", "rf"),
        ("/a/b%00c%1b%5b31m", "b_c__31m"),
        ("/a/c:%5cwindows%5cx", "x"),
        ("/" + "n" * 300, "n" * 100),
        ("/", "file"),
    ],
)
def test_a_hostile_name_stays_in_the_cache(path: str, name: str, server: Files, access: Access, zoo_home: Path) -> None:
    server.files[path] = DATA
    assert fetch(server.url + path, sha256=SHA256, access=access) == zoo_home / "sources" / SHA256 / name


def test_a_query_is_treated_as_a_secret(server: Files, access: Access, zoo_home: Path) -> None:
    url = f"{server.url}{PATH}?token=sekret"
    messages: list[str] = []
    assert fetch(url, access=dataclasses.replace(access, notify=messages.append)).read_bytes() == DATA
    server.plant(PATH, fault_server.status(404))
    with pytest.raises(NotFound) as caught:
        fetch(url, access=access)
    texts = [str(caught.value), *messages, *(str(path) for path in zoo_home.rglob("*"))]
    assert not any("sekret" in text for text in texts)
    assert not (zoo_home / "zoo.lock").exists(), "a signed address expires"


# --- progress ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "terminal", "variable", "shown"),
    [(True, True, "", True), (False, True, "", False), (True, False, "", False), (True, True, "1", False)],
)
def test_progress_is_shown_on_terminals(
    requested: bool,
    terminal: bool,
    variable: str,
    shown: bool,
    server: Files,
    access: Access,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", variable)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    bar: Callable[..., Any] = progress.bar
    recorded = []
    monkeypatch.setattr(progress, "bar", lambda name, show: recorded.append(show) or bar(name, show))
    pinned(server, dataclasses.replace(access, progress=requested))
    out, err = capsys.readouterr()
    assert recorded == [shown]
    assert out == ""
    assert ("theta.state" in err) == shown


def test_the_lock_file_is_next_to_the_cache_by_default(zoo_home: Path) -> None:
    assert lockfile.location() == zoo_home / "zoo.lock"
