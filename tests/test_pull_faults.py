"""Faults while pulling: a retry succeeds or one clear error is raised, and no partial artifact remains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_faults
import published
import pytest
from hub_double import Exchange, Fault, HubDouble, Repo
from hub_faults import HOSTILE_NAMES
from pulling import BODIES, ID, REQUESTS, TREE, is_whole, nothing_half, refused

from pylo_zoo import weights
from pylo_zoo.fetch import Access, FetchError, NotFound, Policy, Unavailable, client

pytestmark = pytest.mark.usefixtures("in_an_empty_directory")


@pytest.fixture
def access() -> Access:
    return Access(policy=Policy(timeout=0.5, sleep=lambda seconds: None))


# --- temporary faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize(
    "fault",
    [
        hub_faults.status(429, Retry_After="0"),
        hub_faults.status(503),
        hub_faults.status(500),
        hub_faults.reset,
        hub_faults.cut(20),
        hub_faults.truncated(20),
    ],
    ids=["429", "503", "500", "reset", "cut", "truncated"],
)
def test_a_retry_succeeds(
    fault: Fault, request_: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path
) -> None:
    hub.plant(*REQUESTS[request_], fault)
    weights.pull(ID, access=access)
    assert is_whole(zoo_home, repo)


@pytest.mark.parametrize("name", REQUESTS)
def test_an_empty_answer_is_requested_again(
    name: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path
) -> None:
    hub.plant(*REQUESTS[name], hub_faults.empty)
    weights.pull(ID, access=access)
    assert is_whole(zoo_home, repo)


def silent(outlasted: list[str]) -> Fault:
    """No answer for a minute. ``outlasted`` receives the path if the client waits that long."""

    def fault(exchange: Exchange) -> None:
        exchange.read()
        if not exchange.hub.closing.wait(60):
            outlasted.append(exchange.request.path)
        exchange.cut(hard=False)

    return fault


@pytest.mark.parametrize("name", BODIES)
def test_silence_is_bounded(name: str, repo: Repo, hub: HubDouble, zoo_home: Path) -> None:
    outlasted: list[str] = []
    hub.plant(*REQUESTS[name], silent(outlasted))
    weights.pull(ID, access=Access(policy=Policy(timeout=0.2, sleep=lambda seconds: None)))
    assert outlasted == [], "the client waited until the server closed the connection"
    assert len(hub.requests(*REQUESTS[name])) >= 2, "no other attempt after the timeout"
    assert is_whole(zoo_home, repo)


@pytest.mark.parametrize("name", ["config GET", "weights GET", "proof GET", "card GET"])
def test_other_bytes_of_the_right_length(name: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path) -> None:
    """The client accepts the wrong bytes and would keep returning them."""
    hub.plant(*REQUESTS[name], hub_faults.wrong_bytes, times=9)
    error = refused(access, FetchError)
    reason = "the expected file" if name == "weights GET" else "the file that the Hub describes"
    assert f"is not {reason}" in error.message
    assert not (zoo_home / "hub").exists()
    assert not (zoo_home / "zoo.lock").exists()
    assert nothing_half(zoo_home)
    hub._planted.clear()
    weights.pull(ID, access=access)
    assert is_whole(zoo_home, repo), "although the client's cache has the wrong bytes"


# --- permanent faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUESTS)
def test_a_server_that_keeps_failing(name: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path) -> None:
    hub.plant(*REQUESTS[name], hub_faults.status(503), times=99)
    assert "answered 503, 5 times" in refused(access, Unavailable).message
    assert not (zoo_home / "hub").exists()
    assert nothing_half(zoo_home)


@pytest.mark.parametrize("name", ["info", "revision", "config HEAD", "weights GET"])
def test_a_server_that_requests_hours_of_waiting(name: str, repo: Repo, hub: HubDouble, access: Access) -> None:
    hub.plant(*REQUESTS[name], hub_faults.status(429, Retry_After="86400"), times=99)
    assert "answered 429 and requests a wait of 86,400 seconds" in refused(access, Unavailable).message
    assert len(hub.requests(*REQUESTS[name])) == 1


@pytest.mark.parametrize(
    ("name", "revision", "complaint"),
    [
        ("org/nosuch", None, "the repository org/nosuch does not exist"),
        (ID, "nosuch", "org/elo has no revision nosuch"),
        (ID, "0" * 40, f"org/elo has no revision {'0' * 40}"),
    ],
)
def test_missing_repositories_and_revisions(
    name: str, revision: str | None, complaint: str, repo: Repo, access: Access
) -> None:
    with pytest.raises(NotFound, match=complaint):
        weights.pull(name, revision=revision, access=access)


def test_a_listed_file_that_does_not_exist(repo: Repo, hub: HubDouble, access: Access, zoo_home: Path) -> None:
    hub.plant(*REQUESTS["proof HEAD"], hub_faults.status(404, X_Error_Code="EntryNotFound"), times=9)
    assert "org/elo has no file parity.json" in refused(access, NotFound).message
    assert not (zoo_home / "hub").exists()


def sibling(description: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in description["siblings"] if each["rfilename"] == name)


def smaller(description: dict[str, Any]) -> None:
    sibling(description, "config.json")["size"] -= 1


def another_hash(description: dict[str, Any]) -> None:
    sibling(description, "model.safetensors")["lfs"]["sha256"] = "0" * 64


def another_blob(description: dict[str, Any]) -> None:
    sibling(description, "config.json")["blobId"] = "0" * 40


def path_for_a_hash(description: dict[str, Any]) -> None:
    sibling(description, "model.safetensors")["lfs"]["sha256"] = "../../evil"


def negative(description: dict[str, Any]) -> None:
    sibling(description, "config.json")["size"] = -1


def enormous(description: dict[str, Any]) -> None:
    sibling(description, "model.safetensors")["lfs"]["size"] = 10**15


def large_text(description: dict[str, Any]) -> None:
    sibling(description, "parity.json")["size"] = 17 * 2**20


def another_commit(description: dict[str, Any]) -> None:
    description["sha"] = "1" * 40


def no_commit(description: dict[str, Any]) -> None:
    description["sha"] = "../../evil"


LIES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (smaller, "larger than|is not the expected file"),
    (another_hash, "is not the expected file: sha256"),
    (another_blob, "is not the file that the Hub describes"),
    (path_for_a_hash, "answered with an invalid description of a file, 5 times"),
    (negative, "answered with an invalid description of a file"),
    (enormous, r"model\.safetensors has 1,000,000,000,000,000 bytes, more than 67,108,864"),
    (large_text, r"parity\.json has 17,825,792 bytes, more than 4,194,304"),
    (another_commit, "answered .* with another commit, 1111"),
    (no_commit, "answered without a valid commit"),
]


@pytest.mark.parametrize(("lie", "complaint"), LIES, ids=[lie.__name__ for lie, _ in LIES])
def test_a_listing_that_contradicts_the_bytes(
    lie: Callable[[dict[str, Any]], None], complaint: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path
) -> None:
    hub.plant("GET", TREE, hub_faults.changed_json(lie), times=9)
    with pytest.raises(FetchError, match=complaint):
        weights.pull(ID, access=access)
    assert not (zoo_home / "hub").exists()
    assert nothing_half(zoo_home)


@pytest.mark.parametrize("name", ["info", "revision"])
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'"x"', b"{}", b'{"id": 3}', b"[" * 100_000])
def test_a_malformed_description(body: bytes, name: str, repo: Repo, hub: HubDouble, access: Access) -> None:
    hub.plant(*REQUESTS[name], hub_faults.body(body), times=9)
    assert "5 times" in refused(access, Unavailable).message


# --- malicious servers -------------------------------------------------------------------------------------------

EVIL = ("../../../../../evil", "/tmp/evil", "..", "a/b", '"../evil"', "evil\x1b[31m", "a" * 300)


@pytest.mark.parametrize("value", EVIL)
@pytest.mark.parametrize("header", ["ETag", "X_Linked_Etag", "X_Repo_Commit"])
def test_headers_with_paths(
    header: str, value: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path, tmp_path: Path
) -> None:
    hub.plant("HEAD|GET", "/resolve/", hub_faults.headers(**{header: value}), times=99)
    around = tmp_path.parent
    before = {path for path in around.rglob("*") if "evil" in path.name}
    error = refused(access, FetchError)
    assert f"answered with the invalid {header.replace('_', '-')}" in error.message
    assert {path for path in around.rglob("*") if "evil" in path.name} == before
    assert not Path("/tmp/evil").exists()
    assert not (zoo_home / "hub").exists()


@pytest.mark.parametrize("name", ["info", "revision", "config HEAD", "config GET", "weights HEAD"])
@pytest.mark.parametrize("target", ["http://hub.example/x", "ftp://hub.example/x", "file:///etc/passwd"])
def test_a_redirect_to_an_unencrypted_address(
    target: str, name: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path
) -> None:
    hub.plant(*REQUESTS[name], hub_faults.redirect(target), times=99)
    refused(access, FetchError)
    assert not (zoo_home / "hub").exists()


@pytest.mark.parametrize("name", ["info", "config HEAD", "config GET"])
def test_a_redirect_elsewhere_carries_no_token(name: str, repo: Repo, hub: HubDouble, access: Access) -> None:
    hub.plant(*REQUESTS[name], hub_faults.redirect(f"{hub.cdn_url}/{'0' * 64}"), times=99)
    refused(access, FetchError)
    followed = [request for request in hub.log if request.origin == "cdn"]
    assert followed or name == "config HEAD", "the address of the large file"
    assert hub.leaks == []


def test_names_that_lead_elsewhere(repo: Repo, hub: HubDouble, access: Access, zoo_home: Path, tmp_path: Path) -> None:
    repo.extra_siblings += [*HOSTILE_NAMES, "../config.json", "/model.safetensors"]
    before = published.tree(tmp_path)
    weights.pull(ID, access=access)
    assert is_whole(zoo_home, repo)
    other_repo = hub.create("org/theirs", {"x.txt": b"x"})
    for name in (
        "../evil.state",
        "/etc/evil.state",
        "a/../../evil.state",
        "..\\evil.state",
        "evil\n.state",
        "%2e.state",
    ):
        other_repo.extra_siblings[:] = [name]
        refused(access, FetchError, name="org/theirs")
    assert published.tree(tmp_path) == before
    assert all("evil" not in request.path for request in hub.log)
    assert nothing_half(zoo_home)


def endless(piece: bytes, pause: float = 0.0) -> Fault:
    """A chunked body that does not end."""

    def fault(exchange: Exchange) -> None:
        exchange.answer.headers = {**exchange.answer.headers, "Transfer-Encoding": "chunked"}
        handler = exchange._handler
        exchange.ended = True
        handler.send_response(200)
        for name, value in exchange.answer.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        chunk = b"%x\r\n%s\r\n" % (len(piece), piece)
        while not exchange.hub.closing.wait(pause):
            handler.wfile.write(chunk)
            handler.wfile.flush()

    return fault


@pytest.mark.parametrize("name", BODIES)
def test_an_endless_answer(
    name: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 2**20)
    monkeypatch.setattr(client, "MAX_API_BYTES", 2**20)
    hub.plant(*REQUESTS[name], endless(b" " * 65536), times=9)
    assert "is larger than 1,048,576 bytes" in refused(access, FetchError).message
    assert nothing_half(zoo_home)


@pytest.mark.parametrize("name", ["revision", "config GET", "weights GET"])
def test_an_answer_that_drips(name: str, repo: Repo, hub: HubDouble, zoo_home: Path) -> None:
    hub.plant(*REQUESTS[name], endless(b" ", 0.02), times=9)
    sleeps: list[float] = []
    access = Access(policy=Policy(timeout=0.15, attempts=2, sleep=sleeps.append))
    assert "bytes in 0 seconds" in refused(access, Unavailable).message
    assert len(sleeps) == 1, "two attempts, each given up"
    assert len(hub.requests(*REQUESTS[name])) == 2
    assert nothing_half(zoo_home)
