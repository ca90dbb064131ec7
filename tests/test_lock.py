"""zoo.lock: hashes are recorded on first use, later changes are refused, and several processes can write the file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fault_server
import pytest
from fault_server import Files

from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, FetchError, Policy, fetch, lockfile
from pylo_zoo.fetch.lockfile import Lock, Pin, RepositoryPin

PIN = Pin("a" * 64, 7, "2026-01-31")
GOOD = {"version": 1, "files": {"gs://bucket/params": dataclasses.asdict(PIN)}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with fault_server.serving() as server:
        server.files["/params"] = b"first"
        yield server


pytestmark = pytest.mark.usefixtures("in_an_empty_directory")


@pytest.fixture
def access(messages: list[str]) -> Access:
    return Access(notify=messages.append, policy=Policy(timeout=5, sleep=lambda seconds: None))


# --- trust on first use ------------------------------------------------------------------------------------------


def test_the_first_use_is_recorded(server: Files, access: Access, messages: list[str], zoo_home: Path) -> None:
    uri = f"{server.url}/params"
    path = fetch(uri, access=access)
    sha256 = hashlib.sha256(b"first").hexdigest()
    (pin,) = lockfile.read(zoo_home / "zoo.lock").values()
    assert (pin.sha256, pin.bytes) == (sha256, 5)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", pin.date)
    assert messages == [f"{uri} had no known hash: recorded sha256 {sha256[:12]}… in {zoo_home / 'zoo.lock'}."]
    assert fetch(uri, access=access) == path
    assert len(messages) == len(server.log) == 1


def test_a_change_is_refused_until_it_is_accepted(server: Files, access: Access, zoo_home: Path) -> None:
    uri = f"{server.url}/params"
    first = fetch(uri, access=access)
    before = (zoo_home / "zoo.lock").read_bytes()
    server.files["/params"] = b"other"
    assert fetch(uri, access=access) == first, "the recorded file is cached"
    first.unlink()
    with pytest.raises(
        FetchError, match=r"has changed since 20\d\d-\d\d-\d\d: its sha256 is .*, and the lock file"
    ) as no:
        fetch(uri, access=access)
    assert "--update-lock" in no.value.hint
    assert (zoo_home / "zoo.lock").read_bytes() == before
    accepted = fetch(uri, access=dataclasses.replace(access, update_lock=True))
    assert accepted.read_bytes() == b"other"
    assert fetch(uri, access=access) == accepted


def test_a_pin_from_the_caller_needs_no_record(server: Files, access: Access, zoo_home: Path) -> None:
    fetch(f"{server.url}/params", sha256=hashlib.sha256(b"first").hexdigest(), access=access)
    assert not (zoo_home / "zoo.lock").exists()


def test_a_refused_file_is_not_recorded(server: Files, access: Access, zoo_home: Path) -> None:
    with pytest.raises(FetchError):
        fetch(f"{server.url}/params", bytes=4, access=access)
    assert not (zoo_home / "zoo.lock").exists()


def test_a_recorded_file_with_another_length_than_the_caller_expects(server: Files, access: Access) -> None:
    uri = f"{server.url}/params"
    fetch(uri, access=access)
    with pytest.raises(FetchError, match="5 bytes, not 4"):
        fetch(uri, bytes=4, access=access)


def test_a_lock_file_that_cannot_be_written(server: Files, access: Access, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ZooError, match="cannot be"):
        fetch(f"{server.url}/params", access=dataclasses.replace(access, lock=tmp_path / "file" / "zoo.lock"))


# --- location ----------------------------------------------------------------------------------------------------


def test_which_lock_file_applies(tmp_path: Path, zoo_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lockfile.location() == zoo_home / "zoo.lock"
    Path("zoo.lock").write_bytes(lockfile.render_lock(Lock()))
    assert lockfile.location() == Path("zoo.lock")
    monkeypatch.setenv("PYLO_ZOO_LOCK", "named.lock")
    assert lockfile.location() == Path("named.lock")
    assert lockfile.location(Path("given.lock")) == Path("given.lock")


def test_an_empty_lock_file_in_the_project_is_used(server: Files, access: Access, zoo_home: Path) -> None:
    Path("zoo.lock").write_bytes(lockfile.render_lock(Lock()))
    fetch(f"{server.url}/params", access=access)
    assert list(lockfile.read(Path("zoo.lock"))) == [f"{server.url}/params"]
    assert not (zoo_home / "zoo.lock").exists()


# --- content -----------------------------------------------------------------------------------------------------


def test_equal_pins_give_equal_bytes(tmp_path: Path) -> None:
    path = tmp_path / "zoo.lock"
    pins = {"gs://b/y": PIN, "gs://b/x": PIN}
    repositories = {f"hf://org/{name}": RepositoryPin("c" * 40, {"config.json": "d" * 64}, PIN.date) for name in "yx"}
    lock = Lock(pins, repositories)
    path.write_bytes(lockfile.render_lock(lock))
    assert lockfile.read_all(path) == lock
    backwards = Lock(dict(reversed(pins.items())), dict(reversed(repositories.items())))
    assert lockfile.render_lock(lockfile.read_all(path)) == lockfile.render_lock(backwards) == path.read_bytes()
    assert lockfile.read_all(tmp_path / "absent") == Lock()
    assert "repositories" not in json.loads(lockfile.render_lock(Lock(pins))), "older readers reject unknown keys"


def test_recording_keeps_other_pins(tmp_path: Path) -> None:
    path = tmp_path / "zoo.lock"
    path.write_text(json.dumps(GOOD))
    lockfile.record(path, "gs://bucket/other", "b" * 64, 8)
    assert lockfile.read(path)["gs://bucket/params"] == PIN
    assert lockfile.read(path)["gs://bucket/other"].sha256 == "b" * 64


def pin(**changes: object) -> str:
    return json.dumps({"version": 1, "files": {"gs://bucket/params": {**dataclasses.asdict(PIN), **changes}}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 1}',
        '{"version": 2, "files": {}}',
        '{"version": true, "files": {}}',
        '{"version": 1, "files": []}',
        '{"version": 1, "files": {}, "more": 1}',
        '{"version": 1, "files": {"a": 1}}',
        '{"version": 1, "files": {"a": {}}}',
        '{"version": 1, "version": 1, "files": {}}',
        '{"version": 1, "files": {"a": NaN}}',
        "[" * 100_000,
        "\xff",
        " " * (lockfile.MAX_BYTES + 1),
        pin(sha256="A" * 64),
        pin(sha256="../../x"),
        pin(bytes=-1),
        pin(bytes=0),
        pin(bytes="7"),
        pin(bytes=True),
        pin(date="yesterday"),
        pin(url="x"),
    ],
    ids=lambda text: text[:40],
)
def test_an_invalid_lock_file_is_refused_and_kept(text: str, server: Files, access: Access) -> None:
    path = Path("zoo.lock")
    path.write_text(text, encoding="latin-1")
    before = path.read_bytes()
    with pytest.raises(ZooError, match=r"zoo\.lock"):
        fetch(f"{server.url}/params", access=access)
    assert path.read_bytes() == before
    assert server.log == []


def test_processes_add_to_one_file(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from pylo_zoo.fetch import lockfile\n"
    code += "for i in range(5): lockfile.record(Path('zoo.lock'), f'gs://b/{sys.argv[1]}/{i}', 'c' * 64, 1)"
    children = [subprocess.Popen([sys.executable, "-c", code, str(n)], env=dict(os.environ)) for n in range(4)]
    assert [child.wait(60) for child in children] == [0] * 4
    assert len(lockfile.read(tmp_path / "zoo.lock")) == 20
