"""Whatever goes wrong while pulling: another attempt, or one clear message, and never half an artifact."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_faults
import published
import pytest
from fetching import leftovers
from hub_double import Exchange, Fault, HubDouble, Repo
from hub_faults import HOSTILE_NAMES

import pylo_zoo
from pylo_zoo import weights
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, FetchError, NotFound, Policy, Unavailable, client, lockfile
from pylo_zoo.files import left_behind

ID, URI = "org/elo", "hf://org/elo"
INFO = r"^/api/models/org/elo$"
TREE = r"^/api/models/org/elo/revision/"
STORAGE = r"^/[0-9a-f]{64}$"


def asked(method: str, name: str) -> tuple[str, str]:
    return method, rf"/resolve/[0-9a-f]{{40}}/{name}$"


REQUESTS: dict[str, tuple[str, str]] = {
    "info": ("GET", INFO),
    "revision": ("GET", TREE),
    "config HEAD": asked("HEAD", "config.json"),
    "config GET": asked("GET", "config.json"),
    "weights HEAD": asked("HEAD", "model.safetensors"),
    "weights GET": ("GET", STORAGE),
    "proof HEAD": asked("HEAD", "parity.json"),
    "proof GET": asked("GET", "parity.json"),
    "card HEAD": asked("HEAD", "README.md"),
    "card GET": asked("GET", "README.md"),
}
"""Every kind of request of a first pull."""
BODIES = [name for name in REQUESTS if not name.endswith("HEAD")]


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def repo(hub: HubDouble) -> Repo:
    return hub.create(ID, published.files())


@pytest.fixture
def access() -> Access:
    return Access(policy=Policy(timeout=0.5, sleep=lambda seconds: None))


def is_whole(home: Path, repo: Repo) -> bool:
    """Whether the cache has the artifact that was published and no half of anything."""
    here = weights.pull(ID, access=Access(offline=True))
    same = all((here.directory / name).read_bytes() == repo.files()[name] for name in published.TAKEN)
    return same and nothing_half(home)


def nothing_half(home: Path) -> bool:
    """Whether all there is in the cache are whole files, whole artifacts, locks and the lock file."""
    artifacts = [path for path in (home / "hub").glob("*/*") if not left_behind(path.name)]
    complete = all((path / "SHA256SUMS").is_file() and len(path.name) == 40 for path in artifacts)
    return complete and all(name == "zoo.lock" or name.startswith("hub/") for name in leftovers(home))


def refused(access: Access, *kinds: type[ZooError], name: str = ID) -> ZooError:
    with pytest.raises(kinds or ZooError) as error:
        weights.pull(name, access=access)
    assert error.value.hint
    assert "sekret" not in str(error.value)
    return error.value


# --- what passes -------------------------------------------------------------------------------------------------


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
def test_another_attempt_helps(
    fault: Fault, request_: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path
) -> None:
    hub.plant(*REQUESTS[request_], fault)
    weights.pull(ID, access=access)
    assert is_whole(zoo_home, repo)


@pytest.mark.parametrize("name", REQUESTS)
def test_an_empty_answer_is_asked_for_again(
    name: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path
) -> None:
    hub.plant(*REQUESTS[name], hub_faults.empty)
    weights.pull(ID, access=access)
    assert is_whole(zoo_home, repo)


@pytest.mark.parametrize("name", BODIES)
def test_silence_is_bounded(name: str, repo: Repo, hub: HubDouble, zoo_home: Path) -> None:
    hub.plant(*REQUESTS[name], hub_faults.silent(5))
    access = Access(policy=Policy(timeout=0.2, sleep=lambda seconds: None))
    start = time.monotonic()
    weights.pull(ID, access=access)
    assert time.monotonic() - start < 4
    assert is_whole(zoo_home, repo)


@pytest.mark.parametrize("name", ["config GET", "weights GET", "proof GET", "card GET"])
def test_other_bytes_of_the_right_length(name: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path) -> None:
    """The client believes them, and would go on doing so."""
    hub.plant(*REQUESTS[name], hub_faults.wrong_bytes, times=9)
    said = refused(access, FetchError)
    assert "is not the file that" in said.message
    assert not (zoo_home / "hub").exists()
    assert not (zoo_home / "zoo.lock").exists()
    assert nothing_half(zoo_home)
    hub._planted.clear()
    weights.pull(ID, access=access)
    assert is_whole(zoo_home, repo), "although the client's cache has the wrong ones"


# --- what does not -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUESTS)
def test_a_server_that_stays_broken(name: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path) -> None:
    hub.plant(*REQUESTS[name], hub_faults.status(503), times=99)
    assert "answered 503, 5 times" in refused(access, Unavailable).message
    assert not (zoo_home / "hub").exists()
    assert nothing_half(zoo_home)


@pytest.mark.parametrize("name", ["info", "revision", "config HEAD", "weights GET"])
def test_a_server_that_asks_to_wait_for_hours(name: str, repo: Repo, hub: HubDouble, access: Access) -> None:
    hub.plant(*REQUESTS[name], hub_faults.status(429, Retry_After="86400"), times=99)
    assert "answered 429 and asks to wait 86,400 seconds" in refused(access, Unavailable).message
    assert len(hub.requests(*REQUESTS[name])) == 1


@pytest.mark.parametrize(
    ("name", "revision", "complaint"),
    [
        ("org/nosuch", None, "there is no repository org/nosuch"),
        (ID, "nosuch", "org/elo has no revision nosuch"),
        (ID, "0" * 40, f"org/elo has no revision {'0' * 40}"),
    ],
)
def test_what_is_not_there(name: str, revision: str | None, complaint: str, repo: Repo, access: Access) -> None:
    with pytest.raises(NotFound, match=complaint):
        weights.pull(name, revision=revision, access=access)


def test_a_file_that_is_listed_and_not_there(repo: Repo, hub: HubDouble, access: Access, zoo_home: Path) -> None:
    hub.plant(*REQUESTS["proof HEAD"], hub_faults.status(404, X_Error_Code="EntryNotFound"), times=9)
    assert "org/elo has no file parity.json" in refused(access, NotFound).message
    assert not (zoo_home / "hub").exists()


def sibling(said: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in said["siblings"] if each["rfilename"] == name)


def smaller(said: dict[str, Any]) -> None:
    sibling(said, "config.json")["size"] -= 1


def another_hash(said: dict[str, Any]) -> None:
    sibling(said, "model.safetensors")["lfs"]["sha256"] = "0" * 64


def another_blob(said: dict[str, Any]) -> None:
    sibling(said, "config.json")["blobId"] = "0" * 40


def path_for_a_hash(said: dict[str, Any]) -> None:
    sibling(said, "model.safetensors")["lfs"]["sha256"] = "../../evil"


def negative(said: dict[str, Any]) -> None:
    sibling(said, "config.json")["size"] = -1


def enormous(said: dict[str, Any]) -> None:
    sibling(said, "model.safetensors")["lfs"]["size"] = 10**15


def large_text(said: dict[str, Any]) -> None:
    sibling(said, "parity.json")["size"] = 17 * 2**20


def another_commit(said: dict[str, Any]) -> None:
    said["sha"] = "1" * 40


def no_commit(said: dict[str, Any]) -> None:
    said["sha"] = "../../evil"


LIES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (smaller, "larger than|is not the file that it should be"),
    (another_hash, "is not the file that it should be: sha256"),
    (another_blob, "is not the file that the Hub describes"),
    (path_for_a_hash, "was described with a file that can be none, 5 times"),
    (negative, "was described with a file that can be none"),
    (enormous, r"model\.safetensors has 1,000,000,000,000,000 bytes, more than 268,435,456"),
    (large_text, r"parity\.json has 17,825,792 bytes, more than 16,777,216"),
    (another_commit, "was answered with the commit 1111"),
    (no_commit, "was described without a commit"),
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
def test_a_description_that_is_none(body: bytes, name: str, repo: Repo, hub: HubDouble, access: Access) -> None:
    hub.plant(*REQUESTS[name], hub_faults.body(body), times=9)
    assert "5 times" in refused(access, Unavailable).message


# --- servers that mean harm --------------------------------------------------------------------------------------

EVIL = ("../../../../../evil", "/tmp/evil", "..", "a/b", '"../evil"', "evil\x1b[31m", "a" * 300)


@pytest.mark.parametrize("value", EVIL)
@pytest.mark.parametrize("header", ["ETag", "X_Linked_Etag", "X_Repo_Commit"])
def test_headers_that_would_become_paths(
    header: str, value: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path, tmp_path: Path
) -> None:
    hub.plant("HEAD|GET", "/resolve/", hub_faults.headers(**{header: value}), times=99)
    around = tmp_path.parent
    before = {path for path in around.rglob("*") if "evil" in path.name}
    said = refused(access, FetchError)
    assert f"was answered with the {header.replace('_', '-')}" in said.message
    assert {path for path in around.rglob("*") if "evil" in path.name} == before
    assert not Path("/tmp/evil").exists()
    assert not (zoo_home / "hub").exists()


@pytest.mark.parametrize("name", ["info", "revision", "config HEAD", "config GET", "weights HEAD"])
@pytest.mark.parametrize("target", ["http://hub.example/x", "ftp://hub.example/x", "file:///etc/passwd"])
def test_a_redirect_to_where_it_could_be_read(
    target: str, name: str, repo: Repo, hub: HubDouble, access: Access, zoo_home: Path
) -> None:
    hub.plant(*REQUESTS[name], hub_faults.redirect(target), times=99)
    refused(access, FetchError)
    assert not (zoo_home / "hub").exists()


@pytest.mark.parametrize("name", ["info", "config HEAD", "config GET"])
def test_a_redirect_elsewhere_brings_no_token(name: str, repo: Repo, hub: HubDouble, access: Access) -> None:
    hub.plant(*REQUESTS[name], hub_faults.redirect(f"{hub.cdn_url}/{'0' * 64}"), times=99)
    refused(access, FetchError)
    followed = [request for request in hub.log if request.origin == "cdn"]
    assert followed or name == "config HEAD", "the place of a large file, which was none"
    assert hub.leaks == []


def test_names_that_lead_elsewhere(repo: Repo, hub: HubDouble, access: Access, zoo_home: Path, tmp_path: Path) -> None:
    repo.extra_siblings += [*HOSTILE_NAMES, "../config.json", "/model.safetensors"]
    before = published.tree(tmp_path)
    weights.pull(ID, access=access)
    assert is_whole(zoo_home, repo)
    theirs = hub.create("org/theirs", {"x.txt": b"x"})
    for name in (
        "../evil.state",
        "/etc/evil.state",
        "a/../../evil.state",
        "..\\evil.state",
        "evil\n.state",
        "%2e.state",
    ):
        theirs.extra_siblings[:] = [name]
        refused(access, FetchError, name="org/theirs")
    assert published.tree(tmp_path) == before
    assert all("evil" not in request.path for request in hub.log)
    assert nothing_half(zoo_home)


def endless(piece: bytes, pause: float = 0.0) -> Fault:
    """A body in chunks that does not end."""

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
    monkeypatch.setattr(client, "MAX_TOLD_BYTES", 2**20)
    hub.plant(*REQUESTS[name], endless(b" " * 65536), times=9)
    assert "is larger than 1,048,576 bytes, and was not kept" in refused(access, FetchError).message
    assert nothing_half(zoo_home)


@pytest.mark.parametrize("name", ["revision", "config GET", "weights GET"])
def test_an_answer_that_drips(name: str, repo: Repo, hub: HubDouble, zoo_home: Path) -> None:
    hub.plant(*REQUESTS[name], endless(b" ", 0.02), times=9)
    access = Access(policy=Policy(timeout=0.15, attempts=2, sleep=lambda seconds: None))
    start = time.monotonic()
    assert "bytes in 0 seconds" in refused(access, Unavailable).message
    assert time.monotonic() - start < 5
    assert nothing_half(zoo_home)


# --- this machine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("place", ["hub", "sources", "client", "out", "lock"])
def test_a_disk_that_refuses(
    place: str,
    number: int,
    repo: Repo,
    access: Access,
    zoo_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = {
        "hub": zoo_home / "hub",
        "sources": zoo_home / "sources",
        "client": Path(os.environ["HF_HOME"]),
        "out": tmp_path / "out",
        "lock": zoo_home / "zoo.lock",
    }[place]
    real = os.open, os.mkdir
    armed = [True]

    def hit(path: Any) -> None:
        name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
        staged = place in ("lock", "out") and f".{root.name}." in name
        if armed[0] and not name.endswith(".lock") and (staged or Path(name).is_relative_to(root)):
            raise OSError(number, os.strerror(number), name)

    def mkdir(path: Any, *rest: Any, **more: Any) -> None:
        hit(path)
        real[1](path, *rest, **more)

    opened = io.open

    def open_(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if set(mode) & set("wax+"):
            hit(path)
        return opened(path, mode, *rest, **more)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(io, "open", open_)
    monkeypatch.setattr(builtins, "open", open_)
    with pytest.raises(ZooError) as error:
        weights.pull(ID, out=tmp_path / "out" if place == "out" else None, access=access)
    assert os.strerror(number) in error.value.message
    armed[0] = False
    assert not (tmp_path / "out").exists()
    assert nothing_half(zoo_home)
    weights.pull(ID, access=access)
    assert is_whole(zoo_home, repo)


def test_a_complete_cache_may_be_read_only(
    repo: Repo, access: Access, zoo_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = weights.pull(ID, access=access)

    def full(*anything: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "touch", "write_bytes", "write_text", "rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, full)
    monkeypatch.setattr(os, "mkdir", full)
    assert weights.pull(ID, access=access).files == here.files
    assert pylo_zoo.load(URI, access=access).fingerprint == here.artifact.fingerprint


def test_threads_share_a_cache(repo: Repo, hub: HubDouble, access: Access, zoo_home: Path) -> None:
    found: list[Any] = []
    patient = dataclasses.replace(access, policy=dataclasses.replace(access.policy, timeout=20))

    def work() -> None:
        try:
            found.append(weights.pull(ID, access=patient).files)
        except Exception as error:  # for the assertion to show
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [found[0]] * 4
    assert len(hub.requests("GET", STORAGE)) == 2, "the weights and the vectors, once"
    assert is_whole(zoo_home, repo)


def test_processes_share_a_cache(repo: Repo, hub: HubDouble, tmp_path: Path, zoo_home: Path) -> None:
    code = "import sys; from pylo_zoo.cli import main; main(['pull', 'org/elo', '--json'])"
    env = hub.environment(tmp_path / "hf-home", PYLO_ZOO_HOME=str(zoo_home))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    done = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], done
    assert len({json.dumps(json.loads(out)["files"]) for out, _ in done}) == 1
    assert len(hub.requests("GET", STORAGE)) == 2
    assert is_whole(zoo_home, repo)


def test_what_a_killed_process_left(repo: Repo, access: Access, zoo_home: Path) -> None:
    place = zoo_home / "hub" / "org--elo"
    left = place / f".{repo.head}.new-0123abcd"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{")
    other = place / f".{'1' * 40}.new-0123abcd"
    other.mkdir()
    weights.pull(ID, access=access)
    assert is_whole(zoo_home, repo)
    assert sorted(path.name for path in place.iterdir()) == sorted([repo.head, other.name])


def test_nothing_is_recorded_before_all_is_there(repo: Repo, hub: HubDouble, access: Access, zoo_home: Path) -> None:
    hub.plant(*REQUESTS["card GET"], hub_faults.status(404, X_Error_Code="EntryNotFound"), times=9)
    refused(access, NotFound)
    assert not (zoo_home / "zoo.lock").exists()
    hub._planted.clear()
    weights.pull(ID, access=access)
    assert lockfile.read_all(zoo_home / "zoo.lock").repositories[URI].commit == repo.head
